package wan

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Line is what lies between the two ends of a Net.
type Line struct {
	RTT  time.Duration // half of it each way
	Loss float64       // how likely a packet is lost, each way
	Rate float64       // bits a second each way; 0: no limit
	// Queue is how long a packet may wait for its turn at that rate; one that would
	// wait longer is dropped, as in a router's buffer. Default 25 ms.
	Queue time.Duration
	// Congestion is the ends' default congestion control. Default cubic, as Linux has
	// it; a program that asks for another one gets it.
	Congestion string
}

// Net is two network namespaces and a line between them. The TCP at both ends is the
// kernel's own: what it does about delay, loss and a full queue is what it does
// anywhere. Packets are carried by this process, and leave nothing behind when it
// ends. It needs root, /dev/net/tun and iproute2.
//
// A kernel that hands over a burst of segments as one packet is welcome to: a lost
// segment is cut out of it, and the parts before and after it travel on.
type Net struct {
	Near, Far *Side
	line      Line
	ready     chan struct{}
	stats     [2]pipe
}

// NewNet prepares a net. Run makes and runs it.
func NewNet(line Line) *Net {
	if line.Queue == 0 {
		line.Queue = 25 * time.Millisecond
	}
	if line.Congestion == "" {
		line.Congestion = "cubic"
	}
	n := &Net{line: line, ready: make(chan struct{})}
	n.Near = newSide("10.213.0.1", n)
	n.Far = newSide("10.213.0.2", n)
	return n
}

// Ready is closed when both sides are there.
func (n *Net) Ready() <-chan struct{} { return n.ready }

// Stats says how many segments were carried, lost at random, and dropped because the
// queue was full, both ways together.
func (n *Net) Stats() (carried, lost, dropped int64) {
	for i := range n.stats {
		p := &n.stats[i]
		carried, lost, dropped = carried+p.carried.Load(), lost+p.lost.Load(), dropped+p.dropped.Load()
	}
	return carried, lost, dropped
}

// Run makes both sides, carries packets until ctx ends, and takes the sides down.
// Processes that were started in them must have ended by then.
func (n *Net) Run(ctx context.Context) error {
	var threads, pipes sync.WaitGroup
	defer threads.Wait()
	defer close(n.Near.quit)
	defer close(n.Far.quit)
	errs := make(chan error, 6)
	for _, s := range []*Side{n.Near, n.Far} {
		threads.Go(func() { s.thread(errs) })
	}
	made := errors.Join(<-errs, <-errs)
	defer pipes.Wait()
	defer n.Near.close()
	defer n.Far.close()
	if made != nil {
		return fmt.Errorf("make a network namespace: %w", made)
	}
	for i, way := range [][2]*Side{{n.Near, n.Far}, {n.Far, n.Near}} {
		p := &n.stats[i]
		p.line, p.in, p.out = n.line, way[0].tun, way[1].tun
		p.packets = make(chan packet, 1<<16)
		pipes.Go(func() { errs <- p.read() })
		pipes.Go(func() { errs <- p.write() })
	}
	close(n.ready)
	select {
	case <-ctx.Done():
		return nil
	case err := <-errs:
		return err
	}
}

// Side is one network namespace. It has loopback, and one address on the line.
type Side struct {
	net  *Net
	addr netip.Addr
	tun  *os.File
	work chan func()
	quit chan struct{}
}

func newSide(addr string, n *Net) *Side {
	return &Side{net: n, addr: netip.MustParseAddr(addr), work: make(chan func()), quit: make(chan struct{})}
}

// Addr is the side's address on the line.
func (s *Side) Addr() string { return s.addr.String() }

var errDown = errors.New("the net does not run")

// Do runs f on a thread of the namespace: a process that f starts lives there, and so
// does a socket that f makes itself, not in another goroutine. It works while Run does.
func (s *Side) Do(f func() error) error {
	done := make(chan error, 1)
	select {
	case <-s.net.ready:
	case <-s.quit:
		return errDown
	}
	select {
	case s.work <- func() { done <- f() }:
		return <-done
	case <-s.quit:
		return errDown
	}
}

// thread owns the namespace. Its thread is of no use to other goroutines afterwards,
// so it is never unlocked and ends with this one.
func (s *Side) thread(errs chan<- error) {
	runtime.LockOSThread()
	err := s.make()
	errs <- err
	if err != nil {
		return
	}
	for {
		select {
		case f := <-s.work:
			f()
		case <-s.quit:
			return
		}
	}
}

func (s *Side) close() {
	if s.tun != nil {
		_ = s.tun.Close() // its reader and its writer end
	}
}

const device = "wan0"

// virtualHeader precedes each packet: it says whether it is a burst (struct
// virtio_net_hdr).
const virtualHeader = 10

// make moves this thread into a namespace of its own and sets that up.
func (s *Side) make() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare (it takes root): %w", err)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open /dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(device)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return errors.Join(fmt.Errorf("make a TUN device: %w", err), unix.Close(fd))
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4); err != nil {
		return errors.Join(fmt.Errorf("take bursts from the TUN device: %w", err), unix.Close(fd))
	}
	s.tun = os.NewFile(uintptr(fd), device)
	if err := s.configure(); err != nil {
		return err
	}
	return nil
}

func (s *Side) configure() error {
	sock, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(sock) }() // it was for the calls below only
	set := func(name string, call uint, fill func(*unix.Ifreq) error) error {
		req, err := unix.NewIfreq(name)
		if err == nil {
			err = fill(req)
		}
		if err == nil {
			err = unix.IoctlIfreq(sock, call, req)
		}
		if err != nil {
			return fmt.Errorf("configure %s: %w", name, err)
		}
		return nil
	}
	up := func(req *unix.Ifreq) error { req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING); return nil }
	addr := s.addr.As4()
	err = errors.Join(
		set("lo", unix.SIOCSIFFLAGS, up),
		set(device, unix.SIOCSIFADDR, func(r *unix.Ifreq) error { return r.SetInet4Addr(addr[:]) }),
		set(device, unix.SIOCSIFNETMASK, func(r *unix.Ifreq) error { return r.SetInet4Addr([]byte{255, 255, 255, 0}) }),
		set(device, unix.SIOCSIFMTU, func(r *unix.Ifreq) error { r.SetUint32(1500); return nil }),
		set(device, unix.SIOCSIFTXQLEN, func(r *unix.Ifreq) error { r.SetUint32(10000); return nil }),
		set(device, unix.SIOCSIFFLAGS, up),
		// What one connection learned of the line must not change the next measurement.
		os.WriteFile("/proc/sys/net/ipv4/tcp_no_metrics_save", []byte("1"), 0o644),
	)
	if err != nil {
		return err
	}
	// By the route, since a namespace's sysctl takes only what the host allows to all.
	route := netip.PrefixFrom(s.addr, 24).Masked().String()
	out, err := exec.CommandContext(context.Background(), "ip", "route", "replace", route, "dev", device, "src", s.Addr(), "congctl", s.net.line.Congestion).CombinedOutput()
	if err != nil {
		return fmt.Errorf("choose the congestion control %s with ip route: %w\n%s", s.net.line.Congestion, err, out)
	}
	return nil
}

// packet is one on its way, with its virtual header.
type packet struct {
	due   time.Time
	bytes []byte
}

// pipe carries packets one way.
type pipe struct {
	line    Line
	in, out *os.File
	packets chan packet

	carried, lost, dropped atomic.Int64 // segments
}

// read takes packets, decides their fate and says when they arrive.
func (p *pipe) read() error {
	defer close(p.packets)
	var free time.Time // when the line can take the next packet
	buf := make([]byte, 1<<17)
	for {
		n, err := p.in.Read(buf)
		switch {
		case errors.Is(err, os.ErrClosed) || errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("read from the line: %w", err)
		case n <= virtualHeader:
			continue
		}
		for _, part := range p.survivors(buf[:n]) {
			now := time.Now()
			due := now
			if p.line.Rate > 0 {
				if free.Before(now) {
					free = now
				}
				if free.Sub(now) > p.line.Queue {
					p.dropped.Add(int64(segments(part)))
					continue
				}
				free = free.Add(time.Duration(float64(wireSize(part)) * 8 / p.line.Rate * float64(time.Second)))
				due = free
			}
			p.packets <- packet{due.Add(p.line.RTT / 2), part}
			p.carried.Add(int64(segments(part)))
		}
	}
}

// survivors are the parts of a packet that are not lost, copied.
func (p *pipe) survivors(b []byte) [][]byte {
	n := segments(b)
	var parts [][]byte
	begin := 0
	for i := range n {
		if p.line.Loss == 0 || rand.Float64() >= p.line.Loss {
			continue
		}
		p.lost.Add(1)
		if i > begin {
			parts = append(parts, piece(b, begin, i))
		}
		begin = i + 1
	}
	if begin < n {
		parts = append(parts, piece(b, begin, n))
	}
	return parts
}

// write delivers packets when they are due.
func (p *pipe) write() error {
	runtime.LockOSThread() // it sleeps in the kernel, more exactly than the runtime does
	for k := range p.packets {
		if d := time.Until(k.due); d > 0 {
			ts := unix.NsecToTimespec(int64(d))
			_ = unix.Nanosleep(&ts, nil) // a signal may wake it early: the packet is early, then
		}
		_, err := p.out.Write(k.bytes)
		switch {
		case errors.Is(err, os.ErrClosed):
			for range p.packets { // so that the reader ends
			}
			return nil
		case err != nil: // the device's own queue is full, or the packet is none it takes
			p.dropped.Add(int64(segments(k.bytes)))
		}
	}
	return nil
}

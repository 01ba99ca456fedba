package carrier

import (
	"crypto/tls"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// notSent is how much unsent data the kernel queues for a link (TCP_NOTSENT_LOWAT):
// enough to keep the wire busy, little enough that a small frame does not wait
// behind megabytes of bulk.
const notSent = 256 << 10

// bbr is the kernel's name for it.
const bbr = "bbr"

// allowed lists the congestion controls that a program without privileges may choose.
const allowed = "/proc/sys/net/ipv4/tcp_allowed_congestion_control"

// Tune asks for BBR, without which one lost packet in a hundred collapses a link,
// where the kernel offers it, and says which congestion control is in use. Others than
// BBR slow down for loss by themselves: of their lines there is nothing to watch, and line
// is nil.
func Tune(c Conn) (congestion string, line Line) {
	t := tcpConn(c.NetConn())
	if t == nil {
		return "", nil
	}
	rc, err := t.SyscallConn()
	if err != nil {
		return "", nil
	}
	var before, name string
	_ = rc.Control(func(fd uintptr) {
		before, _ = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		_ = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, bbr)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSent)
		if s, err := unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION); err == nil {
			name = s
		}
	})
	if name != bbr {
		return name, nil
	}
	return name, bbrLine{raw: rc, again: before != bbr || anyoneMayChoose(bbr)}
}

// anyoneMayChoose is false for a congestion control that came with the route, say: once
// left, it could not be had again.
func anyoneMayChoose(congestion string) bool {
	list, err := os.ReadFile(allowed)
	return err == nil && slices.Contains(strings.Fields(string(list)), congestion)
}

// bbrLine is a link's socket under BBR.
type bbrLine struct {
	raw   syscall.RawConn
	again bool // it may be chosen again
}

func (l bbrLine) Sample() (v Sample, ok bool) {
	_ = l.raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return
		}
		cc, err := unix.GetsockoptTCPCCBBRInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_CC_INFO)
		if err != nil || cc.Pacing_gain == 0 || info.Bytes_sent == 0 {
			return // it is not BBR's, or the kernel is older than 4.19
		}
		v = Sample{
			Sent: info.Bytes_sent, Retransmitted: info.Bytes_retrans,
			Bandwidth: uint64(cc.Bw_hi)<<32 | uint64(cc.Bw_lo),
			RTT:       time.Duration(info.Rtt) * time.Microsecond,
		}
		ok = true
	})
	return v, ok
}

func (l bbrLine) Restart() {
	if !l.again {
		return
	}
	_ = l.raw.Control(func(fd uintptr) {
		// Choosing what is chosen changes nothing; every kernel has reno, for everybody.
		if unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno") == nil {
			_ = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, bbr)
		}
	})
}

func (l bbrLine) Limit(rate uint64) {
	if rate == 0 || rate > math.MaxInt32 {
		rate = math.MaxUint32 // which means none
	}
	_ = l.raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, int(int32(uint32(rate))))
	})
}

// tcpConn finds the TCP connection beneath wrappers that say what they wrap.
func tcpConn(c net.Conn) *net.TCPConn {
	for {
		switch t := c.(type) {
		case *net.TCPConn:
			return t
		case *tls.Conn:
			c = t.NetConn()
		case interface{ NetConn() net.Conn }:
			c = t.NetConn()
		default:
			return nil
		}
	}
}

// readiness reads from a socket into a buffer that it takes only when there is something
// to read: of ten thousand idle links each would else keep one.
type readiness struct {
	conn net.Conn
	raw  syscall.RawConn
	try  func(fd uintptr) bool // attempt as a value, so that reading allocates nothing

	size int
	buf  *[]byte
	n    int
	err  error
}

// newReadiness returns nil for what does not show its socket: TLS has reads of its own.
// A connection that shows it must not have any: they would be passed by.
func newReadiness(c net.Conn) *readiness {
	s, ok := c.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return nil
	}
	r := &readiness{conn: c, raw: raw}
	r.try = r.attempt
	return r
}

// read is net.Conn's Read, with the buffer as a result; nil when there is nothing.
func (r *readiness) read(size int) (*[]byte, int, error) {
	r.size, r.buf, r.n, r.err = size, nil, 0, nil
	if err := r.raw.Read(r.try); err != nil { // closed, or a deadline
		if op, ok := errors.AsType[*net.OpError](err); ok {
			op.Op = "read" // as package net says it, not "raw-read"
		}
		return nil, 0, err
	}
	b, n := r.buf, r.n
	r.buf = nil
	switch {
	case r.err != nil:
		PutBuffer(b)
		return nil, 0, &net.OpError{Op: "read", Net: r.conn.LocalAddr().Network(), Source: r.conn.LocalAddr(), Addr: r.conn.RemoteAddr(), Err: os.NewSyscallError("read", r.err)}
	case n == 0:
		PutBuffer(b)
		return nil, 0, io.EOF
	}
	return b, n, nil
}

// attempt says whether the read is over, with whatever result.
func (r *readiness) attempt(fd uintptr) bool {
	r.buf = GetBuffer(r.size)
	for {
		// Not package unix's: the race detector takes what one goroutine reads for
		// ordered behind what another wrote only where both are package syscall's.
		r.n, r.err = syscall.Read(int(fd), (*r.buf)[:r.size])
		if !errors.Is(r.err, syscall.EINTR) {
			break
		}
	}
	if errors.Is(r.err, syscall.EAGAIN) {
		PutBuffer(r.buf)
		r.buf = nil
		return false
	}
	r.n = max(r.n, 0) // -1 with an error
	return true
}

// Package wan owns an emulated wide-area link for tests: a TCP relay in this
// process with a delay, a bandwidth and outages of every kind. It needs no
// privileges and no kernel support, runs on the loopback, and is for tests only.
//
// What a Link cannot show is what TCP itself does with lost packets: to an endpoint,
// loss here is a stall, as it is to every program above TCP. A Net can: it joins two
// network namespaces by a line that delays and loses packets, which takes root.
package wan

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"
)

// Options are the properties of a link. The zero value adds nothing.
type Options struct {
	Delay      time.Duration // one way; the round trip is twice that
	Bandwidth  int64         // bytes per second in each direction, shared by all connections; 0: unbounded
	Buffer     int           // bytes under way per connection and direction; 0: enough for Delay and Bandwidth
	StallEvery int64         // after so many bytes of a connection and direction …
	StallFor   time.Duration // … it stands still for so long, as after a lost packet
}

// state is what the wire does with bytes.
type state int

const (
	flowing   state = iota
	frozen          // held back, nothing is lost
	swallowed       // read and thrown away
	cut             // connections are reset, new ones refused
)

// Link is a running link to one target. It is safe for concurrent use.
type Link struct {
	tb     testing.TB
	target string
	addr   *net.TCPAddr
	wires  [2]*wire // to the target, and back
	wg     sync.WaitGroup

	mu       sync.Mutex
	options  Options
	state    state
	changed  chan struct{} // closed when state changes
	listener *net.TCPListener
	pairs    map[*pair]bool
	accepted int
	closed   bool
}

// wire is one direction, shared by all connections.
type wire struct {
	mu   sync.Mutex
	free time.Time // when the bytes sent so far have left
}

// Start runs a link to a TCP address until the test ends.
func Start(tb testing.TB, target string, o Options) *Link {
	tb.Helper()
	l := &Link{tb: tb, target: target, options: o, changed: make(chan struct{}), pairs: map[*pair]bool{}, wires: [2]*wire{{}, {}}}
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		tb.Fatalf("listen for the emulated link: %v", err)
	}
	l.addr = listener.Addr().(*net.TCPAddr)
	l.serve(listener)
	tb.Cleanup(l.close)
	return l
}

// Addr is where to connect to: host and port. It stays the same through a Cut.
func (l *Link) Addr() string { return l.addr.String() }

// Conns is the number of connections that are open now.
func (l *Link) Conns() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.pairs)
}

// Accepted is the number of connections that were ever accepted.
func (l *Link) Accepted() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.accepted
}

// Set changes the properties from now on; what is under way keeps its old delay.
func (l *Link) Set(o Options) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.options = o
}

// Cut resets all connections and refuses new ones, as a peer does whose process
// died. It returns when that is done.
func (l *Link) Cut() {
	l.mu.Lock()
	listener := l.listener
	l.listener = nil
	l.setState(cut)
	l.mu.Unlock()
	if listener != nil {
		_ = listener.Close()
	}
	l.Reset()
}

// Reset resets all connections, once; new ones are taken.
func (l *Link) Reset() {
	l.mu.Lock()
	pairs := make([]*pair, 0, len(l.pairs))
	for p := range l.pairs {
		pairs = append(pairs, p)
	}
	l.mu.Unlock()
	for _, p := range pairs {
		p.reset()
	}
}

// Freeze pulls the cable: nothing passes, nothing is lost, nobody is told. After
// Heal the connections go on where they were, if their ends still want them.
func (l *Link) Freeze() { l.enter(frozen) }

// Blackhole loses the peer without a word, as when a NAT forgets a connection or a
// machine loses its power: connections stay open and what is sent on them vanishes,
// for good, and new connections are accepted to the same fate. After Heal new
// connections work; those of before never do.
func (l *Link) Blackhole() { l.enter(swallowed) }

// Heal ends a Cut, Freeze or Blackhole. It returns when connections are taken.
func (l *Link) Heal() {
	l.tb.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.listener == nil && !l.closed {
		listener, err := l.listenAgain()
		if err != nil {
			l.tb.Errorf("heal the emulated link: %v", err)
			return
		}
		l.serve(listener)
	}
	l.setState(flowing)
}

func (l *Link) enter(s state) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state == cut {
		return // there is nothing left to lose
	}
	l.setState(s)
}

// setState is called with mu held.
func (l *Link) setState(s state) {
	l.state = s
	if s == swallowed {
		for p := range l.pairs {
			p.lost.Store(true)
		}
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

// listenAgain takes the old port. Another process can hold it for a moment, as the
// near end of a connection of its own.
func (l *Link) listenAgain() (listener *net.TCPListener, err error) {
	for range 200 {
		if listener, err = net.ListenTCP("tcp", l.addr); err == nil {
			return listener, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, err
}

// serve is called with mu held or before the link is shared.
func (l *Link) serve(listener *net.TCPListener) {
	l.listener = listener
	l.wg.Go(func() {
		for {
			conn, err := listener.AcceptTCP()
			if err != nil {
				return // closed
			}
			l.wg.Go(func() { l.carry(conn) })
		}
	})
}

// carry connects one accepted connection with the target and waits for its end.
func (l *Link) carry(near *net.TCPConn) {
	p := &pair{link: l, near: near, done: make(chan struct{}), accepted: time.Now()}
	if !l.add(p) {
		p.reset()
		return
	}
	defer l.remove(p)
	if p.lost.Load() {
		p.swallow(near)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	far, err := new(net.Dialer).DialContext(ctx, "tcp", l.target)
	if err != nil {
		p.reset() // the target refuses, and so does the link
		return
	}
	if !p.setFar(far.(*net.TCPConn)) {
		return
	}
	p.run()
}

func (l *Link) add(p *pair) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.state == cut {
		return false
	}
	p.lost.Store(l.state == swallowed)
	l.pairs[p] = true
	l.accepted++
	return true
}

func (l *Link) remove(p *pair) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.pairs, p)
}

// waitFlowing blocks while the cable is out; it is false when the pair ended.
func (l *Link) waitFlowing(p *pair) bool {
	for {
		l.mu.Lock()
		s, changed := l.state, l.changed
		l.mu.Unlock()
		if s != frozen {
			return !p.ended()
		}
		select {
		case <-changed:
		case <-p.done:
			return false
		}
	}
}

// book takes a share of the wire for n bytes and says when they have arrived.
func (l *Link) book(w *wire, n int) time.Time {
	l.mu.Lock()
	o := l.options
	l.mu.Unlock()
	now := time.Now()
	if o.Bandwidth <= 0 {
		return now.Add(o.Delay)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.free.Before(now) {
		w.free = now
	}
	w.free = w.free.Add(time.Duration(float64(n) / float64(o.Bandwidth) * float64(time.Second)))
	return w.free.Add(o.Delay)
}

// current returns the options with the buffer filled in: what the link holds, plus
// a tenth of a second of queue as routers have.
func (l *Link) current() Options {
	l.mu.Lock()
	defer l.mu.Unlock()
	o := l.options
	switch {
	case o.Buffer > 0:
	case o.Bandwidth > 0:
		o.Buffer = max(64<<10, int(float64(o.Bandwidth)*(o.Delay+100*time.Millisecond).Seconds()))
	default:
		o.Buffer = 64 << 20
	}
	return o
}

// close ends everything; it returns when no goroutine is left.
func (l *Link) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.Cut()
	l.wg.Wait()
}

// errReset says that a connection was reset, not closed.
var errReset = errors.New("connection reset")

// String is for messages of tests.
func (l *Link) String() string { return fmt.Sprintf("link %s -> %s", l.addr, l.target) }

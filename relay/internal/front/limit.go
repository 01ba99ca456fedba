package front

import (
	"net"
	"net/netip"
	"sync"

	"github.com/adit-tunnel/adit/relay/internal/caller"
)

// limited is a listener that holds at most a number of connections of one
// address. What is over the limit is closed at once: it costs one accept.
type limited struct {
	net.Listener
	max    int
	exempt func(net.IP) bool
	mu     sync.Mutex
	open   map[netip.Addr]int
}

func newLimited(l net.Listener, most int, exempt func(net.IP) bool) net.Listener {
	if most <= 0 {
		return l
	}
	return &limited{Listener: l, max: most, exempt: exempt, open: make(map[netip.Addr]int)}
}

// Accept returns the next connection within the limit.
func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		tc, ok := c.(*net.TCPConn)
		if !ok {
			return c, nil
		}
		ap, ok := c.RemoteAddr().(*net.TCPAddr)
		if !ok || (l.exempt != nil && l.exempt(ap.IP)) {
			return c, nil
		}
		key := caller.Network(ap.AddrPort().Addr())
		if !l.take(key) {
			_ = c.Close()
			continue
		}
		return &limitedConn{TCPConn: tc, release: sync.OnceFunc(func() { l.give(key) })}, nil
	}
}

func (l *limited) take(key netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[key] >= l.max {
		return false
	}
	l.open[key]++
	return true
}

func (l *limited) give(key netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[key]--; l.open[key] <= 0 {
		delete(l.open, key)
	}
}

// limitedConn keeps the whole of *net.TCPConn (half-close, splice) and frees its
// place when it closes.
// It must have no Read of its own: links read from the socket itself.
type limitedConn struct {
	*net.TCPConn
	release func()
}

// Close closes the connection and frees its place.
func (c *limitedConn) Close() error {
	c.release()
	return c.TCPConn.Close()
}

// NetConn returns the connection beneath, for whoever looks for the socket: links set
// its congestion control.
func (c *limitedConn) NetConn() net.Conn { return c.TCPConn }

package carrier

import (
	"net"
	"sync"
)

// corkMax is the size from which a write is not held back but sent along with what
// is. A TLS record, 16 KiB and a little, is held back: four of them cost one system call.
const corkMax = 32 << 10

// bufConn reads ahead, in a buffer whose size follows the traffic, and can be corked: then
// it holds small writes back until they make one. It is for one reader.
type bufConn struct {
	net.Conn
	ready *readiness // nil where a read needs its buffer before it can wait
	buf   *[]byte    // nil, or with unread bytes at [r:len]
	r     int
	bulk  bool // the last read was large

	mu      sync.Mutex // of the writing side
	corked  bool
	pending *[]byte   // held back
	vec     [2][]byte // backs the vector of a gathering write
	vecs    net.Buffers
}

func newBufConn(c net.Conn) *bufConn { return &bufConn{Conn: c, ready: newReadiness(c)} }

// NetConn returns the connection beneath, as tls.Conn does.
func (c *bufConn) NetConn() net.Conn { return c.Conn }

// unread puts bytes back before what the connection delivers next.
func (c *bufConn) unread(p []byte) {
	if len(p) == 0 {
		return
	}
	b := append([]byte(nil), p...)
	if c.buf != nil {
		b = append(b, (*c.buf)[c.r:]...)
	}
	c.buf, c.r = &b, 0
}

// Read implements net.Conn.
func (c *bufConn) Read(p []byte) (int, error) {
	if c.buf != nil {
		n := copy(p, (*c.buf)[c.r:])
		if c.r += n; c.r == len(*c.buf) {
			PutBuffer(c.buf)
			c.buf, c.r = nil, 0
		}
		return n, nil
	}
	if len(p) >= DirectRead {
		n, err := c.Conn.Read(p)
		c.bulk = n >= smallBuffer
		return n, err
	}
	size := smallBuffer
	if c.bulk {
		size = BigBuffer
	}
	b, n, err := c.fill(size)
	if b == nil {
		return 0, err
	}
	c.bulk = n >= smallBuffer
	*b = (*b)[:n]
	m := copy(p, *b)
	if m < n {
		c.buf, c.r = b, m
	} else {
		PutBuffer(b)
	}
	if m > 0 {
		return m, nil // an error comes again with the next read
	}
	return 0, err
}

// fill reads into a buffer of its own. A peer that says nothing costs none, where the
// connection lets that be.
func (c *bufConn) fill(size int) (*[]byte, int, error) {
	if c.ready != nil {
		return c.ready.read(size)
	}
	b := GetBuffer(size)
	n, err := c.Conn.Read((*b)[:size])
	return b, n, err
}

// cork holds writes back until uncork.
func (c *bufConn) cork() {
	c.mu.Lock()
	c.corked = true
	c.mu.Unlock()
}

// uncork writes what was held back.
func (c *bufConn) uncork() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.corked = false
	return c.flush(nil)
}

// Write implements net.Conn.
func (c *bufConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.corked && len(p) < corkMax && (c.pending == nil || len(*c.pending)+len(p) <= BigBuffer) {
		c.pending = AppendBuffer(c.pending, p)
		return len(p), nil
	}
	if err := c.flush(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// writev writes two slices as one.
func (c *bufConn) writev(first, second []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gather(first, second)
}

// flush writes what was held back, and p behind it. The lock is held.
func (c *bufConn) flush(p []byte) error {
	if c.pending == nil {
		return c.gather(nil, p)
	}
	err := c.gather(*c.pending, p)
	PutBuffer(c.pending)
	c.pending = nil
	return err
}

func (c *bufConn) gather(first, second []byte) error {
	switch {
	case len(first) == 0 && len(second) == 0:
		return nil
	case len(first) == 0:
		_, err := c.Conn.Write(second)
		return err
	case len(second) == 0:
		_, err := c.Conn.Write(first)
		return err
	}
	// Only on a TCP socket this is one system call; elsewhere it is two writes.
	c.vec[0], c.vec[1] = first, second
	c.vecs = c.vec[:]
	_, err := c.vecs.WriteTo(c.Conn)
	c.vec[0], c.vec[1] = nil, nil
	return err
}

package link

import (
	"net"
	"sync"
	"time"
)

// carrier moves bytes for a mux. There is one reader and one writer at a time.
type carrier interface {
	Read(p []byte) (int, error)
	// write sends first and then second; both may be empty, neither is kept.
	write(first, second []byte) error
	// Close frees the reader and the writer at once.
	Close() error
	// goodbye tells the peer why, where there is a way to, and waits for it to
	// hang up. The carrier cannot write afterwards.
	goodbye(reason string, limit time.Duration)
	conn() net.Conn
	name() string
}

// raw carries a link on a plain connection.
type raw struct {
	b   *bufConn
	low *bufConn // beneath TLS, where this package knows it
}

func newRaw(conn net.Conn) *raw {
	b, ok := conn.(*bufConn)
	if !ok {
		b = newBufConn(conn)
	}
	return &raw{b: b, low: below(b.Conn)}
}

func (r *raw) Read(p []byte) (int, error)    { return r.b.Read(p) }
func (r *raw) Close() error                  { return r.b.Close() }
func (r *raw) goodbye(string, time.Duration) {}
func (r *raw) conn() net.Conn                { return r.b }
func (r *raw) name() string                  { return "tcp" }

func (r *raw) write(first, second []byte) error {
	if r.low == nil {
		return r.b.writeBoth(first, second)
	}
	r.low.hold() // crypto/tls writes record by record
	err := r.b.writeBoth(first, second)
	if e := r.low.release(); err == nil {
		err = e
	}
	return err
}

// Buffers come in sizes, so that what is idle, or small and unread, holds little.
const (
	smallBuffer = 4 << 10
	bigBuffer   = 256 << 10
)

var (
	bufferSizes = [...]int{smallBuffer, 16 << 10, 64 << 10, bigBuffer}
	buffers     [len(bufferSizes)]sync.Pool
)

// getBuffer returns an empty buffer, with room for n bytes if that is possible.
func getBuffer(n int) *[]byte {
	i := 0
	for i < len(bufferSizes)-1 && n > bufferSizes[i] {
		i++
	}
	if b, ok := buffers[i].Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, 0, bufferSizes[i])
	return &b
}

// putBuffer takes a buffer back; the caller must not touch it again. Outgrown
// ones are left to the collector.
func putBuffer(b *[]byte) {
	c := cap(*b)
	*b = (*b)[:0]
	for i, size := range bufferSizes {
		if c == size || i == len(bufferSizes)-1 && c > size && c <= 4*size {
			buffers[i].Put(b)
			return
		}
	}
}

// directRead is the size from which a read goes to the connection itself.
const directRead = 16 << 10

// holdMax is the size from which a write is not held back but sent along with what
// is. A TLS record, 16 KiB and a little, is held: four of them cost one system call.
const holdMax = 32 << 10

// bufConn reads ahead, in a buffer whose size follows the traffic, and can hold
// back small writes until they make one. It is for one reader.
type bufConn struct {
	net.Conn
	ready *readiness // nil where a read needs its buffer before it can wait
	buf   *[]byte    // nil, or with unread bytes at [r:len]
	r     int
	bulk  bool // the last read was large

	mu      sync.Mutex // of the writing side
	holding bool
	held    *[]byte
	vec     [2][]byte // backs the vector of a gathering write
	vecs    net.Buffers
}

func newBufConn(c net.Conn) *bufConn { return &bufConn{Conn: c, ready: newReadiness(c)} }

// NetConn returns the connection beneath, as tls.Conn does.
func (c *bufConn) NetConn() net.Conn { return c.Conn }

// unreadBefore puts bytes back before what the connection delivers next.
func (c *bufConn) unreadBefore(p []byte) {
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
			putBuffer(c.buf)
			c.buf, c.r = nil, 0
		}
		return n, nil
	}
	if len(p) >= directRead {
		n, err := c.Conn.Read(p)
		c.bulk = n >= smallBuffer
		return n, err
	}
	size := smallBuffer
	if c.bulk {
		size = bigBuffer
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
		putBuffer(b)
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
	b := getBuffer(size)
	n, err := c.Conn.Read((*b)[:size])
	return b, n, err
}

// hold keeps writes back until release.
func (c *bufConn) hold() {
	c.mu.Lock()
	c.holding = true
	c.mu.Unlock()
}

// release writes what was held back.
func (c *bufConn) release() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.holding = false
	return c.writeLocked(nil)
}

// Write implements net.Conn.
func (c *bufConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.holding && len(p) < holdMax {
		if c.held == nil {
			c.held = getBuffer(len(p))
		}
		if h := *c.held; len(h)+len(p) > cap(h) && cap(h) < bigBuffer {
			b := getBuffer(bigBuffer)
			*b = append(*b, h...)
			putBuffer(c.held)
			c.held = b
		}
		if len(*c.held)+len(p) <= cap(*c.held) {
			*c.held = append(*c.held, p...)
			return len(p), nil
		}
	}
	if err := c.writeLocked(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// writeBoth writes two slices as one.
func (c *bufConn) writeBoth(first, second []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gather(first, second)
}

func (c *bufConn) writeLocked(p []byte) error {
	if c.held == nil {
		return c.gather(nil, p)
	}
	err := c.gather(*c.held, p)
	putBuffer(c.held)
	c.held = nil
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

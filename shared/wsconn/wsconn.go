// Package wsconn owns TCP over WebSocket: a byte stream in binary messages, on
// either side of the connection. Each binary message is bytes of the stream, of any
// size; an empty one says that its sender has no more to send; text is refused. It
// never opens or upgrades a connection and buffers at most one piece per direction.
package wsconn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
)

// MaxMessage is the largest message that is taken. The sender of a larger one is
// disconnected with status 1009.
const MaxMessage = 1 << 20

// pieceSize is what a message is cut to on its way out, and the unit of buffering
// on the way in.
const pieceSize = 64 << 10

// Options tune a Conn. The zero value asks for all defaults.
type Options struct {
	// PingInterval is how often a ping is sent, so that nothing in between takes an
	// idle connection for a dead one. Default 25 s.
	PingInterval time.Duration
	// OnReset says with which status Reset closes. Without it Reset closes the
	// socket and says nothing.
	OnReset func() (websocket.StatusCode, string)
}

// Conn is a byte stream over a WebSocket. Close must be called, it waits for the
// goroutines. Read and Write may be used at the same time, each by one goroutine at
// a time. Unlike with websocket.NetConn a deadline interrupts a call and nothing
// else.
type Conn struct {
	ws   *websocket.Conn
	opts Options

	pieces  chan *[]byte // from pump; closed at the end of the peer's direction
	readErr error        // why, set before pieces is closed
	current *[]byte      // being read
	off     int
	rmu     sync.Mutex

	wmu    sync.Mutex
	ended  bool          // CloseWrite was called
	behind chan struct{} // a write that a deadline left behind; closed when it is done
	late   error         // how it ended

	readBy, writeBy deadline

	writing  atomic.Int32
	handing  atomic.Bool  // pump waits for a reader
	lastRead atomic.Int64 // when anything was last read, since start
	start    time.Time
	farewell atomic.Pointer[websocket.CloseError] // the peer's

	closeOnce sync.Once
	telling   sync.Mutex // held while the peer is told why the connection ends
	closeErr  error
	closing   chan struct{} // Close was called
	gone      chan struct{} // nothing comes from the peer any more, nor goes to it
	smu       sync.Mutex
	stopped   bool // no goroutine starts any more
	wg        sync.WaitGroup
}

var _ interface {
	net.Conn
	CloseWrite() error
	Reset() error
	Done() <-chan struct{}
} = (*Conn)(nil)

// New makes a Conn of an established WebSocket and owns it from then on.
func New(ws *websocket.Conn, opts Options) *Conn {
	if opts.PingInterval <= 0 {
		opts.PingInterval = 25 * time.Second
	}
	ws.SetReadLimit(MaxMessage)
	c := &Conn{
		ws: ws, opts: opts,
		pieces:  make(chan *[]byte),
		closing: make(chan struct{}), gone: make(chan struct{}),
		start: time.Now(),
	}
	c.readBy.init()
	c.writeBy.init()
	c.wg.Go(c.pump)
	c.wg.Go(c.ping)
	return c
}

var pieces = sync.Pool{New: func() any { b := make([]byte, pieceSize); return &b }}

// put gives a piece's buffer back.
func put(b *[]byte) {
	*b = (*b)[:cap(*b)]
	pieces.Put(b)
}

// Read implements net.Conn. It returns io.EOF when the peer has no more to send or
// has closed in order.
func (c *Conn) Read(p []byte) (int, error) {
	c.rmu.Lock()
	defer c.rmu.Unlock()
	if isClosed(c.closing) {
		return 0, fmt.Errorf("read: %w", net.ErrClosed)
	}
	if isClosed(c.readBy.wait()) {
		return 0, fmt.Errorf("read: %w", os.ErrDeadlineExceeded)
	}
	if c.current == nil {
		select {
		case b, ok := <-c.pieces:
			if !ok {
				return 0, c.readErr
			}
			c.current, c.off = b, 0
		case <-c.readBy.wait():
			return 0, fmt.Errorf("read: %w", os.ErrDeadlineExceeded)
		case <-c.closing:
			return 0, fmt.Errorf("read: %w", net.ErrClosed)
		}
	}
	n := copy(p, (*c.current)[c.off:])
	if c.off += n; c.off == len(*c.current) {
		put(c.current)
		c.current = nil
	}
	return n, nil
}

// Write implements net.Conn. It waits for as long as the peer does not read. A Write
// that a deadline interrupted may still send its bytes; what follows it waits for
// that, so that the stream stays whole.
func (c *Conn) Write(p []byte) (int, error) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	total := 0
	for len(p) > 0 {
		n := min(len(p), pieceSize)
		if err := c.send(p[:n]); err != nil {
			return total, fmt.Errorf("write: %w", err)
		}
		total += n
		p = p[n:]
	}
	return total, nil
}

// CloseWrite tells the peer that no more will come. Reading goes on.
func (c *Conn) CloseWrite() error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if c.ended {
		return nil
	}
	if err := c.send(nil); err != nil {
		return fmt.Errorf("end stream: %w", err)
	}
	c.ended = true
	return nil
}

// send sends one message. An empty one ends the stream.
func (c *Conn) send(p []byte) error {
	if c.ended || isClosed(c.closing) {
		return net.ErrClosed
	}
	expired := c.writeBy.wait()
	if isClosed(expired) {
		return os.ErrDeadlineExceeded
	}
	if c.behind != nil {
		select {
		case <-c.behind:
			c.behind = nil
			if c.late != nil {
				return c.late
			}
		case <-expired:
			return os.ErrDeadlineExceeded
		}
	}
	if !c.writeBy.set() {
		return c.post(p)
	}
	// Only another goroutine can be left behind by a deadline; the library would
	// close the connection instead.
	own := append([]byte(nil), p...)
	done := make(chan struct{})
	if !c.spawn(func() {
		defer close(done)
		c.late = c.post(own)
	}) {
		return net.ErrClosed
	}
	select {
	case <-done:
		return c.late
	case <-expired:
		c.behind = done
		return os.ErrDeadlineExceeded
	}
}

func (c *Conn) post(p []byte) error {
	c.writing.Add(1)
	defer c.writing.Add(-1)
	return c.ws.Write(context.Background(), websocket.MessageBinary, p)
}

// Close closes in order, with status 1000.
func (c *Conn) Close() error { return c.CloseWith(websocket.StatusNormalClosure, "") }

// CloseWith closes with a status: the peer is told and waited for, 5 s at most (10
// if it does not even read). The reason must not be longer than 123 bytes.
func (c *Conn) CloseWith(code websocket.StatusCode, reason string) error {
	return c.end(func() error { return c.ws.Close(code, reason) })
}

// Reset closes so that the peer cannot take what it got for a whole stream.
func (c *Conn) Reset() error {
	return c.end(func() error {
		if c.opts.OnReset == nil {
			return c.ws.CloseNow()
		}
		code, reason := c.opts.OnReset()
		return c.ws.Close(code, reason)
	})
}

func (c *Conn) end(how func() error) error {
	c.closeOnce.Do(func() {
		close(c.closing)
		c.telling.Lock()
		defer c.telling.Unlock()
		c.closeErr = how()
		if isClosed(c.gone) || errors.Is(c.closeErr, net.ErrClosed) {
			c.closeErr = nil // the peer was first
		}
	})
	c.smu.Lock()
	c.stopped = true
	c.smu.Unlock()
	c.wg.Wait()
	return c.closeErr
}

// spawn runs f in a goroutine that Close waits for, unless that is waiting already.
func (c *Conn) spawn(f func()) bool {
	c.smu.Lock()
	defer c.smu.Unlock()
	if c.stopped {
		return false
	}
	c.wg.Go(f)
	return true
}

// Done is closed when the peer has closed the WebSocket or the connection is lost:
// it takes no more data. After a mere half-close it is not.
func (c *Conn) Done() <-chan struct{} { return c.gone }

// Farewell returns the close frame with which the peer ended the connection, if it
// did; its reason is for people.
func (c *Conn) Farewell() (websocket.CloseError, bool) {
	if f := c.farewell.Load(); f != nil {
		return *f, true
	}
	return websocket.CloseError{}, false
}

// LocalAddr implements net.Conn. The WebSocket library does not tell it.
func (c *Conn) LocalAddr() net.Addr { return addr{} }

// RemoteAddr implements net.Conn. The WebSocket library does not tell it.
func (c *Conn) RemoteAddr() net.Addr { return addr{} }

type addr struct{}

func (addr) Network() string { return "websocket" }
func (addr) String() string  { return "websocket" }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.readBy.setTo(t)
	return nil
}

// SetWriteDeadline implements net.Conn. It binds the Write calls that begin after it.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.writeBy.setTo(t)
	return nil
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// explain turns what the library says about the end of a connection into what a
// byte stream says. An end without a close frame is never io.EOF.
func explain(err error) error {
	switch websocket.CloseStatus(err) {
	case websocket.StatusNormalClosure, websocket.StatusGoingAway, websocket.StatusNoStatusRcvd:
		return io.EOF
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("read: connection lost: %w", io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("read: %w", err)
}

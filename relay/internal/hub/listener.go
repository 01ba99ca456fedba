package hub

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/wire"
)

// connListener hands streams that agents opened to an http.Server.
type connListener struct {
	link  *link.Link
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newConnListener(l *link.Link) *connListener {
	return &connListener{link: l, conns: make(chan net.Conn), done: make(chan struct{})}
}

// Accept returns the next greeted stream.
func (l *connListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	case <-l.link.Done():
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (l *connListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr is the link's.
func (l *connListener) Addr() net.Addr { return l.link.RemoteAddr() }

// greet reads a stream's hello, answers it, and gives a gate stream to the server.
// It returns when the stream is over.
func (l *connListener) greet(ctx context.Context, st *link.Stream) {
	_ = st.SetReadDeadline(time.Now().Add(helloTime))
	hello, err := wire.ReadHello(st)
	if err != nil {
		_ = st.Close()
		return
	}
	_ = st.SetReadDeadline(time.Time{})
	if hello.Kind != wire.KindGate {
		_, _ = st.Write(wire.AppendVerdict(nil, wire.Verdict{Code: wire.CodeBadHello, Text: "agents open gate streams only"}))
		_ = st.Close()
		return
	}
	if _, err := st.Write(wire.AppendVerdict(nil, wire.Verdict{})); err != nil {
		_ = st.Close()
		return
	}
	c := &closeConn{Conn: st, closed: make(chan struct{})}
	select {
	case l.conns <- c:
	case <-ctx.Done():
		_ = st.Close()
		return
	case <-l.done:
		_ = st.Close()
		return
	}
	select {
	case <-c.closed:
	case <-l.link.Done():
	}
}

// closeConn says when the server is done with the connection.
type closeConn struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
}

// Close closes the stream.
func (c *closeConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// Package carrier owns the connection that carries a link: it dials a relay, through a
// proxy where there is one, secures the connection, upgrades it, in WebSocket messages or
// without, and accepts such upgrades. It owns the options of the link's TCP socket, the
// buffers between the socket and a link, and their pool.
//
// The bytes are one sequence each way; where a write, a message or a TLS record ends means
// nothing. It never looks into them, never sends any of its own after the upgrade but
// WebSocket's, never connects again and never decides who may.
package carrier

import (
	"errors"
	"net"
	"time"
)

// ErrPeerClosed is wrapped by a Read's error where the peer closed the connection and said so.
var ErrPeerClosed = errors.New("the peer closed the connection")

// Conn carries the bytes of one link. There is one reader and one writer at a time.
type Conn interface {
	Read(p []byte) (int, error)
	// Writev sends first and then second; both may be empty, neither is kept.
	Writev(first, second []byte) error
	// Close frees the reader and the writer at once.
	Close() error
	// CloseHandshake tells the peer why, where there is a way to, and waits for it to hang
	// up. Nothing can be written afterwards.
	CloseHandshake(reason string, limit time.Duration)
	// NetConn is the connection, above TLS.
	NetConn() net.Conn
	// Name is "tcp" for a plain connection or upgrade, or "websocket".
	Name() string
}

// plain is a connection without any framing.
type plain struct {
	top *bufConn
	low *bufConn // beneath TLS, where this package knows it
}

// New makes a Conn of any connection, which it owns from then on.
func New(conn net.Conn) Conn {
	b, ok := conn.(*bufConn)
	if !ok {
		b = newBufConn(conn)
	}
	return &plain{top: b, low: beneathTLS(b.Conn)}
}

func (c *plain) Read(p []byte) (int, error)           { return c.top.Read(p) }
func (c *plain) Close() error                         { return c.top.Close() }
func (c *plain) CloseHandshake(string, time.Duration) {}
func (c *plain) NetConn() net.Conn                    { return c.top }
func (c *plain) Name() string                         { return "tcp" }

func (c *plain) Writev(first, second []byte) error {
	if c.low == nil {
		return c.top.writev(first, second)
	}
	c.low.cork() // crypto/tls writes record by record
	err := c.top.writev(first, second)
	if e := c.low.uncork(); err == nil {
		err = e
	}
	return err
}

package carrier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/coder/websocket"
)

// maxMessage is the largest message a link takes. Its own batches are far
// smaller; a newer peer may use more.
const maxMessage = 1 << 20

// ws carries a link in binary WebSocket messages, one per batch. Where one
// message ends and the next begins means nothing.
type ws struct {
	c    *websocket.Conn
	bufs []*bufConn // from the top down: the connection given to the library, and the one beneath TLS
	r    io.Reader
}

func newWS(c *websocket.Conn, bufs ...*bufConn) *ws {
	c.SetReadLimit(maxMessage)
	return &ws{c: c, bufs: bufs}
}

// Read implements Conn. No context bounds it: with one, the library would
// start and stop a timer per read, and its end would close the connection anyway.
func (w *ws) Read(p []byte) (int, error) {
	ctx := context.Background()
	for {
		if w.r == nil {
			typ, r, err := w.c.Reader(ctx)
			if err != nil {
				return 0, w.explain(err)
			}
			if typ != websocket.MessageBinary {
				return 0, errors.New("the peer sent a text message, which is no part of a link")
			}
			w.r = r
		}
		n, err := w.r.Read(p)
		if errors.Is(err, io.EOF) {
			w.r, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// explain makes a close frame readable.
func (w *ws) explain(err error) error {
	if ce, ok := errors.AsType[websocket.CloseError](err); ok {
		if ce.Reason != "" {
			return fmt.Errorf("%w: %s", ErrPeerClosed, ce.Reason)
		}
		return ErrPeerClosed
	}
	return err
}

func (w *ws) Writev(first, second []byte) error {
	for _, b := range w.bufs {
		b.cork()
	}
	var err error
	for _, p := range [2][]byte{first, second} {
		if len(p) > 0 && err == nil {
			err = w.c.Write(context.Background(), websocket.MessageBinary, p)
		}
	}
	for _, b := range w.bufs {
		if e := b.uncork(); err == nil {
			err = e
		}
	}
	return err
}

func (w *ws) Close() error {
	// The socket goes first: the library's own Close may be waiting for the peer.
	err := w.bufs[0].Close()
	_ = w.c.CloseNow()
	return err
}

func (w *ws) CloseHandshake(reason string, limit time.Duration) {
	if len(reason) > 120 {
		reason = reason[:120]
	}
	timer := time.AfterFunc(limit, func() { _ = w.bufs[0].Close() })
	defer timer.Stop()
	_ = w.c.Close(websocket.StatusGoingAway, reason)
}

func (w *ws) NetConn() net.Conn { return w.bufs[0] }
func (w *ws) Name() string      { return "websocket" }

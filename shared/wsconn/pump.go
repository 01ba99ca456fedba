package wsconn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/coder/websocket"
)

// errText is what Read gives after a text message.
var errText = errors.New("the peer sent a text message; only binary ones carry the stream")

// errAfterEnd is what Read gives when data follows the end of the stream.
var errAfterEnd = errors.New("the peer sent data after the end of its stream")

// pump reads messages until the connection ends. It hands them over piece by piece
// and reads no further until a piece was taken, so the peer feels a slow reader. It
// goes on after the end of the peer's stream: pings and the close frame still come.
func (c *Conn) pump() {
	defer close(c.gone)
	open := true // pieces is not closed yet
	finish := func(err error) {
		if open {
			open = false
			c.readErr = err
			close(c.pieces)
		}
	}
	for {
		typ, r, err := c.reader()
		switch {
		case err != nil:
			if ce, ok := errors.AsType[websocket.CloseError](err); ok {
				c.farewell.Store(&ce)
			}
			finish(explain(err))
			return
		case typ != websocket.MessageBinary:
			c.refuse(websocket.StatusUnsupportedData, "binary messages only", func() { finish(errText) })
			return
		}
		n, err := c.message(r, open)
		switch {
		case errors.Is(err, errAfterEnd):
			c.refuse(websocket.StatusProtocolError, "data after the end of the stream", func() {})
			return
		case errors.Is(err, errClosing):
			finish(fmt.Errorf("read: %w", err))
			return
		case err != nil:
			finish(explain(err))
			return
		case n == 0:
			finish(io.EOF)
		}
	}
}

// refuse closes with a status. Whoever learns of the end by told may reset the connection
// at once: that waits until the peer was told why.
func (c *Conn) refuse(code websocket.StatusCode, reason string, told func()) {
	c.telling.Lock()
	defer c.telling.Unlock()
	told()
	_ = c.ws.Close(code, reason) // the peer may be gone
}

// errClosing stops pump: this side closes, and the library reads what remains.
var errClosing = errors.New("connection is being closed")

// message hands over one message and returns its size.
func (c *Conn) message(r io.Reader, open bool) (int, error) {
	total := 0
	for {
		b := pieces.Get().(*[]byte)
		n, err := r.Read(*b)
		if c.patience(err) {
			err = nil
		}
		if total += n; n > 0 {
			c.lastRead.Store(int64(time.Since(c.start)))
			if !open {
				put(b)
				return total, errAfterEnd
			}
			*b = (*b)[:n]
			c.handing.Store(true)
			select {
			case c.pieces <- b:
			case <-c.closing:
				put(b)
				return total, errClosing
			}
			c.handing.Store(false)
		} else {
			put(b)
		}
		if errors.Is(err, io.EOF) {
			if isEnd(err) {
				return total, nil
			}
			return total, err
		}
		if err != nil {
			return total, err
		}
	}
}

// isEnd tells the end of a message, which is io.EOF itself, from a lost connection.
func isEnd(err error) bool { return err == io.EOF } //nolint:errorlint // a wrapped one means something else

// reader waits for the next message.
func (c *Conn) reader() (websocket.MessageType, io.Reader, error) {
	for {
		typ, r, err := c.ws.Reader(context.Background())
		if c.patience(err) {
			continue
		}
		if err == nil {
			c.lastRead.Store(int64(time.Since(c.start)))
		}
		return typ, r, err
	}
}

// patience says whether a read may simply be tried again. The library gives itself
// five seconds to answer a ping; with a peer that reads slowly the answer does not
// get past the data in that time, which is no reason to end the connection. If the
// library has closed it nevertheless, the next read says so.
func (c *Conn) patience(err error) bool {
	return err != nil && errors.Is(err, context.DeadlineExceeded) && !isClosed(c.closing)
}

// ping sends pings, and ends a connection whose peer has vanished: one that answers
// neither of two pings, while pump listens and hears nothing else either.
func (c *Conn) ping() {
	tick := time.NewTicker(c.opts.PingInterval)
	defer tick.Stop()
	missed := 0
	for {
		select {
		case <-c.closing:
			return
		case <-c.gone:
			return
		case <-tick.C:
		}
		if c.writing.Load() > 0 {
			continue // the path is busy, or full: a ping proves nothing and could not pass
		}
		sent := int64(time.Since(c.start))
		ctx, cancel := context.WithTimeout(context.Background(), c.opts.PingInterval*9/10)
		err := c.ws.Ping(ctx)
		cancel()
		if err == nil || c.handing.Load() || c.lastRead.Load() >= sent {
			missed = 0
			continue
		}
		if missed++; missed == 2 {
			_ = c.ws.CloseNow()
			return
		}
	}
}

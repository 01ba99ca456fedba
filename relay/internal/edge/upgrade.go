package edge

import (
	"context"
	"crypto/sha1" // RFC 6455 proves with it that the app understood, nothing more
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/access"
	"github.com/adit-tunnel/adit/relay/internal/usage"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/splice"
)

const (
	// goodbyeWrite is how long a user's connection may take to take a close frame.
	goodbyeWrite = 200 * time.Millisecond
	// goodbyeLinger is how long the user may take to answer it.
	goodbyeLinger = 300 * time.Millisecond
	// switchWrite bounds the writing of the 101 to the user.
	switchWrite = 10 * time.Second
)

// noCR takes out what some readers hold for the end of a line; net/http's parser
// lets it through within one.
var noCR = strings.NewReplacer("\r", " ")

// validSwitch checks a 101: only after a right one are bytes copied raw.
func validSwitch(x *exchange, resp *http.Response) error {
	if !x.upgrade {
		return fmt.Errorf("%w: nobody asked for it", errSwitched)
	}
	up, accept := resp.Header["Upgrade"], resp.Header["Sec-Websocket-Accept"]
	if len(up) != 1 || !strings.EqualFold(up[0], "websocket") || !listed(resp.Header["Connection"], "Upgrade") {
		return fmt.Errorf("%w: not to websocket", errSwitched)
	}
	sum := sha1.Sum([]byte(x.r.Header.Get("Sec-Websocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	if len(accept) != 1 || accept[0] != base64.StdEncoding.EncodeToString(sum[:]) {
		return fmt.Errorf("%w: Sec-WebSocket-Accept is wrong", errSwitched)
	}
	return nil
}

const restarting = "the relay restarts; connect again"

// upgraded is one connection that net/http no longer knows.
type upgraded struct {
	// goodbye says to the user that it ends, and why, if that can be said.
	goodbye func(code uint16, reason string)
	leaving func() bool        // its way to the app ends now
	cancel  context.CancelFunc // ends the copying
	done    chan struct{}      // closed when it is over
	once    sync.Once
}

// end says goodbye, leaves a moment for the answer and ends the copying.
func (u *upgraded) end(code uint16, reason string) {
	u.once.Do(func() {
		u.goodbye(code, reason)
		t := time.NewTimer(goodbyeLinger)
		defer t.Stop()
		select {
		case <-t.C:
		case <-u.done:
		}
		u.cancel()
	})
}

func (u *upgraded) kill() { u.cancel() }

// endBecause is end with the code that fits what ended the use.
func (u *upgraded) endBecause(cause error, draining bool) {
	over, ok := errors.AsType[*usage.Over](cause)
	switch {
	case errors.Is(cause, usage.ErrKicked):
		u.end(closePolicy, "disconnected by the tunnel's owner")
	case errors.Is(cause, errReadOnly):
		u.end(closePolicy, "the tunnel is to be looked at only: nothing may be sent")
	case ok && errors.Is(cause, access.ErrRemoved):
		u.end(closePolicy, over.Text)
	case ok:
		u.end(closeGoingAway, over.Text)
	case errors.Is(cause, link.ErrMemory):
		u.end(closeTryAgainLater, "the relay is short of memory and much waited here to be taken; connect again")
	case draining:
		u.end(closeServiceRestart, restarting)
	default:
		u.end(closeGoingAway, "the tunnel is closed")
	}
}

// join copies between the user and the app until both are done, or it is cut.
func (x *exchange) join(user splice.Conn, app *upstream, goodbye func(uint16, string), options splice.Options) {
	// Not the use's context: its end is first said to the user.
	ctx, cancel := context.WithCancel(context.WithoutCancel(x.r.Context()))
	defer cancel()
	u := &upgraded{goodbye: goodbye, leaving: app.Leaving, cancel: cancel, done: make(chan struct{})}
	x.e.register(u)
	defer x.e.unregister(u)
	fired := make(chan struct{})
	undo := context.AfterFunc(x.use.Context(), func() {
		defer close(fired)
		u.endBecause(context.Cause(x.use.Context()), x.e.draining.Load())
	})
	var late sync.WaitGroup
	if x.e.draining.Load() || app.Leaving() { // Drain or Yield looked before it was registered
		late.Go(func() { u.end(closeServiceRestart, restarting) })
	}
	_, err := splice.Both(ctx, user, &lastWord{upstream: app, lost: func(err error) {
		if cause := context.Cause(x.use.Context()); cause != nil { // the streams of a tunnel that closes are cut right after its uses
			u.endBecause(cause, x.e.draining.Load())
			return
		}
		if !errors.Is(err, link.ErrClosed) {
			return // it was the app
		}
		reason := "the way to the app was lost; connect again"
		if stopping := x.e.config.Stopping; stopping != nil && stopping() {
			reason = restarting
		}
		u.end(closeServiceRestart, reason)
	}}, options)
	close(u.done)
	late.Wait()
	if !undo() {
		<-fired
	}
	if err != nil {
		x.aborted = true
		x.e.log.Debug("connection ended", "request_id", x.id, "session_id", x.route.Record.Session, "error", err)
	}
}

// lastWord is the app's side of an upgraded connection. When it is lost, or cut, the
// user is told before the copying ends.
type lastWord struct {
	*upstream
	lost func(err error)
}

// Read implements io.Reader.
func (c *lastWord) Read(p []byte) (int, error) {
	n, err := c.upstream.Read(p)
	if err != nil {
		c.lost(err)
	}
	return n, err
}

// Write implements io.Writer.
func (c *lastWord) Write(p []byte) (int, error) {
	n, err := c.upstream.Write(p)
	if err != nil {
		c.lost(err)
	}
	return n, err
}

func (e *Edge) register(u *upgraded) {
	e.mu.Lock()
	e.upgraded[u] = struct{}{}
	e.mu.Unlock()
}

func (e *Edge) unregister(u *upgraded) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.upgraded, u)
}

// serveUpgraded copies raw after a validated 101.
func (x *exchange) serveUpgraded(u *upstream, resp *http.Response) {
	h := make(http.Header, len(resp.Header))
	x.copyHeader(h, resp.Header)
	conn, rw, err := x.rc.Hijack()
	if err != nil {
		_ = u.Close()
		x.fail(fmt.Errorf("take over the user's connection: %w", err))
		return
	}
	x.begun(http.StatusSwitchingProtocols)
	// What came behind the request is in net/http's buffer. Its reader is left alone
	// from then on: at the user's half-close it would end the request's context.
	early, _ := rw.Reader.Peek(rw.Reader.Buffered())
	user := &webSocketUser{Conn: conn, early: early, use: x.use, readOnly: x.readOnly}
	_ = conn.SetDeadline(time.Now().Add(switchWrite))
	head := append(make([]byte, 0, 1<<10), "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"...)
	for name, values := range h {
		if name == "Content-Length" {
			continue
		}
		for _, v := range values {
			head = appendField(head, name, noCR.Replace(v))
		}
	}
	if _, err := conn.Write(append(head, "\r\n"...)); err != nil {
		_ = conn.Close()
		_ = u.Close()
		x.aborted = true
		return
	}
	_ = conn.SetDeadline(time.Time{}) // from here on silence is no fault: TCP's keepalive watches
	x.e.metrics.websockets.Inc()
	defer x.e.metrics.websockets.Dec()
	x.join(user, u, user.goodbye, splice.Options{})
}

// webSocketUser is the user's end of a WebSocket. It follows the frames of both
// directions, for use and for the close frame.
type webSocketUser struct {
	net.Conn
	early []byte // read before the connection was ours
	use   *usage.Use
	in    frames // of the one reader

	readOnly bool // data frames of the user end the connection
	deaf     bool // one came: nothing more of the user goes to the app

	mu      sync.Mutex // a frame of ours must not come into one of the app's
	out     frames
	stopped bool // goodbye was said: what the app still sends has nobody to read it
}

// Read reads what the user sent; first what came together with the request.
func (c *webSocketUser) Read(p []byte) (int, error) {
	var n int
	var err error
	if len(c.early) > 0 {
		n = copy(p, c.early)
		c.early = c.early[n:]
	} else {
		n, err = c.Conn.Read(p)
	}
	if c.readOnly {
		return c.looking(p[:n], err)
	}
	if c.in.feed(p[:n]) {
		c.use.Frame(true)
	}
	return n, err
}

// looking lets through what is no message: pings, pongs and the close frame. Of the first
// message no byte reaches the app, nor of what follows it; the user is told why.
func (c *webSocketUser) looking(p []byte, err error) (int, error) {
	n := 0
	if !c.deaf {
		n = c.in.untilData(p)
	}
	if n == len(p) {
		return n, err
	}
	if !c.deaf {
		c.deaf = true
		c.use.Cut(errReadOnly)
	}
	for n == 0 && err == nil { // until the goodbye has ended it
		_, err = c.Conn.Read(p)
	}
	return n, err
}

var errReadOnly = errors.New("the user sent a message where the tunnel is to be looked at only")

// Write sends what the app sent.
func (c *webSocketUser) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return len(p), nil
	}
	n, err := c.Conn.Write(p)
	if c.out.feed(p[:n]) {
		c.use.Frame(false)
	}
	return n, err
}

// CloseWrite says to the user that no more will come.
func (c *webSocketUser) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Conn.Close()
}

// goodbye puts a close frame between two of the app's, if there is a between, and
// closes that direction. A user who does not read is not waited for.
func (c *webSocketUser) goodbye(code uint16, reason string) {
	_ = c.SetWriteDeadline(time.Now().Add(goodbyeWrite)) // frees a blocked Write
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = true
	if c.out.between() {
		_ = c.SetWriteDeadline(time.Now().Add(goodbyeWrite))
		_, _ = c.Conn.Write(closeFrame(code, reason)) // the connection ends either way
	}
	_ = c.CloseWrite()
}

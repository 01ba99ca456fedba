package carrier

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/wire"
)

// Accept upgrades the connection of a request, with whichever of the two protocols it
// offers. The caller has authenticated it: nothing is allocated for a stranger.
// On an error the answer has been written. The connection outlives the request, whose
// context says nothing about it.
func Accept(w http.ResponseWriter, r *http.Request) (Conn, error) {
	if !hasToken(r.Header, "Sec-Websocket-Protocol", wire.Subprotocol) || !hasToken(r.Header, "Connection", "upgrade") {
		p := api.Problemf(api.CodeUpgradeRequired, "this address takes upgrades to a link only (subprotocol %s); is a proxy in between dropping the Upgrade header?", wire.Subprotocol).WithStatus(http.StatusBadRequest)
		p.Write(w, "")
		return nil, fmt.Errorf("accept link: %w", p)
	}
	if r.Header.Get("Origin") != "" {
		p := api.NewProblem(api.CodeCrossOrigin, "links are not for browsers")
		p.Write(w, "")
		return nil, fmt.Errorf("accept link: %w", p)
	}
	if hasToken(r.Header, "Upgrade", plainUpgrade) && r.Method == http.MethodGet && r.ProtoMajor == 1 && r.ProtoMinor >= 1 {
		return acceptPlain(w)
	}
	h := &hijack{ResponseWriter: w}
	c, err := websocket.Accept(h, r, &websocket.AcceptOptions{
		Subprotocols:    []string{wire.Subprotocol},
		CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		if h.top != nil {
			_ = h.top.Close()
		}
		return nil, fmt.Errorf("accept link: %w", err)
	}
	bufs := []*bufConn{h.top}
	if low := beneathTLS(h.top.Conn); low != nil {
		bufs = append(bufs, low)
	}
	return newWS(c, bufs...), nil
}

// acceptPlain answers a plain upgrade.
func acceptPlain(w http.ResponseWriter) (Conn, error) {
	h := &hijack{ResponseWriter: w}
	_, _, err := h.Hijack()
	if err != nil {
		p := api.NewProblem(api.CodeInternal, "this connection cannot be upgraded").WithCause(err)
		p.Write(w, "")
		return nil, fmt.Errorf("accept link: %w", err)
	}
	_ = h.top.SetWriteDeadline(time.Now().Add(10 * time.Second))
	_, err = h.top.Write([]byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + plainUpgrade +
		"\r\nSec-WebSocket-Protocol: " + wire.Subprotocol + "\r\n\r\n"))
	if err != nil {
		_ = h.top.Close()
		return nil, fmt.Errorf("accept link: %w", err)
	}
	_ = h.top.SetWriteDeadline(time.Time{})
	return New(h.top), nil
}

// hijack gives the WebSocket library a connection whose buffers are this package's
// instead of net/http's 4 KiB: they follow the traffic and hold little when idle.
type hijack struct {
	http.ResponseWriter
	top *bufConn
}

// Hijack implements http.Hijacker.
func (h *hijack) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	rest, _ := rw.Reader.Peek(rw.Reader.Buffered()) // never fails: it is there
	h.top = newBufConn(conn)
	h.top.unread(rest)
	const small = 512 // what is larger passes by
	return h.top, bufio.NewReadWriter(bufio.NewReaderSize(h.top, small), bufio.NewWriterSize(h.top, small)), nil
}

// beneathTLS finds the connection beneath TLS that Listener made, if it did.
func beneathTLS(c net.Conn) *bufConn {
	if t, ok := c.(*tls.Conn); ok {
		b, _ := t.NetConn().(*bufConn)
		return b
	}
	return nil
}

// Listener gives the connections that it accepts the buffers that a link wants
// beneath TLS: wrap the TCP listener with it before tls.NewListener or ServeTLS.
// Without TLS it is not needed.
func Listener(l net.Listener) net.Listener { return listener{l} }

type listener struct{ net.Listener }

// Accept implements net.Listener.
func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return newBufConn(c), nil
}

// hasToken says whether a comma-separated header contains a token.
func hasToken(h http.Header, name, token string) bool {
	for _, line := range h.Values(name) {
		for t := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(t), token) {
				return true
			}
		}
	}
	return false
}

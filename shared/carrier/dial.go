package carrier

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

// plainUpgrade is the protocol that turns the request's connection into a link's
// without WebSocket frames (RFC 9110, section 7.8). Dial offers it before
// "websocket"; whoever does not know it picks the other.
const plainUpgrade = "adit-link"

// DialOptions say where and how to connect.
type DialOptions struct {
	// URL of the relay: ws, wss, http or https. Without a path, wire.LinkPath is
	// used.
	URL string
	// Token is sent as bearer credential.
	Token ident.Secret
	// TLS configures wss; its RootCAs carry a custom CA. Nil means the default.
	TLS *tls.Config
	// Proxy finds the proxy for a request; its CONNECT is used for plain targets
	// too. Default: http.ProxyFromEnvironment.
	Proxy func(*http.Request) (*url.URL, error)
	// WebSocketOnly asks for nothing but a WebSocket. Otherwise a plain upgrade is
	// offered first, which costs less and which some intermediaries do not know.
	WebSocketOnly bool
	// Header is sent with the request in addition.
	Header http.Header
}

// RefusedError says that the server answered, but not with a link.
type RefusedError struct {
	Status     int
	Problem    *api.Problem  // nil when the answer was not problem+json
	RetryAfter time.Duration // 0 when the server did not say
	Location   string        // of a redirect, which Dial never follows: the token goes only where it was told to
}

// Error says what the server said.
func (e *RefusedError) Error() string {
	switch {
	case e.Problem != nil:
		return fmt.Sprintf("link refused (status %d): %s", e.Status, e.Problem.Error())
	case e.Location != "":
		return fmt.Sprintf("link refused (status %d): redirected to %s", e.Status, e.Location)
	}
	return fmt.Sprintf("link refused (status %d): %s", e.Status, http.StatusText(e.Status))
}

// Unwrap returns the problem.
func (e *RefusedError) Unwrap() error {
	if e.Problem == nil {
		return nil
	}
	return e.Problem
}

// Dial connects to a relay. ctx bounds the connecting only.
func Dial(ctx context.Context, opts DialOptions) (Conn, error) {
	target, err := linkURL(opts.URL)
	if err != nil {
		return nil, fmt.Errorf("dial link: %w", err)
	}
	c, err := dial(ctx, target, opts, !opts.WebSocketOnly)
	var refused *RefusedError
	if !opts.WebSocketOnly && errors.As(err, &refused) && refused.Problem == nil && pickyAbout(refused.Status) {
		c, err = dial(ctx, target, opts, false)
	}
	if err != nil {
		return nil, fmt.Errorf("dial link to %s: %w", target.Host, err)
	}
	return c, nil
}

// pickyAbout says whether a status may come from an intermediary that dislikes the
// offer of two protocols.
func pickyAbout(status int) bool {
	switch status {
	case http.StatusOK, http.StatusBadRequest, http.StatusForbidden, http.StatusMethodNotAllowed,
		http.StatusUpgradeRequired, http.StatusNotImplemented, http.StatusBadGateway:
		return true
	}
	return false
}

// linkURL makes the URL of a request from that of a relay.
func linkURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, err
	}
	switch strings.ToLower(u.Scheme) {
	case "ws", "http":
		u.Scheme = "http"
	case "wss", "https":
		u.Scheme = "https"
	default:
		return nil, fmt.Errorf("relay URL %q: the scheme must be https, http, wss or ws", u.Redacted())
	}
	if u.Host == "" {
		return nil, fmt.Errorf("relay URL %q: no host", u.Redacted())
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = wire.LinkPath
	}
	u.Fragment = ""
	return u, nil
}

func dial(ctx context.Context, target *url.URL, opts DialOptions, offerPlain bool) (Conn, error) {
	up := &upgrader{opts: opts, offerPlain: offerPlain}
	head := opts.Header.Clone()
	if head == nil {
		head = http.Header{}
	}
	head.Set("Authorization", "Bearer "+opts.Token.Reveal())
	c, _, err := websocket.Dial(ctx, target.String(), &websocket.DialOptions{
		HTTPClient: &http.Client{
			Transport:     up,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		HTTPHeader:      head,
		Subprotocols:    []string{wire.Subprotocol},
		CompressionMode: websocket.CompressionDisabled,
	})
	switch {
	case errors.Is(err, errPlain):
		return New(up.top), nil
	case err != nil:
		if up.top != nil {
			_ = up.top.Close()
		}
		return nil, plainError(err)
	case c.Subprotocol() != wire.Subprotocol:
		_ = c.CloseNow()
		return nil, fmt.Errorf("the server speaks WebSocket but not %s", wire.Subprotocol)
	}
	return newWS(c, up.bufs()...), nil
}

// plainError drops what the library and net/http say around an error of ours.
func plainError(err error) error {
	if refused, ok := errors.AsType[*RefusedError](err); ok {
		return refused
	}
	if ue, ok := errors.AsType[*url.Error](err); ok {
		return ue.Err
	}
	return err
}

// errPlain stops the WebSocket library: the server chose the plain upgrade.
var errPlain = errors.New("plain upgrade")

// upgrader is the http.RoundTripper of one request. It exists because the
// connection must be this package's own: for the buffers above and beneath TLS, for
// the socket's options, and to choose between the two protocols.
type upgrader struct {
	opts       DialOptions
	offerPlain bool

	top, low *bufConn // above TLS and beneath it; the same without TLS
}

func (u *upgrader) bufs() []*bufConn {
	if u.top == u.low {
		return []*bufConn{u.top}
	}
	return []*bufConn{u.top, u.low}
}

// aLongTimeAgo as a deadline interrupts at once.
var aLongTimeAgo = time.Unix(1, 0)

// RoundTrip implements http.RoundTripper.
func (u *upgrader) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	conn, err := u.connect(ctx, req)
	if err != nil {
		return nil, err
	}
	return bounded(ctx, conn, func() (*http.Response, error) { return u.exchange(conn, req) })
}

// bounded has f use a connection, which the end of ctx interrupts. With an error the
// connection is closed, unless it chose the plain upgrade.
func bounded[T any](ctx context.Context, conn net.Conn, f func() (T, error)) (got T, err error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(aLongTimeAgo) })
	result, err := f()
	if !stop() {
		err = context.Cause(ctx)
	}
	if err == nil {
		return result, nil
	}
	if !errors.Is(err, errPlain) {
		_ = conn.Close()
	}
	return got, err
}

// exchange sends the request and judges the answer.
func (u *upgrader) exchange(conn net.Conn, req *http.Request) (*http.Response, error) {
	if u.offerPlain {
		req = req.Clone(req.Context())
		req.Header.Set("Upgrade", plainUpgrade+", websocket")
	}
	if err := req.Write(conn); err != nil {
		return nil, fmt.Errorf("send request: %w", err)
	}
	br := bufio.NewReaderSize(conn, smallBuffer)
	resp, err := http.ReadResponse(br, req)
	for err == nil && resp.StatusCode >= 100 && resp.StatusCode < 200 && resp.StatusCode != http.StatusSwitchingProtocols {
		resp, err = http.ReadResponse(br, req)
	}
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer func() { _ = resp.Body.Close() }()
		return nil, refusal(resp)
	}
	rest, _ := br.Peek(br.Buffered()) // never fails: it is there
	top, ok := conn.(*bufConn)
	if !ok {
		top = newBufConn(conn)
	}
	top.unread(rest)
	u.top = top
	if strings.EqualFold(resp.Header.Get("Upgrade"), plainUpgrade) {
		if !u.offerPlain || resp.Header.Get("Sec-WebSocket-Protocol") != wire.Subprotocol {
			return nil, errors.New("the server upgraded to a protocol that was not asked for")
		}
		return nil, errPlain
	}
	resp.Body = top
	return resp, nil
}

// refusal reads what a server says instead of upgrading, up to 64 KiB.
func refusal(resp *http.Response) *RefusedError {
	e := &RefusedError{Status: resp.StatusCode, Location: resp.Header.Get("Location")}
	if s := resp.Header.Get("Retry-After"); s != "" {
		if n, err := strconv.Atoi(s); err == nil && n >= 0 {
			e.RetryAfter = time.Duration(n) * time.Second
		} else if t, err := http.ParseTime(s); err == nil {
			e.RetryAfter = max(0, time.Until(t))
		}
	}
	if typ, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); typ == api.ProblemContentType {
		var p api.Problem
		if b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10)); err == nil && json.Unmarshal(b, &p) == nil {
			p.RetryAfter = api.Duration(e.RetryAfter)
			e.Problem = &p
		}
	}
	return e
}

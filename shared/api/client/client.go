// Package client calls Adit's public HTTP interface: one method per route, the
// documents of package api in and out, and every refusal an *api.Problem. It owns
// the connections it makes and nothing else: it keeps no state of tunnels or
// agents, stores no secret and prints nothing.
package client

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/backoff"
	"github.com/adit-tunnel/adit/shared/ident"
)

// DefaultTimeout bounds one call, unless Config says otherwise.
const DefaultTimeout = 30 * time.Second

// maxTries is how often a call is made whose connection fails.
const maxTries = 3

// maxAnswer bounds an answer's body: a page of 100 agents is far below it.
const maxAnswer = 32 << 20

// ErrTimeout is the cause of a call that took longer than Config.Timeout.
var ErrTimeout = errors.New("the relay did not answer in time")

// Config says which relay to call, and as whom.
type Config struct {
	// BaseURL is the relay's public address, "https://gateway.example.com". A path
	// behind it is kept, for relays behind a prefix.
	BaseURL string
	// Token goes into the Authorization header of every call.
	Token ident.Secret
	// Team is sent as X-Team-ID. Only a user-session JWT needs it: stored
	// credentials carry their team.
	Team ident.TeamID
	// UserAgent names the program; empty means "adit".
	UserAgent string
	// Timeout bounds one call with its answer; zero means DefaultTimeout. Watch and
	// an opening that waits for running tasks have no such limit.
	Timeout time.Duration
	// Transport makes the connections; nil means NewTransport with its defaults.
	Transport http.RoundTripper
}

// Client calls one relay. It may be used by several goroutines at once.
type Client struct {
	base *url.URL
	cfg  Config
	http *http.Client
}

// New checks the configuration. It connects to nothing.
func New(cfg Config) (*Client, error) {
	base, err := ParseBaseURL(cfg.BaseURL)
	if err != nil {
		return nil, err
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.UserAgent == "" {
		cfg.UserAgent = "adit"
	}
	if cfg.Transport == nil {
		if cfg.Transport, err = NewTransport(TransportConfig{}); err != nil {
			return nil, err
		}
	}
	return &Client{base: base, cfg: cfg, http: &http.Client{
		Transport: cfg.Transport,
		// A redirect would carry the secret to another address, or turn a POST into
		// a GET; the answer is reported instead.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// ParseBaseURL checks a relay's address and drops a trailing slash. A missing
// scheme means https, or http for loopback.
func ParseBaseURL(s string) (*url.URL, error) {
	if s == "" {
		return nil, errors.New("relay address: empty")
	}
	if !strings.Contains(s, "://") {
		host, _, _ := strings.Cut(s, "/")
		scheme := "https://"
		if isLoopbackName(hostOnly(host)) {
			scheme = "http://"
		}
		s = scheme + s
	}
	u, err := url.Parse(s)
	if err != nil {
		return nil, fmt.Errorf("relay address: %w", errors.Unwrap(err))
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("relay address: scheme %q is neither http nor https", u.Scheme)
	case u.Hostname() == "":
		return nil, errors.New("relay address: no host")
	case u.User != nil:
		return nil, errors.New("relay address: user and password do not belong there")
	case u.RawQuery != "" || u.Fragment != "":
		return nil, errors.New("relay address: query and fragment do not belong there")
	}
	u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), ""
	return u, nil
}

// BaseURL is the relay's address as it is used.
func (c *Client) BaseURL() string { return c.base.String() }

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// call is one request of the interface.
type call struct {
	what     string // for errors: "list agents"
	method   string
	path     string // below api.Base, escaped
	query    url.Values
	header   http.Header
	in, out  any
	unbound  bool // no timeout but the caller's context
	onceOnly bool // never repeated when the connection fails
}

// do performs a call. A call whose connection failed is repeated twice, since
// every route but the creation of credentials may be called twice.
func (c *Client) do(ctx context.Context, k call) error {
	var body []byte
	if k.in != nil {
		var err error
		if body, err = json.Marshal(k.in); err != nil {
			return fmt.Errorf("%s: %w", k.what, err)
		}
	}
	var wait backoff.Backoff
	for try := 1; ; try++ {
		err := c.once(ctx, k, body)
		if err == nil {
			return nil
		}
		var lost *ConnError
		if k.onceOnly || try == maxTries || !errors.As(err, &lost) || !Temporary(err) || errors.Is(err, ErrTimeout) || ctx.Err() != nil {
			return fmt.Errorf("%s: %w", k.what, err)
		}
		if wait.Wait(ctx) != nil {
			return fmt.Errorf("%s: %w", k.what, err)
		}
	}
}

func (c *Client) once(ctx context.Context, k call, body []byte) error {
	if !k.unbound {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, c.cfg.Timeout, ErrTimeout)
		defer cancel()
	}
	req, err := c.request(ctx, k, body)
	if err != nil {
		return err
	}
	res, err := c.http.Do(req)
	if err != nil {
		return c.connError(ctx, err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode/100 != 2 {
		return ReadProblem(res)
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return c.connError(ctx, err)
	}
	if k.out == nil {
		return nil
	}
	if err := json.Unmarshal(b, k.out); err != nil {
		return notARelay(res, fmt.Sprintf("its answer is not the expected document (%v)", err))
	}
	return nil
}

func (c *Client) request(ctx context.Context, k call, body []byte) (*http.Request, error) {
	u := *c.base
	u.RawQuery = k.query.Encode()
	var r io.Reader
	if body != nil {
		r = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, k.method, u.String(), r)
	if err != nil {
		return nil, err
	}
	// k.path is escaped already, and a name such as ".." must not be cleaned away.
	req.URL.RawPath = u.EscapedPath() + api.Base + k.path
	if req.URL.Path, err = url.PathUnescape(req.URL.RawPath); err != nil {
		return nil, err
	}
	maps.Copy(req.Header, k.header)
	req.Header.Set("User-Agent", c.cfg.UserAgent)
	if req.Header.Get("Accept") == "" {
		req.Header.Set("Accept", "application/json, "+api.ProblemContentType)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.cfg.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.cfg.Token.Reveal())
	}
	if c.cfg.Team != "" {
		req.Header.Set(api.HeaderTeam, string(c.cfg.Team))
	}
	return req, nil
}

// ConnError is a call that got no answer: the relay could not be reached, or the
// connection was lost on the way.
type ConnError struct {
	Host string // the relay's host and port, never a whole address
	Err  error
}

// Error says which relay, and what happened.
func (e *ConnError) Error() string { return "reach " + e.Host + ": " + e.Err.Error() }

// Unwrap returns what happened.
func (e *ConnError) Unwrap() error { return e.Err }

// NewConnError wraps the error of an HTTP exchange with a host. It drops the
// address that net/http puts into its errors: a tunnel's address is a secret.
func NewConnError(ctx context.Context, host string, err error) *ConnError {
	if ue, ok := errors.AsType[*url.Error](err); ok {
		err = ue.Err
	}
	if cause := context.Cause(ctx); cause != nil && ctx.Err() != nil {
		err = cause
	}
	return &ConnError{Host: host, Err: err}
}

func (c *Client) connError(ctx context.Context, err error) error {
	return NewConnError(ctx, c.base.Host, err)
}

// UnknownAuthority says whether an error is a certificate that no known authority
// signed, which a CA file would mend.
func UnknownAuthority(err error) bool {
	var unknown x509.UnknownAuthorityError
	return errors.As(err, &unknown)
}

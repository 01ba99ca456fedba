package aditcli

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/api/client"
	"github.com/adit-tunnel/adit/shared/backoff"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wsconn"
)

const (
	// dialTimeout bounds one try: the relay itself holds a request for 10 s while a
	// machine is away.
	dialTimeout = 30 * time.Second
	// dialPatience is how long a new connection outlasts a relay's restart or a
	// lost link before its client is told.
	dialPatience = 20 * time.Second
)

// tunnel dials WebSockets to one tcp tunnel. It is used by several goroutines.
type tunnel struct {
	transport http.RoundTripper
	note      func(format string, args ...any)
	login     login
	// reopen makes the tunnel anew after it was closed; nil for a tunnel that
	// somebody else opened.
	reopen func(context.Context) (*url.URL, error)

	mu  sync.Mutex
	url *url.URL
}

func (t *tunnel) session() ident.SessionID {
	id, _ := sessionOf(t.address())
	return id
}

func (t *tunnel) address() *url.URL {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.url
}

// dial connects to the tunnel. What may pass by itself (relay restarting, machine
// away) is tried again for a while; a tunnel of our own that was closed meanwhile
// (nobody used it for the idle time) is opened again.
func (t *tunnel) dial(ctx context.Context) (*wsconn.Conn, error) {
	var wait backoff.Backoff
	start, reopened := time.Now(), false
	for {
		at := t.address()
		c, err := t.login.dial(ctx, t.transport, at)
		var p *api.Problem
		switch {
		case err == nil:
			return c, nil
		case errors.As(err, &p) && p.Status == http.StatusNotFound && t.reopen != nil && !reopened:
			reopened = true
			if err := t.open(ctx, at, p.Detail); err != nil {
				return nil, err
			}
			continue
		case !client.Temporary(err) || ctx.Err() != nil || time.Since(start) > dialPatience:
			return nil, err
		}
		t.note("adit: %s; trying again", client.Describe(err))
		if wait.Wait(ctx) != nil {
			return nil, err
		}
	}
}

// open replaces a closed tunnel once, however many connections found it closed.
func (t *tunnel) open(ctx context.Context, closed *url.URL, why string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.url != closed {
		return nil
	}
	why, _, _ = strings.Cut(why, ";") // what others than its opener could do
	t.note("adit: %s; opening another", clean(why))
	u, err := t.reopen(ctx)
	if err != nil {
		return err
	}
	t.url = u
	return nil
}

// login shows, at tunnels that ask who comes, who the user is. The secret goes to the relay
// that the user is logged in to, at its own address, and to no other host.
type login struct {
	relay string // its address; empty: nobody is logged in
	token ident.Secret
}

// login returns what the settings have of one.
func (s settings) login() login {
	if s.Token == "" || strings.HasPrefix(s.Token.Reveal(), ident.PrefixAdmin) {
		return login{}
	}
	return login{relay: s.URL, token: s.Token}
}

// header is what shows the secret; nil: there is none.
func (l login) header() http.Header {
	if l.token == "" {
		return nil
	}
	return http.Header{api.HeaderAuthorization: {"Bearer " + l.token.Reveal()}}
}

// at is where a tcp tunnel is at the relay's own address; nil: nowhere.
func (l login) at(u *url.URL) *url.URL {
	segment, ok := segmentOf(u)
	if !ok || l.token == "" {
		return nil
	}
	base, err := client.ParseBaseURL(l.relay)
	if err != nil {
		return nil
	}
	at := *base
	at.Path += "/tunnel/" + string(segment) + "/"
	return socketURL(&at)
}

// dial connects to a tcp tunnel, and says who the user is where the tunnel asks.
func (l login) dial(ctx context.Context, transport http.RoundTripper, u *url.URL) (*wsconn.Conn, error) {
	c, err := dialSocket(ctx, transport, u, nil)
	if !asksWho(err) {
		return c, err
	}
	at := l.at(u)
	if at == nil {
		return nil, err
	}
	c, known := dialSocket(ctx, transport, at, l.header())
	if p, ok := errors.AsType[*api.Problem](known); ok && p.Status == http.StatusNotFound {
		return nil, err // it is another relay's
	}
	return c, known
}

// asksWho says whether a tunnel refused somebody whom it does not know.
func asksWho(err error) bool {
	p, ok := errors.AsType[*api.Problem](err)
	return ok && p.Status == http.StatusUnauthorized && slices.Contains([]api.Code{api.CodeAccessRequired, api.CodePINRequired, api.CodeKnockWaiting}, p.Code)
}

// dialSocket makes one WebSocket to a tcp tunnel. A refusal is an *api.Problem.
func dialSocket(ctx context.Context, transport http.RoundTripper, at *url.URL, more http.Header) (*wsconn.Conn, error) {
	header := http.Header{"User-Agent": {userAgent()}, "Accept": {api.ProblemContentType}}
	maps.Copy(header, more)
	ctx, cancel := context.WithTimeoutCause(ctx, dialTimeout, client.ErrTimeout)
	defer cancel()
	c, res, err := websocket.Dial(ctx, socketURL(at).String(), &websocket.DialOptions{
		HTTPClient: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		HTTPHeader:      header,
		CompressionMode: websocket.CompressionDisabled,
	})
	switch {
	case err == nil:
		return wsconn.New(c, wsconn.Options{}), nil
	case res != nil && res.StatusCode != http.StatusSwitchingProtocols:
		p := client.ReadProblem(res)
		if p.Code == api.CodeNotARelay && res.StatusCode == http.StatusOK { // what a web app does with a WebSocket it does not know
			p = api.Problemf(api.CodeNotATCPTunnel, "%s answered with a page: this is the address of a tunnel for a web app, or of no tunnel", at.Host).WithStatus(res.StatusCode)
		}
		return nil, p
	}
	return nil, client.NewConnError(ctx, at.Host, err)
}

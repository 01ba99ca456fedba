// Package edge is the way from users to apps: the HTTP, WebSocket and TCP proxy
// onto the agents' streams. It owns what passes and what is rewritten on the way,
// the streams that are kept for reuse, the registry of upgraded connections and
// what users are told when something failed. It never decides who may open a tunnel, never
// touches a body, and keeps nothing that outlives the relay.
package edge

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/relay/internal/fleet"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/relay/internal/tunnels"
	"github.com/adit-tunnel/adit/relay/internal/usage"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Bounds of the streams kept for reuse of one tunnel.
const (
	maxIdle = 128
	idleFor = time.Minute
)

// FallbackCookie is the value of Config.PathFallback that lets a cookie choose
// the tunnel of absolute paths.
const FallbackCookie = "cookie"

// Resolver finds the tunnel of a request; tunnels.Resolver is one.
type Resolver interface {
	Resolve(ctx context.Context, host, rawPath string) (*tunnels.Route, error)
	BySegment(ctx context.Context, host string, segment ident.Segment, rawPath string) (*tunnels.Route, error)
	PublicOrigin() string
}

// Prober finds out which Host an app accepts: HostPublic, HostLocal, or empty
// when nothing answered. publicHost is what browsers send.
type Prober interface {
	ProbeHost(ctx context.Context, record store.TunnelRecord, publicHost string) (api.HostHeader, error)
}

// Config is what an Edge needs. Resolver, Fleet, Meter, Own, Else, HeaderTimeout and
// MaxStreams are required.
type Config struct {
	Resolver Resolver
	Fleet    *fleet.Fleet
	Meter    *usage.Meter
	Links    Links // nil: there are no named links
	// Access applies the rules that say who may use a tunnel. nil: nobody passes one.
	Access Access
	// Identity tells apps who uses them; nil: they are not told.
	Identity Identity
	Doors    Doors // nil: nobody says a PIN or knocks
	// SignIn is the origin where browsers sign in; empty: they cannot.
	SignIn string
	// Why says why the tunnel, or the named link, of a rightly signed address is over,
	// where programs may be told; nil: they are not.
	Why func(id ident.SessionID) (string, bool)
	// Stopping says that the relay is about to drain: what is lost from then on is lost
	// by that, since agents move before users are told. nil: it never does.
	Stopping func() bool
	Prober   Prober // nil: tunnels with an undecided host header are served as public
	// Own returns what serves a request for a path of the relay's own; nil: none of
	// them is asked for. Only other paths are looked at for the fallbacks of absolute
	// paths. Required.
	Own func(*http.Request) http.Handler
	// Else serves what is no tunnel's address, no path of the relay's own and none of
	// those absolute paths. Required.
	Else http.Handler
	// Hold is how long a request waits for an agent that is away; 0: not at all.
	Hold time.Duration
	// HeaderTimeout bounds the wait for an answer's header once the request is sent.
	HeaderTimeout time.Duration
	// TrustedProxies are the peers whose forwarding headers are believed.
	TrustedProxies []netip.Prefix
	// PathFallback is empty or FallbackCookie. With the cookie, a page of one
	// tunnel in path form can send requests to the tunnel that the same browser
	// opened last: only for relays whose users trust all tunnels they open.
	PathFallback string
	// MaxStreams bounds the requests and connections at once of one tunnel.
	MaxStreams int
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Edge is an http.Handler in front of everything else of the public listener.
type Edge struct {
	config   Config
	log      *slog.Logger
	metrics  *metrics
	waiting  func(begins bool) // counts who is held
	draining atomic.Bool

	mu       sync.Mutex
	idle     map[ident.SessionID]*idleStreams
	upgraded map[*upgraded]struct{}
	tasks    sync.WaitGroup // probes
}

// New checks the configuration and returns an Edge. Run must run beside it.
func New(c Config) (*Edge, error) {
	if c.Resolver == nil || c.Fleet == nil || c.Meter == nil || c.Own == nil || c.Else == nil || c.HeaderTimeout <= 0 || c.MaxStreams <= 0 {
		return nil, errors.New("edge: Resolver, Fleet, Meter, Own, Else, HeaderTimeout and MaxStreams are required")
	}
	if c.PathFallback != "" && c.PathFallback != FallbackCookie {
		return nil, errors.New(`path_fallback: either nothing or "cookie"`)
	}
	e := &Edge{
		config: c, log: c.Logger, metrics: newMetrics(c.Registerer),
		idle: map[ident.SessionID]*idleStreams{}, upgraded: map[*upgraded]struct{}{},
	}
	e.waiting = e.metrics.waiting
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	return e, nil
}

// Run drops streams that were idle for long until ctx ends, then closes all idle streams
// and waits for what it started. Requests may go on; they no longer leave streams
// behind.
func (e *Edge) Run(ctx context.Context) error {
	tick := time.NewTicker(idleFor / 4)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			e.sweep(time.Now())
		case <-ctx.Done():
			e.draining.Store(true)
			e.mu.Lock()
			all := e.idle
			e.idle = map[ident.SessionID]*idleStreams{}
			e.mu.Unlock()
			for _, p := range all {
				p.close()
			}
			e.tasks.Wait()
			return nil
		}
	}
}

func (e *Edge) sweep(now time.Time) {
	e.mu.Lock()
	all := make([]*idleStreams, 0, len(e.idle))
	for _, p := range e.idle {
		all = append(all, p)
	}
	e.mu.Unlock()
	for _, p := range all {
		if !p.evict(now) {
			continue
		}
		e.mu.Lock()
		// A request may have taken it up meanwhile; it then keeps its streams for
		// its life, and closes them with it.
		if e.idle[p.session] == p {
			delete(e.idle, p.session)
		}
		e.mu.Unlock()
		p.close()
	}
}

// Drop ends all that users do on a tunnel that closed, and forgets its streams.
// The cause is what usage.Meter.Cut takes. It returns how many uses it ended.
func (e *Edge) Drop(session ident.SessionID, cause error) int {
	n := e.config.Meter.Cut(session, cause)
	e.mu.Lock()
	p := e.idle[session]
	delete(e.idle, session)
	e.mu.Unlock()
	if p != nil {
		p.close()
	}
	return n
}

// Drain refuses new upgrades, says goodbye to all upgraded connections (close code
// 1012, service restart) and waits until they are gone; when ctx ends first it
// cuts them. http.Server.Shutdown knows nothing of them.
func (e *Edge) Drain(ctx context.Context) error {
	e.draining.Store(true)
	e.mu.Lock()
	all := make([]*upgraded, 0, len(e.upgraded))
	for u := range e.upgraded {
		all = append(all, u)
	}
	e.mu.Unlock()
	var goodbyes sync.WaitGroup
	defer goodbyes.Wait()
	var cut error
	for _, u := range all {
		goodbyes.Go(func() { u.end(closeServiceRestart, restarting) })
	}
	for _, u := range all {
		select {
		case <-u.done:
		case <-ctx.Done():
			cut = context.Cause(ctx)
			u.kill()
			<-u.done
		}
	}
	return cut
}

// Yield gives up what goes a way that ends now and can begin anew on another: idle
// streams, and upgraded connections, whose users are told to connect again (1012).
// Requests that have no answer yet go on. It returns when the goodbyes are said.
func (e *Edge) Yield() {
	e.mu.Lock()
	all := slices.Collect(maps.Values(e.idle))
	var leaving []*upgraded
	for u := range e.upgraded {
		if u.leaving() {
			leaving = append(leaving, u)
		}
	}
	e.mu.Unlock()
	for _, p := range all {
		p.dropStale()
	}
	var goodbyes sync.WaitGroup
	for _, u := range leaving {
		goodbyes.Go(func() { u.end(closeServiceRestart, restarting) })
	}
	goodbyes.Wait()
}

// idleOf returns the idle streams of a tunnel.
func (e *Edge) idleOf(session ident.SessionID) *idleStreams {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.idle[session]
	if p == nil {
		p = newIdleStreams(session, maxIdle, idleFor)
		if !e.draining.Load() {
			e.idle[session] = p
		} else {
			p.closed = true // Run is over or about to be: keep nothing
		}
	}
	return p
}

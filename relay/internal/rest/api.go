package rest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/relay/internal/access"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/gate"
	"github.com/adit-tunnel/adit/relay/internal/problems"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/relay/internal/usage"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

// Authenticator says who is calling, and manages credentials.
type Authenticator interface {
	Authenticate(r *http.Request) (creds.Principal, error)
	// AuthenticatePerson lets a person leave the team out.
	AuthenticatePerson(r *http.Request) (creds.Principal, error)
	Teams(p creds.Principal) []api.MyTeam
	// Owns says whether what was opened is the caller's own.
	Owns(p creds.Principal, o store.Opened) bool
	// Watch returns a context that ends when the principal's credential does.
	Watch(ctx context.Context, p creds.Principal) (context.Context, context.CancelFunc)
	Create(ctx context.Context, by creds.Principal, team ident.TeamID, user ident.UserID, req api.CreateCredentialRequest) (store.CredentialRecord, ident.Secret, error)
	List(by creds.Principal, team ident.TeamID) ([]api.Credential, error)
}

// Rights revokes credentials, with what they made and opened.
type Rights interface {
	Revoke(ctx context.Context, by creds.Principal, team ident.TeamID, id ident.CredentialID, keepTunnels bool) (api.Revoked, error)
}

// Store is what the API reads: the relay's copy in memory.
type Store interface {
	// Status says how far it can be trusted.
	Status() store.Status
	CatchUp(ctx context.Context) error
	Tunnel(id ident.SessionID) (store.TunnelRecord, bool)
	AgentTunnels(key ident.AgentKey) []store.TunnelRecord
	Agent(key ident.AgentKey) (store.AgentRecord, bool)
	Presence(key ident.AgentKey) (store.Presence, bool)
	Presences(team ident.TeamID) []store.Presence
	User(id ident.UserID) (store.UserRecord, bool)
	store.Openers
	UpdateTunnel(ctx context.Context, id ident.SessionID, change func(*store.TunnelRecord) error) (store.TunnelRecord, error)
	Subscribe(buffer int) gate.Feed
}

// Addresses writes the addresses of tunnels.
type Addresses interface {
	URL(t store.TunnelRecord) string
	Alternates(t store.TunnelRecord) []string
	LinkURL(t store.TunnelRecord, id ident.LinkID) string
	LinkAlternates(t store.TunnelRecord, id ident.LinkID) []string
	LinkSegment(id ident.LinkID) ident.Segment
}

// Usage knows who uses which tunnel, on all relays of the pool that answer in time.
type Usage interface {
	Totals(ctx context.Context, ids []ident.SessionID) map[ident.SessionID]usage.Totals
	Viewers(ctx context.Context, id ident.SessionID) []api.Viewer
	Kick(ctx context.Context, id ident.SessionID, viewer ident.ViewerID) (who usage.Party, found bool)
}

// Terminals makes codes that enter a tunnel's terminal.
type Terminals interface {
	Mint(ctx context.Context, t store.TunnelRecord, by creds.Principal, lives time.Duration, readOnly bool) (address string, until time.Time, err error)
}

// Prober asks an agent what listens on a port.
type Prober interface {
	Probe(ctx context.Context, key ident.AgentKey, p wire.Probe) (wire.Probed, error)
}

// Heartbeats knows the agents of this relay better than the store, which is told
// less often.
type Heartbeats interface {
	Heartbeat(key ident.AgentKey) (store.Presence, bool)
}

// Config is what an API is made of. Auth, Rights, People, Pairing, Gate, Store, Addresses,
// Usage, Links, Doors, Terminals, Audit, Remote, Grace and Logger are required.
type Config struct {
	Auth      Authenticator
	Rights    Rights
	People    People
	Pairing   Pairing
	Gate      *gate.Gate
	Store     Store
	Addresses Addresses
	Usage     Usage
	Links     Links
	Doors     Doors        // of tunnels that one knocks at
	Access    access.Floor // how far tunnels may be open; zero: as far as asked for
	// AppliesAccess says whether all relays of the pool apply rules of access; nil: they do.
	AppliesAccess func() bool
	SignInOff     string // why nobody signs in with a browser; empty: people do
	Terminals     Terminals
	Prober        Prober     // nil: nobody is asked
	Heartbeats    Heartbeats // nil: what the store has
	Audit         gate.Auditor
	Remote        func(r *http.Request) string // the caller's address
	ProbeWait     time.Duration                // how long opening waits for the probe; default 300 ms
	Grace         time.Duration                // how long a lost agent stays in lists
	Comment       time.Duration                // between comments of an event stream; default 15 s
	Logger        *slog.Logger
	Registerer    prometheus.Registerer
}

// API serves the interface. It is safe for concurrent use.
type API struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	mux     *http.ServeMux
	spec    []byte
	events  *history

	stopping context.Context // ends with Run or Drain
	stop     context.CancelCauseFunc
	probes   sync.WaitGroup
}

var (
	errDraining = errors.New("the relay is draining")
	errStale    = errors.New("no word from the store for a while")
)

// New checks the configuration and returns an API.
func New(cfg Config) (*API, error) {
	if cfg.Auth == nil || cfg.Rights == nil || cfg.People == nil || cfg.Pairing == nil || cfg.Gate == nil || cfg.Store == nil || cfg.Addresses == nil || cfg.Usage == nil || cfg.Links == nil || cfg.Doors == nil || cfg.Terminals == nil || cfg.Audit == nil || cfg.Remote == nil || cfg.Grace <= 0 || cfg.Logger == nil {
		return nil, errors.New("rest: Auth, Rights, People, Pairing, Gate, Store, Addresses, Usage, Links, Terminals, Audit, Remote, Grace and Logger are required")
	}
	if cfg.ProbeWait == 0 {
		cfg.ProbeWait = 300 * time.Millisecond
	}
	if cfg.Comment == 0 {
		cfg.Comment = 15 * time.Second
	}
	a := &API{cfg: cfg, log: cfg.Logger, metrics: newMetrics(cfg.Registerer), mux: http.NewServeMux(), events: newHistory()}
	var err error
	if a.spec, err = specification(a.table()); err != nil {
		return nil, fmt.Errorf("rest: %w", err)
	}
	a.stopping, a.stop = context.WithCancelCause(context.Background())
	for _, rt := range a.table() {
		a.mux.HandleFunc(rt.method+" "+api.Base+rt.path, func(w http.ResponseWriter, r *http.Request) {
			c := callOf(r)
			c.route = rt
			c.err = a.call(w, r, c)
		})
	}
	a.mux.HandleFunc(anything, func(w http.ResponseWriter, r *http.Request) {
		c := callOf(r)
		c.err = a.unrouted(w, r, c)
	})
	return a, nil
}

// Run keeps the recent events for streams that resume. It blocks until ctx ends,
// then ends event streams and waits for what runs in the background.
func (a *API) Run(ctx context.Context) error {
	stop := a.cfg.Gate.Hear(a.events.add)
	defer stop()
	<-ctx.Done()
	a.stop(errDraining)
	a.probes.Wait()
	return nil
}

// Drain ends event streams and calls that wait for tasks to end, so that the
// listener can be shut down. Other calls are served until then.
func (a *API) Drain() { a.stop(errDraining) }

// call is one request on its way.
type call struct {
	known     *creds.Principal // who calls, where the link says so
	route     route            // empty: there is none
	principal creds.Principal
	err       error
}

type callKey struct{}

func callOf(r *http.Request) *call { return r.Context().Value(callKey{}).(*call) }

// Timeouts of one request. Those that may take longer lift them.
const (
	readTime  = 30 * time.Second
	writeTime = 60 * time.Second
)

// ServeHTTP serves a request from the public listener.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.serve(w, r, nil) }

// ServeAgent serves a request that an agent made over its link: the routes are the
// same, who is calling is known, and only its own tasks are there.
func (a *API) ServeAgent(w http.ResponseWriter, r *http.Request, p creds.Principal) {
	a.serve(w, r, &p)
}

func (a *API) serve(w http.ResponseWriter, r *http.Request, known *creds.Principal) {
	start := time.Now()
	id := requestID(r)
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(start.Add(readTime)) // not every connection has deadlines
	_ = rc.SetWriteDeadline(start.Add(writeTime))
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", api.StrictPolicy)
	h.Set(api.HeaderRequestID, string(id))

	out := &answer{ResponseWriter: w}
	c := &call{known: known}
	ctx := gate.WithTrace(r.Context(), gate.Trace{Request: id, Remote: a.cfg.Remote(r)})
	r = r.WithContext(context.WithValue(ctx, callKey{}, c))
	defer func() {
		if v := recover(); v != nil {
			if v == http.ErrAbortHandler { //nolint:errorlint // net/http compares what was panicked just so
				panic(v)
			}
			a.log.Error("panic in an API call", "request_id", id, "panic", v, "stack", string(debug.Stack()))
			c.err = errors.New("panic")
		}
		a.finish(out, r, c, id, start)
		// The connection may be used for a tunnel next, which knows no deadlines.
		_ = rc.Flush()
		_ = rc.SetWriteDeadline(time.Time{})
	}()
	if !clean(r) {
		c.err = a.unrouted(out, r, c)
		return
	}
	a.mux.ServeHTTP(out, r)
}

// call authenticates the caller and serves the route.
func (a *API) call(w http.ResponseWriter, r *http.Request, c *call) error {
	if !c.route.public {
		if err := a.authenticate(r, c); err != nil {
			return err
		}
		if p := c.route.refuses(c.principal); p != nil {
			return p
		}
	}
	return c.route.serve(w, r, c.principal)
}

// kindTunnelAdmin is the principal of a tunnel's admin token: the team's, for that
// one tunnel.
const kindTunnelAdmin creds.Kind = "tunnel_admin"

func (a *API) authenticate(r *http.Request, c *call) (err error) {
	if c.known != nil {
		c.principal = *c.known
		return nil
	}
	if c.route.admitsKind(kindTunnelAdmin) {
		if secret, err := creds.Bearer(r); err == nil && strings.HasPrefix(secret.Reveal(), ident.PrefixAdmin) {
			c.principal, err = a.tunnelAdmin(r, secret)
			return err
		}
	}
	authenticate := a.cfg.Auth.Authenticate
	if c.route.anyTeam {
		authenticate = a.cfg.Auth.AuthenticatePerson
	}
	c.principal, err = authenticate(r)
	return err
}

// tunnelAdmin authenticates a tunnel's admin token for the tunnel that the path
// names. A right token proves itself, also when the tunnel is closed.
func (a *API) tunnelAdmin(r *http.Request, secret ident.Secret) (creds.Principal, error) {
	path := strings.TrimPrefix(r.URL.Path, api.Base+"/tunnels/")
	text, _, _ := strings.Cut(path, "/")
	id, err := ident.ParseSessionID(text)
	if err != nil || !secret.Matches(a.cfg.Gate.AdminToken(id).Hash()) {
		return creds.Principal{}, api.NewProblem(api.CodeUnauthenticated, "the admin token is not this tunnel's")
	}
	if a.cfg.Store.Status().Stale { // it may have been closed since
		return creds.Principal{}, unavailable(errStale)
	}
	t, err := a.tunnel(r.Context(), id)
	if err != nil {
		if e, ok := a.cfg.Gate.Why(id); ok {
			err = a.orWhy(err, id, creds.Principal{Team: e.Key.Team})
		}
		return creds.Principal{}, err
	}
	if t.Left(a.cfg.Store, t.User) {
		return creds.Principal{}, api.NewProblem(api.CodeUnauthenticated, "the admin token is of somebody who is not in the team any more")
	}
	return creds.Principal{Kind: kindTunnelAdmin, Team: t.Team, Name: "admin:" + string(id)}, nil
}

// anything is the pattern of what no route is for.
const anything = "/"

// unrouted answers what no route is for, once it is known who asks: 404, or 405 with
// what is allowed.
func (a *API) unrouted(w http.ResponseWriter, r *http.Request, c *call) error {
	if err := a.authenticate(r, c); err != nil {
		return err
	}
	var allowed []string
	for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		probe := &http.Request{Method: m, URL: r.URL, Host: r.Host}
		if _, pattern := a.mux.Handler(probe); pattern != anything && clean(r) {
			allowed = append(allowed, m)
		}
	}
	if len(allowed) == 0 {
		return api.NewProblem(api.CodeNotFound, "there is no such route; GET "+api.Base+"/openapi.json describes all of them")
	}
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	return api.Problemf(api.CodeMethodNotAllowed, "allowed here: %s", strings.Join(allowed, ", "))
}

// clean says whether a path is its own shortest form. Of others http.ServeMux makes
// redirects, which callers that send secrets should not have to follow.
func clean(r *http.Request) bool {
	p := r.URL.EscapedPath()
	return path.Clean(p) == p
}

// finish turns an error into its document, and counts.
func (a *API) finish(w *answer, r *http.Request, c *call, id ident.RequestID, start time.Time) {
	operation := c.route.operation
	if operation == "" {
		operation = "none"
	}
	if c.err != nil {
		var p *api.Problem
		switch {
		case errors.As(c.err, &p):
			if p.Status >= 500 && p.Cause != nil {
				a.log.Warn("api call", "operation", operation, "request_id", id, "error", p.Cause)
			}
		case errors.Is(c.err, errDraining):
			p = api.NewProblem(api.CodeRelayDraining, "the relay restarts; try again at once").WithRetry(time.Second)
		case r.Context().Err() != nil:
			p = api.NewProblem(api.CodeCanceled, "the caller left") // nobody reads it
		default:
			a.log.Error("api call", "operation", operation, "request_id", id, "error", c.err)
			p = api.NewProblem(api.CodeInternal, "the relay could not do this; its log says why, under the request_id")
		}
		if w.status == 0 {
			problems.AnswerOwn(w, r, p, id)
		}
		a.refused(r, c, p)
	}
	a.metrics.requests.WithLabelValues(operation, fmt.Sprint(w.status)).Inc()
	if !c.route.long {
		a.metrics.seconds.WithLabelValues(operation).Observe(time.Since(start).Seconds())
	}
}

// answer remembers the status that was sent.
type answer struct {
	http.ResponseWriter
	status int
}

// WriteHeader notes the status.
func (w *answer) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write is a 200 without another status.
func (w *answer) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *answer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// requestID takes a well-formed id from the caller, so that it can be followed
// from their logs to ours.
func requestID(r *http.Request) ident.RequestID {
	if id, err := ident.ParseRequestID(r.Header.Get(api.HeaderRequestID)); err == nil {
		return id
	}
	return ident.NewRequestID()
}

// Package terminal owns the way from browsers and the command line to terminals on
// machines: it authenticates a viewer by the tunnel's admin token, joins its
// WebSocket to a stream of the agent, and records who was there. It never looks
// into what is typed or printed, and keeps no terminal itself: the agent does.
package terminal

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/caller"
	"github.com/adit-tunnel/adit/relay/internal/fleet"
	"github.com/adit-tunnel/adit/relay/internal/problems"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/relay/internal/tunnels"
	"github.com/adit-tunnel/adit/relay/internal/usage"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
	"github.com/adit-tunnel/adit/shared/wsconn"
)

// What one address may get wrong: ten tries, then one every six seconds. Who comes
// from more addresses than are kept still guesses at 200 random bits.
const (
	triesBurst   = 10
	triesEvery   = 6 * time.Second
	maxAddresses = 8192
)

// Store is what is read of the relay's copy of the store in memory, and the codes.
type Store interface {
	// Status says how far it can be trusted.
	Status() store.Status
	CatchUp(ctx context.Context) error
	Tunnel(id ident.SessionID) (store.TunnelRecord, bool)
	Agent(key ident.AgentKey) (store.AgentRecord, bool)
	Credential(id ident.CredentialID) (store.CredentialRecord, bool)
	Member(team ident.TeamID, user ident.UserID) (store.MemberRecord, bool)
	SignIn(hash string) (store.SignInRecord, bool)
	// CreateCode and TakeCode keep codes that work once, for the whole pool.
	CreateCode(ctx context.Context, r store.CodeRecord, most int) error
	TakeCode(ctx context.Context, session ident.SessionID, hash string) (store.CodeRecord, error)
}

// Auditor keeps records.
type Auditor interface {
	Append(ctx context.Context, r audit.Record) error
}

// Config is what a Terminal needs. All but Stopping, Hold, FirstMessage and
// Registerer are required.
type Config struct {
	Page   http.Handler // the page, the same for everybody
	Origin string       // of the page: the relay's public one, canonical
	Store  Store
	Key    ident.ClusterKey // signs codes and rights
	// AdminToken computes the token of a tunnel, whether there is one or not.
	AdminToken func(ident.SessionID) ident.Secret
	// Why says why a tunnel is over, to who has its admin token; false: not known.
	Why func(ident.SessionID) (string, bool)
	// Stopping says that the relay is about to drain; nil: it never does.
	Stopping func() bool
	Fleet    *fleet.Fleet
	Meter    *usage.Meter
	Audit    Auditor
	Remote   func(r *http.Request) string // the caller's address
	Hold     time.Duration                // how long a viewer waits for an agent that is away
	// FirstMessage is how long a viewer may take to send its token; default 10 s.
	FirstMessage time.Duration
	Logger       *slog.Logger
	Registerer   prometheus.Registerer
}

// Terminal serves the page and the WebSockets. It is safe for concurrent use.
type Terminal struct {
	cfg     Config
	metrics *metrics
	tries   *caller.Limits // of wrong tokens
	waiting *caller.Room   // sockets without a token yet, by address

	mu       sync.Mutex
	sockets  map[*socket]struct{}
	teams    map[ident.TeamID]int // sockets with a right token
	draining bool
	serving  sync.WaitGroup
}

const restarting = "the relay restarts; connect again"

// Bounds of sockets, on this relay: of those without a token, over all and of one
// address, and of one team's viewers.
const (
	maxWaiting        = 512
	maxWaitingAddress = 64
	maxTeam           = 512
)

const crowded = "too many viewers are about to connect; connect again in a moment"

// New checks the configuration. It starts nothing.
func New(cfg Config) (*Terminal, error) {
	if cfg.Page == nil || cfg.Store == nil || cfg.AdminToken == nil || cfg.Why == nil || cfg.Fleet == nil || cfg.Meter == nil || cfg.Audit == nil || cfg.Remote == nil || cfg.Logger == nil || cfg.Origin == "" {
		return nil, errors.New("terminal: Page, Origin, Store, AdminToken, Why, Fleet, Meter, Audit, Remote and Logger are required")
	}
	if cfg.FirstMessage <= 0 {
		cfg.FirstMessage = 10 * time.Second
	}
	return &Terminal{
		cfg: cfg, metrics: newMetrics(cfg.Registerer), tries: caller.NewLimits(triesEvery, triesBurst, maxAddresses),
		waiting: caller.NewRoom(maxWaiting, maxWaitingAddress), sockets: map[*socket]struct{}{}, teams: map[ident.TeamID]int{},
	}, nil
}

// Routes are the patterns of http.ServeMux to serve.
func (t *Terminal) Routes() map[string]http.Handler {
	return map[string]http.Handler{
		"GET " + wire.TerminalPath + "{session}":                       http.HandlerFunc(t.page),
		"GET " + wire.TerminalPath + "{session}" + wire.TerminalSocket: http.HandlerFunc(t.serve),
	}
}

// page is the same for every session id, so that it tells nothing of tunnels.
func (t *Terminal) page(w http.ResponseWriter, r *http.Request) {
	if _, err := ident.ParseSessionID(r.PathValue("session")); err != nil {
		problems.AnswerOwn(w, r, errNoID(), ident.NewRequestID())
		return
	}
	t.cfg.Page.ServeHTTP(w, r)
}

func errNoID() *api.Problem {
	return api.NewProblem(api.CodeNotFound, "a terminal's address ends in a tunnel's session id")
}

// serve serves one viewer, from its handshake to its end.
func (t *Terminal) serve(w http.ResponseWriter, r *http.Request) {
	s := &socket{t: t, request: ident.NewRequestID(), remote: t.cfg.Remote(r), agent: r.UserAgent()}
	if p := t.admit(s, r); p != nil {
		if p.Code == api.CodeUpgradeRequired {
			w.Header().Set("Upgrade", "websocket") // not optional (RFC 9110, section 15.5.22)
		}
		problems.AnswerOwn(w, r, p, s.request)
		return
	}
	defer t.leave(s)
	keep := &wsconn.Keeper{ResponseWriter: w}
	c, err := websocket.Accept(keep, r, &websocket.AcceptOptions{
		InsecureSkipVerify: true, // admit compared Origin, more strictly
		CompressionMode:    websocket.CompressionDisabled,
	})
	if err != nil { // it has answered
		t.cfg.Logger.Debug("terminal not accepted", "request_id", s.request, "error", err)
		return
	}
	t.mu.Lock()
	s.ws, s.conn = c, keep.Conn
	draining, dropped := t.draining, s.dropped
	t.mu.Unlock()
	switch { // Drain or drop looked before it was there
	case draining:
		s.end(websocket.StatusServiceRestart, restarting)
		return
	case dropped:
		s.end(websocket.StatusTryAgainLater, crowded)
		return
	}
	// The request's context does not end with a connection that was taken over.
	s.run(context.WithoutCancel(r.Context()))
}

// admit checks all that needs no token. It allocates nothing for who is refused.
func (t *Terminal) admit(s *socket, r *http.Request) *api.Problem {
	id, err := ident.ParseSessionID(r.PathValue("session"))
	if err != nil {
		return errNoID()
	}
	s.session = id
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") { // most likely a person who changed the address
		return api.NewProblem(api.CodeUpgradeRequired, "this address takes WebSockets only; the terminal's page is at the address before "+wire.TerminalSocket)
	}
	if wait := t.tries.Wait(s.remote, time.Now()); wait > 0 {
		t.metrics.refused.WithLabelValues("rate").Inc()
		return api.NewProblem(api.CodeTooManyTries, "too many wrong tokens came from this address; wait a little").WithRetry(wait)
	}
	if !t.originAllowed(r) {
		t.metrics.refused.WithLabelValues("origin").Inc()
		t.note(r.Context(), s, audit.TerminalRefused, "anonymous", "the page that asked is of another origin")
		return api.NewProblem(api.CodeCrossOrigin, "terminals are for the relay's own page, at its public address ("+t.cfg.Origin+")")
	}
	if t.cfg.Store.Status().Stale { // the tunnel may have been closed since, and its token with it
		t.metrics.refused.WithLabelValues("store").Inc()
		return api.StoreUnavailable("this relay has not heard from its store for a while: connect again in a moment, or through another relay", nil)
	}
	t.mu.Lock()
	if t.draining {
		t.mu.Unlock()
		return api.NewProblem(api.CodeRelayDraining, restarting).WithRetry(2 * time.Second)
	}
	t.sockets[s] = struct{}{}
	t.serving.Add(1)
	t.mu.Unlock()
	s.place = t.waiting.Enter(caller.Key(s.remote), func() { t.drop(s) })
	return nil
}

// drop ends a socket without a token whose place another one needs.
func (t *Terminal) drop(s *socket) {
	t.metrics.refused.WithLabelValues("limit").Inc()
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.dropped = true; s.ws == nil {
		return // serve looks when its handshake is done
	}
	t.serving.Go(func() { s.end(websocket.StatusTryAgainLater, crowded) }) // its goodbye takes a moment
}

// originAllowed takes the public origin only. Programs that are no browser send
// none; what they could send would prove nothing, and the token is what counts.
func (t *Terminal) originAllowed(r *http.Request) bool {
	values := r.Header["Origin"]
	if len(values) == 0 {
		return true
	}
	if len(values) != 1 {
		return false
	}
	origin, ok := tunnels.CanonicalOrigin(values[0])
	return ok && origin == t.cfg.Origin
}

// join counts a socket that has shown its token as one of its team, unless that has
// its share.
func (t *Terminal) join(s *socket) bool {
	s.place.Leave()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.teams[s.record.Team] >= maxTeam {
		return false
	}
	t.teams[s.record.Team]++
	s.joined = true
	return true
}

func (t *Terminal) leave(s *socket) {
	s.place.Leave()
	t.mu.Lock()
	delete(t.sockets, s)
	if team := s.record.Team; s.joined {
		if t.teams[team]--; t.teams[team] == 0 {
			delete(t.teams, team)
		}
	}
	t.mu.Unlock()
	t.serving.Done()
}

// Drain refuses new viewers, sends those that are here elsewhere, and waits for
// their end; what is left when ctx ends is cut.
func (t *Terminal) Drain(ctx context.Context) error {
	t.mu.Lock()
	t.draining = true
	all := make([]*socket, 0, len(t.sockets))
	for s := range t.sockets {
		if s.ws != nil {
			all = append(all, s)
		}
	}
	t.mu.Unlock()
	for _, s := range all {
		t.serving.Go(func() { s.end(websocket.StatusServiceRestart, restarting) })
	}
	done := make(chan struct{})
	go func() {
		t.serving.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		for _, s := range all {
			s.cut()
		}
		<-done
		return context.Cause(ctx)
	}
}

// Yield sends viewers elsewhere whose way to the machine ends now.
func (t *Terminal) Yield() {
	t.mu.Lock()
	var all []*socket
	for s := range t.sockets {
		if s.stream != nil && s.stream.Leaving() {
			all = append(all, s)
		}
	}
	t.mu.Unlock()
	var goodbyes sync.WaitGroup
	for _, s := range all {
		goodbyes.Go(func() { s.end(websocket.StatusServiceRestart, restarting) })
	}
	goodbyes.Wait()
}

// note writes a record. Who is refused at any rate is not waited for.
func (t *Terminal) note(ctx context.Context, s *socket, event audit.Event, actor, detail string) {
	if err := t.append(ctx, s, event, actor, detail); err != nil {
		t.cfg.Logger.Warn("write audit record", "event", event, "error", err)
	}
}

func (t *Terminal) append(ctx context.Context, s *socket, event audit.Event, actor, detail string) error {
	return t.cfg.Audit.Append(ctx, audit.Record{
		Event: event, Actor: actor, Team: s.record.Team, Agent: s.record.Agent, Session: s.session,
		Detail: detail, RequestID: s.request, RemoteAddr: s.remote,
	})
}

// party is the viewer for lists.
func (s *socket) party() usage.Party {
	a, err := netip.ParseAddr(s.remote)
	if err != nil {
		a = netip.Addr{} // lists show none
	}
	return usage.Party{Remote: a.Unmap(), UserAgent: s.agent}
}

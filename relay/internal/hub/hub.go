// Package hub owns the agents' sessions of this relay: it admits links, keeps one
// session per agent with its generation, opens streams on it, and ends both. It
// never decides about tunnels or tasks (the gate does) and never looks into a
// stream.
package hub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/caller"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/fleet"
	"github.com/adit-tunnel/adit/relay/internal/gate"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/wire"
)

// Gate is what the hub needs of the gate.
type Gate interface {
	// Connect claims the next generation of the agent for one of its processes. An
	// error that wraps gate.ErrSuperseded refuses it.
	Connect(ctx context.Context, key ident.AgentKey, c gate.Claim) (uint64, store.AgentRecord, error)
	// Declare records what the machine said of itself.
	Declare(ctx context.Context, key ident.AgentKey, epoch uint64, state wire.State, unhealthy string) error
}

// Store is what the hub needs of the store.
type Store interface {
	PutPresence(ctx context.Context, p store.Presence) error
	DeletePresence(ctx context.Context, key ident.AgentKey, epoch uint64) error
	Presence(key ident.AgentKey) (store.Presence, bool)
	// Room says whether the store takes what can wait.
	Room() bool
	AgentTunnels(key ident.AgentKey) []store.TunnelRecord
	// Agent and Relay return records as they are known here; a relay has one while it
	// has a lease.
	Agent(key ident.AgentKey) (store.AgentRecord, bool)
	Relay(id ident.RelayID) (store.RelayRecord, bool)
	Fenced() <-chan struct{}
}

// Creds says who may link, and ends what a principal holds when its credential is
// revoked or expires.
type Creds interface {
	// MayLink says why a principal may not bring up the link of an agent.
	MayLink(p creds.Principal, key ident.AgentKey) error
	// Watch returns a context that is cancelled, with the reason as its cause, when
	// the principal's credential ends.
	Watch(ctx context.Context, p creds.Principal) (context.Context, context.CancelFunc)
}

// Config is what a Hub is made of. Gate, Store, Creds, GateHTTP, Budget, Grace, Logger
// and the limits are required.
type Config struct {
	Relay     ident.RelayID
	Version   string
	PublicURL string
	Gate      Gate
	Store     Store
	Creds     Creds
	// Pool is for agents that have links to several relays; nil: there is one relay.
	Pool Pool
	// GateHTTP serves the task routes to an agent, over a stream that it opened.
	GateHTTP func(p creds.Principal) http.Handler
	// Relays lists the URLs of the pool's other relays; nil without a pool.
	Relays     func() []string
	Window     uint32       // of each stream, in bytes; 0: the link's default
	Budget     *link.Budget // of data that waits, over all links
	MaxStreams int          // per agent
	MaxAgents  int          // on this relay
	// AgentsPerTeam says how many agents of a team may come back at once; the gate
	// sees to the number itself.
	AgentsPerTeam int
	Grace         time.Duration // how long a lost agent stays in lists
	Logger        *slog.Logger
	Registerer    prometheus.Registerer
	// Event hears of connects and disconnects, for the audit. It must not block.
	Event func(Event)
}

// Event is a change of an agent's session.
type Event struct {
	Kind       audit.Event
	Key        ident.AgentKey
	Epoch      uint64
	RemoteAddr string
	Detail     string
	Principal  creds.Principal
}

// Hub keeps the sessions of the agents that are linked to this relay.
type Hub struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics

	refreshes, overdue chan struct{} // hold one for each heartbeat that is being written
	silent             *caller.Room  // links that have said no hello, by team
	links, news        paces

	mu       sync.Mutex
	sessions map[ident.AgentKey]*session
	arrivals map[ident.AgentKey]*arrival
	cut      map[ident.SessionID]time.Time // closed tunnels, kept while a racing open may still come
	joining  map[ident.AgentKey]int        // links that are about to be admitted
	draining bool
	serving  sync.WaitGroup // ServeLink calls and grace timers
	stop     chan struct{}  // closed when Run ends
}

// arrival is closed when the agent arrives.
type arrival struct {
	ch      chan struct{}
	waiters int
}

// cutMemory is how long a closed tunnel's id is remembered: longer than any open
// that was under way when it closed.
const cutMemory = 2 * time.Minute

// New checks the configuration and returns a Hub that has no sessions yet.
func New(cfg Config) (*Hub, error) {
	if cfg.Gate == nil || cfg.Store == nil || cfg.Creds == nil || cfg.GateHTTP == nil || cfg.Logger == nil {
		return nil, errors.New("hub: Gate, Store, Creds, GateHTTP and Logger are required")
	}
	if cfg.Budget == nil || cfg.MaxStreams <= 0 || cfg.MaxAgents <= 0 || cfg.AgentsPerTeam <= 0 || cfg.Grace <= 0 {
		return nil, errors.New("hub: Budget, MaxStreams, MaxAgents, AgentsPerTeam and Grace are required")
	}
	if cfg.Event == nil {
		cfg.Event = func(Event) {}
	}
	if cfg.Relays == nil {
		cfg.Relays = func() []string { return nil }
	}
	h := &Hub{
		cfg: cfg, log: cfg.Logger, metrics: newMetrics(cfg.Registerer, cfg.Budget),
		refreshes: make(chan struct{}, maxRefreshes),
		overdue:   make(chan struct{}, maxOverdue),
		silent:    caller.NewRoom(maxSilent, maxSilentTeam),
		sessions:  make(map[ident.AgentKey]*session),
		arrivals:  make(map[ident.AgentKey]*arrival),
		joining:   make(map[ident.AgentKey]int),
		cut:       make(map[ident.SessionID]time.Time),
		stop:      make(chan struct{}),
	}
	cfg.Budget.Relieved = h.relieved
	return h, nil
}

// Run watches the relay's own lease and ends every session when it is fenced:
// another relay may hold the agents then. It blocks until ctx ends, then closes
// every link and waits for what served them.
func (h *Hub) Run(ctx context.Context) error {
	sweep := time.NewTicker(cutMemory)
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			close(h.stop)
			h.closeAll(wire.GoodbyeDrain, "the relay stopped")
			h.serving.Wait()
			return nil
		case <-h.cfg.Store.Fenced():
			h.log.Warn("fenced: ending the sessions of all agents, since another relay may hold them")
			h.closeAll(wire.GoodbyeFenced, "the relay lost its lease in the store")
			select { // the channel of the next lease comes with the next lease
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		case now := <-sweep.C:
			h.mu.Lock()
			for id, at := range h.cut {
				if now.Sub(at) > cutMemory {
					delete(h.cut, id)
				}
			}
			h.mu.Unlock()
		}
	}
}

// Online says whether the agent has a link to this relay, and of which generation.
func (h *Hub) Online(key ident.AgentKey) (epoch uint64, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.sessions[key]; s != nil {
		return s.epoch, true
	}
	return 0, false
}

// Heartbeat returns when the agent was last heard and what it said of itself, for
// an agent of this relay: fresher than the store, which is told less often.
func (h *Hub) Heartbeat(key ident.AgentKey) (store.Presence, bool) {
	h.mu.Lock()
	s := h.sessions[key]
	h.mu.Unlock()
	if s == nil {
		return store.Presence{}, false
	}
	return s.snapshot(), true
}

// Wait returns when the agent has a link to this relay, or with ctx.
func (h *Hub) Wait(ctx context.Context, key ident.AgentKey) error {
	h.mu.Lock()
	if h.draining {
		h.mu.Unlock()
		return fleet.ErrDraining
	}
	if h.sessions[key] != nil {
		h.mu.Unlock()
		return nil
	}
	a := h.arrivals[key]
	if a == nil {
		a = &arrival{ch: make(chan struct{})}
		h.arrivals[key] = a
	}
	a.waiters++
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if a.waiters--; a.waiters == 0 && h.arrivals[key] == a {
			delete(h.arrivals, key)
		}
	}()
	select {
	case <-a.ch:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for agent: %w", fleet.ErrAway)
	}
}

// Refuse lets no new stream of a tunnel open.
func (h *Hub) Refuse(id ident.SessionID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cut[id] = time.Now()
}

// Cut ends every stream of an agent's tunnel and lets no new one open. It returns how
// many it ended.
func (h *Hub) Cut(key ident.AgentKey, id ident.SessionID, reason string) int {
	h.mu.Lock()
	h.cut[id] = time.Now()
	var victims []*fleet.Stream
	if s := h.sessions[key]; s != nil {
		victims = slices.Collect(maps.Keys(s.streams[id]))
	}
	h.mu.Unlock()
	for _, st := range victims {
		_ = st.Reset() // ends both directions; nobody takes it for a clean end
	}
	if len(victims) > 0 {
		h.log.Debug("cut streams of tunnel", "session_id", id, "streams", len(victims), "reason", reason)
	}
	return len(victims)
}

// Opened tells the agent of a tunnel, if it is here.
func (h *Hub) Opened(key ident.AgentKey, t store.TunnelRecord) {
	if s := h.session(key); s != nil {
		n := notice(t)
		s.send(wire.Message{Type: wire.TypeTunnelOpened, TunnelOpened: &n})
	}
}

// Closed tells the agent of a tunnel's end, if it is here.
func (h *Hub) Closed(key ident.AgentKey, id ident.SessionID, reason string) {
	if s := h.session(key); s != nil {
		s.send(wire.Message{Type: wire.TypeTunnelClosed, TunnelClosed: &wire.TunnelNotice{Session: id, Reason: reason}})
	}
}

func (h *Hub) session(key ident.AgentKey) *session {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sessions[key]
}

// Count returns the number of sessions and of open streams.
func (h *Hub) Count() (sessions, streams int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.sessions {
		streams += s.count
	}
	return len(h.sessions), streams
}

// Drain admits no more links and streams, and tells every agent to move, spread
// over a short time so that they do not arrive elsewhere all at once. Links stay
// until Run ends, so what is under way can finish.
func (h *Hub) Drain(ctx context.Context) {
	h.mu.Lock()
	h.draining = true
	all := make([]*session, 0, len(h.sessions))
	for _, s := range h.sessions {
		all = append(all, s)
	}
	for key, a := range h.arrivals {
		close(a.ch)
		delete(h.arrivals, key)
	}
	h.mu.Unlock()
	if len(all) == 0 {
		return
	}
	step := min(2*time.Second/time.Duration(len(all)), 20*time.Millisecond)
	for _, s := range all {
		to := h.cfg.Relays()
		rand.Shuffle(len(to), func(i, k int) { to[i], to[k] = to[k], to[i] }) // not all to the same one
		s.sendAll(wire.Message{Type: wire.TypeGoodbye, Goodbye: &wire.Goodbye{
			Reason: wire.GoodbyeDrain, Detail: "the relay is stopping", MoveTo: to,
		}})
		select {
		case <-ctx.Done():
			return
		case <-time.After(step):
		}
	}
	h.awaitMoves(ctx, all)
}

func (h *Hub) closeAll(reason wire.GoodbyeReason, detail string) {
	h.mu.Lock()
	all := make([]*session, 0, len(h.sessions))
	for _, s := range h.sessions {
		all = append(all, s)
	}
	h.mu.Unlock()
	for _, s := range all {
		s.end(wire.Goodbye{Reason: reason, Detail: detail})
	}
}

func notice(t store.TunnelRecord) wire.TunnelNotice {
	return wire.TunnelNotice{
		Session: t.Session, Port: t.Port, Protocol: string(t.Protocol), Label: t.Label,
		OpenedBy: t.OpenedBy, OpenedAt: t.OpenedAt, ExpiresAt: t.ExpiresAt,
	}
}

package gate

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Store is what the gate needs of the store.
type Store interface {
	UpdateAgent(ctx context.Context, key ident.AgentKey, change func(now time.Time, r *store.AgentRecord) (store.Effects, error)) (store.AgentRecord, error)
	UpdateTunnel(ctx context.Context, id ident.SessionID, change func(*store.TunnelRecord) error) (store.TunnelRecord, error)
	// RemoveAgent removes an agent's record if gone agrees and it is not connected.
	RemoveAgent(ctx context.Context, key ident.AgentKey, gone func(now time.Time, r store.AgentRecord) bool) error
	// AgentCount returns how many agents of a team have a record.
	AgentCount(team ident.TeamID) int
	// Room says whether the store takes new records.
	Room() bool
	// OnceValue returns the value of a key that an earlier change brought with it.
	OnceValue(ctx context.Context, key string) (value string, found bool, err error)
	// CatchUp waits until what is read from memory is at least as new as its call.
	CatchUp(ctx context.Context) error
	Tunnel(id ident.SessionID) (store.TunnelRecord, bool)
	AgentTunnels(key ident.AgentKey) []store.TunnelRecord
	Agent(key ident.AgentKey) (store.AgentRecord, bool)
	Presence(key ident.AgentKey) (store.Presence, bool)
	Relay(id ident.RelayID) (store.RelayRecord, bool)
	AllAgents() iter.Seq2[ident.AgentKey, store.AgentRecord]
	AllTunnels() iter.Seq[store.TunnelRecord]
	Credential(id ident.CredentialID) (store.CredentialRecord, bool)
	Member(team ident.TeamID, user ident.UserID) (store.MemberRecord, bool)
	Subscribe(buffer int) Feed
}

// Feed is a subscription to changes in the store.
type Feed interface {
	C() <-chan store.Change
	// Lost says, once, that changes are missing and everything is to be read again.
	Lost() bool
	Close()
}

// Shared is the store as the gate and the API use it: it only turns the type of
// subscriptions into an interface.
type Shared struct{ *store.Store }

// Subscribe implements Store.
func (s Shared) Subscribe(buffer int) Feed { return s.Store.Subscribe(buffer) }

// Local is what carries tunnels on this relay.
type Local interface {
	// Cut ends everything that uses a tunnel here, and lets nothing new begin. It
	// may be called again, and for tunnels that have nothing here.
	Cut(key ident.AgentKey, id ident.SessionID, reason store.Reason)
	// Opened and Closed tell an agent that is linked here.
	Opened(key ident.AgentKey, t store.TunnelRecord)
	Closed(key ident.AgentKey, id ident.SessionID, reason store.Reason)
	// Changed tells of an agent's record as it is now, or of the end of the relay
	// that it names. It must not block.
	Changed(key ident.AgentKey, rec store.AgentRecord)
	// LastUsed returns when somebody used a tunnel through this relay; zero: never.
	LastUsed(id ident.SessionID) time.Time
}

// Limits bound tunnels and agents. All of them are required.
type Limits struct {
	IdleTimeout    time.Duration // of a tunnel opened without
	MaxIdleTimeout time.Duration
	ExpiresIn      time.Duration // of a tunnel opened without
	MaxExpiresIn   time.Duration
	PerAgent       int           // tunnels; at most 64
	PerTeam        int           // tunnels, about
	OpensPerSecond float64       // per caller
	OpensBurst     int           // per caller
	AgentsPerTeam  int           // that have a record, about
	AgentRetention time.Duration // of an agent that is gone
}

func (l Limits) valid() bool {
	return l.IdleTimeout > 0 && l.MaxIdleTimeout > 0 && l.ExpiresIn > 0 && l.MaxExpiresIn > 0 && l.PerAgent > 0 && l.PerAgent <= closedMemory &&
		l.PerTeam > 0 && l.OpensPerSecond > 0 && l.OpensBurst > 0 && l.AgentsPerTeam > 0 && l.AgentRetention > 0
}

// How long an opening waits for tasks (when_busy wait) without wait_timeout, and at
// most.
const (
	waitTimeout    = 10 * time.Minute
	maxWaitTimeout = time.Hour
)

// Skew is how far the clocks of a pool's relays may be apart, with what a cut takes.
// Relays whose clocks are kept in step (NTP) are within two seconds.
const Skew = 3 * time.Second

const (
	grace     = 2 * time.Second // beyond its lease, until a relay counts as dead
	closeWait = time.Second     // how long Close waits for another relay
)

// Config is what a Gate is made of. Store, Local, Audit, Relay, Limits and Logger are
// required.
type Config struct {
	Store      Store
	Local      Local
	Audit      Auditor
	Relay      ident.RelayID
	Key        ident.ClusterKey
	Limits     Limits
	Now        func() time.Time // wall clock, the store's; default time.Now
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Gate runs the rule on the store's records. It is safe for concurrent use.
type Gate struct {
	store   Store
	local   Local
	auditor Auditor
	relay   ident.RelayID
	key     ident.ClusterKey
	limits  Limits
	now     func() time.Time
	log     *slog.Logger
	metrics *metrics
	opens   *throttle
	book    *book
	doubts  chan doubt // to Run

	mu      sync.Mutex
	started time.Time // of Run; use before is not known
	missing map[ident.RelayID]time.Time
	waiting map[ident.AgentKey]chan struct{} // closed at the agent's next change
	hearers map[int]func(Notice)
	nextID  int
}

// New checks the configuration and returns a Gate. Run must run for tunnels to end
// by themselves.
func New(cfg Config) (*Gate, error) {
	if cfg.Store == nil || cfg.Local == nil || cfg.Audit == nil || cfg.Relay == "" || cfg.Logger == nil {
		return nil, errors.New("gate: Store, Local, Audit, Relay and Logger are required")
	}
	limits := cfg.Limits
	if !limits.valid() {
		return nil, fmt.Errorf("gate: limits are missing, or more than %d tunnels of an agent are allowed: %+v", closedMemory, limits)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Gate{
		store: cfg.Store, local: cfg.Local, auditor: cfg.Audit, relay: cfg.Relay, key: cfg.Key, limits: limits,
		now: cfg.Now, log: cfg.Logger,
		metrics: newMetrics(cfg.Registerer), opens: newThrottle(limits.OpensPerSecond, limits.OpensBurst),
		book: newBook(), doubts: make(chan doubt, maxDoubts), started: cfg.Now(), missing: make(map[ident.RelayID]time.Time),
		waiting: make(map[ident.AgentKey]chan struct{}), hearers: make(map[int]func(Notice)),
	}, nil
}

// Limits returns the limits in effect.
func (g *Gate) Limits() Limits { return g.limits }

// AdminToken returns the token that administers a tunnel. It is computed, so that
// a repeated request is answered with it again; only its hash is stored.
func (g *Gate) AdminToken(id ident.SessionID) ident.Secret {
	mac := hmac.New(sha256.New, g.key[:])
	mac.Write([]byte("admin-token\n" + string(id)))
	return ident.Secret(ident.PrefixAdmin + adminEncoding.EncodeToString(mac.Sum(nil)[:25]))
}

var adminEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// step runs one transition as a compare-and-set, and writes what it did to the
// audit once it landed. The transition may run several times and the store may
// find that an earlier run landed: results are to be read from the record.
func (g *Gate) step(ctx context.Context, key ident.AgentKey, by string, transition func(*Step) error) (store.AgentRecord, error) {
	return g.stepOnce(ctx, key, by, nil, transition)
}

// stepOnce is step for a caller that may have made the same change before: a
// refusal gives way to the *store.OnceError of that.
func (g *Gate) stepOnce(ctx context.Context, key ident.AgentKey, by string, once *store.Once, transition func(*Step) error) (store.AgentRecord, error) {
	tries := make(map[uint64]*Step, 1) // by the N they lead to
	rec, err := g.store.UpdateAgent(ctx, key, func(now time.Time, r *store.AgentRecord) (store.Effects, error) {
		s := &Step{Record: r, Now: now, Skew: Skew, Relay: g.relay, Gone: g.gone}
		n := r.N + 1
		switch err := transition(s); {
		case errors.Is(err, errUnchanged):
			clear(tries) // those lost to whoever made it so
			return store.Effects{}, store.ErrUnchanged
		case err != nil:
			return store.Effects{Once: once}, err
		}
		tries[n] = s
		return s.Effects, nil
	})
	if err != nil {
		g.inDoubt(ctx, key, by, tries, err)
		return rec, answer(err)
	}
	if s := tries[rec.N]; s != nil {
		g.audit(ctx, key, by, s, rec.N)
	}
	return rec, nil
}

// exists says whether an agent has ever been there. A miss is confirmed, since the
// user may be faster than the watch.
func (g *Gate) exists(ctx context.Context, key ident.AgentKey) error {
	if _, ok := g.store.Agent(key); ok {
		return nil
	}
	if err := g.store.CatchUp(ctx); err != nil {
		return answer(err)
	}
	if _, ok := g.store.Agent(key); ok {
		return nil
	}
	return api.NotFound(api.CodeAgentNotFound)
}

// online refuses when the agent has no link now.
func (g *Gate) online(ctx context.Context, key ident.AgentKey) error {
	here := func() bool {
		p, ok := g.store.Presence(key)
		return ok && p.GoneSince.IsZero()
	}
	if here() {
		return nil
	}
	if err := g.store.CatchUp(ctx); err != nil {
		return answer(err)
	}
	if here() {
		return nil
	}
	return offline()
}

// responsible says whether it is for this relay to end an agent's tunnels: it
// holds the agent, or held it last, or the relay that did is gone for good.
func (g *Gate) responsible(holder ident.RelayID, now time.Time) bool {
	if holder == "" || holder == g.relay {
		return true
	}
	_, alive := g.store.Relay(holder)
	g.mu.Lock()
	defer g.mu.Unlock()
	if alive {
		delete(g.missing, holder)
		return false
	}
	since, ok := g.missing[holder]
	if !ok {
		g.missing[holder] = now
		return false
	}
	return now.Sub(since) >= grace
}

// changed returns a channel that is closed at the next change of an agent's record
// that this relay hears of.
func (g *Gate) changed(key ident.AgentKey) <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	ch := g.waiting[key]
	if ch == nil {
		ch = make(chan struct{})
		g.waiting[key] = ch
	}
	return ch
}

func (g *Gate) wake(key ident.AgentKey) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if ch := g.waiting[key]; ch != nil {
		close(ch)
		delete(g.waiting, key)
	}
}

// Notice is what users are told of a tunnel as it happens.
type Notice struct {
	Kind    string // api.EventTunnelClosing or api.EventTunnelClosed
	Key     ident.AgentKey
	Session ident.SessionID
	Detail  string
}

// Hear calls f for every notice of this relay until stop is called. f must not
// block.
func (g *Gate) Hear(f func(Notice)) (stop func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	id := g.nextID
	g.nextID++
	g.hearers[id] = f
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.hearers, id)
	}
}

func (g *Gate) tell(n Notice) {
	g.mu.Lock()
	hearers := make([]func(Notice), 0, len(g.hearers))
	for _, f := range g.hearers {
		hearers = append(hearers, f)
	}
	g.mu.Unlock()
	for _, f := range hearers {
		f(n)
	}
}

// outcome is the metric's label of a decision: a closed list.
func outcome(err error) string {
	var p *api.Problem
	switch {
	case err == nil:
		return "ok"
	case !errors.As(err, &p):
		return "error"
	case p.Status >= 500:
		return "unavailable"
	}
	return "refused"
}

func (g *Gate) count(operation string, err error) {
	g.metrics.decisions.WithLabelValues(operation, outcome(err)).Inc()
}

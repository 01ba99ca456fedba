// Package fleet is the one way from this relay to the agents' machines, wherever their
// links are: here, or at another relay of the pool. It owns where a stream to an agent
// is looked for first, how long one request waits for an agent that is away, what may
// be tried again, what relays ask each other about agents and tunnels, and what of its
// own a relay lets others reach. It never keeps a link (the hub keeps those of agents,
// peers those between relays), never decides about tunnels, and never looks into a
// stream.
package fleet

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/relay/internal/usage"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/traces"
	"github.com/adit-tunnel/adit/shared/wire"
)

// Why no stream to an agent can be had, besides the errors of the link.
var (
	// ErrAway says that the agent has no link now to the relay, or to any of the
	// relays, that were asked.
	ErrAway = errors.New("the agent is not connected")
	// ErrCut says that the tunnel was closed: no stream opens for it any more.
	ErrCut = errors.New("the tunnel is closed")
	// ErrDraining says that this relay admits no more links or streams.
	ErrDraining = errors.New("the relay is draining")
)

// Hub has the agents that are linked to this relay; hub.Hub is one.
type Hub interface {
	// Open returns ErrAway, ErrCut or ErrDraining, or an error of the link.
	Open(ctx context.Context, key ident.AgentKey, h wire.Hello) (*Stream, error)
	// Wait returns nil when the agent has a link, ErrAway with ctx, and ErrDraining
	// when it will have none.
	Wait(ctx context.Context, key ident.AgentKey) error
	Online(key ident.AgentKey) (epoch uint64, ok bool)
	Probe(ctx context.Context, key ident.AgentKey, p wire.Probe) (wire.Probed, error)
	// Refuse lets no new stream of a tunnel open, and Cut ends those that are.
	Refuse(id ident.SessionID)
	Cut(key ident.AgentKey, id ident.SessionID, reason string) int
}

// Peers have the links to the other relays of the pool; peers.Peers are some.
type Peers interface {
	// Open opens a stream through another relay: ErrAway when none has the agent.
	Open(ctx context.Context, key ident.AgentKey, h wire.Hello) (*Stream, error)
	// Wait returns nil when another relay seems to have the agent, ErrAway with ctx.
	Wait(ctx context.Context, key ident.AgentKey) error
	// Ask asks one relay a question and reads its answer into out.
	Ask(ctx context.Context, id ident.RelayID, question string, in, out any) error
	// Yield waits until no other relay uses a tunnel through this one.
	Yield(id ident.SessionID, limit time.Duration)
}

// Store is what is read of this relay's copy of the store.
type Store interface {
	Tunnel(id ident.SessionID) (store.TunnelRecord, bool)
	TunnelState(key ident.AgentKey, id ident.SessionID) (store.TunnelState, bool)
	// CatchUp returns when what is known is at least as new as the call.
	CatchUp(ctx context.Context) error
	Presence(key ident.AgentKey) (store.Presence, bool)
	Relays() []store.RelayRecord
}

// Config is what a Fleet is made of. To open streams on a relay that is alone it needs
// the Hub only.
type Config struct {
	Relay  ident.RelayID
	Hub    Hub
	Store  Store
	Meter  *usage.Meter
	Traces *traces.Traces // nil: none
	Logger *slog.Logger
}

// Fleet is the agents of all relays. It is safe for concurrent use.
type Fleet struct {
	cfg   Config
	peers Peers // nil: this relay is alone
}

// New returns a Fleet of this relay's agents alone.
func New(cfg Config) *Fleet { return &Fleet{cfg: cfg} }

// SetPeers adds the agents of the other relays. It is called before anything is opened:
// the links between relays need the Fleet for what they serve.
func (f *Fleet) SetPeers(p Peers) { f.peers = p }

// yieldTime is what other relays are given to end what their users have on a tunnel
// that closes, with a goodbye. They hear of it when this relay does.
const yieldTime = 250 * time.Millisecond

// Cut ends every stream of an agent's tunnel that goes over this relay, and lets no new
// one open.
func (f *Fleet) Cut(key ident.AgentKey, id ident.SessionID, reason string) {
	f.cfg.Hub.Refuse(id)
	if f.peers != nil {
		f.peers.Yield(id, yieldTime)
	}
	f.cfg.Hub.Cut(key, id, reason)
}

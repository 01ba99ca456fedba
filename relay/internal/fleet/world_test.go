package fleet_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/fleet"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/relay/internal/usage"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/wire"
)

func TestMain(m *testing.M) { testkit.LeakCheck(m) }

var (
	key     = ident.AgentKey{Team: "6f1d3c52-7a94-4c1e-9d3b-2f6a1e0c9b11", Agent: "gpu-1"}
	session = ident.SessionID("3f0c8a5e9b7d4c21a6e8f0b1d2c3e4f5")
)

// relay is one relay of the pool: its hub and its store are pretended, and what it asks
// the others goes to their Fleets.
type relay struct {
	*fleet.Fleet
	id    ident.RelayID
	meter *usage.Meter
	pool  *pool

	open  func(h wire.Hello) (*fleet.Stream, error) // nil: away
	wait  func(ctx context.Context) error           // nil: until ctx ends
	epoch uint64                                    // of the agent's session here; 0: none
	app   string                                    // what a probe finds
	did   []string
}

// pool is what the relays know, and what goes through others.
type pool struct {
	relays  map[ident.RelayID]*relay
	silent  map[ident.RelayID]bool // do not answer
	tunnels map[ident.SessionID]store.TunnelRecord
	states  map[ident.SessionID]store.TunnelState
	late    func() error // what catching up brings
	holder  ident.RelayID

	open  func() (*fleet.Stream, error) // through another relay; nil: away
	wait  func(ctx context.Context) error
	opens int
}

// newPool makes relays, each with peers if there are several.
func newPool(ids ...ident.RelayID) *pool {
	p := &pool{
		relays: map[ident.RelayID]*relay{}, silent: map[ident.RelayID]bool{},
		tunnels: map[ident.SessionID]store.TunnelRecord{}, states: map[ident.SessionID]store.TunnelState{},
	}
	for _, id := range ids {
		r := &relay{id: id, meter: usage.New(usage.Config{}), pool: p}
		r.Fleet = fleet.New(fleet.Config{Relay: id, Hub: (*hub)(r), Store: p, Meter: r.meter, Logger: slog.New(slog.DiscardHandler)})
		if len(ids) > 1 {
			r.SetPeers((*peers)(r))
		}
		p.relays[id] = r
	}
	return p
}

// alone is a relay that is the only one.
func alone() *relay { return newPool("a").relays["a"] }

func until(ctx context.Context) error {
	<-ctx.Done()
	return fleet.ErrAway
}

// hub is a relay's fleet.Hub.
type hub relay

func (h *hub) Open(_ context.Context, _ ident.AgentKey, hello wire.Hello) (*fleet.Stream, error) {
	h.did = append(h.did, "open")
	if h.open == nil {
		return nil, fleet.ErrAway
	}
	return h.open(hello)
}

func (h *hub) Wait(ctx context.Context, _ ident.AgentKey) error {
	if h.wait == nil {
		return until(ctx)
	}
	return h.wait(ctx)
}

func (h *hub) Online(ident.AgentKey) (uint64, bool) { return h.epoch, h.epoch > 0 }

func (h *hub) Probe(context.Context, ident.AgentKey, wire.Probe) (wire.Probed, error) {
	if h.app == "" {
		return wire.Probed{}, fleet.ErrAway
	}
	return wire.Probed{App: h.app}, nil
}

func (h *hub) Refuse(ident.SessionID) { h.did = append(h.did, "refuse") }

func (h *hub) Cut(ident.AgentKey, ident.SessionID, string) int {
	h.did = append(h.did, "cut")
	return 0
}

// peers is a relay's fleet.Peers.
type peers relay

func (p *peers) Open(context.Context, ident.AgentKey, wire.Hello) (*fleet.Stream, error) {
	p.pool.opens++
	if p.pool.open == nil {
		return nil, fleet.ErrAway
	}
	return p.pool.open()
}

func (p *peers) Wait(ctx context.Context, _ ident.AgentKey) error {
	if p.pool.wait == nil {
		return until(ctx)
	}
	return p.pool.wait(ctx)
}

func (p *peers) Ask(ctx context.Context, id ident.RelayID, question string, in, out any) error {
	if p.pool.silent[id] {
		<-ctx.Done()
		return ctx.Err()
	}
	answer := p.pool.relays[id].Answers()[question]
	if answer == nil {
		return errors.New("no such question")
	}
	raw, err := json.Marshal(in)
	if err != nil {
		return err
	}
	got, err := answer(ctx, raw)
	if err != nil {
		return err
	}
	if raw, err = json.Marshal(got); err != nil {
		return err
	}
	return json.Unmarshal(raw, out)
}

func (p *peers) Yield(ident.SessionID, time.Duration) { p.did = append(p.did, "yield") }

// The pool is every relay's fleet.Store.

func (p *pool) Tunnel(id ident.SessionID) (store.TunnelRecord, bool) {
	t, ok := p.tunnels[id]
	return t, ok
}

func (p *pool) TunnelState(k ident.AgentKey, id ident.SessionID) (store.TunnelState, bool) {
	t, ok := p.states[id]
	return t, ok && k == key
}

func (p *pool) CatchUp(context.Context) error {
	if p.late == nil {
		return nil
	}
	return p.late()
}

func (p *pool) Presence(ident.AgentKey) (store.Presence, bool) {
	return store.Presence{Relay: p.holder}, p.holder != ""
}

func (p *pool) Relays() (all []store.RelayRecord) {
	for id := range p.relays {
		all = append(all, store.RelayRecord{ID: id, PeerURL: "https://" + string(id)})
	}
	return append(all, store.RelayRecord{ID: "no-peer-url"})
}

// agent makes a link, serves the streams of its other end, and returns what opens them.
func agent(t *testing.T, serve func(st *link.Stream)) func(h wire.Hello) (*fleet.Stream, error) {
	t.Helper()
	near, far := net.Pipe()
	here, err := link.NewServer(near, link.Config{})
	if err != nil {
		t.Fatal(err)
	}
	there, err := link.NewClient(far, link.Config{})
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			st, err := there.Accept(context.Background())
			if err != nil {
				return
			}
			all.Go(func() {
				defer func() { _ = st.Close() }()
				if _, err := wire.ReadHello(st); err == nil {
					serve(st)
				}
			})
		}
	})
	t.Cleanup(func() { _ = here.Close(nil); _ = there.Close(nil); all.Wait() })
	return func(h wire.Hello) (*fleet.Stream, error) {
		st, err := link.OpenHello(context.Background(), here, h)
		if err != nil {
			return nil, err
		}
		return fleet.NewStream(st, h.Session, nil), nil
	}
}

// says answers with a verdict.
func says(v wire.Verdict) func(*link.Stream) {
	return func(st *link.Stream) { _, _ = st.Write(wire.AppendVerdict(nil, v)) }
}

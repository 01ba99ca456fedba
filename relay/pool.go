package relay

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/relay/internal/edge"
	"github.com/adit-tunnel/adit/relay/internal/hub"
	"github.com/adit-tunnel/adit/relay/internal/peers"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/relay/internal/usage"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

// What relays ask each other.
const (
	askTotals  = "totals"
	askViewers = "viewers"
	askParty   = "party"
	askKick    = "kick"
	askProbe   = "probe"
)

// askTime bounds what a caller waits for other relays: figures that come later are
// left out.
const askTime = 400 * time.Millisecond

// pool makes the links to the other relays, if this relay is one of several.
func (r *Relay) pool(p *parts, reg *prometheus.Registry) (err error) {
	c := r.cfg.Peer
	if c.Listen == "" {
		return nil
	}
	p.peers, err = peers.New(peers.Config{
		Relay: r.id(), Listen: c.Listen, TLS: peers.Files{CA: c.TLS.CAFile, Cert: c.TLS.CertFile, Key: c.TLS.KeyFile},
		Pool: p.store, Subscribe: func(n int) peers.Changes { return p.store.Subscribe(n) },
		Open: p.openHere, Budget: p.budget, Leaving: func() { p.edge.Yield(); p.terminal.Yield() }, Answers: p.answers(), Logger: r.log.With("part", "peers"), Registerer: reg,
	})
	return err
}

// openHere opens a stream for another relay, to an agent that this one holds. It
// looks at this relay's links only: that is what makes a hop the last one. And only for
// a tunnel: a relay asks for what its users may reach, and nothing else.
func (p *parts) openHere(ctx context.Context, key ident.AgentKey, epoch uint64, h wire.Hello) (peers.Inner, error) {
	if err := p.forTunnel(ctx, key, h); err != nil {
		return nil, err
	}
	if have, ok := p.hub.Online(key); !ok || have < epoch {
		return nil, peers.ErrNotHere
	}
	st, err := p.hub.Open(ctx, key, h)
	switch {
	case errors.Is(err, hub.ErrCut):
		return nil, fmt.Errorf("%w: %w", peers.ErrCut, err)
	case errors.Is(err, hub.ErrAway), errors.Is(err, hub.ErrDraining):
		return nil, fmt.Errorf("%w: %w", peers.ErrNotHere, err)
	case err != nil:
		return nil, err
	}
	return st, nil
}

// tunnelTime bounds asking the store for a tunnel that another relay knows and this one
// does not.
const tunnelTime = 2 * time.Second

// forTunnel says why a stream that another relay asks for is for no open tunnel of that
// agent, to the tunnel's port; a terminal goes to no port. The other relay may have
// heard of a new tunnel first.
func (p *parts) forTunnel(ctx context.Context, key ident.AgentKey, h wire.Hello) error {
	t, ok := p.store.Tunnel(h.Session)
	if !ok {
		ctx, cancel := context.WithTimeout(ctx, tunnelTime)
		defer cancel()
		if err := p.store.CatchUp(ctx); err != nil {
			return fmt.Errorf("%w: the tunnel is not known here, and the store cannot be asked now: %w", peers.ErrNotHere, err)
		}
		t, ok = p.store.Tunnel(h.Session)
	}
	st, _ := p.store.TunnelState(key, h.Session)
	switch {
	case !ok, t.Key() != key, st.State != store.TunnelOpen:
		return fmt.Errorf("%w: the agent has no such tunnel open", peers.ErrCut)
	case h.Kind != wire.KindTerminal && h.Port != t.Port:
		return fmt.Errorf("%w: port %d is not the tunnel's", peers.ErrCut, h.Port)
	}
	return nil
}

// dialer opens streams for the edge: over this relay's own link to the agent, else
// through the relay that has one.
type dialer struct{ p *parts }

func (d dialer) Open(ctx context.Context, key ident.AgentKey, h wire.Hello) (edge.Stream, error) {
	st, err := d.p.hub.Open(ctx, key, h)
	switch {
	case err == nil:
		return st, nil
	case errors.Is(err, hub.ErrDraining) && d.p.peers == nil, !errors.Is(err, hub.ErrAway) && !errors.Is(err, hub.ErrDraining):
		return nil, err
	case d.p.peers == nil:
		return nil, fmt.Errorf("%w: %w", edge.ErrAway, err)
	}
	other, perr := d.p.peers.Open(ctx, key, h)
	switch {
	case perr == nil:
		return other, nil
	case errors.Is(perr, peers.ErrAway):
		return nil, fmt.Errorf("%w: %w", edge.ErrAway, errors.Join(err, perr))
	}
	return nil, perr
}

// Wait returns when some relay has the agent.
func (d dialer) Wait(ctx context.Context, key ident.AgentKey) error {
	if d.p.peers == nil {
		return d.p.hub.Wait(ctx, key)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	here := make(chan error, 1)
	go func() { here <- d.p.hub.Wait(ctx, key) }()
	there := make(chan error, 1)
	go func() { there <- d.p.peers.Wait(ctx, key) }()
	var err error
	select {
	case err = <-here:
		if errors.Is(err, hub.ErrDraining) { // it comes here no more
			return <-there
		}
		cancel()
		<-there
	case err = <-there:
		cancel()
		<-here
	}
	return err
}

// probe asks an agent wherever it is.
func (p *parts) probe(ctx context.Context, key ident.AgentKey, q wire.Probe) (wire.Probed, error) {
	found, err := p.hub.Probe(ctx, key, q)
	if !errors.Is(err, hub.ErrAway) || p.peers == nil {
		return found, err
	}
	pr, ok := p.store.Presence(key)
	if !ok || pr.Relay == "" {
		return found, err
	}
	err = p.peers.Ask(ctx, pr.Relay, askProbe, probeQuestion{key, q}, &found)
	return found, err
}

// poolProber is probe as the API wants it.
type poolProber struct{ p *parts }

func (b poolProber) Probe(ctx context.Context, key ident.AgentKey, q wire.Probe) (wire.Probed, error) {
	return b.p.probe(ctx, key, q)
}

type probeQuestion struct {
	Key   ident.AgentKey
	Probe wire.Probe
}

type kickQuestion struct {
	Session ident.SessionID
	Viewer  ident.ViewerID
	Party   usage.Party
}

type partyAnswer struct {
	Found bool
	Party usage.Party
}

// answers are what this relay tells others: of itself alone.
func (p *parts) answers() map[string]func(context.Context, []byte) (any, error) {
	return map[string]func(context.Context, []byte) (any, error){
		askTotals: asked(func(_ context.Context, ids []ident.SessionID) (map[ident.SessionID]usage.Totals, error) {
			return p.totalsHere(ids), nil
		}),
		askViewers: asked(func(_ context.Context, id ident.SessionID) ([]api.Viewer, error) {
			return p.meter.Viewers(id), nil
		}),
		askParty: asked(func(_ context.Context, q kickQuestion) (a partyAnswer, err error) {
			a.Party, a.Found = p.meter.PartyOf(q.Session, q.Viewer)
			return a, nil
		}),
		askKick: asked(func(_ context.Context, q kickQuestion) (struct{}, error) {
			p.meter.KickParty(q.Session, q.Party)
			return struct{}{}, nil
		}),
		askProbe: asked(func(ctx context.Context, q probeQuestion) (wire.Probed, error) {
			return p.hub.Probe(ctx, q.Key, q.Probe)
		}),
	}
}

// asked decodes a question.
func asked[Q, A any](answer func(context.Context, Q) (A, error)) func(context.Context, []byte) (any, error) {
	return func(ctx context.Context, raw []byte) (any, error) {
		var q Q
		if err := json.Unmarshal(raw, &q); err != nil {
			return nil, fmt.Errorf("read the question: %w", err)
		}
		return answer(ctx, q)
	}
}

func (p *parts) totalsHere(ids []ident.SessionID) map[ident.SessionID]usage.Totals {
	out := make(map[ident.SessionID]usage.Totals, len(ids))
	for _, id := range ids {
		out[id] = p.meter.Totals(id)
	}
	return out
}

// poolUsage is who uses which tunnel, on all relays that answer.
type poolUsage struct{ p *parts }

func (u poolUsage) Totals(ctx context.Context, ids []ident.SessionID) map[ident.SessionID]usage.Totals {
	sum := u.p.totalsHere(ids)
	if u.p.peers == nil || len(ids) == 0 {
		return sum
	}
	for _, other := range peers.AskAll[map[ident.SessionID]usage.Totals](ctx, u.p.peers, askTime, askTotals, ids) {
		for id, t := range other {
			s, ok := sum[id]
			if !ok {
				continue
			}
			s.Viewers, s.BytesIn, s.BytesOut = s.Viewers+t.Viewers, s.BytesIn+t.BytesIn, s.BytesOut+t.BytesOut
			if t.LastUsed.After(s.LastUsed) {
				s.LastUsed = t.LastUsed
			}
			sum[id] = s
		}
	}
	return sum
}

func (u poolUsage) Viewers(ctx context.Context, id ident.SessionID) []api.Viewer {
	list := u.p.meter.Viewers(id)
	if u.p.peers == nil {
		return list
	}
	for _, other := range peers.AskAll[[]api.Viewer](ctx, u.p.peers, askTime, askViewers, id) {
		list = append(list, other...)
	}
	slices.SortFunc(list, func(a, b api.Viewer) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.ViewerID, b.ViewerID))
	})
	return list
}

// Kick finds the viewer on whichever relay knows it and refuses that party on all:
// a load balancer would bring it back through another one.
func (u poolUsage) Kick(ctx context.Context, id ident.SessionID, viewer ident.ViewerID) bool {
	if u.p.peers == nil {
		return u.p.meter.Kick(id, viewer)
	}
	q := kickQuestion{Session: id, Viewer: viewer}
	party, found := u.p.meter.PartyOf(id, viewer)
	if !found {
		for _, a := range peers.AskAll[partyAnswer](ctx, u.p.peers, askTime, askParty, q) {
			if a.Found {
				party, found = a.Party, true
			}
		}
	}
	if !found {
		return false
	}
	q.Party = party
	if !u.p.meter.Kick(id, viewer) {
		u.p.meter.KickParty(id, party)
	}
	peers.AskAll[struct{}](ctx, u.p.peers, askTime, askKick, q)
	return true
}

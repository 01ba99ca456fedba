package gate

import (
	"context"
	"slices"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Join adds this relay to the session of an agent's process that has a link to
// another one, or to this one. The error wraps ErrSuperseded when the session is
// not that any more.
func (g *Gate) Join(ctx context.Context, key ident.AgentKey, c Claim) (rec store.AgentRecord, err error) {
	defer func() { g.count("join", err) }()
	c.Relay = g.relay
	return g.step(ctx, key, "agent:"+string(key.Agent), func(s *Step) error { return s.Join(c) })
}

// Leave says that this relay has no link of the agent any more; holds is asked
// whether that is still so. It returns whether another relay has the agent.
func (g *Gate) Leave(ctx context.Context, key ident.AgentKey, epoch uint64, holds func() bool) (handed bool, err error) {
	if rec, ok := g.store.Agent(key); ok && len(rec.Also) == 0 && rec.Relay == g.relay {
		return false, nil // as far as is known here: a later change tells otherwise
	}
	_, err = g.step(ctx, key, "agent:"+string(key.Agent), func(s *Step) (err error) {
		if holds() {
			handed = true
			return errUnchanged
		}
		handed, err = s.Leave(g.relay, epoch)
		return err
	})
	return handed, err
}

// Adopt makes this relay tend an agent of which it has a link, since the relay that
// did is gone.
func (g *Gate) Adopt(ctx context.Context, key ident.AgentKey, epoch uint64) error {
	_, err := g.step(ctx, key, "agent:"+string(key.Agent), func(s *Step) error { return s.Adopt(g.relay, epoch) })
	return err
}

// gone says whether a relay counts as dead: its lease is over, and some time more.
func (g *Gate) gone(id ident.RelayID) bool {
	return id != g.relay && g.responsible(id, g.now())
}

// carries says whether this relay may carry an agent's bytes beside the one that
// tends it.
func (g *Gate) carries(rec store.AgentRecord) bool {
	_, ok := rec.Also[g.relay]
	return ok
}

// marked says whether this relay has said of all these tunnels that it cut them.
func (g *Gate) marked(rec store.AgentRecord, ids []ident.SessionID) bool {
	return !slices.ContainsFunc(ids, func(id ident.SessionID) bool {
		t, ok := rec.Tunnels[id]
		return ok && !slices.Contains(t.Cut, g.relay)
	})
}

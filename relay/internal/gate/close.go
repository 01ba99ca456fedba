package gate

import (
	"context"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Close closes tunnels of an agent: those named, or all. It returns those that are
// closed, or were before; an id that never was one of the agent's is a 404. It
// waits for the relay that holds the agent to cut what uses them, for a second at
// most: one that does not answer is waited for in the background.
func (g *Gate) Close(ctx context.Context, by string, key ident.AgentKey, ids []ident.SessionID, all bool, reason store.Reason) (closed []ident.SessionID, err error) {
	defer func() { g.count("close", err) }()
	rec, err := g.step(ctx, key, by, func(s *Step) (err error) {
		closed, err = s.BeginClose(ids, all, reason)
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, id := range closed {
		if t, ok := rec.Tunnels[id]; ok && t.State == store.TunnelClosing {
			g.local.Cut(key, id, t.Reason)
		}
	}
	timer := time.NewTimer(closeWait)
	defer timer.Stop()
	var tried uint64 // the record for which this relay did what it can
	for {
		ch := g.changed(key)
		if cur, ok := g.store.Agent(key); ok && cur.N > rec.N {
			rec = cur
		}
		if !anyClosing(rec, closed) {
			return closed, nil
		}
		if tried != rec.N && (g.responsible(rec.Relay, g.now()) || g.carries(rec) && !g.marked(rec, closed)) {
			if rec, err = g.finish(ctx, key, by, closed); err != nil {
				return nil, err
			}
			tried = rec.N
			continue
		}
		select {
		case <-ch:
		case <-timer.C:
			g.log.Warn("the relay that holds the agent is slow to finish a close", "agent", key.Agent, "relay", rec.Relay)
			return closed, nil
		case <-ctx.Done():
			return closed, nil // the close itself has landed
		}
	}
}

func anyClosing(rec store.AgentRecord, ids []ident.SessionID) bool {
	for _, id := range ids {
		if t, ok := rec.Tunnels[id]; ok && t.State == store.TunnelClosing {
			return true
		}
	}
	return false
}

// finish is the second phase, for a relay that has cut what used the tunnels. Of
// the relays that may have carried their bytes the last one removes them.
func (g *Gate) finish(ctx context.Context, key ident.AgentKey, by string, ids []ident.SessionID) (store.AgentRecord, error) {
	return g.step(ctx, key, by, func(s *Step) error { return s.FinishClose(ids) })
}

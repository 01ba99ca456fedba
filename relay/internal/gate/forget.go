package gate

import (
	"context"
	"math/rand/v2"
	"time"

	"golang.org/x/time/rate"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

// The record of an agent that is gone stays for the retention, and is then removed:
// nobody has to tidy up after machines that come once. When an agent went is not
// known from the record, since its relay may have died with it; so a sweep notes when
// it first finds the agent away, and a later one removes what has been away for long.

const (
	firstSweep  = time.Minute // after the start
	sweepEvery  = time.Hour
	sweepPerSec = 50 // changes
)

// New says that there was no record of the agent.
func (s *Step) New() bool { return s.Record.Nonce == "" }

// Miss notes that the agent was found away. What an earlier release kept of its texts
// is cut to what is kept now.
func (s *Step) Miss() error {
	if !s.Record.Gone.IsZero() {
		return errUnchanged
	}
	s.Record.Gone = s.Now
	s.Record.Unhealthy = wire.Text(s.Record.Unhealthy)
	m := wire.Message{State: &s.Record.Declared}
	m.Bound()
	return nil
}

// Meet notes that the agent is there after all.
func (s *Step) Meet() error {
	if s.Record.Gone.IsZero() {
		return errUnchanged
	}
	s.Record.Gone = time.Time{}
	return nil
}

// Forgettable says whether the record may go: the agent has been away for so long, and
// nothing is left that anybody was promised.
func (s *Step) Forgettable(retention time.Duration) bool {
	r := s.Record
	return !r.Gone.IsZero() && s.Now.Sub(r.Gone) >= retention+s.Skew && len(r.Tunnels) == 0 && len(r.Leases) == 0
}

// MayAppear refuses an agent that was never there when its team, or the store, has no
// room for another one.
func (g *Gate) MayAppear(key ident.AgentKey) error {
	if _, known := g.store.Agent(key); known {
		return nil
	}
	return g.roomFor(key.Team)
}

// roomFor says whether a team may have one more agent.
func (g *Gate) roomFor(team ident.TeamID) error {
	switch n := g.store.AgentCount(team); {
	case n >= g.limits.AgentsPerTeam:
		return api.Problemf(api.CodeTeamAgentLimit,
			"the team has %d agents, as many as one team may have (limits.agents_per_team); one that is gone counts until limits.agent_retention is over", n).WithRetry(time.Minute)
	case !g.store.Room():
		return store.Refusal(store.ErrFull)
	}
	return nil
}

// forget sweeps over the agents now and then, until ctx ends.
func (g *Gate) forget(ctx context.Context) {
	every := min(sweepEvery, g.limits.AgentRetention/4)
	wait := min(firstSweep, every)
	for {
		t := time.NewTimer(wait/2 + rand.N(wait))
		select {
		case <-t.C:
			g.sweep(ctx)
		case <-ctx.Done():
			t.Stop()
			return
		}
		wait = every
	}
}

// sweep looks at every agent that this relay is responsible for.
func (g *Gate) sweep(ctx context.Context) {
	pace := rate.NewLimiter(sweepPerSec, sweepPerSec)
	for key, rec := range g.store.AllAgents() {
		change := g.due(key, rec)
		if change == nil {
			continue
		}
		if pace.Wait(ctx) != nil {
			return
		}
		if err := change(ctx); err != nil {
			g.log.Debug("sweep over an agent that is gone", "agent", key.Agent, "error", err)
		}
	}
}

// due returns what a sweep has to do for an agent, nil: nothing.
func (g *Gate) due(key ident.AgentKey, rec store.AgentRecord) func(context.Context) error {
	_, here := g.store.Presence(key)
	now := g.now()
	by := "relay:" + string(g.relay)
	s := Step{Record: &rec, Now: now, Skew: Skew}
	switch {
	case here == rec.Gone.IsZero() && !s.Forgettable(g.limits.AgentRetention), !g.responsible(rec.Relay, now):
		return nil
	case here:
		return func(ctx context.Context) error {
			_, err := g.step(ctx, key, by, (*Step).Meet)
			return err
		}
	case rec.Gone.IsZero():
		return func(ctx context.Context) error {
			_, err := g.step(ctx, key, by, func(s *Step) error {
				if s.Record.Epoch != rec.Epoch { // it came meanwhile
					return errUnchanged
				}
				return s.Miss()
			})
			return err
		}
	}
	return func(ctx context.Context) error {
		removed := false
		err := g.store.RemoveAgent(ctx, key, func(now time.Time, r store.AgentRecord) bool {
			s := Step{Record: &r, Now: now, Skew: Skew}
			removed = s.Forgettable(g.limits.AgentRetention)
			return removed
		})
		if err == nil && removed {
			g.log.Info("forgot an agent that has been gone for long", "team", key.Team, "agent", key.Agent, "gone", rec.Gone)
		}
		return err
	}
}

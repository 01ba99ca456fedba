package gate

import (
	"context"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

// Admit grants the right to run one task on an agent, or refuses with 409.
func (g *Gate) Admit(ctx context.Context, p creds.Principal, key ident.AgentKey, task ident.TaskID, ttl time.Duration, detail string) (lease api.TaskLease, err error) {
	defer func() {
		g.count("admit", err)
		if err != nil {
			g.refused(ctx, key, p.Name, audit.TaskRefused, err)
		}
	}()
	if err := g.exists(ctx, key); err != nil {
		return lease, err
	}
	if err := g.online(ctx, key); err != nil {
		return lease, err
	}
	token := ident.NewSecret(ident.PrefixLease)
	a := Admission{Task: task, TTL: ttl, Owner: p.Name, Detail: detail, TokenHash: token.Hash()}
	rec, err := g.step(ctx, key, p.Name, func(s *Step) error {
		_, err := s.Admit(a)
		return err
	})
	if err != nil {
		return lease, err
	}
	l := rec.Leases[task]
	return api.TaskLease{TaskID: task, LeaseToken: token.Reveal(), FencingToken: l.Fencing, ExpiresAt: l.Expires}, nil
}

// Renew moves a lease's end to ttl from now; 410 when it is too late.
func (g *Gate) Renew(ctx context.Context, by string, key ident.AgentKey, task ident.TaskID, token ident.Secret, ttl time.Duration) (lease api.TaskLease, err error) {
	defer func() { g.count("renew", err) }()
	if err := g.exists(ctx, key); err != nil {
		return lease, err
	}
	rec, err := g.step(ctx, key, by, func(s *Step) error {
		_, err := s.Renew(task, token.Hash(), ttl)
		return err
	})
	if err != nil {
		return lease, err
	}
	l := rec.Leases[task]
	return api.TaskLease{TaskID: task, LeaseToken: token.Reveal(), FencingToken: l.Fencing, ExpiresAt: l.Expires}, nil
}

// Release ends a lease; 410 when there is none any more.
func (g *Gate) Release(ctx context.Context, by string, key ident.AgentKey, task ident.TaskID, token ident.Secret, completed bool) (err error) {
	defer func() { g.count("release", err) }()
	if err := g.exists(ctx, key); err != nil {
		return err
	}
	_, err = g.step(ctx, key, by, func(s *Step) error {
		_, err := s.Release(task, token.Hash(), completed)
		return err
	})
	return err
}

// Connect claims the next generation of an agent for one of its processes. The
// error wraps ErrSuperseded when a newer process lives. An agent that was never there
// is refused when its team has as many as it may have.
func (g *Gate) Connect(ctx context.Context, key ident.AgentKey, c Claim) (epoch uint64, rec store.AgentRecord, err error) {
	defer func() { g.count("connect", err) }()
	c.Relay = g.relay
	rec, err = g.step(ctx, key, "agent:"+string(key.Agent), func(s *Step) error {
		if s.New() {
			if err := g.roomFor(key.Team); err != nil {
				return err
			}
		}
		_, err := s.Connect(c)
		return err
	})
	return rec.Epoch, rec, err
}

// Declare records what the machine says of itself. The error wraps ErrSuperseded
// when the generation is not the agent's any more.
func (g *Gate) Declare(ctx context.Context, key ident.AgentKey, epoch uint64, state wire.State, unhealthy string) (err error) {
	defer func() { g.count("declare", err) }()
	_, err = g.step(ctx, key, "agent:"+string(key.Agent), func(s *Step) error { return s.Declare(epoch, state, unhealthy) })
	return err
}

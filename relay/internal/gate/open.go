package gate

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// OpenSpec is a validated request to open a tunnel. Zero durations mean the
// relay's defaults; longer ones than the relay's caps are cut.
type OpenSpec struct {
	Port         uint16
	Protocol     api.Protocol
	IdleTimeout  time.Duration
	ExpiresIn    time.Duration
	WhenBusy     api.WhenBusy
	WaitTimeout  time.Duration
	Label        string
	HostHeader   api.HostHeader
	AllowOrigins []string
	Access       *store.AccessRule // nil: who has the URL
	// IdentityHeader is a further header that names the viewer to the app.
	IdentityHeader string
	// IdempotencyKey, with the caller, names the request; BodyHash says what was
	// asked under it. Without a key every call opens a tunnel of its own.
	IdempotencyKey string
	BodyHash       string
	// Before is called when nothing stands against the tunnel but the gate itself,
	// and may fill in what probing found, or refuse.
	Before func(ctx context.Context, t *store.TunnelRecord) error
}

// Opened is a tunnel as it was opened.
type Opened struct {
	Tunnel  store.TunnelRecord
	Running int  // tasks that run beside it
	Again   bool // an earlier call with the same idempotency key opened it
}

// idempotencyTime is for how long a key is remembered.
const idempotencyTime = 10 * time.Minute

// Open opens a tunnel. With when_busy wait it returns when the running tasks have
// ended; if ctx ends before, nothing is left of it.
func (g *Gate) Open(ctx context.Context, p creds.Principal, key ident.AgentKey, spec OpenSpec) (o Opened, err error) {
	defer func() {
		g.count("open", err)
		if err != nil {
			g.refused(ctx, key, p.Name, audit.TunnelRefused, err)
		}
	}()
	if err := g.exists(ctx, key); err != nil {
		return o, err
	}
	var once *store.Once
	id := ident.NewSessionID()
	if spec.IdempotencyKey != "" {
		once = &store.Once{
			Key:   strings.Join([]string{"open", string(key.Team), p.Caller(), spec.IdempotencyKey}, "\n"),
			Value: string(id) + " " + spec.BodyHash, TTL: idempotencyTime,
		}
		value, found, err := g.store.OnceValue(ctx, once.Key)
		if err != nil {
			return o, answer(err)
		}
		if found {
			return g.again(ctx, value, spec.BodyHash)
		}
	}
	if err := g.opens.take(p.Caller()); err != nil {
		return o, err
	}
	if err := g.online(ctx, key); err != nil {
		return o, err
	}
	if n := g.book.team(key.Team); n >= g.limits.PerTeam {
		return o, api.Problemf(api.CodeTeamTunnelLimit, "the team has %d tunnels, as many as one team may have; close some", n).WithRetry(30 * time.Second)
	}
	t := store.TunnelRecord{
		Session: id, Team: key.Team, Agent: key.Agent, Port: spec.Port, Protocol: spec.Protocol, Label: spec.Label,
		OpenedBy: p.Name, Credential: p.Credential, User: p.Person(), NoTerminal: p.Ports != "", AdminHash: g.AdminToken(id).Hash(),
		IdleTimeout: api.Duration(capped(spec.IdleTimeout, g.limits.IdleTimeout, g.limits.MaxIdleTimeout)),
		AskedHost:   spec.HostHeader, AllowOrigins: spec.AllowOrigins, Access: spec.Access, IdentityHeader: spec.IdentityHeader,
	}
	if spec.HostHeader == api.HostPublic || spec.HostHeader == api.HostLocal {
		t.HostHeader = spec.HostHeader
	}
	if spec.Before != nil {
		if err := spec.Before(ctx, &t); err != nil {
			return o, err
		}
	}
	o, err = g.open(ctx, p, key, t, spec, once)
	if twin, ok := errors.AsType[*store.OnceError](err); ok { // a call with the same key was faster
		return g.again(ctx, twin.Value, spec.BodyHash)
	}
	return o, err
}

func capped(d, def, limit time.Duration) time.Duration {
	if d <= 0 {
		d = def
	}
	return min(d, limit)
}

func (g *Gate) open(ctx context.Context, p creds.Principal, key ident.AgentKey, t store.TunnelRecord, spec OpenSpec, once *store.Once) (Opened, error) {
	opening := Opening{Tunnel: t, WhenBusy: spec.WhenBusy, MaxTunnels: g.limits.PerAgent, Once: once}
	life := capped(spec.ExpiresIn, g.limits.ExpiresIn, g.limits.MaxExpiresIn)
	patience := capped(spec.WaitTimeout, waitTimeout, maxWaitTimeout)
	var running int
	var waiting bool
	try := func(transition func(*Step, Opening) (int, bool, error)) (store.AgentRecord, error) {
		return g.stepOnce(ctx, key, p.Name, once, func(s *Step) (err error) {
			if opening.WaitUntil.IsZero() {
				opening.WaitUntil = s.Now.Add(patience)
			}
			opening.Tunnel.OpenedAt, opening.Tunnel.ExpiresAt = s.Now, s.Now.Add(life)
			running, waiting, err = transition(s, opening)
			return err
		})
	}
	rec, err := try((*Step).Open)
	if waiting { // also when it is not known whether the entry landed
		rec, err = g.await(ctx, key, p.Name, opening, rec, err, func() (store.AgentRecord, bool, error) {
			rec, err := try((*Step).Promote)
			return rec, waiting, err
		})
	}
	if err != nil {
		return Opened{}, err
	}
	// Of several tries an earlier one may be the one that landed.
	if st, ok := rec.Tunnels[t.Session]; ok {
		opening.Tunnel.OpenedAt, opening.Tunnel.ExpiresAt = st.Expires.Add(-life), st.Expires
	}
	g.book.add(opening.Tunnel)
	return Opened{Tunnel: opening.Tunnel, Running: running}, nil
}

// await promotes a waiting tunnel when the last lease has ended. However it ends
// otherwise, the waiting entry is taken out: it keeps tasks away.
func (g *Gate) await(ctx context.Context, key ident.AgentKey, by string, o Opening, rec store.AgentRecord, err error,
	promote func() (store.AgentRecord, bool, error),
) (store.AgentRecord, error) {
	waiting := true
	for err == nil && waiting {
		ch := g.changed(key)
		if rec, waiting, err = promote(); err != nil || !waiting {
			break
		}
		// A lease that runs out makes no change in the store that could wake us.
		wake := o.WaitUntil.Sub(g.now())
		for _, l := range rec.Leases {
			wake = min(wake, l.Expires.Add(Skew).Sub(g.now()))
		}
		timer := time.NewTimer(min(max(wake, 20*time.Millisecond), 5*time.Second))
		select {
		case <-ch:
		case <-timer.C:
		case <-ctx.Done():
			err = fmt.Errorf("wait for the running tasks: %w", context.Cause(ctx))
		}
		timer.Stop()
	}
	if err == nil {
		return rec, nil
	}
	reason := store.ReasonWait
	if ctx.Err() != nil {
		reason = store.ReasonLeft
	}
	cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), auditTime)
	defer cancel()
	if _, cerr := g.step(cctx, key, by, func(s *Step) error {
		if t, ok := s.Record.Tunnels[o.Tunnel.Session]; !ok || t.State != store.TunnelWaiting && err == nil {
			return errUnchanged
		}
		_, err := s.BeginClose([]ident.SessionID{o.Tunnel.Session}, false, reason)
		return err
	}); cerr != nil {
		g.log.Warn("take back a waiting tunnel", "session_id", o.Tunnel.Session, "agent", key.Agent, "error", cerr)
	}
	return rec, err
}

// again answers a repeated request with the session of the first one.
func (g *Gate) again(ctx context.Context, value, bodyHash string) (Opened, error) {
	text, hash, _ := strings.Cut(value, " ")
	if hash != bodyHash {
		return Opened{}, api.NewProblem(api.CodeIdempotencyMismatch, "this Idempotency-Key was used for another request; a key is for repeating the same one")
	}
	id := ident.SessionID(text)
	t, ok := g.store.Tunnel(id)
	if !ok {
		if err := g.store.CatchUp(ctx); err != nil {
			return Opened{}, answer(err)
		}
		if t, ok = g.store.Tunnel(id); !ok {
			return Opened{}, sessionClosed()
		}
	}
	rec, _ := g.store.Agent(t.Key())
	now := g.now()
	if st, ok := rec.Tunnels[id]; ok && st.State == store.TunnelClosing || !now.Before(t.ExpiresAt) {
		return Opened{}, sessionClosed()
	}
	s := Step{Record: &rec, Now: now, Skew: Skew}
	return Opened{Tunnel: t, Running: s.Running(), Again: true}, nil
}

// Extend moves a tunnel's hard end to expiresIn from now (zero: the relay's
// default; cut to its cap), if that is later, and returns it.
func (g *Gate) Extend(ctx context.Context, by string, key ident.AgentKey, id ident.SessionID, expiresIn time.Duration) (expires time.Time, err error) {
	defer func() { g.count("extend", err) }()
	rec, err := g.step(ctx, key, by, func(s *Step) (err error) {
		expires, err = s.Extend(id, s.Now.Add(capped(expiresIn, g.limits.ExpiresIn, g.limits.MaxExpiresIn)))
		return err
	})
	if err != nil {
		return time.Time{}, err
	}
	if t, ok := rec.Tunnels[id]; ok {
		expires = t.Expires
	}
	return expires, nil
}

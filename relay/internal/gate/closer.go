package gate

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// workers bounds how many agents are tended at once: each may wait for the store.
const workers = 16

// retryAfter is when an agent is tended again after the store did not answer.
const retryAfter = time.Second

// closer is the loop of Run. Its fields belong to the loop's goroutine.
type closer struct {
	*Gate
	agenda  *agenda
	busy    map[ident.AgentKey]bool // being tended; true: again afterwards
	results chan tended
	wg      sync.WaitGroup
}

type tended struct {
	key  ident.AgentKey
	next time.Time // zero: nothing to do until something changes
}

// Run ends what must end by itself, until ctx ends: tunnels at their hard end or
// idle, tunnels being closed on agents that this relay holds, waiting tunnels and
// leases that ran out, and the same for agents whose relay is gone. On every relay
// it cuts what uses a tunnel here as soon as the tunnel closes.
func (g *Gate) Run(ctx context.Context) error {
	feed := g.store.Subscribe(4096)
	defer feed.Close()
	g.mu.Lock()
	g.started = g.now()
	g.mu.Unlock()
	c := &closer{Gate: g, agenda: newAgenda(), busy: make(map[ident.AgentKey]bool), results: make(chan tended, workers)}
	defer c.wg.Wait()
	sweeping, stop := context.WithCancel(ctx)
	defer stop()
	c.wg.Go(func() { g.forget(sweeping) })

	c.resync(false)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		wait := time.Hour // with all workers busy, a result is what to wait for
		if len(c.busy) < workers {
			wait = c.agenda.wait(c.now())
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return nil
		case change, ok := <-feed.C():
			switch {
			case !ok && ctx.Err() != nil:
				return nil
			case !ok:
				return errors.New("the store's changes ended")
			}
			c.observe(change)
			if feed.Lost() {
				c.resync(true)
			}
		case d := <-c.doubts:
			c.wg.Go(func() { c.settle(ctx, d) })
		case t := <-c.results:
			again := c.busy[t.key]
			delete(c.busy, t.key)
			if again {
				t.next = c.now()
			}
			c.agenda.put(t.key, t.next)
		case <-timer.C:
		}
		c.start(ctx)
	}
}

// resync reads everything again. Tunnels that appeared are told to agents unless
// this is the first time: those agents hear of them when they connect.
func (c *closer) resync(tell bool) {
	vanished := c.book.ids()
	for key, rec := range c.store.AllAgents() {
		if tell {
			c.local.Changed(key, rec)
		}
		for id, e := range rec.Ended {
			c.book.over(id, key, e)
		}
		for _, t := range c.store.AgentTunnels(key) {
			delete(vanished, t.Session)
			c.book.add(t)
			c.access(t)
			if c.book.introduce(t.Session) && tell {
				c.local.Opened(key, t)
			}
		}
		c.agenda.put(key, c.now())
		c.wake(key)
	}
	for id := range vanished {
		c.over(id)
	}
	c.metrics.tunnels.Set(float64(c.book.size()))
}

func (c *closer) observe(change store.Change) {
	switch change.Kind {
	case store.KindAgent:
		if rec, ok := c.store.Agent(change.Key); ok {
			c.local.Changed(change.Key, rec)
			for id, t := range rec.Tunnels {
				if t.State == store.TunnelClosing {
					c.book.because(id, t.Reason)
				}
			}
			for id, e := range rec.Ended {
				c.book.over(id, change.Key, e)
			}
		}
		c.agenda.put(change.Key, c.now())
		c.wake(change.Key)
	case store.KindTunnel:
		t, ok := c.store.Tunnel(change.Session)
		if !ok {
			c.over(change.Session)
			break
		}
		c.book.add(t)
		c.access(t)
		if c.book.introduce(t.Session) {
			c.local.Opened(t.Key(), t)
		}
		c.agenda.put(t.Key(), c.now())
	case store.KindCredential:
		// Of all that happens to credentials, most of it is use, only a revocation counts.
		line := store.Credentials(c.store.Credential)
		rec, ok := line(change.Credential)
		if !ok || rec.RevokedAt.IsZero() {
			break
		}
		for t := range c.store.AllTunnels() {
			if t.Team != rec.Team {
				continue
			}
			if _, closed := line.Closed(t.Credential); closed {
				c.agenda.put(t.Key(), c.now())
			}
		}
	case store.KindMember:
		if m, ok := c.store.Member(change.Key.Team, change.User); !ok || !m.Removed() || m.KeepTunnels {
			break
		}
		for t := range c.store.AllTunnels() {
			if t.Team == change.Key.Team && t.User == change.User {
				c.agenda.put(t.Key(), c.now())
			}
		}
	case store.KindRelay:
		if change.Deleted { // its agents may be for this relay to tend, after the grace
			for key, rec := range c.store.AllAgents() {
				if rec.Relay == change.Relay {
					c.local.Changed(key, rec)
				}
				if _, also := rec.Also[change.Relay]; also || rec.Relay == change.Relay {
					c.agenda.put(key, c.now())
				}
			}
		}
	}
	c.metrics.tunnels.Set(float64(c.book.size()))
}

// access tells users when it was changed who may use a tunnel.
func (c *closer) access(t store.TunnelRecord) {
	if c.book.admits(t) {
		c.tell(Notice{Kind: api.EventTunnelAccess, Key: t.Key(), Session: t.Session, Detail: "who may use it was changed"})
	}
}

// over ends what a tunnel has here, when its record is gone.
func (c *closer) over(id ident.SessionID) {
	n, ok := c.book.find(id)
	if !ok {
		return
	}
	reason := c.ended(id, n).Reason
	c.book.remove(id, reason, c.now())
	c.local.Cut(n.key, id, reason)
	c.local.Closed(n.key, id, reason)
	c.tell(Notice{Kind: api.EventTunnelClosed, Key: n.key, Session: id, Detail: string(reason)})
}

// start tends the agents that are due, as far as there are workers.
func (c *closer) start(ctx context.Context) {
	for len(c.busy) < workers {
		key, ok := c.agenda.due(c.now())
		if !ok {
			return
		}
		if _, running := c.busy[key]; running {
			c.busy[key] = true
			continue
		}
		c.busy[key] = false
		c.wg.Go(func() {
			next := c.tend(ctx, key)
			select {
			case c.results <- tended{key, next}:
			case <-ctx.Done():
			}
		})
	}
}

// tend does for one agent what is due, and returns when to look again.
func (c *closer) tend(ctx context.Context, key ident.AgentKey) time.Time {
	rec, ok := c.store.Agent(key)
	if !ok || len(rec.Tunnels) == 0 && len(rec.Leases) == 0 {
		return time.Time{}
	}
	now := c.now()
	mine := c.responsible(rec.Relay, now)
	p := plan{now: now}
	for id, t := range rec.Tunnels {
		switch t.State {
		case store.TunnelWaiting: // its opener takes it back; this is for one that died
			p.at(t.Expires.Add(Skew), func() { p.expire = true })
		case store.TunnelClosing:
			c.local.Cut(key, id, t.Reason)
			p.finish = append(p.finish, id)
		default:
			c.look(ctx, &p, key, id, t)
		}
	}
	for _, l := range rec.Leases {
		p.at(l.Expires.Add(Skew), func() { p.expire = true })
	}
	if !mine {
		if err := c.closeRevoked(ctx, key, rec, &p); err != nil {
			return now.Add(retryAfter)
		}
		if len(p.finish) > 0 && c.carries(rec) && !c.marked(rec, p.finish) {
			if _, err := c.finish(ctx, key, "relay:"+string(c.relay), p.finish); err != nil {
				return now.Add(retryAfter)
			}
		}
		if len(p.finish) > 0 || len(p.close) > 0 || p.expire { // in case its relay dies
			p.later(now.Add(grace))
		}
		return p.next
	}
	if err := c.carryOut(ctx, key, rec, &p); err != nil {
		if ctx.Err() == nil && !errors.Is(err, store.ErrUnavailable) {
			c.log.Warn("end tunnels and leases", "agent", key.Agent, "error", err)
		}
		return now.Add(retryAfter)
	}
	return p.next
}

// closeRevoked closes what a revoked credential or a removed person opened on an agent that another relay
// tends, when that one has not: it may be of a version that does not know how.
func (c *closer) closeRevoked(ctx context.Context, key ident.AgentKey, rec store.AgentRecord, p *plan) error {
	for _, e := range p.close {
		if e.reason != store.ReasonRevoked && e.reason != store.ReasonRemoved || p.now.Before(e.due.Add(grace)) {
			continue
		}
		if _, err := c.begin(ctx, key, &rec, e); err != nil {
			return err
		}
	}
	return nil
}

// plan is what one look at an agent found to do.
type plan struct {
	now    time.Time
	next   time.Time
	finish []ident.SessionID // are cut, to be removed
	close  []ending
	expire bool
}

type ending struct {
	tunnel store.TunnelRecord
	reason store.Reason
	due    time.Time // since when
}

// at calls f when t has come, and otherwise notes to look again then.
func (p *plan) at(t time.Time, f func()) {
	if !p.now.Before(t) {
		f()
		return
	}
	p.later(t)
}

func (p *plan) later(t time.Time) {
	if p.next.IsZero() || t.Before(p.next) {
		p.next = t
	}
}

// carryOut writes what is due in as few changes as can be.
func (c *closer) carryOut(ctx context.Context, key ident.AgentKey, rec store.AgentRecord, p *plan) error {
	by := "relay:" + string(c.relay)
	for _, e := range p.close {
		closing, err := c.begin(ctx, key, &rec, e)
		if err != nil {
			return err
		}
		if !closing {
			p.later(p.now.Add(retryAfter))
			continue
		}
		p.finish = append(p.finish, e.tunnel.Session)
	}
	switch {
	case len(p.finish) > 0:
		left, err := c.finish(ctx, key, by, p.finish)
		if err == nil && anyClosing(left, p.finish) { // in case another relay dies
			p.later(p.now.Add(grace))
		}
		return err
	case p.expire:
		_, err := c.step(ctx, key, by, (*Step).Expire)
		return err
	}
	return nil
}

// begin is the first phase of a close that is due, unless it is not any more. rec is the
// agent's record as it was looked at, and then as it is.
func (c *closer) begin(ctx context.Context, key ident.AgentKey, rec *store.AgentRecord, e ending) (closing bool, err error) {
	id := e.tunnel.Session
	after, err := c.step(ctx, key, "relay:"+string(c.relay), func(s *Step) error {
		closing = false
		switch t := s.Record.Tunnels[id]; {
		case s.Record.Relay != rec.Relay, t.State != store.TunnelOpen,
			// It may have been extended or used since it was looked at. Extending is use,
			// which stands in the tunnel's own record, but changes the agent's too: after
			// any change of that, look again.
			e.reason == store.ReasonExpired && !s.past(t.Expires),
			e.reason == store.ReasonIdle && s.Record.N != rec.N,
			e.reason == store.ReasonIdle && c.lastUse(e.tunnel).Add(e.tunnel.IdleTimeout.D()).After(s.Now):
			return errUnchanged
		}
		closing = true
		_, err := s.BeginClose([]ident.SessionID{id}, false, e.reason)
		return err
	})
	if err != nil || !closing {
		return false, err
	}
	*rec = after
	c.local.Cut(key, id, e.reason)
	c.metrics.closes.WithLabelValues(label(e.reason)).Inc()
	c.log.Info("tunnel closes", "session_id", id, "agent", key.Agent, "reason", e.reason)
	return true, nil
}

func label(reason store.Reason) string {
	switch reason {
	case store.ReasonExpired:
		return "expired"
	case store.ReasonRemoved:
		return "removed"
	case store.ReasonRevoked:
		return "revoked"
	case store.ReasonIdle:
		return "idle"
	}
	return "other"
}

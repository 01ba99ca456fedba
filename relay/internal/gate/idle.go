package gate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// warnAhead is how long before its end users are warned: a tenth of the time it
// had, a minute at most.
func warnAhead(d time.Duration) time.Duration { return min(d/10, time.Minute) }

// lastUse is when a tunnel was last used as far as this relay can know: here, or
// elsewhere as the record tells. Use before this relay started is not known, so
// it counts as used then.
func (g *Gate) lastUse(t store.TunnelRecord) time.Time {
	g.mu.Lock()
	last := g.started
	g.mu.Unlock()
	for _, at := range []time.Time{t.OpenedAt, t.LastUsed, g.local.LastUsed(t.Session)} {
		if at.After(last) {
			last = at
		}
	}
	return last
}

// LastUsed is when somebody used a tunnel; when it was opened if nobody did yet.
func (g *Gate) LastUsed(t store.TunnelRecord) time.Time {
	last := t.OpenedAt
	for _, at := range []time.Time{t.LastUsed, g.local.LastUsed(t.Session)} {
		if at.After(last) {
			last = at
		}
	}
	return last.UTC()
}

// ClosesBecause says for people what a tunnel waits for and when that would be.
func (g *Gate) ClosesBecause(t store.TunnelRecord) string {
	last := g.lastUse(t)
	quiet := last.Add(t.IdleTimeout.D())
	if t.IdleTimeout <= 0 || !quiet.Before(t.ExpiresAt) {
		return "hard end at " + stamp(t.ExpiresAt) + "; extend it to keep it longer"
	}
	return fmt.Sprintf("idle since %s: closes at %s unless somebody uses it (idle timeout %s)", stamp(last), stamp(quiet), t.IdleTimeout)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// look decides about one open tunnel: whether it ends now, or is about to.
//
// A relay that saw use writes it to the tunnel's record only when an idle close
// draws near, so that the relay that holds the agent, and decides, knows of it: one
// write per idle period, not one per use.
func (c *closer) look(ctx context.Context, p *plan, key ident.AgentKey, id ident.SessionID, st store.TunnelState) {
	t, ok := c.store.Tunnel(id)
	if !ok { // the mirror has one but not yet the other; its change will come
		p.at(st.Expires.Add(Skew), func() { p.expire = true })
		return
	}
	if since, reason := store.Closed(c.store, t.Team, t.Opened()); reason != "" {
		c.local.Cut(key, id, reason) // on every relay, whatever the store says
		p.close = append(p.close, ending{t, reason, since})
		return
	}
	hard := t.ExpiresAt
	if st.Expires.Before(hard) {
		hard = st.Expires
	}
	if !p.now.Before(hard) {
		c.local.Cut(key, id, store.ReasonExpired) // on every relay, whatever the store says
		p.close = append(p.close, ending{t, store.ReasonExpired, hard})
		return
	}
	p.later(hard)
	c.warn(p, key, id, hard, warnAhead(hard.Sub(t.OpenedAt)), "its time ends")

	idle := t.IdleTimeout.D()
	if idle <= 0 {
		return
	}
	ahead := warnAhead(idle)
	// Without what is known only here: what the deciding relay sees.
	shared := t.OpenedAt
	if t.LastUsed.After(shared) {
		shared = t.LastUsed
	}
	last := c.lastUse(t)
	publish := shared.Add(idle - 2*ahead)
	here := c.local.LastUsed(id)
	if here.After(shared) {
		p.at(publish, func() { c.publish(ctx, p, id, here) })
	} else {
		p.later(later(publish, p.now.Add(ahead)))
	}
	quiet := last.Add(idle)
	if !p.now.Before(quiet) {
		p.close = append(p.close, ending{t, store.ReasonIdle, quiet})
		return
	}
	p.later(quiet)
	c.warn(p, key, id, quiet, ahead, "nobody uses it")
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// warn tells users once that a tunnel will end.
func (c *closer) warn(p *plan, key ident.AgentKey, id ident.SessionID, end time.Time, ahead time.Duration, why string) {
	p.at(end.Add(-ahead), func() {
		if !c.book.warn(id, end) {
			return
		}
		c.tell(Notice{Kind: api.EventTunnelClosing, Key: key, Session: id, Detail: fmt.Sprintf("closes at %s: %s", stamp(end), why)})
	})
}

// publish writes when a tunnel was used through this relay.
func (c *closer) publish(ctx context.Context, p *plan, id ident.SessionID, used time.Time) {
	_, err := c.store.UpdateTunnel(ctx, id, func(t *store.TunnelRecord) error {
		if !used.After(t.LastUsed) {
			return store.ErrUnchanged
		}
		t.LastUsed = used.UTC().Truncate(time.Millisecond)
		return nil
	})
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		c.log.Debug("write last use", "session_id", id, "error", err)
		p.later(p.now.Add(retryAfter))
	}
}

package usage

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Deadline is when a tunnel will close if nobody uses it from now on, and whether
// it is idleness that will close it (otherwise its hard end).
func (m *Meter) Deadline(r store.TunnelRecord) (at time.Time, idle bool) {
	at = r.ExpiresAt
	if r.IdleTimeout <= 0 {
		return at, false
	}
	if quiet := m.lastUse(r, time.Now()).Add(r.IdleTimeout.D()); quiet.Before(at) {
		return quiet, true
	}
	return at, false
}

// lastUse is never before the relay's start: what happened before is not known,
// and a restart must not close tunnels in use.
func (m *Meter) lastUse(r store.TunnelRecord, now time.Time) time.Time {
	last := r.OpenedAt
	if m.started.After(last) {
		last = m.started
	}
	if s := m.find(r.Session); s != nil {
		if used := s.used(now); used.After(last) {
			last = used
		}
	}
	return last
}

// ClosesBecause says, for people, what will close a tunnel, and when.
func (m *Meter) ClosesBecause(r store.TunnelRecord) string {
	now := time.Now()
	end := "hard end at " + r.ExpiresAt.UTC().Format(time.RFC3339)
	last := m.lastUse(r, now)
	quiet := now.Sub(last)
	if n := m.Totals(r.Session).Viewers; n > 0 && quiet < m.config.Presence {
		who := "1 viewer"
		if n > 1 {
			who = fmt.Sprintf("%d viewers", n)
		}
		return "in use by " + who + "; " + end
	}
	at, idle := m.Deadline(r)
	if !idle {
		return fmt.Sprintf("idle since %s; %s", short(quiet), end)
	}
	return fmt.Sprintf("idle since %s; closes in %s unless used", short(quiet), short(at.Sub(now)))
}

// short is a duration as people say it: two units at most.
func short(d time.Duration) string {
	d = max(d, 0)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 24*time.Hour:
		if m := d % time.Hour / time.Minute; m != 0 {
			return fmt.Sprintf("%dh%dm", d/time.Hour, m)
		}
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	if h := d % (24 * time.Hour) / time.Hour; h != 0 {
		return fmt.Sprintf("%dd%dh", d/(24*time.Hour), h)
	}
	return fmt.Sprintf("%dd", d/(24*time.Hour))
}

// Run closes idle tunnels and forgets what is over, until ctx ends.
func (m *Meter) Run(ctx context.Context) error {
	tick := time.NewTicker(m.config.Every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			m.closeIdle(ctx)
			m.sweep(time.Now())
		}
	}
}

func (m *Meter) closeIdle(ctx context.Context) {
	if m.config.Tunnels == nil || m.config.CloseIdle == nil {
		return
	}
	now := time.Now()
	for r := range m.config.Tunnels() {
		if ctx.Err() != nil {
			return
		}
		at, idle := m.Deadline(r)
		if !idle || now.Before(at) {
			continue
		}
		reason := "nobody used it for " + short(r.IdleTimeout.D())
		if err := m.config.CloseIdle(ctx, r, reason); err != nil {
			// It stays in the list: the next round tries again.
			m.log.Warn("close idle tunnel", "session_id", r.Session, "error", err)
			continue
		}
		m.metrics.idleClosed.Inc()
		m.log.Info("idle tunnel closed", "session_id", r.Session, "agent", r.Key(), "idle_timeout", r.IdleTimeout)
	}
}

// sweep drops viewers that are gone for long and sessions that are over.
func (m *Meter) sweep(now time.Time) {
	m.mu.RLock()
	gone := []ident.SessionID{}
	for id, s := range m.sessions {
		s.mu.Lock()
		for p, v := range s.viewers {
			seen := time.Unix(0, v.lastSeen.Load())
			if v.uses == 0 && now.Sub(seen) >= m.config.Linger {
				delete(s.viewers, p)
			}
		}
		maps.DeleteFunc(s.kicked, func(_ place, until time.Time) bool { return !now.Before(until) })
		s.forgetLinks(now)
		if s.over != nil && len(s.uses) == 0 && now.Sub(s.overAt) >= closedFor {
			gone = append(gone, id)
		}
		s.mu.Unlock()
	}
	m.mu.RUnlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range gone {
		delete(m.sessions, id)
	}
}

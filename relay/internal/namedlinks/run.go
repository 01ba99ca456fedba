package namedlinks

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/gate"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
)

const (
	// writeEvery is the time between writes of use.
	writeEvery = 2 * time.Second
	// lastUseEvery is how exact the last use is in the record; the relay that saw it
	// knows better.
	lastUseEvery = 30 * time.Second
	// writeTime bounds the writing of one link's use, and the last of all.
	writeTime = 3 * time.Second
)

// Run cuts what came in by links that end, removes those that have expired, and
// writes down use, until ctx ends.
func (l *Links) Run(ctx context.Context) error {
	feed := l.cfg.Store.Subscribe(1024)
	defer feed.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { l.writeUse(ctx) })
	e := &ends{links: l, at: map[ident.LinkID]end{}, timer: time.NewTimer(time.Hour)}
	defer e.timer.Stop()
	e.resync()
	for {
		select {
		case <-ctx.Done():
			return nil
		case c, ok := <-feed.C():
			if !ok {
				if ctx.Err() != nil {
					return nil
				}
				return errors.New("the store's changes ended")
			}
			if feed.Lost() {
				e.resync()
				continue
			}
			e.observe(c)
		case <-e.timer.C:
			e.due(ctx, &wg)
		}
	}
}

// ends are the links' ends, as Run's goroutine knows them.
type ends struct {
	links *Links
	at    map[ident.LinkID]end
	next  time.Time
	timer *time.Timer
}

type end struct {
	session ident.SessionID
	expires time.Time // zero: with the tunnel
	text    string    // what those are told who came in by it
	cut     bool      // it was, and the record is to be removed
}

func (e *ends) observe(c store.Change) {
	switch c.Kind {
	case store.KindCredential:
		e.revoked(c.Credential)
		return
	case store.KindMember:
		if m, ok := e.links.cfg.Store.Member(c.Key.Team, c.User); ok && m.Removed() {
			e.again(c.Key.Team)
		}
		return
	case store.KindLink:
	default:
		return
	}
	r, ok := e.links.cfg.Store.Link(c.Link)
	if !ok {
		e.over(c.Link, c.Session)
		return
	}
	e.put(r)
}

// revoked looks again at the links of a team whose credential was revoked: it may have
// made some, or have made what did.
func (e *ends) revoked(id ident.CredentialID) {
	c, ok := e.links.cfg.Store.Credential(id)
	if ok && !c.RevokedAt.IsZero() {
		e.again(c.Team)
	}
}

// again looks at all links of a team.
func (e *ends) again(team ident.TeamID) {
	for r := range e.links.cfg.Store.AllLinks() {
		if r.Team == team {
			e.put(r)
		}
	}
}

// over ends a link here. One that ends with its tunnel is cut with that, and for that
// reason.
func (e *ends) over(id ident.LinkID, session ident.SessionID) {
	text := revoked
	if x := e.at[id]; !x.expires.IsZero() && !time.Now().Before(x.expires) {
		text = x.text
	}
	if _, open := e.links.cfg.Store.Tunnel(session); open {
		e.links.cut(session, id, text)
	}
	delete(e.at, id)
	e.links.mu.Lock()
	delete(e.links.memory, id)
	e.links.mu.Unlock()
}

func (e *ends) put(r store.LinkRecord) {
	old := e.at[r.ID]
	expires, text := r.ExpiresAt, expired
	// What a revoked credential or a removed person made is over since then.
	if since, reason := store.Closed(e.links.cfg.Store, r.Team, r.Opened()); reason != "" && (expires.IsZero() || since.Before(expires)) {
		expires, text = since, revoked
	}
	e.at[r.ID] = end{r.Session, expires, text, old.cut}
	if !expires.IsZero() && !old.cut {
		e.wake(expires)
	}
}

func (e *ends) wake(at time.Time) {
	if e.next.IsZero() || at.Before(e.next) {
		e.next = at
		e.timer.Reset(time.Until(at))
	}
}

// resync reads all links again: those that are gone have ended.
func (e *ends) resync() {
	gone := maps.Clone(e.at)
	for r := range e.links.cfg.Store.AllLinks() {
		delete(gone, r.ID)
		e.put(r)
	}
	for id, x := range gone {
		e.over(id, x.session)
	}
}

// due cuts the links whose time has come, on every relay, and removes their records
// when no relay's clock can still hold them for alive.
func (e *ends) due(ctx context.Context, wg *sync.WaitGroup) {
	now := time.Now()
	e.next = time.Time{}
	for id, x := range e.at {
		switch {
		case x.expires.IsZero():
		case now.Before(x.expires):
			e.wake(x.expires)
		case !x.cut:
			e.links.cut(x.session, id, x.text)
			x.cut = true
			e.at[id] = x
			e.wake(now.Add(gate.Skew))
		case now.Before(x.expires.Add(gate.Skew)):
			e.wake(x.expires.Add(gate.Skew))
		default:
			wg.Go(func() { e.links.remove(ctx, id) })
			e.wake(now.Add(gate.Skew)) // again, if that did not work
		}
	}
}

// remove removes a link that is over. Of the relays that try, the one that did it
// records when somebody ended it before its time.
func (l *Links) remove(ctx context.Context, id ident.LinkID) {
	r, ok := l.cfg.Store.Link(id)
	if !ok {
		return
	}
	err := l.cfg.Store.DeleteLink(ctx, r.Session, id)
	if err != nil {
		if !errors.Is(err, store.ErrNotFound) && ctx.Err() == nil {
			l.log.Debug("remove a link that is over", "link_id", id, "error", err)
		}
		return
	}
	if _, reason := store.Closed(l.cfg.Store, r.Team, r.Opened()); reason != "" {
		l.metrics.revoked.Inc()
		l.audit(ctx, audit.LinkRevoked, "relay", r, "who made it may not any more: "+string(reason))
	}
}

// writeUse writes uses and last uses to the records, many at once.
func (l *Links) writeUse(ctx context.Context) {
	tick := time.NewTicker(writeEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			l.flush(ctx, false)
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTime)
			defer cancel()
			l.flush(last, true)
			return
		}
	}
}

func (l *Links) flush(ctx context.Context, all bool) {
	type job struct {
		id      ident.LinkID
		session ident.SessionID
		marks   []string
		used    time.Time
	}
	var jobs []job
	l.mu.Lock()
	for id, m := range l.memory {
		if len(m.pending) > 0 || m.used.Sub(m.written) > lastUseEvery || all && m.used.After(m.written) {
			jobs = append(jobs, job{id, m.session, slices.Clone(m.pending), m.used})
		}
	}
	l.mu.Unlock()
	for _, j := range jobs {
		if ctx.Err() != nil {
			return
		}
		one, cancel := context.WithTimeout(ctx, writeTime)
		_, err := l.cfg.Store.UpdateLink(one, j.session, j.id, func(r *store.LinkRecord) error {
			for _, mark := range j.marks {
				if !slices.Contains(r.Viewers, mark) {
					r.Uses++
					r.Viewers = append(r.Viewers, mark)
				}
			}
			if n := len(r.Viewers) - keepViewers; n > 0 && r.MaxUses == 0 {
				r.Viewers = slices.Clone(r.Viewers[n:])
			}
			if used := j.used.UTC().Truncate(time.Millisecond); used.After(r.LastUsed) {
				r.LastUsed = used
			}
			return nil
		})
		cancel()
		if errors.Is(err, store.ErrNotFound) {
			l.mu.Lock()
			delete(l.memory, j.id)
			l.mu.Unlock()
			continue
		}
		if err != nil {
			l.log.Debug("write use of a link", "link_id", j.id, "error", err)
			continue
		}
		l.mu.Lock()
		if m := l.memory[j.id]; m != nil {
			m.pending, m.written = m.pending[min(len(j.marks), len(m.pending)):], j.used
		}
		l.mu.Unlock()
	}
}

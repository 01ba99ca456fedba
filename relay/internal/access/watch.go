package access

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/relay/internal/usage"
	"github.com/adit-tunnel/adit/shared/ident"
)

// ErrRemoved is the cause that ends what somebody has open who may not use the tunnel any
// more; a usage.Over of it says why.
var ErrRemoved = errors.New("the viewer may not use the tunnel any more")

// sweepEvery bounds how late an expiry ends what is open, or a rule that came while a use
// began.
const sweepEvery = 500 * time.Millisecond

func removed(text string) error { return &usage.Over{Of: ErrRemoved, Text: text} }

// watch is one use that ends when its viewer may not use the tunnel any more.
type watch struct {
	viewer  Viewer
	session ident.SessionID
	link    ident.LinkID
	own     bool // the link's rule holds
	version uint64
	cancel  context.CancelCauseFunc
}

type watched struct {
	mu   sync.Mutex
	of   map[ident.SessionID]map[*watch]struct{}
	late map[place]int // whose rule came or changed; how often they are looked at yet
}

// place is an address of a tunnel: its own, or that of a named link.
type place struct {
	session ident.SessionID
	link    ident.LinkID
}

// Watch returns a context that ends when the viewer may not use the tunnel any more: with
// a usage.Over of ErrRemoved. It is for a tunnel with a rule, and the use begins with it.
// Call stop when the use has ended.
func (a *Access) Watch(ctx context.Context, v Viewer, t *store.TunnelRecord, l *store.LinkRecord) (_ context.Context, stop context.CancelFunc) {
	w := &watch{viewer: v, session: t.Session, version: RuleOf(t, l).Version}
	if l != nil {
		w.link, w.own = l.ID, l.Access != nil
	}
	ctx, w.cancel = context.WithCancelCause(usage.Watched(ctx))
	a.watched.add(w)
	a.metrics.watched.Inc()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			a.watched.remove(w)
			a.metrics.watched.Dec()
			w.cancel(nil)
		})
	}
	// After adding: a change before it would be missed, one after it is told twice.
	if err := a.ended(w); err != nil {
		w.cancel(err)
	}
	return ctx, stop
}

// ended says why a use ends; nil: it does not.
func (a *Access) ended(w *watch) error {
	t, l, ok := a.address(w.session, w.link)
	if !ok {
		return nil // who closes a tunnel, or takes a link back, ends what is open
	}
	rule := RuleOf(&t, l)
	switch {
	case rule == nil:
		return nil
	case rule.Version != w.version || (l != nil && l.Access != nil) != w.own:
		return removed("who may use the tunnel was changed; open its address again")
	case !w.viewer.ends.IsZero() && !a.cfg.Now().Before(w.viewer.ends):
		return removed("your pass to the tunnel has expired; open its address again")
	case w.viewer.by.Kind == "":
		return nil
	case !a.cfg.Creds.Valid(w.viewer.by):
		return removed("you may not use the tunnel any more: you signed out, or what you came with was revoked, or you left the team")
	}
	if a.permits(rule, &t, a.viewer(w.viewer.by, w.viewer.How)) != nil {
		return removed("you may not use the tunnel any more; ask whoever sent you the address")
	}
	return nil
}

// Run ends what must end, until ctx does.
func (a *Access) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { a.sweep(ctx) })
	return a.cfg.Changes(ctx, a.changed)
}

// sweep finds what ends by the clock, and what began while a rule came.
func (a *Access) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, at := range a.watched.latecomers() {
			a.cutUnwatched(at.session, at.link)
		}
		if n%fullSweep == 0 {
			a.look(a.watched.all())
		}
	}
}

// fullSweep is how many sweeps pass until all that is open is looked at.
const fullSweep = 2

// changed looks again at what a change may concern.
func (a *Access) changed(c store.Change) {
	switch c.Kind {
	case store.KindTunnel:
		if t, ok := a.cfg.Store.Tunnel(c.Session); ok && t.Access != nil {
			a.cutUnwatched(c.Session, "")
			a.watched.again(place{c.Session, ""})
			a.look(a.watched.at(c.Session))
		}
	case store.KindLink:
		if l, ok := a.cfg.Store.Link(c.Link); ok && l.Access != nil {
			a.cutUnwatched(c.Session, c.Link)
			a.watched.again(place{c.Session, c.Link})
			a.look(a.watched.at(c.Session))
		}
	case store.KindSignIn:
		if c.Deleted { // else it was used
			a.look(a.watched.all())
		}
	case store.KindUser, store.KindMember, store.KindCredential, "":
		a.look(a.watched.all())
	}
}

// cutUnwatched ends what is open by an address that had no rule when it began, and has
// one now.
func (a *Access) cutUnwatched(session ident.SessionID, link ident.LinkID) {
	t, l, ok := a.address(session, link)
	if !ok {
		return
	}
	var n int
	cause := removed("who may use the tunnel was changed; open its address again")
	switch {
	case t.Access != nil:
		n = a.cfg.CutUnwatched(session, "", cause)
	case l != nil && l.Access != nil:
		n = a.cfg.CutUnwatched(session, link, cause)
	}
	a.metrics.cut.Add(float64(n))
}

func (a *Access) look(list []*watch) {
	for _, w := range list {
		if err := a.ended(w); err != nil {
			w.cancel(err)
			a.metrics.cut.Inc()
		}
	}
}

// again has a place looked at once more, a while later: a request that found no rule may
// not have begun its use yet.
func (s *watched) again(at place) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.late[at] = lateLooks
}

const lateLooks = 2

func (s *watched) latecomers() []place {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []place
	for at := range s.late {
		out = append(out, at)
		if s.late[at]--; s.late[at] == 0 {
			delete(s.late, at)
		}
	}
	return out
}

func (s *watched) add(w *watch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	set := s.of[w.session]
	if set == nil {
		set = map[*watch]struct{}{}
		s.of[w.session] = set
	}
	set[w] = struct{}{}
}

func (s *watched) remove(w *watch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	set := s.of[w.session]
	if delete(set, w); len(set) == 0 {
		delete(s.of, w.session)
	}
}

// at returns a copy, so that nobody's cancel runs under the lock.
func (s *watched) at(session ident.SessionID) []*watch {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.of[session]))
}

func (s *watched) all() []*watch {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*watch
	for _, set := range s.of {
		all = slices.AppendSeq(all, maps.Keys(set))
	}
	return all
}

package creds

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/adit-tunnel/adit/shared/ident"
)

// Causes with which a watched context ends.
var (
	ErrRevoked = errors.New("the credential was revoked")
	ErrExpired = errors.New("the credential or session has expired")
)

// sweepEvery bounds how late an expiry, or a revocation that no change told of,
// ends what it must: the promise is five seconds.
const sweepEvery = 2 * time.Second

// watch is one link or socket that ends with its principal.
type watch struct {
	p      Principal
	cancel context.CancelCauseFunc
}

// watched holds the watches; users have none of the credentials and are under the
// empty id. One map, one change feed and one ticker serve any number of links.
type watched struct {
	mu           sync.Mutex
	byCredential map[ident.CredentialID]map[*watch]struct{}
}

// Watch returns a context that ends, with ErrRevoked or ErrExpired as its cause,
// when the principal's credential is revoked or expires. Call stop when what was
// opened has ended.
func (a *Authenticator) Watch(ctx context.Context, p Principal) (_ context.Context, stop context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watch{p, cancel}
	if p.Credential == "" && p.ExpiresAt.IsZero() { // the operator
		return ctx, func() { cancel(nil) }
	}
	a.watched.add(w)
	a.m.watched.Inc()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			a.watched.remove(w)
			a.m.watched.Dec()
			cancel(nil)
		})
	}
	// After adding: a change before it would be missed, one after it is told twice.
	if err := a.ended(p, time.Now()); err != nil {
		cancel(err)
	}
	return ctx, stop
}

// Valid says whether the principal may still act.
func (a *Authenticator) Valid(p Principal) bool { return p.Kind != "" && a.ended(p, time.Now()) == nil }

func (a *Authenticator) ended(p Principal, now time.Time) error {
	if !p.ExpiresAt.IsZero() && !now.Before(p.ExpiresAt) {
		return ErrExpired
	}
	if p.Credential == "" {
		return nil
	}
	rec, ok := a.cfg.Store.Credential(p.Credential)
	if !ok { // it existed when it was shown, so it was removed since
		return ErrRevoked
	}
	switch refused := a.usable(rec, now); {
	case refused == nil:
		return nil
	case refused.outcome == outcomeExpired:
		return ErrExpired
	}
	return ErrRevoked
}

// changed looks again at the watches of a credential, or of all when id is empty. One
// that was revoked may have made others.
func (a *Authenticator) changed(id ident.CredentialID) {
	now := time.Now()
	if rec, ok := a.cfg.Store.Credential(id); ok && !rec.RevokedAt.IsZero() {
		id = ""
	}
	for _, w := range a.watched.of(id) {
		if err := a.ended(w.p, now); err != nil {
			w.cancel(err)
		}
	}
}

func (a *Authenticator) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			a.changed("")
		}
	}
}

func (s *watched) add(w *watch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	set := s.byCredential[w.p.Credential]
	if set == nil {
		set = make(map[*watch]struct{})
		s.byCredential[w.p.Credential] = set
	}
	set[w] = struct{}{}
}

func (s *watched) remove(w *watch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	set := s.byCredential[w.p.Credential]
	if delete(set, w); len(set) == 0 {
		delete(s.byCredential, w.p.Credential)
	}
}

// of returns a copy, so that nobody's cancel runs under the lock.
func (s *watched) of(id ident.CredentialID) []*watch {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id != "" {
		return slices.Collect(maps.Keys(s.byCredential[id]))
	}
	var all []*watch
	for _, set := range s.byCredential {
		all = slices.AppendSeq(all, maps.Keys(set))
	}
	return all
}

package creds

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Causes with which a watched context ends.
var (
	ErrRevoked   = errors.New("the credential was revoked")
	ErrExpired   = errors.New("the credential or session has expired")
	ErrSignedOut = errors.New("the person has signed out")
	ErrRemoved   = errors.New("the person behind it is not in the team any more")
	ErrDemoted   = errors.New("the role in the team is a lesser one now")
)

// Ended says whether a context's cause is that of a watch: the principal may no longer
// do what it began.
func Ended(cause error) bool {
	return slices.ContainsFunc([]error{ErrRevoked, ErrExpired, ErrSignedOut, ErrRemoved, ErrDemoted}, func(e error) bool { return errors.Is(cause, e) })
}

// sweepEvery bounds how late an expiry, or a revocation that no change told of,
// ends what it must: the promise is five seconds.
const sweepEvery = 2 * time.Second

// watch is one link or socket that ends with its principal.
type watch struct {
	p      Principal
	cancel context.CancelCauseFunc
}

// watched holds the watches; people who are signed in or have an issuer's token are under
// the empty id. One map, one change feed and one ticker serve any number of links.
type watched struct {
	mu           sync.Mutex
	byCredential map[ident.CredentialID]map[*watch]struct{}
}

// Watch returns a context that ends when the principal's credential or sign-in does, or
// when the person behind it is removed from the team or gets a lesser role there; Ended
// knows its cause. Call stop when what was opened has ended.
func (a *Authenticator) Watch(ctx context.Context, p Principal) (_ context.Context, stop context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watch{p, cancel}
	if p.Kind == KindOperator {
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
	role, err := a.present(p, now)
	switch {
	case err != nil:
		return err
	case p.Role != "" && !role.AtLeast(p.Role):
		return ErrDemoted
	}
	return nil
}

// present is the role that a principal has now, and why it has none.
func (a *Authenticator) present(p Principal, now time.Time) (api.Role, error) {
	if p.Kind == KindOperator {
		return api.RoleOwner, nil
	}
	if p.Credential != "" {
		rec, ok := a.cfg.Store.Credential(p.Credential)
		if !ok { // it existed when it was shown, so it was removed since
			return "", ErrRevoked
		}
		switch refused := a.usable(rec, now); {
		case refused == nil:
		case refused.outcome == outcomeExpired:
			return "", ErrExpired
		default:
			return "", ErrRevoked
		}
		role, refused := a.standing(rec)
		if refused != nil {
			return "", ErrRemoved
		}
		return role, nil
	}
	if p.SignIn != "" {
		rec, ok := a.cfg.Store.SignIn(p.SignIn)
		if !ok {
			return "", ErrSignedOut
		}
		switch refused := a.signedIn(rec, now); {
		case refused == nil:
		case refused.outcome == outcomeExpired:
			return "", ErrExpired
		default:
			return "", ErrSignedOut
		}
	}
	if p.Kind != KindUser || p.Team == "" {
		return p.Role, nil
	}
	role, in := a.roleOf(p)
	if !in {
		return "", ErrRemoved
	}
	return role, nil
}

// changed looks again at the watches that a change may concern. A credential that was
// revoked may have made others, and a person who was removed may be behind any.
func (a *Authenticator) changed(c store.Change) {
	list := a.watched.all
	switch c.Kind {
	case store.KindCredential:
		if rec, ok := a.cfg.Store.Credential(c.Credential); !ok || rec.RevokedAt.IsZero() {
			list = func() []*watch { return a.watched.of(c.Credential) }
		}
	case store.KindSignIn, store.KindUser: // a sign-in also changes when the issuer names other teams
		list = func() []*watch { return a.watched.of("") }
	}
	now := time.Now()
	for _, w := range list() {
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
			a.changed(store.Change{})
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
	return slices.Collect(maps.Keys(s.byCredential[id]))
}

// all is of for every credential, and for people.
func (s *watched) all() []*watch {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*watch
	for _, set := range s.byCredential {
		all = slices.AppendSeq(all, maps.Keys(set))
	}
	return all
}

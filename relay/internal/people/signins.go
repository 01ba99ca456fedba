package people

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// How long a browser stays signed in.
const (
	idleLife   = 12 * time.Hour      // without any use
	wholeLife  = 30 * 24 * time.Hour // however much it is used
	renewEvery = 5 * time.Minute     // how exact its last use is
)

// Bounds of what an issuer says of a person, in bytes.
const (
	maxUser  = 255
	maxText  = 128
	maxTeams = 256

	maxGroups = 256
)

// Known writes down what an issuer says of a person who signs in: their name and the
// teams they are in. Where they were by the issuer's word alone, and it says so no more,
// they are out, with the browsers that they are signed in with and the credentials that
// they made. Who was removed here stays removed. The error is a *api.Problem.
func (p *People) Known(ctx context.Context, user ident.UserID, name, email string, teams []store.SignInTeam) error {
	const doing = "write down who signs in"
	if user == "" || madeHere(user) || tidy(string(user), maxUser) != string(user) {
		return api.Problemf(api.CodeForbidden, "the issuer names the person %q, which this relay does not take", tidy(string(user), maxText))
	}
	if len(teams) > maxTeams {
		return api.Problemf(api.CodeForbidden, "the issuer names %d teams of the person, and at most %d are taken", len(teams), maxTeams)
	}
	name, email = tidy(name, maxText), tidy(email, maxUser)
	_, err := p.cfg.Store.ChangeUser(ctx, user, func(u *store.UserRecord) error {
		if u.ID != "" && (u.Name == name || name == "") && (u.Email == email || email == "") {
			return store.ErrUnchanged
		}
		if u.ID == "" {
			u.ID, u.CreatedAt = user, p.now()
		}
		if name != "" {
			u.Name = name
		}
		if email != "" {
			u.Email = email
		}
		return nil
	})
	if err != nil {
		return storeProblem(doing, err)
	}
	for _, t := range teams {
		if _, ok := p.cfg.Store.Member(t.ID, user); !ok && p.room(t.ID) != nil {
			continue // in the team by the issuer's word, and in no list
		}
		_, err := p.cfg.Store.ChangeMember(ctx, t.ID, user, func(m *store.MemberRecord) error {
			switch {
			case m.Unsaid() && m.Source == store.SourceOwner && t.Role == "":
				m.RemovedAt, m.RemovedBy, m.KeepTunnels = time.Time{}, "", false // with the role that an owner gave
			case m.User == "" || m.Unsaid():
				*m = store.MemberRecord{Team: t.ID, User: user, Role: t.Role, Source: store.SourceIssuer, JoinedAt: p.now()}
			case m.Removed():
				return store.ErrUnchanged
			case t.Role != "" && (m.Role != t.Role || m.Source != store.SourceIssuer):
				m.Role, m.Source = t.Role, store.SourceIssuer
			case t.Role == "" && m.Role != "" && m.Source == store.SourceIssuer:
				m.Role = "" // it said one, and says none any more
			default:
				return store.ErrUnchanged
			}
			return nil
		})
		if err != nil {
			return storeProblem(doing, err)
		}
	}
	return p.unsaid(ctx, user, teams)
}

// unsaid ends what an issuer said of a person and says no more.
func (p *People) unsaid(ctx context.Context, user ident.UserID, teams []store.SignInTeam) error {
	const doing = "end what the issuer says no more"
	for _, m := range p.cfg.Store.Memberships(user) {
		here := m.Source == store.SourceInvite || m.Source == store.SourceOperator // who needs no issuer
		if m.Removed() || here || slices.ContainsFunc(teams, func(t store.SignInTeam) bool { return t.ID == m.Team }) {
			continue
		}
		// A tombstone, so that what they made is worth no more than they are. Their tunnels go
		// on to their end: an issuer that forgets a claim for an hour should cost no more.
		_, err := p.cfg.Store.ChangeMember(ctx, m.Team, user, func(m *store.MemberRecord) error {
			if m.User == "" || m.Removed() {
				return store.ErrUnchanged
			}
			m.RemovedAt, m.RemovedBy, m.KeepTunnels = p.now(), store.SourceIssuer, true
			return nil
		})
		if err != nil {
			return storeProblem(doing, err)
		}
		if err := p.audit(ctx, audit.Record{Event: audit.MemberRemoved, Actor: store.SourceIssuer, Team: m.Team, Detail: string(user) + ", whom it names no more"}); err != nil {
			return err
		}
	}
	for _, s := range p.cfg.Store.SignIns(user) {
		if slices.Equal(s.Teams, teams) {
			continue
		}
		_, err := p.cfg.Store.ChangeSignIn(ctx, s.Hash, func(r *store.SignInRecord) error {
			r.Teams = teams
			return nil
		})
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return storeProblem(doing, err)
		}
	}
	return nil
}

// Groups writes down the groups that an issuer names for a person who has signed in, for
// all browsers that they are signed in with. What is no name, or beyond the bound, is left
// out. The error is a *api.Problem.
func (p *People) Groups(ctx context.Context, user ident.UserID, groups []string) error {
	groups = slices.DeleteFunc(slices.Clone(groups), func(g string) bool { return g == "" || tidy(g, maxUser) != g })
	groups = groups[:min(len(groups), maxGroups)]
	for _, s := range p.cfg.Store.SignIns(user) {
		if slices.Equal(s.Groups, groups) {
			continue
		}
		_, err := p.cfg.Store.ChangeSignIn(ctx, s.Hash, func(r *store.SignInRecord) error {
			r.Groups = groups
			return nil
		})
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return storeProblem("write down the groups of who signs in", err)
		}
	}
	p.settle(ctx)
	return nil
}

// SignIn writes that a person is signed in with a browser, by a method (issuer, invite,
// passkey), and returns the secret of its cookie: a fresh one each time. The error is a
// *api.Problem.
func (p *People) SignIn(ctx context.Context, user ident.UserID, method string, teams []store.SignInTeam, groups []string, browser, remote string) (ident.Secret, store.SignInRecord, error) {
	secret, now := ident.NewSecret(ident.PrefixSignIn), p.now()
	u, _ := p.cfg.Store.User(user)
	if !now.After(u.SignedOutAt) { // by another relay, whose clock is ahead of ours
		now = u.SignedOutAt.Add(time.Millisecond)
	}
	rec := store.SignInRecord{
		Hash: secret.Hash(), User: user, Teams: teams, Groups: groups, Method: method, Browser: tidy(browser, maxBrowser), RemoteAddr: tidy(remote, maxText),
		IssuedAt: now, SeenAt: now, ExpiresAt: now.Add(idleLife), EndsAt: now.Add(wholeLife),
	}
	// The bound: what was not used for longest goes.
	mine := p.cfg.Store.SignIns(user)
	slices.SortFunc(mine, func(a, b store.SignInRecord) int { return a.SeenAt.Compare(b.SeenAt) })
	for _, old := range mine[:max(0, len(mine)-maxSignIns+1)] {
		if err := p.cfg.Store.DeleteSignIn(ctx, old.Hash); err != nil {
			return "", store.SignInRecord{}, storeProblem("end an older sign-in", err)
		}
	}
	if err := p.cfg.Store.CreateSignIn(ctx, rec); err != nil {
		return "", store.SignInRecord{}, storeProblem("sign in", err)
	}
	p.settle(ctx)
	err := p.audit(ctx, audit.Record{Event: audit.SignedIn, Actor: "user:" + string(user), RemoteAddr: remote, Detail: fmt.Sprintf("%s by %s", shortID(rec.Hash), method)})
	if err != nil { // nobody is let in whom the audit does not know of
		_ = p.cfg.Store.DeleteSignIn(context.WithoutCancel(ctx), rec.Hash)
		return "", store.SignInRecord{}, err
	}
	return secret, rec, nil
}

// holds says whether a browser is still signed in.
func (p *People) holds(r store.SignInRecord) bool {
	u, _ := p.cfg.Store.User(r.User)
	now := p.now()
	return now.Before(r.ExpiresAt) && now.Before(r.EndsAt) && r.IssuedAt.After(u.SignedOutAt)
}

// Find returns the browser whose cookie this is, if it is signed in. A miss is confirmed
// once: the browser may have been signed in at another relay a moment ago.
func (p *People) Find(ctx context.Context, cookie ident.Secret) (store.SignInRecord, bool) {
	hash := cookie.Hash()
	r, ok := p.cfg.Store.SignIn(hash)
	if !ok {
		if !p.misses.Allow() || p.cfg.Store.CatchUp(ctx) != nil {
			return store.SignInRecord{}, false
		}
		if r, ok = p.cfg.Store.SignIn(hash); !ok {
			return store.SignInRecord{}, false
		}
	}
	if !p.holds(r) {
		return store.SignInRecord{}, false
	}
	return r, true
}

func notSignedIn() error {
	return api.NewProblem(api.CodeNotSignedIn, "this browser is not signed in any more: sign in again")
}

// Renew moves the end of a sign-in that is used. The error is a *api.Problem.
func (p *People) Renew(ctx context.Context, r store.SignInRecord) (store.SignInRecord, error) {
	now := p.now()
	if now.Sub(r.SeenAt) < renewEvery {
		return r, nil
	}
	out, err := p.cfg.Store.ChangeSignIn(ctx, r.Hash, func(r *store.SignInRecord) error {
		if !p.holds(*r) {
			return notSignedIn()
		}
		if now.Sub(r.SeenAt) < renewEvery {
			return store.ErrUnchanged
		}
		r.SeenAt, r.ExpiresAt = now, now.Add(idleLife)
		if r.ExpiresAt.After(r.EndsAt) {
			r.ExpiresAt = r.EndsAt
		}
		return nil
	})
	switch {
	case errors.Is(err, store.ErrNotFound):
		return r, notSignedIn()
	case err != nil:
		return r, storeProblem("renew a sign-in", err)
	}
	out.Hash = r.Hash
	return out, nil
}

// SignOut ends a browser's sign-in, or all of its person's. The error is a *api.Problem.
func (p *People) SignOut(ctx context.Context, r store.SignInRecord, everywhere bool) error {
	detail, ends := shortID(r.Hash), []store.SignInRecord{r}
	if everywhere {
		detail = "everywhere"
		// First what counts: whatever is not deleted below is worth nothing.
		_, err := p.cfg.Store.ChangeUser(ctx, r.User, func(u *store.UserRecord) error {
			if u.ID == "" {
				u.ID, u.CreatedAt = r.User, p.now()
			}
			// Not before the sign-in that asks, whatever the clock of its relay said.
			u.SignedOutAt = later(later(u.SignedOutAt, p.now()), r.IssuedAt)
			return nil
		})
		if err != nil {
			return storeProblem("sign out everywhere", err)
		}
		if err := p.cfg.Store.CatchUp(ctx); err != nil {
			return storeProblem("sign out everywhere", err)
		}
		ends = append(ends, p.cfg.Store.SignIns(r.User)...)
	}
	for _, s := range ends {
		if err := p.cfg.Store.DeleteSignIn(ctx, s.Hash); err != nil {
			return storeProblem("sign out", err)
		}
	}
	p.settle(ctx)
	return p.audit(ctx, audit.Record{Event: audit.SignedOut, Actor: "user:" + string(r.User), Detail: detail})
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

package creds

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// OwnUsers is the beginning of the names of people who were made here, by an invitation.
// No issuer speaks for them.
const OwnUsers = "adit:"

// RoleIn says whether a person is in a team, and as what. named says whether their OIDC
// issuer names the team, and said which role it gives them there, if it says one.
//
// Who was removed here is out, whatever the issuer says. Else the issuer's word on the
// role counts, then what the store has, then the default. Who was made here, invited, or
// made a member by the operator needs no issuer; anybody else is in the team while the
// issuer names it, whatever the store remembers of them.
func (a *Authenticator) RoleIn(team ident.TeamID, user ident.UserID, said api.Role, named bool) (api.Role, bool) {
	return a.roleIn(store.SignInTeam{ID: team, Role: said}, user, named, a.oidc.unsaid)
}

func (a *Authenticator) roleIn(t store.SignInTeam, user ident.UserID, named bool, unsaid api.Role) (api.Role, bool) {
	rec, known := a.cfg.Store.Member(t.ID, user)
	back := named && rec.Unsaid() // the issuer takes its word back
	if back && rec.Source != store.SourceOwner {
		rec.Role = "" // it was the issuer's word, too
	}
	switch {
	case known && rec.Removed() && !back:
		return "", false
	case named && t.Role != "":
		return t.Role, true
	case known && (named || needsNoIssuer(rec)):
		return cmp.Or(rec.Role, unsaid), true
	case named:
		return unsaid, true
	}
	return "", false
}

func needsNoIssuer(rec store.MemberRecord) bool {
	return rec.Source == store.SourceInvite || rec.Source == store.SourceOperator || strings.HasPrefix(string(rec.User), OwnUsers)
}

// Teams lists the teams that a caller is in, by name.
func (a *Authenticator) Teams(p Principal) []api.MyTeam {
	if p.Kind == KindUser {
		return a.teams(p.User, a.named(p), p.unsaid)
	}
	if p.Team == "" {
		return []api.MyTeam{}
	}
	rec, _ := a.cfg.Store.Team(p.Team)
	return []api.MyTeam{{TeamID: p.Team, TeamName: rec.Name, Role: p.Role}}
}

// TeamsOfSignIn lists the teams of the person who is signed in with a browser.
func (a *Authenticator) TeamsOfSignIn(rec store.SignInRecord) []api.MyTeam {
	return a.teams(rec.User, rec.Teams, a.oidc.unsaid)
}

func (a *Authenticator) teams(user ident.UserID, named []store.SignInTeam, unsaid api.Role) []api.MyTeam {
	out := []api.MyTeam{}
	add := func(t store.SignInTeam, named bool) {
		role, in := a.roleIn(t, user, named, unsaid)
		if !in || slices.ContainsFunc(out, func(o api.MyTeam) bool { return o.TeamID == t.ID }) {
			return
		}
		if rec, ok := a.cfg.Store.Team(t.ID); ok {
			t.Name = rec.Name
		}
		out = append(out, api.MyTeam{TeamID: t.ID, TeamName: t.Name, Role: role})
	}
	for _, t := range named {
		add(t, true)
	}
	for _, m := range a.cfg.Store.Memberships(user) {
		add(store.SignInTeam{ID: m.Team}, false)
	}
	slices.SortFunc(out, func(x, y api.MyTeam) int {
		return cmp.Or(cmp.Compare(x.TeamName, y.TeamName), cmp.Compare(x.TeamID, y.TeamID))
	})
	return out
}

// named are the teams that the issuer named for a person who calls: in their token, or at
// the sign-in.
func (a *Authenticator) named(p Principal) []store.SignInTeam {
	if p.SignIn == "" {
		return p.named
	}
	rec, _ := a.cfg.Store.SignIn(p.SignIn)
	return rec.Teams
}

// roleOf is what a person who calls is now in the team of the call.
func (a *Authenticator) roleOf(p Principal) (api.Role, bool) {
	t, named := store.SignInTeam{ID: p.Team}, false
	if list := a.named(p); list != nil {
		if i := slices.IndexFunc(list, func(t store.SignInTeam) bool { return t.ID == p.Team }); i >= 0 {
			t, named = list[i], true
		}
	}
	return a.roleIn(t, p.User, named, p.unsaid)
}

// standing is what a credential may in its team: no more than what it was made for, than
// what it was made with, and than what the people behind it are in the team now. Of whom
// the store knows nothing it says nothing: they are the issuer's, or of a release before
// there were members.
func (a *Authenticator) standing(rec store.CredentialRecord) (api.Role, *refusal) {
	if rec.OfMachine() {
		return "", nil // it is its team's, whoever made it
	}
	role := cmp.Or(rec.Role, api.RoleAdmin)
	for one := range store.Credentials(a.cfg.Store.Credential).Line(rec.ID) {
		if one.Role != "" {
			role = role.Lesser(one.Role)
		}
		for _, user := range one.People() {
			m, known := a.cfg.Store.Member(rec.Team, user)
			switch {
			case known && m.Ends(one.CreatedAt):
				return "", invalid(outcomeNotMember, "the person behind the credential is not in the team any more")
			case known:
				role = role.Lesser(cmp.Or(m.Role, a.oidc.unsaid))
			}
		}
	}
	if rec.Kind == api.KindAgent {
		return "", nil // no role is asked of it
	}
	return role, nil
}

// signedIn says why a browser is not signed in any more, if so.
func (a *Authenticator) signedIn(rec store.SignInRecord, now time.Time) *refusal {
	user, _ := a.cfg.Store.User(rec.User)
	switch {
	case !now.Before(rec.ExpiresAt), !now.Before(rec.EndsAt):
		return invalid(outcomeExpired, "the sign-in has expired: sign in again")
	case !rec.IssuedAt.After(user.SignedOutAt):
		return signedOut()
	}
	return nil
}

func signedOut() *refusal {
	return invalid(outcomeRevoked, "the person has signed out: sign in again")
}

package creds

import (
	"context"
	"net/http"
	"net/netip"
	"time"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Shown tells who shows a secret at the address of a team's tunnel, in the values of a
// header of its own there, since Authorization is the app's. A person is there in the
// tunnel's team. The error is that of Authenticate.
func (a *Authenticator) Shown(ctx context.Context, values []string, team ident.TeamID, remote netip.Addr) (Principal, error) {
	secret, refused := bearerOf(values, api.HeaderAuthorization)
	label := labelNone
	var p Principal
	if refused == nil {
		p, label, refused = a.identify(asked(ctx, team, remote), secret, false)
	}
	if refused != nil {
		a.m.auth.WithLabelValues(label, string(refused.outcome)).Inc()
		return Principal{}, refused.problem
	}
	a.m.auth.WithLabelValues(label, string(outcomeOK)).Inc()
	return p, nil
}

// asked is a request for a team's tunnel as far as authentication looks at one.
func asked(ctx context.Context, team ident.TeamID, remote netip.Addr) *http.Request {
	r := &http.Request{Header: http.Header{http.CanonicalHeaderKey(api.HeaderTeam): {string(team)}}, RemoteAddr: netip.AddrPortFrom(remote, 0).String()}
	return r.WithContext(ctx)
}

// SignedIn is whose browser it is that is signed in under a hash, which the caller has
// from what only this pool makes. Of a team that the person is not in, they are a
// stranger: without team and role. The error is a *api.Problem.
func (a *Authenticator) SignedIn(ctx context.Context, hash string, team ident.TeamID, remote netip.Addr) (Principal, error) {
	rec, ok := a.cfg.Store.SignIn(hash)
	if !ok { // it may be of a moment ago, at another relay
		refused := a.misses.settle(ctx, hash, remote.String(), signedOut(), func() bool {
			rec, ok = a.cfg.Store.SignIn(hash)
			return ok
		})
		if refused != nil {
			return Principal{}, refused.problem
		}
	}
	if refused := a.signedIn(rec, time.Now()); refused != nil {
		return Principal{}, refused.problem
	}
	p := Principal{Kind: KindUser, Team: team, User: rec.User, SignIn: hash, ExpiresAt: rec.EndsAt, Name: "user:" + string(rec.User), unsaid: a.oidc.unsaid}
	if role, in := a.roleOf(p); in {
		p.Role = role
	} else {
		p.Team = ""
	}
	return p, nil
}

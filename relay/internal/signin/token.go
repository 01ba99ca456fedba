package signin

import (
	"context"
	"net/http"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// token exchanges the cookie for a bearer, which the page keeps in memory.
func (d *Door) token(w http.ResponseWriter, r *http.Request) (any, error) {
	rec, ok := d.signedIn(r)
	if !ok {
		return nil, notSignedIn()
	}
	rec, err := d.cfg.People.Renew(r.Context(), rec)
	if err != nil {
		return nil, err
	}
	if secret, ok := d.cookies.signIn(r); ok { // the browser keeps it as long as the relay does
		d.cookies.setSignIn(w, secret, rec.ExpiresAt.Sub(d.cfg.Now()))
	}
	bearer, ends := d.cfg.Creds.BrowserToken(rec, d.cfg.Now())
	out := api.BrowserToken{Token: bearer.Reveal(), ExpiresAt: ends, UserID: string(rec.User), Teams: d.cfg.Creds.TeamsOfSignIn(rec)}
	out.MayAddPasskey = d.keys != nil && d.cfg.People.MayAddPasskey(rec.User)
	if user, ok := d.cfg.Store.User(rec.User); ok {
		out.UserName, out.HasPasskey = user.Name, len(user.Passkeys) > 0
	}
	if out.Teams == nil {
		out.Teams = []api.MyTeam{}
	}
	return out, nil
}

func notSignedIn() *api.Problem {
	return api.NewProblem(api.CodeNotSignedIn, "this browser is not signed in, or not any more: sign in")
}

// logout ends the browser's sign-in, or all of the person's. It always leaves a browser
// that is not signed in.
func (d *Door) logout(w http.ResponseWriter, r *http.Request) (any, error) {
	var req struct {
		Everywhere bool `json:"everywhere"`
	}
	if err := read(w, r, &req); err != nil {
		return nil, err
	}
	if rec, ok := d.signedIn(r); ok {
		if err := d.cfg.People.SignOut(context.WithoutCancel(r.Context()), rec, req.Everywhere); err != nil {
			return nil, err
		}
	} else if req.Everywhere { // it cannot be known whose
		return nil, notSignedIn()
	}
	d.cookies.clear(w, cookieSignIn)
	return nil, nil
}

// Joined is the answer of POST /auth/invite: the team that the person is in now.
type Joined struct {
	TeamID   ident.TeamID `json:"team_id"`
	TeamName string       `json:"team_name,omitempty"`
	Role     api.Role     `json:"role"`
	UserName string       `json:"user_name,omitempty"`
}

// invite uses an invitation up. Whoever is signed in gets the team added; anybody else
// becomes a person of this relay, and is signed in.
func (d *Door) invite(w http.ResponseWriter, r *http.Request) (any, error) {
	var req struct {
		Invite string `json:"invite"`
	}
	if err := read(w, r, &req); err != nil {
		return nil, err
	}
	var as ident.UserID
	if rec, ok := d.signedIn(r); ok {
		as = rec.User
	}
	// What follows must not stop half-way because the browser hung up.
	ctx := context.WithoutCancel(r.Context())
	member, user, err := d.cfg.People.Accept(ctx, ident.Secret(req.Invite), as, d.cfg.Remote(r))
	if err != nil {
		return nil, err
	}
	if as == "" {
		if err := d.enter(w, r.WithContext(ctx), user.ID, methodInvite, nil, nil); err != nil {
			return nil, err
		}
	}
	team, _ := d.cfg.Store.Team(member.Team)
	return Joined{TeamID: member.Team, TeamName: team.Name, Role: member.Role, UserName: user.Name}, nil
}

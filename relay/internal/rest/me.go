package rest

import (
	"net/http"

	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/shared/api"
)

func (a *API) me(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	if _, err := query(r); err != nil {
		return err
	}
	out := api.Me{
		Kind: string(p.Kind), Name: p.Name, UserID: p.User, TeamID: p.Team, Role: p.Role,
		Scopes: p.Scopes, Agents: p.Agents, Ports: p.Ports, ExpiresAt: p.ExpiresAt, Teams: notNil(a.cfg.Auth.Teams(p)),
	}
	if u, ok := a.cfg.Store.User(p.User); ok {
		out.UserName, out.Email = u.Name, u.Email
	}
	return send(w, http.StatusOK, out)
}

package rest

import (
	"net/http"
	"strings"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

func (a *API) createCredential(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	var req api.CreateCredentialRequest
	if err := decode(w, r, &req, true); err != nil {
		return err
	}
	rec, secret, err := a.cfg.Auth.Create(r.Context(), p, p.Team, p.User, req)
	if err != nil {
		return err
	}
	a.audit(r, p, audit.Record{Event: audit.CredentialCreated, Agent: rec.Agent, Detail: describeCredential(rec)})
	return send(w, http.StatusCreated, api.CreatedCredential{Credential: creds.Public(rec), Secret: secret.Reveal()})
}

// describeCredential says for the audit log what was made, and what it may.
func describeCredential(rec store.CredentialRecord) string {
	text := string(rec.Kind) + " " + string(rec.ID)
	if rec.Role != "" {
		text += ", role " + string(rec.Role)
	}
	if len(rec.Scopes) > 0 {
		text += ", scopes " + scopes(rec.Scopes, " ")
	}
	if len(rec.Agents) > 0 {
		text += ", agents " + strings.Join(rec.Agents, " ")
	}
	if rec.Ports != "" {
		text += ", ports " + rec.Ports
	}
	return text
}

func (a *API) listCredentials(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	if _, err := query(r); err != nil {
		return err
	}
	list, err := a.cfg.Auth.List(p, p.Team)
	if err != nil {
		return err
	}
	return send(w, http.StatusOK, api.CredentialList{Credentials: notNil(list)})
}

func (a *API) revokeCredential(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	id, err := ident.ParseCredentialID(r.PathValue("credential_id"))
	if err != nil {
		return api.NotFound(api.CodeCredentialNotFound)
	}
	q, err := query(r, "keep_tunnels")
	if err != nil {
		return err
	}
	keep, err := flag(q, "keep_tunnels")
	if err != nil {
		return err
	}
	out, err := a.cfg.Rights.Revoke(r.Context(), p, p.Team, id, keep)
	if err != nil {
		return err
	}
	if _, said := q["keep_tunnels"]; !said { // a caller of before, who is promised a 204
		return sendNothing(w)
	}
	return send(w, http.StatusOK, out)
}

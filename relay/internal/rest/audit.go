package rest

import (
	"context"
	"fmt"
	"net/http"
	"slices"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/gate"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// audit records what the gate does not.
func (a *API) audit(r *http.Request, p creds.Principal, rec audit.Record) {
	rec.Actor, rec.Team = p.Name, p.Team
	if t, ok := gate.TraceOf(r.Context()); ok { // the id that the caller is told
		rec.RequestID, rec.RemoteAddr = t.Request, t.Remote
	}
	if err := a.cfg.Audit.Append(context.WithoutCancel(r.Context()), rec); err != nil {
		a.log.Error("write audit record", "event", rec.Event, "error", err)
	}
}

// refused records that a caller was refused what it asked for. The path itself is
// never recorded, since callers write secrets into the wrong places: its pattern is,
// and the ids in it when they are well formed.
func (a *API) refused(r *http.Request, c *call, p *api.Problem) {
	switch p.Status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusConflict, http.StatusGone, http.StatusTooManyRequests:
	default:
		return // a mistake of the caller's, or a failure of the relay's
	}
	route := ""
	if c.route.serve != nil {
		route = ", " + c.route.method + " " + c.route.path
	}
	rec := audit.Record{Event: audit.APIRefused, Detail: fmt.Sprintf("%d %s%s", p.Status, p.Code, route)}
	switch {
	case c.principal.Kind == "":
		rec.Event, rec.Detail = audit.AuthRefused, "api: "+string(p.Code)+route
		a.audit(r, c.principal, rec) // what nobody names may be nothing
		return
	case c.route.serve == nil:
		return // there is nothing at all, for nobody
	case c.route.gated && p.Status != http.StatusNotFound && !slices.Contains([]api.Code{api.CodeForbidden, api.CodeRoleRequired, api.CodeScopeRequired}, p.Code):
		return // the gate did; the others never got there
	}
	if id, err := ident.ParseAgentID(r.PathValue("agent_id")); err == nil {
		rec.Agent = id
	}
	if id, err := ident.ParseSessionID(r.PathValue("session_id")); err == nil {
		rec.Session = id
	}
	a.audit(r, c.principal, rec)
}

package rest

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// refuses says why a caller may not use a route at all; nil: they may. Of what belongs
// to somebody, others asks for more.
func (rt route) refuses(p creds.Principal) *api.Problem {
	switch {
	case !rt.admitsKind(p.Kind):
		return api.Problemf(api.CodeForbidden, "this route is not for callers of kind %s", p.Kind)
	case !slices.Contains(team, p.Kind): // an agent, or the holder of an admin token: no role is asked
		return nil
	case rt.role != "" && !p.Role.AtLeast(rt.role):
		return api.Problemf(api.CodeRoleRequired, "this needs the role %s in the team; yours is %s: %s", rt.role, p.Role, askWhom(rt.role, p))
	case len(p.Scopes) > 0 && len(rt.scopes) == 0:
		return api.NewProblem(api.CodeScopeRequired, "this is not for a credential with scopes")
	case len(p.Scopes) > 0 && !slices.ContainsFunc(rt.scopes, func(s api.Scope) bool { return slices.Contains(p.Scopes, s) }):
		return api.Problemf(api.CodeScopeRequired, "this needs the scope %s; the credential has %s", scopes(rt.scopes, " or "), scopes(p.Scopes, ", "))
	}
	return nil
}

// askWhom says who can help a caller whose role does not reach.
func askWhom(needs api.Role, p creds.Principal) string {
	whom := "ask an admin of the team"
	if needs == api.RoleOwner {
		whom = "ask an owner of the team"
	}
	if p.Kind == creds.KindUser {
		return whom
	}
	return whom + ", or use a credential that was made with a higher role"
}

// refusesOthers says why a caller may not do what the route does to a tunnel that somebody
// else opened; nil: they may, or it is their own.
func (a *API) refusesOthers(rt route, p creds.Principal, t store.TunnelRecord) *api.Problem {
	if rt.others == "" || !slices.Contains(team, p.Kind) || p.Role.AtLeast(rt.others) || a.cfg.Auth.Owns(p, t.Opened()) {
		return nil
	}
	return api.Problemf(api.CodeRoleRequired, "the tunnel was opened by %s, and for what others opened this needs the role %s in the team; yours is %s: ask them, or an admin of the team",
		cmp.Or(a.personOf(t.Opened()), t.OpenedBy), rt.others, p.Role)
}

// refusesPort says why a caller may not use a port; nil: they may.
func refusesPort(p creds.Principal, port uint16) *api.Problem {
	if p.MayReachPort(port) {
		return nil
	}
	return api.Problemf(api.CodeScopeRequired, "the credential is for the ports %s, not for %d: use one of those, or another credential", p.Ports, port)
}

// someRefused says whether there may be tunnels on which the caller may not do what the
// route does.
func (a *API) someRefused(r *http.Request, p creds.Principal) bool {
	return p.Ports != "" || !p.Role.AtLeast(callOf(r).route.others)
}

// maxNamed bounds the tunnels that a refusal names.
const maxNamed = 10

// mayClose returns the tunnels of an agent that are to be closed, asked for one by one or
// all, if the caller may close every one of them. If not, it names those that stand
// against it, and nothing is closed.
func (a *API) mayClose(rt route, p creds.Principal, key ident.AgentKey, ids []ident.SessionID) ([]ident.SessionID, error) {
	all := len(ids) == 0
	var others []string
	var refused *api.Problem
	for _, t := range a.cfg.Store.AgentTunnels(key) {
		if !all && !slices.Contains(ids, t.Session) {
			continue
		}
		no := refusesPort(p, t.Port)
		if no == nil {
			no = a.refusesOthers(rt, p, t)
		}
		switch {
		case no != nil:
			refused = no
			others = append(others, fmt.Sprintf("%s (%s)", t.Session, cmp.Or(a.personOf(t.Opened()), t.OpenedBy)))
		case all:
			ids = append(ids, t.Session)
		}
	}
	if refused == nil || !all {
		return ids, asError(refused)
	}
	more := ""
	if n := len(others) - maxNamed; n > 0 {
		others, more = others[:maxNamed], fmt.Sprintf(" and %d more", n)
	}
	return nil, api.Problemf(refused.Code, "nothing was closed, since these tunnels of the agent are not yours: %s%s; close your own one by one with session_id, or ask an admin of the team",
		strings.Join(others, ", "), more)
}

// asError is a problem as an error, which is nil when there is none.
func asError(p *api.Problem) error {
	if p == nil {
		return nil
	}
	return p
}

func scopes(list []api.Scope, between string) string {
	names := make([]string, len(list))
	for i, s := range list {
		names[i] = string(s)
	}
	return strings.Join(names, between)
}

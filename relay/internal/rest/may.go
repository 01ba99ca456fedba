package rest

import (
	"slices"
	"strings"

	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/shared/api"
)

// refuses says why a caller may not use a route at all; nil: they may. Of what belongs
// to somebody, others asks for more.
func (rt route) refuses(p creds.Principal) *api.Problem {
	switch {
	case !rt.admitsKind(p.Kind):
		return api.Problemf(api.CodeForbidden, "this route is not for callers of kind %s", p.Kind)
	case !slices.Contains(team, p.Kind): // an agent, or the holder of an admin token: no role is asked
		return nil
	case !p.Role.AtLeast(rt.role):
		return api.Problemf(api.CodeRoleRequired, "this needs the role %s in the team; yours is %s: ask an admin of the team", rt.role, p.Role)
	case len(p.Scopes) > 0 && len(rt.scopes) == 0:
		return api.NewProblem(api.CodeScopeRequired, "this is not for a credential with scopes")
	case len(p.Scopes) > 0 && !slices.ContainsFunc(rt.scopes, func(s api.Scope) bool { return slices.Contains(p.Scopes, s) }):
		return api.Problemf(api.CodeScopeRequired, "this needs the scope %s; the credential has %s", scopes(rt.scopes, " or "), scopes(p.Scopes, ", "))
	}
	return nil
}

func scopes(list []api.Scope, between string) string {
	names := make([]string, len(list))
	for i, s := range list {
		names[i] = string(s)
	}
	return strings.Join(names, between)
}

package resttest

import (
	"slices"
	"strings"

	"github.com/adit-tunnel/adit/shared/api"
)

// Need is what a route asks of the team's people and programs, beside their kind.
type Need struct {
	Role, Others api.Role // the least; Others of what is somebody else's, empty: as Role
	Scopes       string   // one of these, of who is narrowed; empty: it is not for them
}

// Allows says whether a caller's scopes are enough; one without any is not narrowed.
func (n Need) Allows(scopes ...api.Scope) bool {
	return len(scopes) == 0 || slices.ContainsFunc(scopes, func(s api.Scope) bool {
		return slices.Contains(strings.Fields(n.Scopes), string(s))
	})
}

const (
	anyScope = "read tunnels tasks links"
	seeing   = "read tunnels links"
)

// Needs is the promise: what each route asks, by its method and its path below api.Base.
// The relay's own table, its description and what a running relay answers are held
// against it. What has no role is for everybody of a kind that the route admits.
var Needs = map[string]Need{
	"GET /openapi.json": {},
	"GET /me":           {Scopes: "read tunnels tasks links mcp"},

	"GET /agents":            {api.RoleViewer, "", anyScope},
	"GET /agents/watch":      {api.RoleViewer, "", anyScope},
	"GET /agents/{agent_id}": {api.RoleViewer, "", anyScope},

	"POST /agents/{agent_id}/tunnel":   {api.RoleMember, "", "tunnels"},
	"GET /agents/{agent_id}/tunnel":    {api.RoleViewer, "", seeing},
	"DELETE /agents/{agent_id}/tunnel": {api.RoleMember, api.RoleAdmin, "tunnels"},

	"POST /tunnels/{session_id}/extend":                {api.RoleMember, api.RoleAdmin, "tunnels"},
	"GET /tunnels/{session_id}/access":                 {api.RoleViewer, "", seeing},
	"PUT /tunnels/{session_id}/access":                 {api.RoleMember, api.RoleAdmin, "tunnels"},
	"POST /tunnels/{session_id}/terminal":              {api.RoleMember, api.RoleAdmin, "tunnels"},
	"GET /tunnels/{session_id}/viewers":                {api.RoleViewer, "", seeing},
	"DELETE /tunnels/{session_id}/viewers/{viewer_id}": {api.RoleMember, api.RoleAdmin, "tunnels"},

	"GET /tunnels/{session_id}/knocks":             {api.RoleViewer, "", seeing},
	"POST /tunnels/{session_id}/knocks/{knock_id}": {api.RoleMember, api.RoleAdmin, "tunnels"},

	"POST /tunnels/{session_id}/links":                 {api.RoleMember, api.RoleAdmin, "links"},
	"GET /tunnels/{session_id}/links":                  {api.RoleViewer, "", "read links"},
	"PUT /tunnels/{session_id}/links/{link_id}/access": {api.RoleMember, api.RoleAdmin, "links"},
	"DELETE /tunnels/{session_id}/links/{link_id}":     {api.RoleMember, api.RoleAdmin, "links"},

	"POST /agents/{agent_id}/tasks":             {api.RoleMember, "", "tasks"},
	"PUT /agents/{agent_id}/tasks/{task_id}":    {api.RoleMember, "", "tasks"},
	"DELETE /agents/{agent_id}/tasks/{task_id}": {api.RoleMember, "", "tasks"},

	"POST /credentials":                   {Role: api.RoleAdmin},
	"GET /credentials":                    {Role: api.RoleAdmin},
	"DELETE /credentials/{credential_id}": {Role: api.RoleAdmin},

	"GET /members":              {Role: api.RoleMember},
	"PATCH /members/{user_id}":  {Role: api.RoleOwner},
	"DELETE /members/{user_id}": {Role: api.RoleViewer, Others: api.RoleAdmin},

	"POST /invites":               {Role: api.RoleAdmin},
	"GET /invites":                {Role: api.RoleAdmin},
	"DELETE /invites/{invite_id}": {Role: api.RoleAdmin},

	"GET /devices":                {Role: api.RoleViewer},
	"DELETE /devices/{device_id}": {Role: api.RoleViewer},

	"POST /desktop/pair/start":   {},
	"POST /desktop/pair/poll":    {},
	"POST /desktop/pair/show":    {Role: api.RoleMember},
	"POST /desktop/pair/confirm": {Role: api.RoleMember},
	"POST /auth/device/revoke":   {Role: api.RoleViewer},
}

package api

import (
	"fmt"
	"slices"
)

// Role is what a person may do in a team. The empty role may do nothing.
type Role string

// The roles, each with what the one before it may do.
const (
	RoleViewer Role = "viewer" // sees machines and tunnels, uses what is open to the team
	RoleMember Role = "member" // opens tunnels, extends and closes their own, admits tasks
	RoleAdmin  Role = "admin"  // closes others' tunnels; members, invites, credentials
	RoleOwner  Role = "owner"  // all, roles too
)

// Roles lists them, the least first.
var Roles = []Role{RoleViewer, RoleMember, RoleAdmin, RoleOwner}

// AtLeast says whether a role may do what another one may. An unknown role is none.
func (r Role) AtLeast(least Role) bool {
	have, need := slices.Index(Roles, r), slices.Index(Roles, least)
	return need >= 0 && have >= need
}

// Lesser returns the one of two roles that may do less.
func (r Role) Lesser(other Role) Role {
	if r.AtLeast(other) {
		return other
	}
	return r
}

// ParseRole checks a role's name.
func ParseRole(s string) (Role, error) {
	if r := Role(s); slices.Contains(Roles, r) {
		return r, nil
	}
	return "", fmt.Errorf("a role is one of viewer, member, admin, owner, not %q", s)
}

// Scope narrows what a credential may do, within its maker's role. A credential
// without scopes is not narrowed.
type Scope string

// The scopes. Reading what one acts on belongs to each of them.
const (
	ScopeRead    Scope = "read"    // lists machines and tunnels
	ScopeTunnels Scope = "tunnels" // opens, extends and closes tunnels
	ScopeTasks   Scope = "tasks"   // admits, renews and releases tasks
	ScopeLinks   Scope = "links"   // makes and revokes named links
	ScopeMCP     Scope = "mcp"     // calls the relay's tools for language models
)

// Scopes lists them.
var Scopes = []Scope{ScopeRead, ScopeTunnels, ScopeTasks, ScopeLinks, ScopeMCP}

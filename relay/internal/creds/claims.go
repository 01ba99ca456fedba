package creds

import (
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4/json"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// membership says which claims of an issuer's token tell of teams and roles, and how.
type membership struct {
	teams  string              // the claim that lists a person's teams
	roles  string              // the claim with their roles; empty: none
	mapped map[string]api.Role // what its values mean here; the roles' own names need no entry
	unsaid api.Role            // of a person of whom nobody says a role
}

// newMembership applies the rule for what nobody says: where the issuer has a claim for
// roles, who is not in it is a member. Where it has none, everybody is an admin, as
// before there were roles: a team would have nobody who may manage it.
func newMembership(teams, roles string, mapped map[string]api.Role) membership {
	m := membership{teams: teams, roles: roles, mapped: mapped, unsaid: api.RoleAdmin}
	if roles != "" {
		m.unsaid = api.RoleMember
	}
	return m
}

// IssuerTeams reads the teams, and the roles in them, from claims of the OIDC issuer: of
// an id token that was verified, or of its userinfo. It is empty when they name none.
func (a *Authenticator) IssuerTeams(claims []byte) ([]store.SignInTeam, error) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(claims, &all); err != nil {
		return nil, invalid(outcomeClaims, "the claims are no JSON object").problem
	}
	teams, refused := a.oidc.read(all)
	if refused != nil {
		return nil, refused.problem
	}
	return teams, nil
}

// read returns the teams that claims name, each once.
func (m membership) read(all map[string]json.RawMessage) ([]store.SignInTeam, *refusal) {
	named, ok := parseTeams(all[m.teams])
	if !ok {
		return nil, invalid(outcomeClaims, "the session's teams claim is neither a list of ids, a list of objects with an id, nor ids separated by spaces")
	}
	everywhere, inTeam, ok := m.parseRoles(all[m.roles])
	if m.roles != "" && !ok {
		return nil, invalid(outcomeClaims, "the session's roles claim is neither a role, a list of roles, nor an object from a team's id to these")
	}
	var teams []store.SignInTeam
	for _, n := range named {
		id, err := ident.ParseTeamID(n.ID)
		if err != nil || slices.ContainsFunc(teams, func(t store.SignInTeam) bool { return t.ID == id }) {
			continue // something else than a team here, or once more
		}
		t := store.SignInTeam{ID: id, Role: m.role(n.Role)}
		if printable(n.Name, MaxNameBytes) {
			t.Name = n.Name
		}
		if t.Role == "" {
			if t.Role = inTeam[id]; t.Role == "" {
				t.Role = everywhere
			}
		}
		teams = append(teams, t)
	}
	return teams, nil
}

// namedTeam is one entry of a teams claim.
type namedTeam struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	Role string `json:"role"`
}

// parseTeams reads the teams claim in the forms issuers give it. An absent claim is no
// team at all.
func parseTeams(raw json.RawMessage) ([]namedTeam, bool) {
	if len(raw) == 0 || string(raw) == "null" {
		return nil, true
	}
	var teams []namedTeam
	var text string
	var list []json.RawMessage
	switch {
	case json.Unmarshal(raw, &text) == nil:
		for id := range strings.FieldsSeq(text) {
			teams = append(teams, namedTeam{ID: id})
		}
	case json.Unmarshal(raw, &list) == nil:
		for _, one := range list {
			var t namedTeam
			var object struct {
				ID string `json:"id"`
			}
			// Of an object whose other members are of another kind, the id counts.
			if json.Unmarshal(one, &t.ID) != nil && json.Unmarshal(one, &t) != nil && json.Unmarshal(one, &object) == nil {
				t = namedTeam{ID: object.ID}
			}
			teams = append(teams, t)
		}
	default:
		return nil, false
	}
	return teams, true
}

// parseRoles reads the roles claim: a role that holds in every team of the person, a list
// of which the highest counts, or an object from a team's id to either. Values that are
// no role here say nothing.
func (m membership) parseRoles(raw json.RawMessage) (everywhere api.Role, inTeam map[ident.TeamID]api.Role, ok bool) {
	if len(raw) == 0 || string(raw) == "null" {
		return "", nil, true
	}
	if role, ok := m.highest(raw); ok {
		return role, nil, true
	}
	var object map[string]json.RawMessage
	if json.Unmarshal(raw, &object) != nil {
		return "", nil, false
	}
	inTeam = make(map[ident.TeamID]api.Role)
	for name, value := range object {
		team, err := ident.ParseTeamID(name)
		if role, ok := m.highest(value); err == nil && ok {
			inTeam[team] = role
		}
	}
	return "", inTeam, true
}

func (m membership) highest(raw json.RawMessage) (highest api.Role, ok bool) {
	var one string
	if json.Unmarshal(raw, &one) == nil {
		return m.role(one), true
	}
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil {
		return "", false
	}
	for _, value := range list {
		if json.Unmarshal(value, &one) != nil {
			continue
		}
		if role := m.role(one); role.AtLeast(api.RoleViewer) && !highest.AtLeast(role) {
			highest = role
		}
	}
	return highest, true
}

// role is what a value of the issuer means here; empty: nothing.
func (m membership) role(value string) api.Role {
	if role, ok := m.mapped[value]; ok {
		return role
	}
	if role, err := api.ParseRole(value); err == nil {
		return role
	}
	return ""
}

package access

import (
	"cmp"
	"slices"
	"strings"

	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// permits says whether a rule lets somebody in, and what stands in the way if not.
func (a *Access) permits(rule *store.AccessRule, t *store.TunnelRecord, v Viewer) error {
	if rule.Mode == api.AccessAnyone || a.admits(rule, t, v) {
		return nil
	}
	if v.by.Kind != "" {
		return denied(rule, v)
	}
	switch rule.Mode {
	case api.AccessPIN:
		return api.NewProblem(api.CodePINRequired, "the tunnel asks for a PIN: open its address in a browser, or, with a program of the team's, send Adit-Authorization: Bearer <secret>")
	case api.AccessKnock:
		return api.NewProblem(api.CodeKnockWaiting, "somebody of the tunnel's team has to let you in: open its address in a browser, or, with a program of the team's, send Adit-Authorization: Bearer <secret>")
	}
	return Required()
}

// Required says that the tunnel is for certain people, to who did not show that they
// are one.
func Required() *api.Problem {
	p := api.NewProblem(api.CodeAccessRequired, "the tunnel is for certain people: open its address in a browser and sign in there, or send Adit-Authorization: Bearer <a credential of the team>")
	p.Challenge = `Bearer realm="adit", header="` + api.HeaderAuthorization + `"`
	return p
}

// denied says who it is that may not, so that they can sign in as somebody else.
func denied(rule *store.AccessRule, v Viewer) *api.Problem {
	whom := "members of the team that opened it"
	if rule.Mode == api.AccessPeople {
		whom = "certain people"
	}
	return api.Problemf(api.CodeAccessDenied, "you are %s, and the tunnel is for %s: ask whoever sent you the address", v.who(), whom)
}

// who is somebody who is known, for themself to read.
func (v Viewer) who() string {
	who := cmp.Or(v.Name, v.by.Name, string(v.User))
	if v.Email != "" && v.Email != who {
		who += " (" + v.Email + ")"
	}
	return who
}

// admits applies the mode. Whoever opened the tunnel is never locked out of it while they
// are in the team, and modes that let in who is not known let in who may use what is for
// the team.
func (a *Access) admits(rule *store.AccessRule, t *store.TunnelRecord, v Viewer) bool {
	if a.mine(t, v) {
		return true
	}
	switch rule.Mode {
	case api.AccessTeam:
		return inTeam(t, v)
	case api.AccessPeople:
		return v.User != "" && v.by.Kind != creds.KindIntegration && named(rule.People, v)
	case api.AccessPIN:
		return v.How == ByPIN || inTeam(t, v)
	case api.AccessKnock:
		return v.How == ByKnock || inTeam(t, v)
	}
	return false // of a later release
}

// mine says whether somebody opened the tunnel, by whatever means.
func (a *Access) mine(t *store.TunnelRecord, v Viewer) bool {
	return v.by.Kind != "" && v.by.Team == t.Team && v.by.Role != "" && a.cfg.Creds.Owns(v.by, t.Opened())
}

// inTeam says whether somebody may use what is for the tunnel's team: a person of
// whatever role, and a program that may open such a tunnel itself.
func inTeam(t *store.TunnelRecord, v Viewer) bool {
	p := v.by
	if t.Team == "" || p.Team != t.Team {
		return false
	}
	switch p.Kind {
	case creds.KindUser, creds.KindDevice:
		return p.Role.AtLeast(api.RoleViewer)
	case creds.KindIntegration:
		return p.Role.AtLeast(api.RoleMember) && p.MayReach(t.Agent) && p.MayReachPort(t.Port) &&
			(len(p.Scopes) == 0 || slices.Contains(p.Scopes, api.ScopeTunnels))
	}
	return false
}

// GroupPrefix begins an entry of People that means a group of the issuer's.
const GroupPrefix = "group:"

// named says whether a list names somebody: by their id, their group, or their address.
func named(list []string, v Viewer) bool {
	email := strings.ToLower(v.Email)
	return slices.ContainsFunc(list, func(entry string) bool {
		if group, ok := strings.CutPrefix(entry, GroupPrefix); ok {
			return slices.Contains(v.Groups, group)
		}
		if ident.UserID(entry) == v.User {
			return true
		}
		entry = strings.ToLower(entry)
		if domain, ok := strings.CutPrefix(entry, "*@"); ok {
			at := strings.LastIndexByte(email, '@') // what is before it may hold another one
			return at > 0 && email[at+1:] == domain
		}
		return email != "" && entry == email
	})
}

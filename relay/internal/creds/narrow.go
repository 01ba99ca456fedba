package creds

import (
	"cmp"
	"path"
	"slices"
	"strings"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Bounds of what narrows a credential.
const (
	maxPatterns     = 16 // of agents
	maxPatternBytes = 64
	maxPortParts    = 32
)

// MayReach says whether the principal may see and use an agent of its team. One that it
// may not is as absent as another team's.
func (p Principal) MayReach(agent ident.AgentID) bool {
	return len(p.Agents) == 0 || slices.ContainsFunc(p.Agents, func(pattern string) bool {
		ok, err := path.Match(pattern, string(agent))
		return ok && err == nil
	})
}

// MayReachPort says whether the principal may open and use tunnels to a port.
func (p Principal) MayReachPort(port uint16) bool {
	if p.Ports == "" {
		return true
	}
	ports, err := api.ParsePorts(p.Ports)
	return err == nil && ports.Contain(port)
}

// Owns says whether a tunnel, or a named link, is the principal's own: it opened it, or
// something that it made did. To a person belongs what they opened by whatever means; to
// a program, which a person may have made several of, only its own.
func (a *Authenticator) Owns(p Principal, o store.Opened) bool {
	line := store.Credentials(a.cfg.Store.Credential)
	if p.Credential != "" && o.Credential != "" && (o.Credential == p.Credential || line.MadeWith(o.Credential, p.Credential)) {
		return true
	}
	return p.User != "" && line.OpenedBy(o, p.User)
}

// narrow writes into a credential that is to be made what it may, which is no more than
// its maker may.
func narrow(rec *store.CredentialRecord, by Principal, req api.CreateCredentialRequest) *api.Problem {
	out := func(format string, args ...any) *api.Problem {
		return api.Problemf(api.CodeOutOfRange, format, args...)
	}
	if rec.Kind != api.KindIntegration && (len(req.Scopes) > 0 || len(req.Agents) > 0 || req.Ports != "") {
		return out("scopes, agents and ports: only for kind integration")
	}
	if rec.Kind == api.KindAgent {
		if req.Role != "" {
			return out("role: an agent's credential has none")
		}
		return nil
	}
	if by.Role == "" {
		return api.NewProblem(api.CodeRoleRequired, "a credential may no more than its maker, who has no role in the team")
	}
	usual := by.Role
	if by.Kind == KindOperator {
		usual = api.RoleAdmin // as before there were roles
	}
	rec.Role = cmp.Or(req.Role, usual)
	if _, err := api.ParseRole(string(rec.Role)); err != nil {
		return out("role: %v", err)
	}
	if !by.Role.AtLeast(rec.Role) {
		return api.Problemf(api.CodeRoleRequired, "a credential may no more than its maker: your role is %s, so it cannot be %s", by.Role, rec.Role)
	}
	for i, s := range req.Scopes {
		if !slices.Contains(api.Scopes, s) || slices.Contains(req.Scopes[:i], s) {
			return out("scopes: each of read, tunnels, tasks, links and mcp at most once")
		}
	}
	if len(req.Agents) > maxPatterns {
		return out("agents: at most %d patterns", maxPatterns)
	}
	for _, pattern := range req.Agents {
		if _, err := path.Match(pattern, ""); err != nil || !printable(pattern, maxPatternBytes) {
			return out(`agents: patterns of agent ids such as "render-*", of at most %d bytes`, maxPatternBytes)
		}
	}
	if req.Ports != "" {
		ports, err := api.ParsePorts(req.Ports)
		switch {
		case strings.Count(req.Ports, ",") >= maxPortParts:
			return out("ports: at most %d parts", maxPortParts)
		case err != nil:
			return out("ports: %v", err)
		}
		rec.Ports = ports.String()
	}
	rec.Scopes, rec.Agents = req.Scopes, req.Agents
	return nil
}

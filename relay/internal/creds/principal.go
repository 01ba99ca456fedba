package creds

import (
	"cmp"
	"fmt"
	"log/slog"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Kind says what a caller showed.
type Kind string

// The kinds of principal.
const (
	KindUser        Kind = "user"        // a person: a browser that is signed in, or an issuer's JWT
	KindIntegration Kind = "integration" // sk-
	KindDevice      Kind = "device"      // dk-, acts as its user
	KindAgent       Kind = "agent"       // ak-
	KindOperator    Kind = "operator"    // whoever may open the relay's admin socket
)

// Principal is an authenticated caller. The zero value may do nothing.
type Principal struct {
	Kind Kind
	// Team is the one team the principal acts in; empty for the operator, who acts
	// in any.
	Team ident.TeamID
	// User is the person behind a user or device principal.
	User ident.UserID
	// Maker is the person who made the credential, if one did.
	Maker ident.UserID
	// Agent is the only agent an agent principal may be; empty: any of the team.
	Agent ident.AgentID
	// Role is what the principal may do in Team; empty: nothing that asks for one. The
	// operator's is the owner's.
	Role api.Role
	// Scopes, Agents and Ports narrow an integration credential; empty: not narrowed.
	Scopes []api.Scope
	Agents []string
	Ports  string
	// SignIn is the hash of the browser's secret, for people who are signed in here;
	// what the principal holds open ends with it.
	SignIn string
	// Credential is the stored credential; empty for users and the operator.
	Credential ident.CredentialID
	// Name is for people, lists and the audit log: "user:alice", "sk:ci".
	Name string
	// ExpiresAt is when what the principal holds open must end; zero: never.
	ExpiresAt time.Time

	named  []store.SignInTeam // by the token of a person who shows one
	unsaid api.Role           // of a person of whom nothing says a role
}

// Person is who is behind the principal: themself, by a device of theirs, or by a
// credential that they made; empty: nobody is known.
func (p Principal) Person() ident.UserID { return cmp.Or(p.User, p.Maker) }

// Operator returns the principal of the admin socket: its file mode is the
// authentication. The name says who, for the audit log.
func Operator(name string) Principal {
	return Principal{Kind: KindOperator, Role: api.RoleOwner, Name: "operator:" + name}
}

// InTeam returns the operator's principal for work within one team, and any other
// principal unchanged: nobody else chooses a team after authentication.
func (p Principal) InTeam(team ident.TeamID) Principal {
	if p.Kind == KindOperator {
		p.Team = team
	}
	return p
}

// BoundTo returns an agent principal as the one agent it turned out to be, for
// the gate calls of a link that was accepted for that agent.
func (p Principal) BoundTo(agent ident.AgentID) Principal {
	if p.Kind == KindAgent {
		p.Agent = agent
	}
	return p
}

// MayUseTeam says whether the principal may see and do everything of a team but
// its credentials. The answer for another team must look like absence: 404.
func (p Principal) MayUseTeam(team ident.TeamID) bool {
	switch p.Kind {
	case KindUser, KindDevice, KindIntegration:
		return team != "" && p.Team == team
	case KindOperator:
		return team != "" && (p.Team == "" || p.Team == team)
	}
	return false
}

// MayManageCredentials says whether the principal may list, create and revoke its
// team's credentials: people may, themselves or through a device of theirs.
func (p Principal) MayManageCredentials() bool {
	switch p.Kind {
	case KindUser, KindDevice:
		return p.Team != "" && p.User != ""
	case KindOperator:
		return true
	}
	return false
}

// MayLink says whether the principal may bring up the link of an agent.
func (p Principal) MayLink(key ident.AgentKey) bool {
	return p.Kind == KindAgent && p.Team != "" && p.Team == key.Team && key.Agent != "" &&
		(p.Agent == "" || p.Agent == key.Agent)
}

// MayUseGate says whether the principal may admit, renew and release tasks of an
// agent: the team's callers, and the agent itself once it is BoundTo its link.
func (p Principal) MayUseGate(key ident.AgentKey) bool {
	if p.Kind == KindAgent {
		return p.Team != "" && p.Team == key.Team && p.Agent != "" && p.Agent == key.Agent
	}
	return p.MayUseTeam(key.Team)
}

// Caller identifies the caller across requests, for idempotency keys and limits:
// the credential, or the person within a team.
func (p Principal) Caller() string {
	if p.Credential != "" {
		return string(p.Credential)
	}
	if p.User != "" {
		return fmt.Sprintf("%s/%s/%s", p.Kind, p.Team, p.User)
	}
	return p.Name
}

// LogValue shows who, never with what.
func (p Principal) LogValue() slog.Value {
	return slog.GroupValue(slog.String("name", p.Name), slog.String("team", string(p.Team)),
		slog.String("credential", string(p.Credential)))
}

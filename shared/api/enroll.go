package api

import "github.com/adit-tunnel/adit/shared/ident"

// EnrollPath is where a machine without a credential turns an enrollment token (en-…,
// as bearer secret) into one. It is outside of Base, since no principal calls it.
const EnrollPath = "/agent/v1/enroll"

// ConsolePath is the address of the console, on the relay's own host.
const ConsolePath = "/console"

// EnrollRequest is the body of a POST to EnrollPath.
type EnrollRequest struct {
	AgentID ident.AgentID `json:"agent_id"` // the name that the credential is bound to
}

// Enrolled answers an EnrollRequest.
type Enrolled struct {
	AgentID      ident.AgentID      `json:"agent_id"`
	TeamID       ident.TeamID       `json:"team_id"`
	CredentialID ident.CredentialID `json:"credential_id"`
	Credential   string             `json:"credential"` // ak-…, the only time it is shown
}

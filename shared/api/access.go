package api

import (
	"slices"
	"time"

	"github.com/adit-tunnel/adit/shared/ident"
)

// AccessMode says who may use a tunnel, or come by a named link of it.
type AccessMode string

// The modes.
const (
	AccessAnyone AccessMode = "anyone" // who has the URL
	AccessTeam   AccessMode = "team"   // members of the team
	AccessPeople AccessMode = "people" // those that are named
	AccessPIN    AccessMode = "pin"    // who knows it
	AccessKnock  AccessMode = "knock"  // whom a member of the team admits
)

// AccessModes lists them, each narrower than the one before it.
var AccessModes = []AccessMode{AccessAnyone, AccessPIN, AccessKnock, AccessTeam, AccessPeople}

// Valid says whether there is such a mode.
func (m AccessMode) Valid() bool { return slices.Contains(AccessModes, m) }

// AtLeast says whether a mode is as narrow as another, or narrower. What is no mode is not.
func (m AccessMode) AtLeast(least AccessMode) bool {
	return m.Valid() && slices.Index(AccessModes, m) >= slices.Index(AccessModes, least)
}

// AccessRequest says who may use a tunnel: at opening, for a named link, and as the body
// of PUT /tunnels/{session_id}/access, where it replaces what was; only a PIN stays when
// none is given.
type AccessRequest struct {
	Access   AccessMode `json:"access,omitempty"`    // default: the operator's access.default, for a named link its tunnel's
	People   []string   `json:"people,omitempty"`    // with people: addresses, *@example.com, group:vision
	PIN      string     `json:"pin,omitempty"`       // with pin: 6 to 64 characters
	From     []string   `json:"from,omitempty"`      // CIDRs that it may be used from; absent: anywhere
	ReadOnly bool       `json:"read_only,omitempty"` // look, and change nothing
}

// Access is who may use a tunnel or a named link, as lists show it; the PIN never is.
type Access struct {
	Access   AccessMode `json:"access"`
	People   []string   `json:"people,omitempty"`
	From     []string   `json:"from,omitempty"`
	ReadOnly bool       `json:"read_only,omitempty"`
}

// Knock is somebody who waits at a tunnel until a member of the team lets them in.
type Knock struct {
	KnockID    string          `json:"knock_id"`
	SessionID  ident.SessionID `json:"session_id"`
	LinkID     ident.LinkID    `json:"link_id,omitempty"`
	Name       string          `json:"name,omitempty"` // as they say
	RemoteAddr string          `json:"remote_addr"`
	Browser    string          `json:"browser,omitempty"`
	KnockedAt  time.Time       `json:"knocked_at"`
	ExpiresAt  time.Time       `json:"expires_at"`
}

// KnockList is the answer of GET /tunnels/{session_id}/knocks.
type KnockList struct {
	Knocks []Knock `json:"knocks"`
}

// AnswerKnockRequest is the body of POST /tunnels/{session_id}/knocks/{knock_id}.
type AnswerKnockRequest struct {
	Admit *bool `json:"admit"` // required: nobody is let in, or sent away, by what was left out
}

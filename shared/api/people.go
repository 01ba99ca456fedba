package api

import (
	"fmt"
	"strings"
	"time"

	"github.com/adit-tunnel/adit/shared/ident"
)

// Me is the answer of GET /me: who is calling, as the relay sees it.
type Me struct {
	Kind      string       `json:"kind"` // user, device, integration
	Name      string       `json:"name"` // as the audit log names the caller
	UserID    ident.UserID `json:"user_id,omitempty"`
	UserName  string       `json:"user_name,omitempty"` // for people
	Email     string       `json:"email,omitempty"`
	TeamID    ident.TeamID `json:"team_id,omitempty"` // that the call is in; absent without X-Team-ID
	Role      Role         `json:"role,omitempty"`    // in it
	Scopes    []Scope      `json:"scopes,omitempty"`
	Agents    []string     `json:"agents,omitempty"` // patterns; absent: any
	Ports     string       `json:"ports,omitempty"`  // as "8188,8000-8100"; absent: any
	ExpiresAt time.Time    `json:"expires_at,omitzero"`
	Teams     []MyTeam     `json:"teams"` // those that the caller is in
}

// MyTeam is one team of the caller.
type MyTeam struct {
	TeamID   ident.TeamID `json:"team_id"`
	TeamName string       `json:"team_name,omitempty"`
	Role     Role         `json:"role"`
}

// Member is one person of a team.
type Member struct {
	UserID    ident.UserID `json:"user_id"`
	UserName  string       `json:"user_name,omitempty"`
	Email     string       `json:"email,omitempty"`
	Role      Role         `json:"role"`
	Source    string       `json:"source"` // of the role: issuer, invite, owner, operator
	JoinedAt  time.Time    `json:"joined_at"`
	InvitedBy string       `json:"invited_by,omitempty"`
	SeenAt    time.Time    `json:"seen_at,omitzero"` // the newest use of a browser that is signed in
}

// FindMember returns the member whom somebody means: by the user_id, or by the name or
// email where one member alone has it.
func FindMember(members []Member, who string) (Member, error) {
	var found []Member
	for _, m := range members {
		if string(m.UserID) == who {
			return m, nil
		}
		if strings.EqualFold(m.UserName, who) || strings.EqualFold(m.Email, who) {
			found = append(found, m)
		}
	}
	switch len(found) {
	case 0:
		return Member{}, fmt.Errorf("the team has no member %q", who)
	case 1:
		return found[0], nil
	}
	ids := make([]string, len(found))
	for i, m := range found {
		ids[i] = string(m.UserID)
	}
	return Member{}, fmt.Errorf("several members are named %q, so say which one: %s", who, strings.Join(ids, ", "))
}

// MemberList is the answer of GET /members.
type MemberList struct {
	Members  []Member `json:"members"`
	PageMeta PageMeta `json:"page_meta"`
}

// ChangeMemberRequest is the body of PATCH /members/{user_id}.
type ChangeMemberRequest struct {
	Role Role `json:"role"`
}

// CreateInviteRequest is the body of POST /invites.
type CreateInviteRequest struct {
	Name      string    `json:"name"`                 // of the person
	Role      Role      `json:"role,omitempty"`       // default member
	ExpiresIn *Duration `json:"expires_in,omitempty"` // at most 1 day, the default
}

// Invite is an invitation that nobody has used yet.
type Invite struct {
	InviteID  string    `json:"invite_id"`
	Name      string    `json:"name"`
	Role      Role      `json:"role"`
	CreatedBy string    `json:"created_by"`
	CreatedAt time.Time `json:"created_at"`
	ExpiresAt time.Time `json:"expires_at"`
}

// CreatedInvite is the answer of POST /invites, the only time the URL is shown.
type CreatedInvite struct {
	Invite
	InviteURL string `json:"invite_url"` // works once
}

// InviteList is the answer of GET /invites.
type InviteList struct {
	Invites []Invite `json:"invites"`
}

// SignIn is one browser that the caller is signed in with.
type SignIn struct {
	SignInID   string    `json:"sign_in_id"`
	Current    bool      `json:"current"`           // the one that makes this call
	Method     string    `json:"method"`            // issuer, invite, passkey
	Browser    string    `json:"browser,omitempty"` // its User-Agent
	RemoteAddr string    `json:"remote_addr,omitempty"`
	IssuedAt   time.Time `json:"issued_at"`
	SeenAt     time.Time `json:"seen_at"`
	ExpiresAt  time.Time `json:"expires_at"`
}

// Passkey is one passkey of the caller.
type Passkey struct {
	PasskeyID  string    `json:"passkey_id"`
	Name       string    `json:"name"`
	CreatedAt  time.Time `json:"created_at"`
	LastUsedAt time.Time `json:"last_used_at,omitzero"`
}

// Devices is the answer of GET /devices: by what the caller gets in, in all teams for
// browsers and passkeys, in this team for paired devices.
type Devices struct {
	Devices  []Credential `json:"devices"` // dk- of the caller
	SignIns  []SignIn     `json:"sign_ins"`
	Passkeys []Passkey    `json:"passkeys"`
}

// BrowserToken is the answer of POST /auth/token: a bearer that the page keeps in memory.
type BrowserToken struct {
	Token     string    `json:"token"`
	ExpiresAt time.Time `json:"expires_at"` // ask again before
	UserID    string    `json:"user_id"`
	UserName  string    `json:"user_name,omitempty"`
	Teams     []MyTeam  `json:"teams"`
	// MayAddPasskey says whether this relay lets the person have passkeys, HasPasskey
	// whether they have one.
	MayAddPasskey bool `json:"may_add_passkey"`
	HasPasskey    bool `json:"has_passkey"`
}

// PairKey is what pairing gives out.
type PairKey string

// The keys.
const (
	PairDevice PairKey = "device" // dk-, acts as the person who confirms
	PairAgent  PairKey = "agent"  // ak-, of one machine
)

// PairStartRequest is the body of POST /desktop/pair/start; it may be empty.
type PairStartRequest struct {
	Client      string        `json:"client,omitempty"`       // the program that asks, as "adit 1.4"
	MachineName string        `json:"machine_name,omitempty"` // where it runs
	Keys        []PairKey     `json:"keys,omitempty"`         // default: device
	AgentID     ident.AgentID `json:"agent_id,omitempty"`     // with the key agent: the machine's name
}

// PairStarted is its answer.
type PairStarted struct {
	DeviceCode      string `json:"device_code"` // the program's, a secret
	UserCode        string `json:"user_code"`   // for the person, as "AB7K-PNQ3"
	VerificationURI string `json:"verification_uri"`
	ExpiresIn       int    `json:"expires_in"` // seconds
	Interval        int    `json:"interval"`   // seconds between polls
}

// PairPollRequest is the body of POST /desktop/pair/poll.
type PairPollRequest struct {
	DeviceCode string `json:"device_code"`
}

// PairPolled is its answer. The keys come once.
type PairPolled struct {
	Status   string        `json:"status"` // pending, approved
	RawKey   string        `json:"raw_key,omitempty"`
	AgentKey string        `json:"agent_key,omitempty"`
	TeamID   ident.TeamID  `json:"team_id,omitempty"`
	TeamName string        `json:"team_name,omitempty"`
	AgentID  ident.AgentID `json:"agent_id,omitempty"`
	UserName string        `json:"user_name,omitempty"`
}

// PairShowRequest is the body of POST /desktop/pair/show.
type PairShowRequest struct {
	UserCode string `json:"user_code"`
}

// PairAsked is its answer: who asks to be paired, for the person to see before they
// confirm. All but the address is what the program says of itself.
type PairAsked struct {
	Client      string        `json:"client,omitempty"`
	MachineName string        `json:"machine_name,omitempty"`
	RemoteAddr  string        `json:"remote_addr"`
	Keys        []PairKey     `json:"keys"`
	AgentID     ident.AgentID `json:"agent_id,omitempty"`
	AskedAt     time.Time     `json:"asked_at"`
	ExpiresAt   time.Time     `json:"expires_at"`
}

// PairConfirmRequest is the body of POST /desktop/pair/confirm.
type PairConfirmRequest struct {
	UserCode   string `json:"user_code"`   // in any case, with or without dashes and spaces
	DeviceName string `json:"device_name"` // at most 100 characters
}

// PairConfirmed is its answer.
type PairConfirmed struct {
	Status     string        `json:"status"` // approved
	DeviceName string        `json:"device_name"`
	TeamID     ident.TeamID  `json:"team_id"`
	AgentID    ident.AgentID `json:"agent_id,omitempty"`
}

package store

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

// AgentRecord is the gate: one per agent, every change a compare-and-set.
type AgentRecord struct {
	Epoch uint64        `json:"epoch"`           // generation of the agent session
	Relay ident.RelayID `json:"relay,omitempty"` // who holds it, or held it last
	// Also are the other relays that have a link of the agent or may still have one,
	// each with the generation of that link.
	Also      map[ident.RelayID]uint64        `json:"also,omitempty"`
	Instance  string                          `json:"instance,omitempty"` // the agent process of this epoch
	N         uint64                          `json:"n"`                  // counts changes
	Nonce     string                          `json:"nonce"`              // of the last change
	Tunnels   map[ident.SessionID]TunnelState `json:"tunnels,omitempty"`
	Leases    map[ident.TaskID]LeaseState     `json:"leases,omitempty"`
	Fencing   uint64                          `json:"fencing"`            // fencing token of the newest lease
	Completed uint64                          `json:"completed"`          // tasks released as completed
	Capacity  int                             `json:"capacity,omitempty"` // leases at once; 0 counts as 1
	Declared  wire.State                      `json:"declared"`
	Unhealthy string                          `json:"unhealthy,omitempty"` // what fails; empty when healthy
	// Closed are the newest closed tunnels, oldest first and bounded, so that to
	// close one of them again is no error.
	Closed []ident.SessionID `json:"closed,omitempty"`
	// Gone is since when, as far as anybody noticed, the agent has not been connected;
	// zero: it is, or nobody has looked yet.
	Gone time.Time `json:"gone,omitzero"`
	// Ended says why tunnels that closed lately did, so that every relay of the pool,
	// also one that starts now, can tell whoever comes back to them.
	Ended map[ident.SessionID]TunnelEnd `json:"ended,omitempty"`
}

// TunnelEnd is when and why a tunnel closed.
type TunnelEnd struct {
	At     time.Time `json:"at"`
	Reason Reason    `json:"reason"`
}

// Reason says why a tunnel closes, as records, audit, notices and logs name it.
type Reason string

// The reasons. Relays of other releases may write others into records.
const (
	ReasonAsked    Reason = "closed by a user"
	ReasonExpired  Reason = "expired"
	ReasonIdle     Reason = "idle"
	ReasonRevoked  Reason = "the credential that opened it was revoked"
	ReasonRemoved  Reason = "the person who opened it was removed from the team"
	ReasonPort     Reason = "the agent does not allow the port"
	ReasonWait     Reason = "the running tasks did not end in time"
	ReasonLeft     Reason = "the caller left while waiting"
	ReasonOperator Reason = "closed by the operator"
	ReasonTeam     Reason = "the team was removed"
	ReasonClosed   Reason = "closed" // why is not known: a relay of the last release wrote the record
)

// Clone returns a copy that shares nothing with r; its maps are never nil.
func (r AgentRecord) Clone() AgentRecord {
	r.Tunnels = maps.Clone(r.Tunnels)
	if r.Tunnels == nil {
		r.Tunnels = map[ident.SessionID]TunnelState{}
	}
	r.Leases = maps.Clone(r.Leases)
	if r.Leases == nil {
		r.Leases = map[ident.TaskID]LeaseState{}
	}
	if p := r.Declared.SyncPercent; p != nil {
		v := *p
		r.Declared.SyncPercent = &v
	}
	r.Closed = slices.Clone(r.Closed)
	r.Also = maps.Clone(r.Also)
	r.Ended = maps.Clone(r.Ended)
	return r
}

// Tunnel states in an AgentRecord. Each of them blocks new leases.
const (
	TunnelWaiting = "waiting" // blocks tasks, waits for the running ones (when_busy: wait)
	TunnelOpen    = "open"
	TunnelClosing = "closing" // its streams are being cut
)

// TunnelState is one tunnel within the agent's record.
type TunnelState struct {
	State   string    `json:"state"`
	Expires time.Time `json:"expires"`
	// Closing says since when and why a closing tunnel closes.
	ClosingSince time.Time `json:"closing_since,omitzero"`
	Reason       Reason    `json:"reason,omitempty"`
	// Cut are the relays that carry nothing of a closing tunnel any more; not kept
	// where one relay alone can.
	Cut []ident.RelayID `json:"cut,omitempty"`
}

// LeaseState is one task lease within the agent's record.
type LeaseState struct {
	Expires   time.Time `json:"expires"`
	Owner     string    `json:"owner"`      // who was admitted, for lists and audit
	TokenHash string    `json:"token_hash"` // SHA-256 of the lease token
	Fencing   uint64    `json:"fencing"`
	Detail    string    `json:"detail,omitempty"`
	Admitted  time.Time `json:"admitted"`
}

// TunnelRecord is a tunnel as it was opened.
type TunnelRecord struct {
	Session    ident.SessionID    `json:"session_id"`
	Team       ident.TeamID       `json:"team"`
	Agent      ident.AgentID      `json:"agent"`
	Port       uint16             `json:"port"`
	Protocol   api.Protocol       `json:"protocol"`
	Label      string             `json:"label,omitempty"`
	OpenedBy   string             `json:"opened_by"`
	Credential ident.CredentialID `json:"credential,omitempty"` // that opened it
	// User is the person who opened it, or who made the credential that did; empty: none,
	// or a release before people opened it.
	User         ident.UserID   `json:"user,omitempty"`
	OpenedAt     time.Time      `json:"opened_at"`
	ExpiresAt    time.Time      `json:"expires_at"`
	IdleTimeout  api.Duration   `json:"idle_timeout"`
	AdminHash    string         `json:"admin_hash"` // SHA-256 of the admin token
	AskedHost    api.HostHeader `json:"asked_host"` // as asked when opening: auto, public, local
	AllowOrigins []string       `json:"allow_origins,omitempty"`
	Access       *AccessRule    `json:"access,omitempty"` // nil: who has the URL
	// IdentityHeader is a further header that names the viewer to the app.
	IdentityHeader string `json:"identity_header,omitempty"`
	// NoTerminal says that nobody enters a terminal by it: the credential that opened it
	// was for some ports only.
	NoTerminal bool `json:"no_terminal,omitempty"`
	// LastUsed is when somebody used it, as relays write it shortly before an idle
	// close would be due; zero: never by then.
	LastUsed time.Time `json:"last_used,omitzero"`
	// What probing found; empty until it answered.
	HostHeader api.HostHeader `json:"host_header,omitempty"`
	App        string         `json:"app,omitempty"`
	Warnings   []string       `json:"warnings,omitempty"`
}

// Key names the tunnel's agent.
func (t TunnelRecord) Key() ident.AgentKey { return ident.AgentKey{Team: t.Team, Agent: t.Agent} }

// AccessVersion is the version of who may use it; 0: who has the URL.
func (t TunnelRecord) AccessVersion() uint64 {
	if t.Access == nil {
		return 0
	}
	return t.Access.Version
}

// Found notes what a probe of the tunnel's port found; ErrUnchanged says that there was
// nothing to note. The Host that the app wants is as it was asked for when the tunnel was
// opened, else as the last probe found that could tell. An agent that does not allow the
// port has not looked.
func (t *TunnelRecord) Found(p wire.Probed) error {
	if !p.Allowed {
		return ErrUnchanged
	}
	host, warnings := t.HostHeader, slices.Clone(p.Warnings)
	if h := api.HostHeader(p.HostHeader); (t.AskedHost == api.HostAuto || t.AskedHost == "") && (h == api.HostPublic || h == api.HostLocal) {
		host = h
	}
	if !p.Listening {
		warnings = append(warnings, fmt.Sprintf("nothing listens on port %d yet", t.Port))
	}
	if t.App == p.App && t.HostHeader == host && slices.Equal(t.Warnings, warnings) {
		return ErrUnchanged
	}
	t.App, t.HostHeader, t.Warnings = p.App, host, warnings
	return nil
}

// Presence says that an agent is connected, where, and what it told of itself.
// It is attached to its relay's lease: when the relay is gone, so is it.
type Presence struct {
	Team         ident.TeamID       `json:"team"`
	Agent        ident.AgentID      `json:"agent"`
	Relay        ident.RelayID      `json:"relay"`
	Epoch        uint64             `json:"epoch"`
	ConnectedAt  time.Time          `json:"connected_at"`
	Heartbeat    time.Time          `json:"heartbeat"` // when the facts were written
	Version      string             `json:"version"`
	Platform     string             `json:"platform"`
	Labels       map[string]string  `json:"labels,omitempty"` // as the agent sent them
	Capabilities []string           `json:"capabilities,omitempty"`
	Facts        wire.Facts         `json:"facts"`
	Credential   ident.CredentialID `json:"credential"`
	// GoneSince is set when the link was lost; the presence is kept for the grace
	// time, so that lists do not flicker, and then deleted.
	GoneSince time.Time `json:"gone_since,omitzero"`
}

// Key names the agent.
func (p Presence) Key() ident.AgentKey { return ident.AgentKey{Team: p.Team, Agent: p.Agent} }

// CredentialRecord is a stored credential. A revoked one stays as a tombstone.
type CredentialRecord struct {
	ID        ident.CredentialID `json:"id"`
	Kind      api.CredentialKind `json:"kind"`
	Team      ident.TeamID       `json:"team"`
	User      ident.UserID       `json:"user,omitempty"`  // kind device: whose
	Agent     ident.AgentID      `json:"agent,omitempty"` // kind agent: the only agent; empty: any of the team
	Name      string             `json:"name"`
	Prefix    string             `json:"prefix"`
	Hash      string             `json:"sha256"`
	CreatedBy string             `json:"created_by"`
	// MadeBy is the credential that it was made with, if any; it lives no longer.
	MadeBy    ident.CredentialID `json:"made_by,omitempty"`
	CreatedAt time.Time          `json:"created_at"`
	ExpiresAt time.Time          `json:"expires_at,omitzero"` // zero: never
	RevokedAt time.Time          `json:"revoked_at,omitzero"`
	// Maker is the person who made it, by whatever means; it is worth no more than they
	// are in the team. Role is the most that it may; empty: it is of a release before
	// roles, and may what it might then.
	Maker  ident.UserID `json:"maker,omitempty"`
	Role   api.Role     `json:"role,omitempty"`
	Scopes []api.Scope  `json:"scopes,omitempty"`
	Agents []string     `json:"agents,omitempty"` // patterns; empty: any
	Ports  string       `json:"ports,omitempty"`  // as "8188,8000-8100"; empty: any
	// KeepTunnels says of a revoked one that what it opened stays open.
	KeepTunnels bool      `json:"keep_tunnels,omitempty"`
	LastUsed    time.Time `json:"last_used,omitzero"`
}

// EnrollmentRecord is a single-use token with which one agent gets its credential.
type EnrollmentRecord struct {
	Hash      string        `json:"sha256"` // of the token
	Team      ident.TeamID  `json:"team"`
	Agent     ident.AgentID `json:"agent,omitempty"` // the only agent that may use it; empty: any
	Name      string        `json:"name,omitempty"`
	CreatedBy string        `json:"created_by"`
	// MadeBy is the credential that it was made with, if any.
	MadeBy    ident.CredentialID `json:"made_by,omitempty"`
	CreatedAt time.Time          `json:"created_at"`
	ExpiresAt time.Time          `json:"expires_at"`
}

// CodeRecord is a code with which a viewer enters a tunnel's terminal, once.
type CodeRecord struct {
	Hash      string          `json:"sha256"` // of the code
	Session   ident.SessionID `json:"session_id"`
	ReadOnly  bool            `json:"read_only,omitempty"`
	CreatedBy string          `json:"created_by"`
	// Credential is the one that made it, if any, User the person, and SignIn their
	// browser. What it opens ends with each of them.
	Credential ident.CredentialID `json:"credential,omitempty"`
	User       ident.UserID       `json:"user,omitempty"`
	SignIn     string             `json:"sign_in,omitempty"`
	ExpiresAt  time.Time          `json:"expires_at"`
}

// RelayRecord is one relay of the pool, attached to its own lease.
type RelayRecord struct {
	ID       ident.RelayID `json:"id"`
	PeerURL  string        `json:"peer_url,omitempty"`
	URL      string        `json:"url,omitempty"` // where agents reach it
	Version  string        `json:"version"`
	Draining bool          `json:"draining,omitempty"`
	Started  time.Time     `json:"started"`
	// Floors says that the relay begins new agents' records at their team's floor.
	Floors bool `json:"floors,omitempty"`
	// Access says that the relay applies the rules of who may use a tunnel, and keeps them
	// when it writes a record.
	Access bool `json:"access,omitempty"`
}

// Effects are what a change of an agent's record brings with it, in the same
// transaction.
type Effects struct {
	PutTunnels    []TunnelRecord
	DeleteTunnels []ident.SessionID
	// EditTunnels changes tunnel records as they are at that moment, so that it
	// loses nothing that UpdateTunnel wrote meanwhile. An edit may be called several
	// times; it must not change the record's names. A tunnel without a record makes
	// the whole change return ErrNotFound.
	EditTunnels map[ident.SessionID]func(*TunnelRecord)
	// Once is looked at even when the change returns an error: a repetition is told
	// of the first time, not of why it could not be done again.
	Once *Once
}

// Once makes a change happen at most once per key: the transaction creates the
// key, and finds an earlier one instead of changing anything.
type Once struct {
	Key   string        // any text; stored hashed
	Value string        // what a repetition finds
	TTL   time.Duration // for how long
}

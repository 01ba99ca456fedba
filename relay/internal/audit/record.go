package audit

import (
	"strings"
	"time"

	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/logs"
)

// Event is what happened; one of the list below.
type Event string

// The events.
const (
	TunnelWaiting  Event = "tunnel_waiting" // keeps tasks out, opens when the running ones have ended
	TunnelOpened   Event = "tunnel_opened"
	TunnelClosing  Event = "tunnel_closing" // asked to close; its streams are being cut
	TunnelClosed   Event = "tunnel_closed"
	TunnelExtended Event = "tunnel_extended"
	TunnelExpired  Event = "tunnel_expired"
	TunnelRefused  Event = "tunnel_refused"
	AccessChanged  Event = "access_changed" // who may use it, or come by a named link of it

	TunnelKnock   Event = "tunnel_knock"   // somebody waits to be let in; the detail is the name that they say
	KnockAnswered Event = "knock_answered" // and was admitted or refused
	PINLocked     Event = "pin_locked"     // too many wrong PINs: none is taken any more

	TaskAdmitted Event = "task_admitted"
	TaskRenewed  Event = "task_renewed"
	TaskReleased Event = "task_released"
	TaskExpired  Event = "task_expired"
	TaskRefused  Event = "task_refused"

	TunnelViewed  Event = "tunnel_viewed" // by somebody who was not there before
	ViewerKicked  Event = "viewer_kicked"
	ViewersListed Event = "viewers_listed"

	LinkCreated Event = "link_created"
	LinkRevoked Event = "link_revoked"
	LinksListed Event = "links_listed"
	LinkUsed    Event = "link_used" // a new viewer came in by it
	// LinkPreviewed: somebody looked who is no viewer, or says so.
	LinkPreviewed Event = "link_previewed"

	CredentialCreated Event = "credential_created"
	CredentialRevoked Event = "credential_revoked"
	TeamRemoved       Event = "team_removed" // or what was left of it, or a part, says the detail
	EnrollmentCreated Event = "enrolment_created"
	EnrollmentTaken   Event = "enrolment_taken"
	PairingConfirmed  Event = "pairing_confirmed" // a person let a program in, which gets its keys when it asks
	PairingTaken      Event = "pairing_taken"     // it got them

	InviteCreated  Event = "invite_created"
	InviteTaken    Event = "invite_taken" // and its member was made
	InviteRevoked  Event = "invite_revoked"
	MemberRole     Event = "member_role" // somebody's role in the team was set
	MemberRemoved  Event = "member_removed"
	SignedIn       Event = "signed_in"  // with a browser
	SignedOut      Event = "signed_out" // one browser, or, says the detail, all of the person's
	PasskeyAdded   Event = "passkey_added"
	PasskeyRemoved Event = "passkey_removed"
	TeamCreated    Event = "team_created"
	TeamRenamed    Event = "team_renamed"

	AgentConnected  Event = "agent_connected"
	AgentGone       Event = "agent_gone"
	AgentSuperseded Event = "agent_superseded"

	AuthRefused Event = "auth_refused" // nobody knows who it was
	APIRefused  Event = "api_refused"  // somebody asked for what is not theirs, or not now

	TerminalOpened  Event = "terminal_opened"
	TerminalClosed  Event = "terminal_closed"
	TerminalRefused Event = "terminal_refused"
	TerminalCode    Event = "terminal_code" // one was made, with which a terminal can be entered

	RelayStarted  Event = "relay_started"
	RelayDraining Event = "relay_draining"
	RelayStopped  Event = "relay_stopped"
)

// rule says how an event is written.
type rule struct {
	durable bool                // Append returns when it is on the disk; none is left out
	per     func(Record) string // else: what counts as repeating itself, and is limited
}

var durable = rule{durable: true}

// rules is the closed list of events. Durable are those by which the gate's
// history can be checked and those that grant or take rights. All else, which
// outsiders, or an agent that connects again and again, can cause at any rate, is
// limited for each caller.
var rules = map[Event]rule{
	TunnelWaiting: durable, TunnelOpened: durable, TunnelClosing: durable, TunnelClosed: durable, TunnelExtended: durable, TunnelExpired: durable, AccessChanged: durable,
	TunnelRefused: {per: perDetail}, TunnelViewed: {per: perSession},
	TunnelKnock: {per: perSession}, KnockAnswered: durable, PINLocked: {per: perSession},
	TaskAdmitted: durable, TaskRenewed: durable, TaskReleased: durable, TaskExpired: durable,
	TaskRefused:  {per: perDetail},
	ViewerKicked: durable, ViewersListed: {per: perSession},
	LinkCreated: durable, LinkRevoked: durable, LinkUsed: {per: perSession}, LinkPreviewed: {per: perSession}, LinksListed: {per: perSession},
	CredentialCreated: durable, CredentialRevoked: durable, TeamRemoved: durable, EnrollmentCreated: durable, EnrollmentTaken: durable,
	PairingConfirmed: durable, PairingTaken: durable,
	InviteCreated: durable, InviteTaken: durable, InviteRevoked: durable, MemberRole: durable, MemberRemoved: durable,
	SignedIn: durable, SignedOut: durable, PasskeyAdded: durable, PasskeyRemoved: durable, TeamCreated: durable, TeamRenamed: durable,
	AgentConnected: {per: perAgent}, AgentGone: {per: perAgent}, AgentSuperseded: {per: perAgent},
	AuthRefused: {per: perDetail}, APIRefused: {per: perDetail},
	TerminalOpened: durable, TerminalClosed: durable, TerminalCode: durable, TerminalRefused: {per: perDetail},
	RelayStarted: durable, RelayDraining: durable, RelayStopped: durable,
}

// Record is one line of the log. Time, Relay and Seq are set by the log.
type Record struct {
	Time  time.Time     `json:"time"`
	Relay ident.RelayID `json:"relay"`
	// Seq counts the relay's records, without a gap unless records were lost: when
	// writing them was reported as an error, or files were removed, which those of
	// teams that wrote more than their share are first.
	Seq   uint64 `json:"seq"`
	Event Event  `json:"event"`
	// Actor is a principal's name ("user:alice"), or "relay", or "agent".
	Actor   string          `json:"actor,omitempty"`
	Team    ident.TeamID    `json:"team,omitempty"`
	Agent   ident.AgentID   `json:"agent,omitempty"`
	Session ident.SessionID `json:"session,omitempty"`
	Task    ident.TaskID    `json:"task,omitempty"`
	Fencing uint64          `json:"fencing,omitempty"`
	Epoch   uint64          `json:"epoch,omitempty"`
	// Revision orders gate records of one agent over all relays.
	Revision uint64 `json:"revision,omitempty"`
	Detail   string `json:"detail,omitempty"`
	// LeftOut is how many records of this event and caller were not written before
	// this one, since there were too many.
	LeftOut    uint64          `json:"left_out,omitempty"`
	RequestID  ident.RequestID `json:"request_id,omitempty"`
	RemoteAddr string          `json:"remote_addr,omitempty"`
}

// Bounds of a record's texts, in bytes. What is longer is cut.
const (
	maxName   = 256
	maxDetail = 1024
)

// clean makes a record fit to be kept: no secret, no endless text.
func (r *Record) clean() {
	text := func(s string, most int) string {
		s = logs.Redact(s)
		if len(s) > most {
			s = s[:most]
		}
		return strings.ToValidUTF8(s, "\uFFFD")
	}
	r.Actor = text(r.Actor, maxName)
	r.Detail = text(r.Detail, maxDetail)
	r.RemoteAddr = text(r.RemoteAddr, maxName)
	r.Team = ident.TeamID(text(string(r.Team), maxName))
	r.Agent = ident.AgentID(text(string(r.Agent), maxName))
	r.Session = ident.SessionID(text(string(r.Session), maxName))
	r.Task = ident.TaskID(text(string(r.Task), maxName))
	r.RequestID = ident.RequestID(text(string(r.RequestID), maxName))
}

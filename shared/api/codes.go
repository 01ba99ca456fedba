package api

import (
	"maps"
	"net/http"
	"slices"
)

// Code says which problem it is, for programs: they compare it, and a code that was
// released keeps its text and its meaning.
type Code string

// Hop names the part of the path that failed.
type Hop string

// The hops, from the user to the app.
const (
	HopRelay Hop = "relay"
	HopLink  Hop = "link"
	HopAgent Hop = "agent"
	HopApp   Hop = "app"
)

// row is what the table knows of a code.
type row struct {
	status  int
	hop     Hop
	meaning string // one line, for the API's description
	local   bool   // no relay answers it: the agent's local interface does, or a command made it
}

// table has every code. It is complete when the package is initialised, and is only
// read from then on.
var table = map[Code]row{}

func code(c Code, status int, hop Hop, meaning string) Code {
	table[c] = row{status: status, hop: hop, meaning: meaning}
	return c
}

func local(c Code, status int, hop Hop, meaning string) Code {
	table[c] = row{status: status, hop: hop, meaning: meaning, local: true}
	return c
}

// The codes, each with its status, the hop that failed, and what it means.
var (
	// Who is calling.
	CodeUnauthenticated    = code("unauthenticated", http.StatusUnauthorized, HopRelay, "no secret came, or one that is no good")
	CodeEnrollmentRefused  = code("enrolment_refused", http.StatusUnauthorized, HopRelay, "the enrollment token is unknown, used or expired")
	CodeForbidden          = code("forbidden", http.StatusForbidden, HopRelay, "this is not for callers of this kind")
	CodeNotAMember         = code("not_a_member", http.StatusForbidden, HopRelay, "the person is not in the team that X-Team-ID names")
	CodeTeamRequired       = code("team_required", http.StatusBadRequest, HopRelay, "a person's call needs X-Team-ID")
	CodeTeamInvalid        = code("team_invalid", http.StatusBadRequest, HopRelay, "the team is no UUID")
	CodeRoleRequired       = code("role_required", http.StatusForbidden, HopRelay, "the caller's role in the team does not reach for this")
	CodeScopeRequired      = code("scope_required", http.StatusForbidden, HopRelay, "the credential is narrowed, and this is outside of what it may")
	CodeNotSignedIn        = code("not_signed_in", http.StatusUnauthorized, HopRelay, "the browser is not signed in, or not any more")
	CodeSignInOff          = code("sign_in_off", http.StatusNotFound, HopRelay, "people cannot sign in at this relay, as it is configured")
	CodeInviteRefused      = code("invite_refused", http.StatusUnauthorized, HopRelay, "the invitation is unknown, used, expired or taken back")
	CodePasskeyRefused     = code("passkey_refused", http.StatusUnauthorized, HopRelay, "the passkey is not known here, or what it signed does not fit")
	CodeAccessRequired     = code("access_required", http.StatusUnauthorized, HopRelay, "the tunnel is for certain people: sign in, or send Adit-Authorization")
	CodeAccessDenied       = code("access_denied", http.StatusForbidden, HopRelay, "the tunnel is for others than the caller, or not for the caller's network")
	CodeReadOnly           = code("read_only", http.StatusForbidden, HopRelay, "the tunnel is to be looked at only")
	CodePINRequired        = code("pin_required", http.StatusUnauthorized, HopRelay, "the tunnel asks for its PIN")
	CodePINLocked          = code("pin_locked", http.StatusTooManyRequests, HopRelay, "too many wrong PINs: the tunnel's owner has to reset them")
	CodeKnockWaiting       = code("knock_waiting", http.StatusUnauthorized, HopRelay, "somebody of the tunnel's team has to let the caller in")
	CodeKnockNotFound      = code("knock_not_found", http.StatusNotFound, HopRelay, "nobody of that name waits at the tunnel")
	CodeAccessTooWide      = code("access_too_wide", http.StatusUnprocessableEntity, HopRelay, "the operator does not allow tunnels to be this open")
	CodeAccessNotYet       = code("access_not_yet", http.StatusConflict, HopRelay, "a relay of the pool is of a release that applies no rules of access")
	CodeWrongAgent         = code("wrong_agent", http.StatusForbidden, HopRelay, "the enrollment token is for an agent of another name")
	CodeCrossOrigin        = code("cross_origin", http.StatusForbidden, HopRelay, "a page of another origin sent it, or a browser where none has business")
	CodeHostNotLocal       = local("host_not_local", http.StatusMisdirectedRequest, HopAgent, "the agent's local interface was called by a name that is not local")
	CodeViewerDisconnected = code("viewer_disconnected", http.StatusForbidden, HopRelay, "the tunnel's owner disconnected this viewer a few minutes ago")

	// What was asked.
	CodeNotFound               = code("not_found", http.StatusNotFound, HopRelay, "there is nothing at this address")
	CodeAgentNotFound          = code("agent_not_found", http.StatusNotFound, HopRelay, "there is no such agent in the team")
	CodeTunnelNotFound         = code("tunnel_not_found", http.StatusNotFound, HopRelay, "there is no such open tunnel")
	CodeLinkNotFound           = code("link_not_found", http.StatusNotFound, HopRelay, "the tunnel has no such named link")
	CodeViewerNotFound         = code("viewer_not_found", http.StatusNotFound, HopRelay, "the tunnel has no such viewer")
	CodeCredentialNotFound     = code("credential_not_found", http.StatusNotFound, HopRelay, "the team has no such credential")
	CodeMemberNotFound         = code("member_not_found", http.StatusNotFound, HopRelay, "the team has no such member")
	CodeInviteNotFound         = code("invite_not_found", http.StatusNotFound, HopRelay, "the team has no such open invitation")
	CodeDeviceNotFound         = code("device_not_found", http.StatusNotFound, HopRelay, "the caller has no such device, browser or passkey")
	CodePairingNotFound        = code("pairing_not_found", http.StatusNotFound, HopRelay, "the code is unknown, expired or was used")
	CodeTeamExists             = code("team_exists", http.StatusConflict, HopRelay, "another team has the name")
	CodeLastOwner              = code("last_owner", http.StatusConflict, HopRelay, "the team would be left without anybody who may manage it")
	CodeMethodNotAllowed       = code("method_not_allowed", http.StatusMethodNotAllowed, HopRelay, "the address takes other methods: see Allow")
	CodeUnsupportedMediaType   = code("unsupported_media_type", http.StatusUnsupportedMediaType, HopRelay, "a body is application/json")
	CodeBodyTooLarge           = code("body_too_large", http.StatusRequestEntityTooLarge, HopRelay, "the body is over 64 KiB")
	CodeBodyIncomplete         = code("body_incomplete", http.StatusBadRequest, HopRelay, "the body ended early or did not come in time")
	CodeInvalidBody            = code("invalid_body", http.StatusBadRequest, HopRelay, "the body is not the JSON object that is needed")
	CodeUnknownField           = code("unknown_field", http.StatusBadRequest, HopRelay, "the body has a field that does not exist")
	CodeInvalidField           = code("invalid_field", http.StatusBadRequest, HopRelay, "a field has the wrong type")
	CodeUnknownParameter       = code("unknown_parameter", http.StatusBadRequest, HopRelay, "the query has a parameter that does not exist")
	CodeInvalidParameter       = code("invalid_parameter", http.StatusBadRequest, HopRelay, "a parameter of path or query cannot be read, or came twice")
	CodeOutOfRange             = code("out_of_range", http.StatusUnprocessableEntity, HopRelay, "a value is not one of those that are taken")
	CodeIdempotencyMismatch    = code("idempotency_mismatch", http.StatusUnprocessableEntity, HopRelay, "the Idempotency-Key was used for something else")
	CodeBadHost                = code("bad_host", http.StatusBadRequest, HopRelay, "the Host field is not a host")
	CodeBadRequestTarget       = code("bad_request_target", http.StatusBadRequest, HopRelay, "the path has a space or a control character")
	CodeUpgradeRequired        = code("upgrade_required", http.StatusUpgradeRequired, HopRelay, "the address takes WebSockets only")
	CodeSubprotocolUnsupported = code("subprotocol_unsupported", http.StatusBadRequest, HopRelay, "the WebSocket's subprotocol is not one of a tcp tunnel's")
	CodeServiceWorkerRefused   = code("service_worker_refused", http.StatusForbidden, HopRelay, "the app shares its origin with others, where no service worker may be")

	// Limits.
	CodeAgentTunnelLimit   = code("agent_tunnel_limit", http.StatusTooManyRequests, HopRelay, "the agent has as many tunnels as it may have")
	CodeTeamTunnelLimit    = code("team_tunnel_limit", http.StatusTooManyRequests, HopRelay, "the team has as many tunnels as it may have")
	CodeTeamAgentLimit     = code("team_agent_limit", http.StatusTooManyRequests, HopRelay, "the team has as many agents as it may have")
	CodeTeamWatchLimit     = code("team_watch_limit", http.StatusTooManyRequests, HopRelay, "the team has as many event streams as it may have")
	CodeTooManyCredentials = code("too_many_credentials", http.StatusTooManyRequests, HopRelay, "the team has as many credentials as it may have")
	CodeTooManyMembers     = code("too_many_members", http.StatusTooManyRequests, HopRelay, "the team has as many members or open invitations as it may have")
	CodeLinkLimit          = code("link_limit", http.StatusTooManyRequests, HopRelay, "the tunnel has as many named links as it may have")
	CodeTerminalCodeLimit  = code("terminal_code_limit", http.StatusTooManyRequests, HopRelay, "the tunnel has as many unused terminal codes as it may have")
	CodeTooManyRequests    = code("too_many_requests", http.StatusTooManyRequests, HopRelay, "the tunnel carries as many requests and connections as it may")
	CodeTooManyOpens       = code("too_many_opens", http.StatusTooManyRequests, HopRelay, "the caller opens tunnels too fast")
	CodeTooManyLinks       = code("too_many_links", http.StatusTooManyRequests, HopRelay, "the agents of a credential or a team connect too fast")
	CodeTooManyTries       = code("too_many_tries", http.StatusTooManyRequests, HopRelay, "too many tries to get in, from this address or in all")

	// The machine and its tasks.
	CodeAgentOffline      = code("agent_offline", http.StatusServiceUnavailable, HopLink, "the machine has no link to a relay")
	CodeAgentPaused       = code("agent_paused", http.StatusServiceUnavailable, HopAgent, "the machine's owner paused the agent")
	CodeAgentInTunnel     = code("agent_in_tunnel", http.StatusConflict, HopRelay, "a tunnel is open on the machine, so no task is admitted")
	CodeAgentBusy         = code("agent_busy", http.StatusConflict, HopRelay, "tasks run on the machine, as many as it takes or as the caller minds")
	CodeAgentUnhealthy    = code("agent_unhealthy", http.StatusConflict, HopRelay, "a health check of the machine fails")
	CodeAgentSyncing      = code("agent_syncing", http.StatusConflict, HopRelay, "the machine prepares itself")
	CodeTaskExists        = code("task_exists", http.StatusConflict, HopRelay, "a lease for a task of this name is held")
	CodeLeaseExpired      = code("lease_expired", http.StatusGone, HopRelay, "the lease is over: the task must not go on")
	CodeLeaseTokenInvalid = code("lease_token_invalid", http.StatusForbidden, HopRelay, "the lease_token is not this lease's")
	CodeSessionClosed     = code("session_closed", http.StatusConflict, HopRelay, "the tunnel of this Idempotency-Key was closed already")
	CodeSuperseded        = code("superseded", http.StatusConflict, HopRelay, "the agent has a newer session")
	CodePortNotAllowed    = code("port_not_allowed", http.StatusForbidden, HopAgent, "the machine's own policy refuses the port")
	CodeStateNotSaved     = local("state_not_saved", http.StatusInternalServerError, HopAgent, "it holds, but would be lost if the agent restarted")

	// On the way through a tunnel.
	CodeLinkBusy          = code("link_busy", http.StatusServiceUnavailable, HopLink, "the machine's link carries as many connections as it can")
	CodeLinkLost          = code("link_lost", http.StatusBadGateway, HopLink, "the link broke while the request was under way")
	CodeAgentOverloaded   = code("agent_overloaded", http.StatusServiceUnavailable, HopAgent, "the machine has as many connections open as it may have")
	CodeAgentUnaware      = code("agent_unaware", http.StatusServiceUnavailable, HopAgent, "the agent does not know of the tunnel yet, or any more")
	CodeAgentIncompatible = code("agent_incompatible", http.StatusBadGateway, HopAgent, "the agent does not understand this relay")
	CodeAgentError        = code("agent_error", http.StatusBadGateway, HopAgent, "the agent could not open the port")
	CodeAppRefused        = code("app_refused", http.StatusBadGateway, HopApp, "nothing listens on the port")
	CodeAppTimeout        = code("app_timeout", http.StatusGatewayTimeout, HopApp, "the app did not accept or answer in time")
	CodeAppClosed         = code("app_closed", http.StatusBadGateway, HopApp, "the app closed the connection without an answer")
	CodeAppNotHTTP        = code("app_not_http", http.StatusBadGateway, HopApp, "the app does not answer in HTTP/1.1")
	CodeAppBadUpgrade     = code("app_bad_upgrade", http.StatusBadGateway, HopApp, "the app answered the WebSocket handshake wrongly")
	CodeAppHeaderTooLarge = code("app_header_too_large", http.StatusBadGateway, HopApp, "the app's response header is over 1 MiB")

	// The relay.
	CodeRelayDraining     = code("relay_draining", http.StatusServiceUnavailable, HopRelay, "the relay is stopping; another one serves, or the same again in a moment")
	CodeRelayFull         = code("relay_full", http.StatusServiceUnavailable, HopRelay, "the relay has as many agents as it admits")
	CodeMemoryShort       = code("memory_short", http.StatusServiceUnavailable, HopRelay, "the relay's memory is full of what this team's users do not take")
	CodeStoreUnavailable  = code("store_unavailable", http.StatusServiceUnavailable, HopRelay, "the store does not answer; what runs goes on, nothing new is granted")
	CodeStoreFull         = code("store_full", http.StatusServiceUnavailable, HopRelay, "the store is full; what exists goes on, and can be closed and revoked")
	CodeIssuerUnavailable = code("issuer_unavailable", http.StatusServiceUnavailable, HopRelay, "the issuer of user sessions does not answer")
	CodeCanceled          = code("canceled", http.StatusServiceUnavailable, HopRelay, "the caller left before the answer")
	CodeInternal          = code("internal", http.StatusInternalServerError, HopRelay, "the relay could not do this; its log says why")

	// Answers that are no problem documents, as the commands report them.
	CodeNotARelay     = local("not_a_relay", http.StatusBadGateway, "", "what answered is no Adit relay")
	CodeNotATCPTunnel = local("not_a_tcp_tunnel", http.StatusBadGateway, "", "the address is that of a web app's tunnel, or of none")
)

// RelayCodes lists what a relay may answer, sorted.
func RelayCodes() []Code {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(table)), func(c Code) bool { return table[c].local })
}

// Meaning says what a code means, in one line; empty for one that is not known.
func (c Code) Meaning() string { return table[c].meaning }

// Package api owns the JSON documents of Adit's public HTTP interface, as types:
// requests, answers and problems. It neither serves nor calls anything.
package api

import (
	"time"

	"github.com/adit-tunnel/adit/shared/ident"
)

// Base is the path under which the interface lives.
const Base = "/api/v1"

// Headers of the interface.
const (
	HeaderTeam           = "X-Team-ID"
	HeaderRequestID      = "X-Request-ID"
	HeaderIdempotencyKey = "Idempotency-Key"
	// HeaderAuthorization shows a secret at a tunnel's address, where Authorization is
	// the app's. The app never gets it.
	HeaderAuthorization = "Adit-Authorization"
)

// Protocol of a tunnel.
type Protocol string

// The protocols.
const (
	ProtocolHTTP Protocol = "http"
	ProtocolTCP  Protocol = "tcp"
)

// HostHeader says which Host the app behind a tunnel sees.
type HostHeader string

// The host header modes.
const (
	HostAuto   HostHeader = "auto"   // decided by probing the app
	HostPublic HostHeader = "public" // as the browser sent it
	HostLocal  HostHeader = "local"  // 127.0.0.1:<port>
)

// WhenBusy says what opening a tunnel does while tasks run.
type WhenBusy string

// The ways.
const (
	BusyAllow  WhenBusy = "allow"  // open beside them
	BusyReject WhenBusy = "reject" // 409 agent_busy
	BusyWait   WhenBusy = "wait"   // block new tasks at once, answer when the last one ended
)

// OpenTunnelRequest is the body of POST /agents/{agent_id}/tunnel. The zero
// value asks for all defaults.
type OpenTunnelRequest struct {
	TargetPort     *int       `json:"target_port,omitempty"` // default 8188
	TunnelProtocol Protocol   `json:"tunnel_protocol,omitempty"`
	IdleTimeout    *Duration  `json:"idle_timeout,omitempty"`
	ExpiresIn      *Duration  `json:"expires_in,omitempty"`
	WhenBusy       WhenBusy   `json:"when_busy,omitempty"`
	WaitTimeout    *Duration  `json:"wait_timeout,omitempty"` // limit of when_busy: wait
	Label          string     `json:"label,omitempty"`
	HostHeader     HostHeader `json:"host_header,omitempty"`
	AllowOrigins   []string   `json:"allow_origins,omitempty"`
	AccessRequest
	IdentityHeader string `json:"identity_header,omitempty"` // a further header that names the viewer to the app
}

// Tunnel is the answer to opening one.
type Tunnel struct {
	SessionID      ident.SessionID `json:"session_id"`
	TunnelURL      string          `json:"tunnel_url"`
	AdminToken     string          `json:"admin_token"`
	TunnelProtocol Protocol        `json:"tunnel_protocol"`
	TargetPort     int             `json:"target_port"`
	ExpiresAt      time.Time       `json:"expires_at"`
	IdleTimeout    Duration        `json:"idle_timeout"`
	RunningTasks   int             `json:"running_tasks"`
	AlternateURLs  []string        `json:"alternate_urls"`
	Warnings       []string        `json:"warnings"`
	Label          string          `json:"label,omitempty"`
	App            string          `json:"app,omitempty"`
	HostHeader     HostHeader      `json:"host_header,omitempty"`
	Access
	IdentityHeader string `json:"identity_header,omitempty"`
}

// TunnelStatus is the answer of GET /agents/{agent_id}/tunnel. The first three
// fields describe the newest active session and are empty without one.
type TunnelStatus struct {
	IsActive  bool            `json:"is_active"`
	SessionID ident.SessionID `json:"session_id"`
	TunnelURL string          `json:"tunnel_url"`
	Sessions  []Session       `json:"sessions"`
}

// Session is one open tunnel as lists show it.
type Session struct {
	SessionID      ident.SessionID `json:"session_id"`
	TunnelURL      string          `json:"tunnel_url"`
	TargetPort     int             `json:"target_port"`
	TunnelProtocol Protocol        `json:"tunnel_protocol"`
	Label          string          `json:"label,omitempty"`
	OpenedBy       string          `json:"opened_by"`                // as the audit log names the caller
	OpenedByName   string          `json:"opened_by_name,omitempty"` // for people: of a person whom the relay knows, with the device's in brackets
	Own            bool            `json:"own"`                      // the caller may do with it what others need a higher role for
	OpenedAt       time.Time       `json:"opened_at"`
	ExpiresAt      time.Time       `json:"expires_at"`
	IdleTimeout    Duration        `json:"idle_timeout"`
	LastUsedAt     time.Time       `json:"last_used_at"`
	Viewers        int             `json:"viewers"`
	BytesIn        int64           `json:"bytes_in"`  // from users to the app
	BytesOut       int64           `json:"bytes_out"` // from the app to users
	ClosesBecause  string          `json:"closes_because"`
	App            string          `json:"app,omitempty"`
	HostHeader     HostHeader      `json:"host_header,omitempty"`
	Warnings       []string        `json:"warnings,omitempty"`
	Access
	IdentityHeader string `json:"identity_header,omitempty"`
}

// Closed is the answer of DELETE /agents/{agent_id}/tunnel.
type Closed struct {
	Closed []ident.SessionID `json:"closed"`
}

// ExtendRequest is the body of POST /tunnels/{session_id}/extend; the zero value
// asks for the relay's default lifetime from now.
type ExtendRequest struct {
	ExpiresIn *Duration `json:"expires_in,omitempty"`
}

// Extended is its answer.
type Extended struct {
	SessionID ident.SessionID `json:"session_id"`
	ExpiresAt time.Time       `json:"expires_at"`
}

// TerminalRequest is the body of POST /tunnels/{session_id}/terminal; the zero value
// asks for a code that is good for five minutes and may type.
type TerminalRequest struct {
	ExpiresIn *Duration `json:"expires_in,omitempty"` // at most 24 h, and never past the tunnel's end
	ReadOnly  bool      `json:"read_only,omitempty"`  // whoever enters with it looks on
}

// TerminalCode is its answer: an address that opens the terminal in a browser, once.
type TerminalCode struct {
	TerminalURL   string    `json:"terminal_url"`
	CodeExpiresAt time.Time `json:"code_expires_at"`
}

// Viewer is one party using a tunnel now.
type Viewer struct {
	ViewerID    ident.ViewerID `json:"viewer_id"`
	UserID      ident.UserID   `json:"user_id,omitempty"`   // who it is, where the tunnel asks
	UserName    string         `json:"user_name,omitempty"` // for people; without a user_id the name of a credential, or what somebody said who knocked
	RemoteAddr  string         `json:"remote_addr"`
	UserAgent   string         `json:"user_agent,omitempty"`
	Since       time.Time      `json:"since"`
	LastSeen    time.Time      `json:"last_seen"`
	Connections int            `json:"connections"`
	BytesIn     int64          `json:"bytes_in"`
	BytesOut    int64          `json:"bytes_out"`
	LinkID      ident.LinkID   `json:"link_id,omitempty"` // came in by this named link
}

// ViewerList is the answer of GET /tunnels/{session_id}/viewers.
type ViewerList struct {
	Viewers []Viewer `json:"viewers"`
}

// AgentStatus is the state of an agent.
type AgentStatus string

// The states, in order of precedence: the first that holds is shown.
const (
	StatusUnhealthy AgentStatus = "unhealthy"
	StatusTunnel    AgentStatus = "tunnel"
	StatusSyncing   AgentStatus = "syncing"
	StatusBusy      AgentStatus = "busy"
	StatusIdle      AgentStatus = "idle"
)

// Agent is one agent as lists show it. Fields that are not known are absent.
type Agent struct {
	AgentID        ident.AgentID  `json:"agent_id"`
	AgentStatus    AgentStatus    `json:"agent_status"`
	AgentLabels    Labels         `json:"agent_labels,omitempty"`
	LastHeartbeat  time.Time      `json:"last_heartbeat,omitzero"`
	AgentVersion   string         `json:"agent_version,omitempty"`
	PlatformArch   string         `json:"platform_arch,omitempty"`
	ConnectedAt    time.Time      `json:"connected_at,omitzero"`
	RunningCount   int            `json:"running_count"`
	RunningTasks   []ident.TaskID `json:"running_tasks"`
	CurrentTaskID  ident.TaskID   `json:"current_task_id,omitempty"`
	TasksCompleted uint64         `json:"tasks_completed"`
	Tool           string         `json:"tool,omitempty"`
	ToolVersion    string         `json:"tool_version,omitempty"`
	ComfyUIVersion string         `json:"comfyui_version,omitempty"`
	GPUCapacity    int            `json:"gpu_capacity,omitempty"`
	SyncPhase      string         `json:"sync_phase,omitempty"`
	SyncDetail     string         `json:"sync_detail,omitempty"`
	SyncPercent    *float64       `json:"sync_percent,omitempty"`
	SystemStats    *SystemStats   `json:"system_stats,omitempty"`
	Tunnels        int            `json:"tunnels"`
	Paused         bool           `json:"paused,omitempty"`
	StatusDetail   string         `json:"status_detail,omitempty"` // why unhealthy, …
	RelayID        ident.RelayID  `json:"relay_id,omitempty"`
	LinkRTTMillis  float64        `json:"link_rtt_ms,omitempty"`
	LinkCongestion string         `json:"link_congestion,omitempty"`
}

// SystemStats is what the agent's machine reports of itself.
type SystemStats struct {
	ComfyUIVersion string      `json:"comfyui_version,omitempty"`
	PyTorchVersion string      `json:"pytorch_version,omitempty"`
	OSType         string      `json:"os_type,omitempty"`
	GPUDevices     []GPUDevice `json:"gpu_devices,omitempty"`
}

// GPUDevice is one GPU. Memory is in bytes.
type GPUDevice struct {
	DeviceName string `json:"device_name"`
	DeviceType string `json:"device_type,omitempty"`
	VRAMTotal  uint64 `json:"vram_total,omitempty"`
	VRAMFree   uint64 `json:"vram_free,omitempty"`
}

// PageMeta describes one page of a list.
type PageMeta struct {
	CurrentPage int `json:"current_page"`
	PerPage     int `json:"per_page"`
	TotalCount  int `json:"total_count"`
}

// AgentList is the answer of GET /agents.
type AgentList struct {
	AgentList []Agent  `json:"agent_list"`
	PageMeta  PageMeta `json:"page_meta"`
}

// AdmitTaskRequest is the body of POST /agents/{agent_id}/tasks.
type AdmitTaskRequest struct {
	TaskID ident.TaskID `json:"task_id,omitempty"` // made up when absent
	TTL    *Duration    `json:"ttl,omitempty"`     // default 60s, 5s to 1h
	Detail string       `json:"detail,omitempty"`
}

// TaskOutcome says how a task ended.
type TaskOutcome string

// The outcomes.
const (
	TaskCompleted TaskOutcome = "completed"
	TaskFailed    TaskOutcome = "failed"
)

// TaskLease is the right to run one task.
type TaskLease struct {
	TaskID       ident.TaskID `json:"task_id"`
	LeaseToken   string       `json:"lease_token"`
	FencingToken uint64       `json:"fencing_token"`
	ExpiresAt    time.Time    `json:"expires_at"`
}

// RenewTaskRequest is the body of PUT /agents/{agent_id}/tasks/{task_id}.
type RenewTaskRequest struct {
	LeaseToken string    `json:"lease_token"`
	TTL        *Duration `json:"ttl,omitempty"`
}

// CredentialKind is a kind of stored credential.
type CredentialKind string

// The kinds.
const (
	KindIntegration CredentialKind = "integration" // sk-
	KindAgent       CredentialKind = "agent"       // ak-
	KindDevice      CredentialKind = "device"      // dk-
)

// CreateCredentialRequest is the body of POST /credentials.
type CreateCredentialRequest struct {
	Kind      CredentialKind `json:"kind"`
	Name      string         `json:"name"`
	ExpiresIn *Duration      `json:"expires_in,omitempty"` // 1 to 365 days; absent: never
	AgentID   ident.AgentID  `json:"agent_id,omitempty"`   // kind agent: only this agent may use it
	// Narrower than its maker, if wanted. Only for kind integration but for Role.
	Role   Role     `json:"role,omitempty"`   // default: the maker's, and never more
	Scopes []Scope  `json:"scopes,omitempty"` // absent: all that the role may
	Agents []string `json:"agents,omitempty"` // patterns of agent ids, as "render-*"; absent: any
	Ports  string   `json:"ports,omitempty"`  // as "8188,8000-8100"; absent: any
}

// CreatedCredential is its answer, the only time the secret is shown.
type CreatedCredential struct {
	Credential
	Secret string `json:"secret"`
}

// Credential is one stored credential as lists show it.
type Credential struct {
	ID         ident.CredentialID `json:"id"`
	Kind       CredentialKind     `json:"kind"`
	Name       string             `json:"name"`
	Prefix     string             `json:"prefix"`
	AgentID    ident.AgentID      `json:"agent_id,omitempty"`
	UserID     ident.UserID       `json:"user_id,omitempty"`
	CreatedBy  string             `json:"created_by,omitempty"`
	MadeBy     ident.CredentialID `json:"made_by,omitempty"` // the credential that it was made with
	CreatedAt  time.Time          `json:"created_at"`
	ExpiresAt  time.Time          `json:"expires_at,omitzero"`
	LastUsedAt time.Time          `json:"last_used_at,omitzero"`
	Revoked    bool               `json:"revoked,omitempty"`
	Role       Role               `json:"role,omitempty"`
	Scopes     []Scope            `json:"scopes,omitempty"`
	Agents     []string           `json:"agents,omitempty"`
	Ports      string             `json:"ports,omitempty"`
}

// Revoked is the answer of DELETE /credentials/{credential_id}: what ended with it.
type Revoked struct {
	Credentials int `json:"credentials_revoked"` // it, and those that were made with it
	Tunnels     int `json:"tunnels_closed"`      // that they opened
	Links       int `json:"links_revoked"`       // named links of other tunnels that they made
}

// CredentialList is the answer of GET /credentials.
type CredentialList struct {
	Credentials []Credential `json:"credentials"`
}

// Event is the data of one server-sent event of GET /agents/watch. The event's
// name is its Kind.
type Event struct {
	Kind    string          `json:"kind"`
	AgentID ident.AgentID   `json:"agent_id,omitempty"`
	Agent   *Agent          `json:"agent,omitempty"`      // agent_changed, snapshot
	Agents  []Agent         `json:"agents,omitempty"`     // snapshot
	Session ident.SessionID `json:"session_id,omitempty"` // tunnel events
	Detail  string          `json:"detail,omitempty"`
}

// The kinds of event.
const (
	EventSnapshot      = "snapshot"
	EventAgentChanged  = "agent_changed"
	EventAgentGone     = "agent_gone"
	EventTunnelClosing = "tunnel_closing" // warning before an idle or hard close
	EventTunnelClosed  = "tunnel_closed"
	EventTunnelAccess  = "tunnel_access" // who may use it was changed
	EventTunnelKnock   = "tunnel_knock"  // somebody waits to be let in, or does not any more
	EventGoodbye       = "goodbye"       // the stream ends: the relay restarts, or the credential is over
)

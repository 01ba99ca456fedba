package wire

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/adit-tunnel/adit/shared/ident"
)

// ProtocolVersion is the version of the control stream's messages. Either side
// may be newer: unknown types and fields are ignored.
const ProtocolVersion = 1

// MaxMessage bounds one control message in bytes, its newline included.
const MaxMessage = 256 << 10

// Message is one line of the control stream. Exactly the field that Type names
// is set; ping and pong carry only Ping.
type Message struct {
	V    int    `json:"v"`
	Type string `json:"type"`

	Hello        *AgentHello   `json:"hello,omitempty"`
	Welcome      *Welcome      `json:"welcome,omitempty"`
	Goodbye      *Goodbye      `json:"goodbye,omitempty"`
	Facts        *Facts        `json:"facts,omitempty"`
	State        *State        `json:"state,omitempty"`
	Ping         *Ping         `json:"ping,omitempty"`
	TunnelOpened *TunnelNotice `json:"tunnel_opened,omitempty"`
	TunnelClosed *TunnelNotice `json:"tunnel_closed,omitempty"`
	Probe        *Probe        `json:"probe,omitempty"`
	Probed       *Probed       `json:"probed,omitempty"`
}

// The types of message.
const (
	TypeHello        = "hello"         // agent to relay, first
	TypeWelcome      = "welcome"       // relay to agent, answers hello
	TypeGoodbye      = "goodbye"       // either way, last
	TypeFacts        = "facts"         // agent to relay, every HeartbeatInterval
	TypeState        = "state"         // agent to relay, at once on a change
	TypePing         = "ping"          // either way
	TypePong         = "pong"          // answers ping with its fields
	TypeTunnelOpened = "tunnel_opened" // relay to agent
	TypeTunnelClosed = "tunnel_closed" // relay to agent
	TypeProbe        = "probe"         // relay to agent
	TypeProbed       = "probed"        // agent to relay, answers probe
)

// HeartbeatInterval is how often an agent sends its facts, and a ping with them.
const HeartbeatInterval = 15 * time.Second

// AgentHello introduces an agent.
type AgentHello struct {
	Agent    ident.AgentID `json:"agent_id"`
	Instance string        `json:"instance"` // random, one per agent process
	// Generation is the highest the process has seen; 0 for a fresh process, which
	// takes over from an older instance. A process that was superseded does not
	// take over again while the newer one lives.
	Generation uint64 `json:"generation"`
	LinkIndex  int    `json:"link_index"` // 0 for the first link of the process
	// Join asks that this link becomes one more of the session of Generation, which
	// the process has a link of; LinkIndex above 0 means the same.
	Join bool `json:"join,omitempty"`
	// Alone says that the process has no other link, not even a dying one: nothing
	// of its earlier sessions can reach its ports any more.
	Alone        bool              `json:"alone,omitempty"`
	Version      string            `json:"version"`
	Platform     string            `json:"platform"`         // GOOS/GOARCH
	Labels       map[string]string `json:"labels,omitempty"` // as api.Labels.Mapping has them
	Capabilities []string          `json:"capabilities,omitempty"`
	TaskCapacity int               `json:"task_capacity,omitempty"`
	Tunnels      []ident.SessionID `json:"tunnels,omitempty"` // those the agent believes open
	Facts        Facts             `json:"facts"`
	State        State             `json:"state"`
}

// Capabilities that an agent may name in its hello.
const (
	CapTerminal = "terminal" // terminals are enabled
	CapProbe    = "probe"    // answers probe messages
)

// Welcome admits an agent's link.
type Welcome struct {
	Generation uint64         `json:"generation"`
	Relay      ident.RelayID  `json:"relay_id"`
	Version    string         `json:"version"`
	Relays     []string       `json:"relays,omitempty"`      // URLs of the pool's relays
	MaxStreams int            `json:"max_streams,omitempty"` // the agent's, over all links
	Tunnels    []TunnelNotice `json:"tunnels"`               // those open now; the agent reconciles
	PublicURL  string         `json:"public_url,omitempty"`
	Time       time.Time      `json:"time,omitzero"` // the relay's clock: expiries are told by it
}

// Goodbye ends a link on purpose. Retry says how soon the agent may come back.
type Goodbye struct {
	Reason GoodbyeReason `json:"reason"` // of a later release, what is not known counts as GoodbyeError
	Detail string        `json:"detail,omitempty"`
	MoveTo []string      `json:"move_to,omitempty"`
}

// GoodbyeReason says why a link ends.
type GoodbyeReason string

// The reasons.
const (
	GoodbyeSuperseded GoodbyeReason = "superseded" // a newer process with this agent's name took over
	GoodbyeDrain      GoodbyeReason = "drain"      // the relay is stopping: go elsewhere or come back at once
	GoodbyeRevoked    GoodbyeReason = "revoked"    // the credential was revoked
	GoodbyeShutdown   GoodbyeReason = "shutdown"   // the agent is stopping
	GoodbyeFenced     GoodbyeReason = "fenced"     // the relay lost its lease in the store
	GoodbyeError      GoodbyeReason = "error"      // the other side broke the protocol; the detail says how
)

// Facts are what an agent observed of its machine. What is not known is absent.
type Facts struct {
	Tool           string       `json:"tool,omitempty"` // the main application: "comfyui", …
	ToolVersion    string       `json:"tool_version,omitempty"`
	ComfyUIVersion string       `json:"comfyui_version,omitempty"`
	PyTorchVersion string       `json:"pytorch_version,omitempty"`
	OSType         string       `json:"os_type,omitempty"`
	GPUs           []GPU        `json:"gpus,omitempty"`
	Unhealthy      string       `json:"unhealthy,omitempty"` // which health check fails and how; empty when all pass
	Link           *LinkFacts   `json:"link,omitempty"`
	Hooks          *HookFailure `json:"hooks,omitempty"`
}

// GPU is one device as nvidia-smi or ComfyUI reports it. Memory is in bytes.
type GPU struct {
	Name      string `json:"device_name"`
	Type      string `json:"device_type,omitempty"` // "cuda", …
	VRAMTotal uint64 `json:"vram_total,omitempty"`
	VRAMFree  uint64 `json:"vram_free,omitempty"`
}

// LinkFacts is the agent's view of its link.
type LinkFacts struct {
	RTTMillis  float64 `json:"rtt_ms"`
	Congestion string  `json:"congestion,omitempty"` // TCP congestion control in use
}

// HookFailure is the last hook that failed, until one succeeds.
type HookFailure struct {
	Hook   string `json:"hook"` // "opened" or "closed"
	Detail string `json:"detail"`
}

// State is what the machine's owner declared.
type State struct {
	SyncPhase   string   `json:"sync_phase,omitempty"` // empty: not syncing
	SyncDetail  string   `json:"sync_detail,omitempty"`
	SyncPercent *float64 `json:"sync_percent,omitempty"` // 0..100
	Paused      bool     `json:"paused,omitempty"`
}

// Ping asks whether the other side still reads the control stream; the pong repeats its
// fields. That the link lives, and its round trip, are found out below. Agents of the last
// release ping every 5 s, and relays every 4 s, as their heartbeat.
type Ping struct {
	ID   uint64 `json:"id"`
	Sent int64  `json:"sent"` // the sender's clock, nanoseconds; meaningless to the other side
}

// TunnelNotice tells the agent of one tunnel.
type TunnelNotice struct {
	Session   ident.SessionID `json:"session_id"`
	Port      uint16          `json:"port"`
	Protocol  string          `json:"protocol"` // "http" or "tcp"
	Label     string          `json:"label,omitempty"`
	OpenedBy  string          `json:"opened_by,omitempty"`
	OpenedAt  time.Time       `json:"opened_at,omitzero"`
	ExpiresAt time.Time       `json:"expires_at,omitzero"`
	Reason    string          `json:"reason,omitempty"` // tunnel_closed: why
}

// Probe asks the agent what listens on a port and which Host it accepts.
type Probe struct {
	ID         uint64 `json:"id"`
	Port       uint16 `json:"port"`
	Protocol   string `json:"protocol"`    // "http" or "tcp"
	PublicHost string `json:"public_host"` // the Host that browsers send for this tunnel
}

// Probed answers a Probe.
type Probed struct {
	ID         uint64   `json:"id"`
	Listening  bool     `json:"listening"`
	Allowed    bool     `json:"allowed"`               // false: the agent's policy refuses the port
	App        string   `json:"app,omitempty"`         // "comfyui", "jupyter", "ssh", … or empty: unknown
	HostHeader string   `json:"host_header,omitempty"` // "public" or "local"; empty when nothing answered HTTP
	Warnings   []string `json:"warnings,omitempty"`
	Detail     string   `json:"detail,omitempty"`
}

// ErrMessageTooLong says that a line exceeds MaxMessage.
var ErrMessageTooLong = errors.New("control message too long")

// Encoder writes messages, one line each. It is safe for concurrent use.
type Encoder struct {
	mu sync.Mutex
	w  io.Writer
}

// NewEncoder returns an Encoder on w.
func NewEncoder(w io.Writer) *Encoder { return &Encoder{w: w} }

// Write sends one message in one call to the writer and sets its version.
func (e *Encoder) Write(m Message) error {
	m.V = ProtocolVersion
	line, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode %s message: %w", m.Type, err)
	}
	if len(line)+1 > MaxMessage {
		return fmt.Errorf("encode %s message: %w", m.Type, ErrMessageTooLong)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, err := e.w.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("write %s message: %w", m.Type, err)
	}
	return nil
}

// Decoder reads messages. It is for one reader.
type Decoder struct{ s *bufio.Scanner }

// NewDecoder returns a Decoder on r. It reads ahead.
func NewDecoder(r io.Reader) *Decoder {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 512), MaxMessage) // most messages are short; it grows
	return &Decoder{s: s}
}

// Read returns the next message; io.EOF at a clean end. Messages of unknown type
// are returned too, with none of the known fields set: the caller ignores them.
func (d *Decoder) Read() (Message, error) {
	if err := d.Next(); err != nil {
		return Message{}, err
	}
	return d.Message()
}

// Next waits for the next message, for Message to return; io.EOF at a clean end.
func (d *Decoder) Next() error {
	if d.s.Scan() {
		return nil
	}
	err := d.s.Err()
	switch {
	case err == nil:
		return io.EOF
	case errors.Is(err, bufio.ErrTooLong):
		return ErrMessageTooLong
	}
	return fmt.Errorf("read message: %w", err)
}

// Message is what Next waited for.
func (d *Decoder) Message() (Message, error) {
	var m Message
	if err := json.Unmarshal(d.s.Bytes(), &m); err != nil {
		return Message{}, fmt.Errorf("%w: control message: %w", ErrMalformed, err)
	}
	if m.Type == "" {
		return Message{}, fmt.Errorf("%w: control message without type", ErrMalformed)
	}
	return m, nil
}

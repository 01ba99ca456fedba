package status

import (
	"time"

	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

// Report is the agent as it describes itself to programs on its machine.
type Report struct {
	AgentID      ident.AgentID       `json:"agent_id"`
	Version      string              `json:"version"`
	Platform     string              `json:"platform"`
	PID          int                 `json:"pid"`
	StartedAt    time.Time           `json:"started_at"`
	Links        Links               `json:"links"`
	State        wire.State          `json:"state"`
	Facts        wire.Facts          `json:"facts"`
	Tunnels      []wire.TunnelNotice `json:"tunnels"`
	TunnelsKnown bool                `json:"tunnels_known"` // false: no relay was reached since the start
	Streams      int                 `json:"streams"`
	AllowPorts   string              `json:"allow_ports"`
	TaskCapacity int                 `json:"task_capacity"`
}

// Links is the agent's presence at relays.
type Links struct {
	Generation uint64 `json:"generation"`
	Instance   string `json:"instance"`
	Up         []Link `json:"up"`
	Superseded string `json:"superseded,omitempty"` // why this process stays away
	LastError  string `json:"last_error,omitempty"` // of the last attempt, while no link is up
}

// Link is one living link.
type Link struct {
	Index      int           `json:"index"`
	URL        string        `json:"url"`
	Relay      ident.RelayID `json:"relay_id"`
	Since      time.Time     `json:"since"`
	RTTMillis  float64       `json:"rtt_ms"`
	Congestion string        `json:"congestion,omitempty"`
	Carrier    string        `json:"carrier,omitempty"`
	Streams    int           `json:"streams"`
}

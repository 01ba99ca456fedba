// Package config owns the agent's configuration: the struct with every key, its
// defaults and its checks. It reads one file, the credential's, when asked to,
// and never starts, dials or listens.
package config

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Config is the agent's configuration. New holds the defaults.
type Config struct {
	RelayURL       []string     `conf:"relay_url" help:"address of the relay, or a list of several that are tried in turn"`
	AgentID        string       `conf:"agent_id" help:"this machine's name within the team (default: host name)"`
	CredentialFile string       `conf:"credential_file" help:"file that holds the agent's credential (ak-…), readable by the agent only"`
	Credential     ident.Secret `conf:"credential" help:"the agent's credential itself; prefer credential_file"`
	Labels         api.Labels   `conf:"labels" help:"labels of this machine in lists of agents, as in a100,pool=render"`
	StateDir       string       `conf:"state_dir" help:"directory for what must survive a restart"`
	Links          int          `conf:"links" help:"links that are always kept, each to another relay where there are several, 1 to 8"`
	ExtraLinks     int          `conf:"extra_links" help:"further connections beside each link while a tunnel is open, 0 to 8"`
	AllowPorts     string       `conf:"allow_ports" help:"ports a tunnel may reach, as in 8188,8888-8899"`
	StopGrace      api.Duration `conf:"stop_grace" help:"how long running connections may go on when the agent stops"`
	Local          Local        `conf:"local"`
	Metrics        Metrics      `conf:"metrics"`
	Tasks          Tasks        `conf:"tasks"`
	Health         []string     `conf:"health" help:"URLs on this machine that must answer 2xx or 3xx for the agent to count as healthy"`
	Facts          Facts        `conf:"facts"`
	Hooks          Hooks        `conf:"hooks"`
	Terminal       Terminal     `conf:"terminal"`
	TLS            TLS          `conf:"tls"`
	Trace          Trace        `conf:"trace"`
	Log            Log          `conf:"log"`
}

// Trace says where OpenTelemetry traces go.
type Trace struct {
	Endpoint string  `conf:"endpoint" help:"base URL of an OpenTelemetry collector (OTLP over HTTP), as http://127.0.0.1:4318; empty: what OTEL_EXPORTER_OTLP_ENDPOINT says, else no traces"`
	Ratio    float64 `conf:"ratio" help:"share of the traces that begin here that are sent, 0 to 1; those of a relay are as it decided"`
}

// Local is the interface for programs on this machine.
type Local struct {
	Socket string `conf:"socket" help:"unix socket of the local interface (default: <state_dir>/agent.sock, or agent.sock in systemd's runtime directory)"`
	Listen string `conf:"listen" help:"loopback address of the local interface, such as 127.0.0.1:9466; every user of the machine can reach it (default: none)"`
}

// Metrics is the operator's listener.
type Metrics struct {
	Listen string `conf:"listen" help:"address of the metrics listener; empty for none"`
	Pprof  bool   `conf:"pprof" help:"serve /debug/pprof on the metrics listener"`
}

// Tasks says how many task leases this machine takes.
type Tasks struct {
	Capacity int `conf:"capacity" help:"task leases at once, 1 to 1024"`
}

// Facts says where the agent looks for what it reports of the machine.
type Facts struct {
	ComfyUI []string `conf:"comfyui" help:"addresses at which ComfyUI is asked for its system stats"`
}

// Hooks are commands run when the first tunnel opens and the last one closes.
type Hooks struct {
	Opened  []string     `conf:"opened" help:"command and arguments run when the first tunnel opens"`
	Closed  []string     `conf:"closed" help:"command and arguments run when the last tunnel closes"`
	Timeout api.Duration `conf:"timeout" help:"how long a hook may run before it is ended"`
}

// Terminal is the web terminal, off unless enabled.
type Terminal struct {
	Enabled bool              `conf:"enabled" help:"allow web terminals on this machine"`
	User    string            `conf:"user" help:"user that terminals run as (default: the agent's; an agent that runs as root needs it named)"`
	Shell   string            `conf:"shell" help:"shell of terminals (default: the user's login shell)"`
	Dir     string            `conf:"dir" help:"directory that terminals start in (default: the user's home)"`
	Env     map[string]string `conf:"env" help:"further environment of terminals"`
	Idle    api.Duration      `conf:"idle_timeout" help:"a terminal in which nothing was typed or printed for so long ends; 0s for never"`
}

// TLS is about the connection to the relay.
type TLS struct {
	CAFile string `conf:"ca_file" help:"PEM file of certificate authorities to trust for the relay, besides the system's"`
}

// Log says what is logged and how.
type Log struct {
	Level  string `conf:"level" help:"debug, info, warn or error"`
	Format string `conf:"format" help:"json, text, or auto: text on a terminal, else json"`
}

// New returns the defaults. They look at the environment that systemd gives a
// service and at the host name, and at nothing else.
func New() Config {
	return Config{
		AgentID:    defaultAgentID(),
		StateDir:   defaultStateDir(),
		Links:      1,
		ExtraLinks: 4,
		Trace:      Trace{Ratio: 1},
		AllowPorts: "1-65535",
		StopGrace:  api.Duration(defaultStopGrace),
		Metrics:    Metrics{Listen: "127.0.0.1:9465"},
		Tasks:      Tasks{Capacity: 1},
		Facts:      Facts{ComfyUI: []string{"http://127.0.0.1:8188"}},
		Hooks:      Hooks{Timeout: api.Duration(defaultHookTimeout)},
		Terminal:   Terminal{Idle: api.Duration(defaultTerminalIdle)},
		Log:        Log{Level: "info", Format: "auto"},
	}
}

// SocketPath is where the local interface's socket is.
func (c *Config) SocketPath() string {
	if c.Local.Socket != "" {
		return c.Local.Socket
	}
	if dir, _, _ := strings.Cut(os.Getenv("RUNTIME_DIRECTORY"), ":"); dir != "" {
		return filepath.Join(dir, SocketName)
	}
	return filepath.Join(c.StateDir, SocketName)
}

// SocketName is the file name of the local interface's socket.
const SocketName = "agent.sock"

// SystemSocket is where the packaged service has its socket.
const SystemSocket = "/run/adit-agent/" + SocketName

// ClientSockets returns where commands look for the agent's socket, in order,
// when none is named.
func ClientSockets() []string {
	c := New()
	return c.Sockets()
}

// Sockets are where an agent with this configuration may have its socket: where the
// configuration says, else where the packaged unit puts it, or this process would.
func (c *Config) Sockets() []string {
	own := c.SocketPath()
	if c.Local.Socket != "" || own == SystemSocket {
		return []string{own}
	}
	return []string{SystemSocket, own}
}

// defaultAgentID is the host name, made to fit the rules of an agent's name.
func defaultAgentID() string {
	host, err := os.Hostname()
	if err != nil {
		return "" // Validate asks for agent_id then
	}
	id := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '_', r == '-':
			return r
		}
		return '-'
	}, host)
	id = strings.TrimLeft(id, ".-_")
	return id[:min(len(id), 63)]
}

// defaultStateDir is systemd's state directory where there is one, the usual
// place for root, and the user's own otherwise.
func defaultStateDir() string {
	if dir, _, _ := strings.Cut(os.Getenv("STATE_DIRECTORY"), ":"); dir != "" {
		return dir
	}
	if os.Geteuid() == 0 {
		return "/var/lib/adit-agent"
	}
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "adit-agent")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "adit-agent-state"
	}
	return filepath.Join(home, ".local", "state", "adit-agent")
}

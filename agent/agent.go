// Package agent is the agent as one thing: it puts the parts together, starts them
// in order and stops them in order. It owns the state directory and the listeners;
// all else belongs to the parts.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/adit-tunnel/adit/agent/internal/config"
	"github.com/adit-tunnel/adit/agent/internal/desk"
	"github.com/adit-tunnel/adit/agent/internal/forward"
	"github.com/adit-tunnel/adit/agent/internal/local"
	"github.com/adit-tunnel/adit/agent/internal/probe"
	"github.com/adit-tunnel/adit/agent/internal/status"
	"github.com/adit-tunnel/adit/agent/internal/terminal"
	"github.com/adit-tunnel/adit/agent/internal/uplink"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/carrier"
	"github.com/adit-tunnel/adit/shared/diag"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/logs"
	"github.com/adit-tunnel/adit/shared/splice"
	"github.com/adit-tunnel/adit/shared/traces"
	"github.com/adit-tunnel/adit/shared/wire"
)

// Config is the agent's configuration.
type Config = config.Config

// Report is the agent as it describes itself.
type Report = status.Report

// DefaultConfig returns the defaults.
func DefaultConfig() Config { return config.New() }

// Options are what the program gives its agent besides the configuration.
type Options struct {
	Version  string
	Logger   *slog.Logger
	Registry *prometheus.Registry // default: one of its own
	Recent   *logs.Recent         // what the logger logged last, for diag; may be nil
	// Proxy finds the proxy for a relay. Default: http.ProxyFromEnvironment.
	Proxy func(*http.Request) (*url.URL, error)
	// Kill, when closed, ends the time that a stopping agent gives its streams.
	Kill <-chan struct{}
	// Ready is called when everything listens; links come later. May be nil.
	Ready func()
	// Notify is told in a few words when a link comes or goes. May be nil.
	Notify func(text string)
}

// Agent is one agent. New checks, Run does.
type Agent struct {
	conf     Config
	opts     Options
	started  time.Time
	board    *status.Board
	observer *status.Observer
	tunnels  *uplink.Tunnels
	desk     *desk.Desk
	uplink   *uplink.Uplink
	local    *local.Server
	hooks    *local.Hooks
	terms    *terminal.Terminals // nil: terminals are off
	traces   *traces.Traces      // nil: none

	mu       sync.Mutex
	ownPorts []uint16
}

// New checks the configuration and puts an agent together. It starts nothing.
func New(conf Config, opts Options) (*Agent, error) {
	if err := conf.Validate(); err != nil {
		return nil, err
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Registry == nil {
		opts.Registry = prometheus.NewRegistry()
	}
	ports, err := api.ParsePorts(conf.AllowPorts)
	if err != nil {
		return nil, fmt.Errorf("allow_ports: %w", err)
	}
	tlsConf, err := conf.TLSConfig()
	if err != nil {
		return nil, fmt.Errorf("tls.ca_file: %w", err)
	}
	a := &Agent{conf: conf, opts: opts, started: time.Now()}
	log, reg := opts.Logger, opts.Registry
	inState := func(name string) string { return filepath.Join(conf.StateDir, name) }

	a.board = status.NewBoard(inState("state.json"))
	a.observer = status.NewObserver(status.ObserverConfig{
		Board: a.board, ComfyUI: conf.Facts.ComfyUI, Health: conf.Health, Logger: log, Registerer: reg,
	})
	a.tunnels = uplink.NewTunnels(inState("tunnels.json"), log)
	capabilities := []string{wire.CapProbe}
	var serveTerminal desk.Terminal
	if t := conf.Terminal; t.Enabled {
		a.terms, err = terminal.New(terminal.Config{
			User: t.User, Shell: t.Shell, Dir: t.Dir, Env: t.Env, Idle: t.Idle.D(), Closed: a.tunnels.Closed, Logger: log, Registerer: reg,
		})
		if err != nil {
			return nil, err
		}
		capabilities = append(capabilities, wire.CapTerminal)
		serveTerminal = func(ctx context.Context, s *link.Stream, h wire.Hello) error { return a.terms.Serve(ctx, s, h) }
	}
	var dialing func(context.Context, wire.Hello) (context.Context, func(error))
	a.traces, err = traces.New(traces.Config{
		Endpoint: conf.Trace.Endpoint, Ratio: conf.Trace.Ratio, Service: "adit-agent", Version: opts.Version, Instance: conf.AgentID, Logger: log,
	})
	if err != nil {
		return nil, fmt.Errorf("trace.endpoint: %w", err)
	}
	if a.traces != nil {
		dialing = a.traceDial
	}
	a.desk = desk.New(desk.Config{
		Terminal: serveTerminal, Dialing: dialing,
		Ports: ports, OwnPorts: a.own, Paused: a.board.Paused, Closed: a.tunnels.Closed,
		Epoch:  func() uint64 { return a.uplink.Epoch() },
		Dial:   func(ctx context.Context, port uint16) (splice.Conn, error) { return dialPort(ctx, port) },
		Logger: log, Registerer: reg,
	})
	prober := probe.New(probe.Config{
		Allowed: a.desk.Allowed,
		Dial:    func(ctx context.Context, port uint16) (net.Conn, error) { return dialPort(ctx, port) },
	})
	unread := link.NewBudget(unreadBudget)
	unread.Relieved = func(r link.Relief) {
		log.Warn("ended connections whose app takes nothing, since memory is short", "session_id", r.Owner.Tunnel, "connections", r.Streams, "bytes", r.Bytes)
	}
	hooks := linkHooks(reg, unread)
	a.uplink = uplink.New(uplink.Config{
		RelayURLs: conf.RelayURL, Links: conf.Links, ExtraLinks: conf.ExtraLinks, Agent: ident.AgentID(conf.AgentID), Version: opts.Version,
		Platform: runtime.GOOS + "/" + runtime.GOARCH, Labels: conf.Labels.Mapping(), Capabilities: capabilities,
		TaskCapacity: conf.Tasks.Capacity,
		Dial: func(ctx context.Context, relay string) (*link.Link, error) {
			token, err := conf.Token()
			if err != nil {
				return nil, fmt.Errorf("read credential: %w", err)
			}
			return link.Dial(ctx, carrier.DialOptions{URL: relay, Token: token, TLS: tlsConf, Proxy: opts.Proxy}, link.Config{Budget: unread, Logger: log, Hooks: hooks})
		},
		Machine: a.board, Desk: a.desk, Probe: prober.Probe, Tunnels: a.tunnels,
		StopGrace: conf.StopGrace.D(), Kill: opts.Kill, Notify: opts.Notify, Logger: log, Registerer: reg,
	})
	a.local = local.New(local.Config{
		Agent: ident.AgentID(conf.AgentID), Link: a.uplink, Tunnels: a.tunnels, Board: a.board,
		Report: a.Report, Pause: a.pause, Metrics: a.metrics(), Diag: a.diag, Logger: log, Registerer: reg,
	})
	a.hooks = local.NewHooks(local.HooksConfig{
		Opened: conf.Hooks.Opened, Closed: conf.Hooks.Closed, Timeout: conf.Hooks.Timeout.D(),
		Agent: ident.AgentID(conf.AgentID), Tunnels: a.tunnels, Path: inState("hooks.json"),
		Report: func(f *wire.HookFailure) { a.board.Update(func(x *wire.Facts) { x.Hooks = f }) },
		Logger: log, Registerer: reg,
	})
	return a, nil
}

// dialPort is forward.Dial for whoever wants an interface: a nil *forward.Conn in
// one would not be nil.
func dialPort(ctx context.Context, port uint16) (conn interface {
	net.Conn
	splice.Conn
}, err error) {
	c, err := forward.Dial(ctx, port)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Run runs the agent until ctx ends and its streams had their time to finish. It
// leaves no goroutine behind.
func (a *Agent) Run(ctx context.Context) error {
	if err := os.MkdirAll(a.conf.StateDir, 0o750); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	unlock, err := lockDir(a.conf.StateDir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := a.board.Load(); err != nil {
		a.opts.Logger.Error("load declared state", "error", err)
	}
	if err := a.tunnels.Load(); err != nil {
		a.opts.Logger.Error("load tunnels: none counts as open until a relay says so", "error", err)
	}
	serve, closeAll, err := a.listen()
	if err != nil {
		return err
	}
	defer closeAll()

	// The links go first when the agent stops, the rest after them: a task that ends
	// meanwhile can still give its lease back.
	rest, stopRest := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stopRest(nil)
	links, stopLinks := context.WithCancelCause(ctx)
	defer stopLinks(nil)
	var group errgroup.Group
	part := func(f func(context.Context) error) {
		group.Go(func() error {
			err := f(rest)
			if err != nil {
				stopLinks(err) // without one of its parts the agent stops as a whole
			}
			return err
		})
	}
	for _, s := range serve {
		part(s)
	}
	part(a.observer.Run)
	if a.traces != nil {
		part(a.traces.Run)
	}
	part(a.hooks.Run)
	if a.terms != nil {
		part(a.terms.Run)
	}
	group.Go(func() error {
		defer stopRest(errors.New("the agent is stopping"))
		return a.uplink.Run(links)
	})
	a.opts.Logger.Info("agent started", "agent_id", a.conf.AgentID, "version", a.opts.Version, "socket", a.conf.SocketPath(),
		"relays", a.conf.RelayURL, "allow_ports", a.conf.AllowPorts, "paused", a.board.Paused())
	if a.opts.Ready != nil {
		a.opts.Ready()
	}
	err = group.Wait()
	a.opts.Logger.Info("agent stopped", "cause", context.Cause(ctx))
	return err
}

// listen opens the listeners and returns what serves them.
func (a *Agent) listen() (serve []func(context.Context) error, closeAll func(), err error) {
	var open []net.Listener
	closeAll = func() {
		for _, l := range open {
			_ = l.Close() // usually closed by its server already
		}
	}
	add := func(l net.Listener, h http.Handler) {
		open = append(open, l)
		if t, ok := l.Addr().(*net.TCPAddr); ok {
			a.mu.Lock()
			a.ownPorts = append(a.ownPorts, uint16(t.Port))
			a.mu.Unlock()
		}
		serve = append(serve, func(ctx context.Context) error { return local.Serve(ctx, l, h) })
	}
	l, err := local.ListenSocket(a.conf.SocketPath())
	if err != nil {
		return nil, nil, err
	}
	add(l, a.local.Socket())
	for _, tcp := range []struct {
		key, addr string
		handler   http.Handler
	}{
		{"local.listen", a.conf.Local.Listen, a.local.Loopback()},
		{"metrics.listen", a.conf.Metrics.Listen, a.operator()},
	} {
		if tcp.addr == "" {
			continue
		}
		l, err := net.Listen("tcp", tcp.addr)
		if err != nil {
			closeAll()
			return nil, nil, fmt.Errorf("%s: %w", tcp.key, err)
		}
		add(l, tcp.handler)
	}
	return serve, closeAll, nil
}

// own lists the ports of the agent's own listeners.
func (a *Agent) own() []uint16 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ownPorts
}

func (a *Agent) pause(paused bool) error {
	err := a.board.SetPaused(paused)
	if paused {
		n := a.desk.CutAll(desk.ErrPaused)
		if a.terms != nil {
			a.terms.EndAll("the owner of this machine paused the agent")
		}
		a.opts.Logger.Warn("agent paused", "audit", true, "streams_ended", n)
	} else {
		a.opts.Logger.Warn("agent resumed", "audit", true)
	}
	return err
}

// Report describes the agent as it is now.
func (a *Agent) Report() Report {
	known := false
	select {
	case <-a.tunnels.Known():
		known = true
	default:
	}
	return Report{
		AgentID: ident.AgentID(a.conf.AgentID), Version: a.opts.Version, Platform: runtime.GOOS + "/" + runtime.GOARCH,
		PID: os.Getpid(), StartedAt: a.started.UTC(), Links: a.uplink.Status(), State: a.board.State(), Facts: a.board.Facts(),
		Tunnels: a.tunnels.List(), TunnelsKnown: known, Streams: a.desk.Active(), AllowPorts: a.conf.AllowPorts,
		TaskCapacity: a.conf.Tasks.Capacity,
	}
}

func (a *Agent) metrics() http.Handler {
	return promhttp.HandlerFor(a.opts.Registry, promhttp.HandlerOpts{})
}

// operator serves the metrics listener.
func (a *Agent) operator() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", a.metrics())
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("ok\n")) // the peer may be gone
	})
	if a.conf.Metrics.Pprof {
		diag.Profiles(mux)
	}
	return mux
}

// traceDial is the span of one dial, below that of the relay which asked for it.
func (a *Agent) traceDial(ctx context.Context, h wire.Hello) (context.Context, func(error)) {
	ctx, span := a.traces.Start(traces.FromWire(ctx, h.Trace), "dial", traces.Int("server.port", int(h.Port)),
		traces.String("adit.session_id", string(h.Session)), traces.String("adit.request_id", string(h.Request)))
	return ctx, span.End
}

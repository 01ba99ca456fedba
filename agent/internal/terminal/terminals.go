// Package terminal owns the terminals of this machine: programs on PTYs that
// outlive the streams by which people look at them, within the life of their
// tunnel. It owns their users, their processes and the end of their output. It
// never decides who may attach: a stream that gets here was admitted.
package terminal

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/metric"
	"github.com/adit-tunnel/adit/shared/wire"
)

// Bounds of what tunnels can start.
const (
	maxPerTunnel = 8
	maxTerminals = 64
)

// Config is what Terminals need.
type Config struct {
	User  string            // that they run as; empty: the agent's own, unless that is root
	Shell string            // empty: the user's login shell
	Dir   string            // empty: the user's home
	Env   map[string]string // beside a login's
	// Idle ends a terminal in which nobody typed and nothing was printed for so long;
	// 0: none.
	Idle time.Duration
	// Closed says whether a tunnel is closed: its terminals end.
	Closed     func(ident.SessionID) bool
	Every      time.Duration // how often Run looks; default 1 s
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

type key struct {
	session ident.SessionID
	name    string
}

// Terminals are all terminals of this agent. They are safe for concurrent use.
type Terminals struct {
	cfg     Config
	active  prometheus.Gauge
	started prometheus.Counter

	mu      sync.Mutex
	all     map[key]*terminal
	running sync.WaitGroup
	stopped bool
}

// Check says whether terminals could run as the user.
func Check(user string) error {
	_, err := lookup(user)
	return err
}

// New checks the configuration. It starts nothing.
func New(cfg Config) (*Terminals, error) {
	if err := Check(cfg.User); err != nil {
		return nil, err
	}
	if cfg.Closed == nil || cfg.Logger == nil {
		return nil, errors.New("terminal: Closed and Logger are required")
	}
	if cfg.Every <= 0 {
		cfg.Every = time.Second
	}
	f := metric.In(cfg.Registerer)
	t := &Terminals{
		cfg: cfg, all: map[key]*terminal{},
		active:  f.Gauge("adit_agent_terminals_active", "Terminals that run now."),
		started: f.Counter("adit_agent_terminals_started_total", "Terminals that were started."),
	}
	return t, nil
}

// Run ends terminals whose tunnel is closed, idle ones and stalled viewers, until
// ctx ends; then it ends all and waits for them.
func (t *Terminals) Run(ctx context.Context) error {
	tick := time.NewTicker(t.cfg.Every)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			t.sweep(now)
		case <-ctx.Done():
			t.mu.Lock()
			t.stopped = true
			t.mu.Unlock()
			t.EndAll("the agent stops")
			t.running.Wait()
			return nil
		}
	}
}

func (t *Terminals) sweep(now time.Time) {
	for _, x := range t.list() {
		idle := x.check(now)
		switch {
		case t.cfg.Closed(x.key.session):
			x.end("the tunnel is closed")
		case t.cfg.Idle > 0 && idle > t.cfg.Idle:
			x.end(fmt.Sprintf("nothing was typed or printed for %s", t.cfg.Idle))
		}
	}
}

func (t *Terminals) list() []*terminal {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]*terminal, 0, len(t.all))
	for _, x := range t.all {
		out = append(out, x)
	}
	return out
}

// EndAll ends every terminal.
func (t *Terminals) EndAll(reason string) {
	for _, x := range t.list() {
		x.end(reason)
	}
}

// Serve attaches the other end of a terminal stream whose hello was admitted: it
// writes the verdict, and blocks until the stream is over. ctx's end detaches it.
func (t *Terminals) Serve(ctx context.Context, conn net.Conn, h wire.Hello) error {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	_ = conn.SetDeadline(time.Now().Add(stall))
	v := &viewer{conn: conn, wake: make(chan struct{}, 1)}
	x, o, refusal := t.attach(v, h)
	if refusal.Code != wire.CodeOK {
		t.cfg.Logger.Info("terminal refused", "audit", true, "session_id", h.Session, "request_id", h.Request, "terminal", o.Terminal, "who", o.Who, "text", refusal.Text)
		if _, err := conn.Write(wire.AppendVerdict(nil, refusal)); err != nil {
			return fmt.Errorf("write verdict: %w", err)
		}
		return refusal
	}
	defer x.detach(v)
	t.cfg.Logger.Info("terminal attached", "audit", true, "session_id", h.Session, "request_id", h.Request, "terminal", o.Terminal, "who", o.Who, "read_only", o.ReadOnly)
	if _, err := conn.Write(wire.AppendVerdict(nil, wire.Verdict{})); err != nil {
		return fmt.Errorf("write verdict: %w", err)
	}
	_ = conn.SetDeadline(time.Time{})
	// A cut that came before must not be undone by that.
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	sent := make(chan error, 1)
	go func() {
		err := v.send(x)
		_ = conn.Close()
		sent <- err
	}()
	err := v.receive(x)
	_ = conn.Close()
	x.detach(v)
	if serr := <-sent; serr == nil || errors.Is(err, errLeft) {
		err = nil
	}
	t.cfg.Logger.Info("terminal detached", "audit", true, "session_id", h.Session, "request_id", h.Request, "terminal", o.Terminal, "who", o.Who, "error", err)
	return err
}

// attach finds the terminal or starts it, and adds the viewer.
func (t *Terminals) attach(v *viewer, h wire.Hello) (*terminal, wire.TerminalOpen, wire.Verdict) {
	no := func(code wire.Code, format string, args ...any) wire.Verdict {
		return wire.Verdict{Code: code, Text: fmt.Sprintf(format, args...)}
	}
	o, err := wire.ParseTerminalOpen(h.Payload)
	switch {
	case err != nil:
		return nil, o, no(wire.CodeBadHello, "%v", err)
	case h.Session == "":
		return nil, o, no(wire.CodeBadHello, "a terminal is a tunnel's, and none was named")
	}
	v.readOnly = o.ReadOnly
	for {
		x, refusal := t.find(h, o)
		if x == nil {
			return nil, o, refusal
		}
		switch err := x.attach(v, o); {
		case errors.Is(err, errOver):
			<-x.done // it is taken out of the list then, and a new one may start
			continue
		case err != nil:
			return nil, o, no(wire.CodeOverloaded, "%v", err)
		}
		return x, o, wire.Verdict{}
	}
}

func (t *Terminals) find(h wire.Hello, o wire.TerminalOpen) (*terminal, wire.Verdict) {
	k := key{h.Session, o.Terminal}
	t.mu.Lock()
	defer t.mu.Unlock()
	if x := t.all[k]; x != nil {
		return x, wire.Verdict{}
	}
	siblings := 0
	for other := range t.all {
		if other.session == k.session {
			siblings++
		}
	}
	switch {
	case o.ReadOnly:
		return nil, wire.Verdict{Code: wire.CodeNoTerminal, Text: "there is no terminal to look on at"}
	case t.stopped:
		return nil, wire.Verdict{Code: wire.CodeInternal, Text: "the agent stops"}
	case siblings >= maxPerTunnel, len(t.all) >= maxTerminals:
		return nil, wire.Verdict{Code: wire.CodeOverloaded, Text: fmt.Sprintf("too many terminals run already (at most %d of a tunnel, %d in all)", maxPerTunnel, maxTerminals)}
	}
	cols, rows := o.Cols, o.Rows
	if !sane(cols, rows) {
		cols, rows = 80, 24
	}
	a, err := lookup(t.cfg.User)
	if err != nil {
		return nil, wire.Verdict{Code: wire.CodeInternal, Text: err.Error()}
	}
	sh, err := start(a, t.cfg.Shell, t.cfg.Dir, t.cfg.Env, cols, rows)
	if err != nil {
		return nil, wire.Verdict{Code: wire.CodeInternal, Text: err.Error()}
	}
	x := &terminal{
		key: k, instance: rand.Text(), shell: sh, log: t.cfg.Logger, viewers: map[*viewer]struct{}{},
		cols: cols, rows: rows, input: make(chan struct{}, 1), used: time.Now(), done: make(chan struct{}),
	}
	x.room = sync.NewCond(&x.mu)
	t.all[k] = x
	t.active.Set(float64(len(t.all)))
	t.started.Inc()
	t.cfg.Logger.Info("terminal started", "audit", true, "session_id", k.session, "terminal", k.name, "user", a.name, "pid", sh.cmd.Process.Pid)
	t.running.Go(func() {
		exit := x.run(func() {
			t.mu.Lock()
			delete(t.all, k)
			t.active.Set(float64(len(t.all)))
			t.mu.Unlock()
		})
		t.cfg.Logger.Info("terminal ended", "audit", true, "session_id", k.session, "terminal", k.name, "status", exit.Status, "text", exit.Text)
	})
	return x, wire.Verdict{}
}

package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/agent/internal/status"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/metric"
	"github.com/adit-tunnel/adit/shared/wire"
)

// HooksConfig is what Hooks need.
type HooksConfig struct {
	Opened, Closed []string // command and arguments; empty: nothing to run
	Timeout        time.Duration
	Agent          ident.AgentID
	Tunnels        Tunnels
	Path           string                  // of the state file
	Report         func(*wire.HookFailure) // told of a failure, and with nil when it is over
	Settle         time.Duration           // how long after the start to wait for a relay's word; default 60 s
	Logger         *slog.Logger
	Registerer     prometheus.Registerer
}

// Hooks run a command when the first tunnel opens and another when the last one
// closes, one at a time. What was run is kept in a file, written before each run
// and after it, so that whatever a crash interrupted is found and put right: a
// hook may therefore run twice for one change, and must not mind.
type Hooks struct {
	conf HooksConfig
	runs *prometheus.CounterVec
}

// Hook names, as ADIT_EVENT and in reports.
const (
	HookOpened = "opened"
	HookClosed = "closed"
)

// What the state file says was done last.
const (
	phaseClosed  = "closed"
	phaseOpening = "opening" // the opened hook was begun: it may have done half
	phaseOpened  = "opened"
	phaseClosing = "closing"
)

// hookState is the state file.
type hookState struct {
	Phase string            `json:"phase"`
	Last  wire.TunnelNotice `json:"last"` // the tunnel that made the change
}

const (
	hookOutput   = 2 << 10 // bytes of a hook's output that are reported
	firstRetry   = time.Second
	longestRetry = 5 * time.Minute
	killAfter    = 5 * time.Second // SIGKILL after SIGTERM
)

// NewHooks returns Hooks.
func NewHooks(conf HooksConfig) *Hooks {
	if conf.Settle == 0 {
		conf.Settle = time.Minute
	}
	h := &Hooks{conf: conf, runs: metric.In(conf.Registerer).Counters("adit_agent_hook_runs_total", "Runs of hooks, by hook and outcome.", "hook", "outcome")}
	return h
}

// Run keeps what the hooks did in step with the tunnels until ctx ends. A hook
// that runs then is ended, and run again at the next start.
func (h *Hooks) Run(ctx context.Context) error {
	if len(h.conf.Opened) == 0 && len(h.conf.Closed) == 0 {
		return nil
	}
	changed, cancel := h.conf.Tunnels.Subscribe()
	defer cancel()
	state, err := h.load()
	if err != nil {
		h.conf.Logger.Error("hooks: the closed hook is run to be safe", "error", err)
	}
	if !h.settle(ctx, changed) {
		return nil
	}
	wait := time.Duration(0) // of the next retry; 0: no failure
	for {
		open := h.conf.Tunnels.List()
		if len(open) > 0 {
			state.Last = open[len(open)-1]
		}
		var failed error
		switch {
		case len(open) > 0 && state.Phase != phaseOpened:
			failed = h.step(ctx, &state, HookOpened, len(open))
		case len(open) == 0 && state.Phase != phaseClosed:
			failed = h.step(ctx, &state, HookClosed, 0)
		}
		if ctx.Err() != nil {
			return nil
		}
		var retry <-chan time.Time
		if failed != nil {
			wait = min(max(firstRetry, 2*wait), longestRetry)
			retry = time.After(wait - time.Duration(rand.Int64N(int64(wait/4))))
		} else {
			wait = 0
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-retry:
		}
	}
}

// settle waits until it is known which tunnels are open: a relay said so, some are
// open by what an earlier run knew, or no relay was reached for long.
func (h *Hooks) settle(ctx context.Context, changed <-chan struct{}) bool {
	limit := time.NewTimer(h.conf.Settle)
	defer limit.Stop()
	for h.conf.Tunnels.Count() == 0 {
		select {
		case <-ctx.Done():
			return false
		case <-h.conf.Tunnels.Known():
			return true
		case <-limit.C:
			return true
		case <-changed:
		}
	}
	return true
}

// step runs one hook and keeps the state file in step with it.
func (h *Hooks) step(ctx context.Context, state *hookState, hook string, open int) error {
	begun, done, argv := phaseOpening, phaseOpened, h.conf.Opened
	if hook == HookClosed {
		begun, done, argv = phaseClosing, phaseClosed, h.conf.Closed
	}
	state.Phase = begun
	h.save(*state)
	if err := h.exec(ctx, argv, hook, state.Last, open); err != nil {
		if ctx.Err() != nil {
			return err
		}
		h.conf.Logger.Error("hook", "hook", hook, "error", err)
		h.conf.Report(&wire.HookFailure{Hook: hook, Detail: err.Error()})
		return err
	}
	state.Phase = done
	h.save(*state)
	h.conf.Report(nil)
	return nil
}

func (h *Hooks) load() (hookState, error) {
	state := hookState{Phase: phaseClosed}
	err := status.ReadJSON(h.conf.Path, &state)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return state, nil
	case err != nil:
		return hookState{Phase: phaseClosing}, fmt.Errorf("read hook state: %w", err)
	}
	return state, nil
}

func (h *Hooks) save(state hookState) {
	if err := status.WriteJSON(h.conf.Path, state); err != nil {
		h.conf.Logger.Error("save hook state: a crash now may leave it behind", "error", err)
	}
}

// exec runs a hook within its time.
func (h *Hooks) exec(ctx context.Context, argv []string, hook string, last wire.TunnelNotice, open int) (err error) {
	if len(argv) == 0 {
		return nil
	}
	defer func() {
		outcome := "ok"
		if err != nil {
			outcome = "failed"
		}
		h.runs.WithLabelValues(hook, outcome).Inc()
	}()
	ctx, cancel := context.WithTimeoutCause(ctx, h.conf.Timeout, fmt.Errorf("still running after %s", h.conf.Timeout))
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(ChildEnv(os.Environ()),
		"ADIT_EVENT="+hook,
		"ADIT_AGENT_ID="+string(h.conf.Agent),
		"ADIT_SESSION_ID="+string(last.Session),
		"ADIT_PORT="+strconv.Itoa(int(last.Port)),
		"ADIT_PROTOCOL="+printable(last.Protocol),
		"ADIT_OPENED_BY="+printable(last.OpenedBy),
		"ADIT_LABEL="+printable(last.Label),
		"ADIT_TUNNELS="+strconv.Itoa(open),
	)
	var out tail
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that what it started is ended with it
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = killAfter
	start := time.Now()
	err = cmd.Run()
	if ctx.Err() != nil && cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what of its group is left
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it left something in the background that holds its output, which is its right
	}
	h.conf.Logger.Info("hook ran", "hook", hook, "seconds", time.Since(start).Seconds(), "tunnels", open, "ok", err == nil)
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if text := out.String(); text != "" {
		return fmt.Errorf("%s: %w: %s", argv[0], err, text)
	}
	return fmt.Errorf("%s: %w", argv[0], err)
}

// printable drops control characters from text that a user of the relay chose: a
// zero byte would keep the hook from running at all.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
}

// ChildEnv is the environment that commands get from the agent: its own without
// the credential.
func ChildEnv(environ []string) []string {
	out := make([]string, 0, len(environ))
	for _, pair := range environ {
		if name, _, _ := strings.Cut(pair, "="); name == "ADIT_CREDENTIAL" || name == "ADIT_TOKEN" || name == "NOTIFY_SOCKET" || name == "WATCHDOG_USEC" || name == "WATCHDOG_PID" {
			continue
		}
		out = append(out, pair)
	}
	return out
}

// tail keeps the end of what is written to it.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if over := len(t.b) - hookOutput; over > 0 {
		t.b = append(t.b[:0], t.b[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	return strings.ToValidUTF8(string(bytes.TrimSpace(t.b)), "?")
}

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/adit-tunnel/adit/agent/internal/local"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

const (
	minTTL       = 5 * time.Second
	maxTTL       = time.Hour
	callTime     = 20 * time.Second // of one call to the agent, which itself waits for the relay
	releaseTime  = 5 * time.Second
	longestAsk   = 15 * time.Second // between tries of --wait
	stopPatience = 10 * time.Second // between SIGTERM and SIGKILL of --stop-when-lost

	exitNotExecutable = 126
	exitNotFound      = 127
	exitSignal        = 128 // plus the signal's number
)

type taskOptions struct {
	id, detail   string
	ttl          time.Duration
	wait         bool
	waitLimit    time.Duration
	stopWhenLost bool
}

func newTask() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "task [flags] -- COMMAND [ARG...]",
		Short: "run a command while holding a task lease",
		Long: `Take a task lease, run the command, and give the lease back with its outcome. While
people use the machine through a tunnel, or while as many tasks run as it takes, the
lease is refused: the command is not started, and the exit code is 75, or --wait waits.

The lease is renewed every third of --ttl. When it is lost all the same (the relay was
away for longer than --ttl), the command goes on, since a relay's outage must not cost
hours of work: a warning says so, and the lease is asked for again until it is granted.
With --stop-when-lost the command gets SIGTERM instead, after 10 s SIGKILL, and the exit
code is 75: for work that must not run beside another task.

Signals are passed on to the command; on a terminal Ctrl-C reaches it directly. The
command finds ADIT_TASK_ID and ADIT_FENCING_TOKEN in its environment. Exit codes are the
command's own, 128 + n when signal n ended it, 127 when it was not found, 126 when it
could not be started, 75 when the lease was refused.`,
		Example: `  adit-agent task -- python train.py --epochs 3
  adit-agent task --wait --ttl 5m --detail nightly -- ./batch.sh

  # in a queue's worker: 75 means 'put it back'
  adit-agent task --id "$JOB_ID" -- ./job.sh || [ $? -ne 75 ] || requeue "$JOB_ID"`,
		Args: cobra.MinimumNArgs(1),
	}
	client := socketFlag(cmd)
	o := taskOptions{}
	ttl, limit := api.Duration(time.Minute), api.Duration(0)
	cmd.Flags().StringVar(&o.id, "id", "", "the task's name (default: made up)")
	cmd.Flags().StringVar(&o.detail, "detail", "", "what it is, for people")
	cmd.Flags().Var(durationFlag{&ttl}, "ttl", "how long the lease outlives a lost connection, 5s to 1h")
	cmd.Flags().BoolVar(&o.wait, "wait", false, "wait until the lease is granted")
	cmd.Flags().Var(durationFlag{&limit}, "wait-limit", "give up waiting after this time (default: never)")
	cmd.Flags().BoolVar(&o.stopWhenLost, "stop-when-lost", false, "end the command when the lease is lost")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o.ttl, o.waitLimit = ttl.D(), limit.D()
		if o.ttl < minTTL || o.ttl > maxTTL {
			return usage(cmd, fmt.Errorf("--ttl is %s, must be 5s to 1h", o.ttl))
		}
		if o.id != "" {
			if _, err := ident.ParseTaskID(o.id); err != nil {
				return usage(cmd, fmt.Errorf("--id: %w", err))
			}
		}
		t := &task{
			taskOptions: o, local: client(), argv: args,
			stdin: cmd.InOrStdin(), stdout: cmd.OutOrStdout(), stderr: cmd.ErrOrStderr(),
		}
		return t.run(cmd.Context())
	}
	cmd.Flags().SetInterspersed(false) // the command's own flags are its own, also without "--"
	return cmd
}

type durationFlag struct{ *api.Duration }

func (d durationFlag) Set(s string) error { return d.UnmarshalText([]byte(s)) }
func (durationFlag) Type() string         { return "duration" }

// task is one run of `adit-agent task`.
type task struct {
	taskOptions
	local          *local.Client
	argv           []string
	stdin          io.Reader
	stdout, stderr io.Writer

	lease api.TaskLease
	until time.Time // when the lease ends if it is not renewed, by this process's clock
}

func (t *task) say(format string, args ...any) {
	show(t.stderr, "adit-agent: "+format, args...)
}

func (t *task) run(ctx context.Context) error {
	// A command that is not there must not cost a lease.
	path, err := exec.LookPath(t.argv[0])
	if err != nil {
		code := exitNotFound
		if errors.Is(err, os.ErrPermission) {
			code = exitNotExecutable
		}
		return &exitError{code, err}
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH)
	defer signal.Stop(signals)
	if err := t.acquire(ctx, signals); err != nil {
		return err
	}
	outcome := api.TaskFailed
	defer func() { t.release(outcome) }()

	cmd := exec.Command(path, t.argv[1:]...) //nolint:noctx // ends by the signals passed on, and supervise
	cmd.Args[0] = t.argv[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = t.stdin, t.stdout, t.stderr
	cmd.Env = append(local.ChildEnv(os.Environ()),
		"ADIT_TASK_ID="+string(t.lease.TaskID),
		"ADIT_FENCING_TOKEN="+strconv.FormatUint(t.lease.FencingToken, 10))
	if err := cmd.Start(); err != nil {
		return &exitError{exitNotExecutable, fmt.Errorf("start %s: %w", t.argv[0], err)}
	}
	lost := t.supervise(ctx, cmd, signals)
	code := exitCode(cmd.ProcessState)
	if code == 0 {
		outcome = api.TaskCompleted
	}
	if lost {
		return &exitError{exitTryAgain, errors.New("the command was ended because its lease was lost")}
	}
	if code != 0 {
		return &exitError{code: code}
	}
	return nil
}

func exitCode(s *os.ProcessState) int {
	if ws, ok := s.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return exitSignal + int(ws.Signal())
	}
	return s.ExitCode()
}

// acquire takes the lease, waiting for it if told to.
func (t *task) acquire(ctx context.Context, signals <-chan os.Signal) error {
	var limit <-chan time.Time
	if t.waitLimit > 0 {
		timer := time.NewTimer(t.waitLimit)
		defer timer.Stop()
		limit = timer.C
	}
	last := ""
	for wait := time.Second; ; wait = min(wait*3/2, longestAsk) {
		err := t.admit(ctx)
		if err == nil {
			return nil
		}
		if !temporary(err) {
			return fmt.Errorf("take a task lease: %w", err)
		}
		refused := &exitError{exitTryAgain, fmt.Errorf("task refused: %w", err)}
		if !t.wait {
			return refused
		}
		if text := reasonText(err); text != last {
			t.say("waiting: %s", text)
			last = text
		}
		pause := wait
		var p *api.Problem
		if errors.As(err, &p) && p.RetryAfter > 0 {
			pause = min(p.RetryAfter.D(), longestAsk)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-limit:
			timer.Stop()
			return refused
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		case s := <-signals:
			timer.Stop()
			if n, ok := s.(syscall.Signal); ok && n != syscall.SIGWINCH {
				return &exitError{code: exitSignal + int(n)}
			}
		}
	}
}

func (t *task) admit(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	ttl := api.Duration(t.ttl)
	asked := time.Now()
	lease, err := t.local.Admit(ctx, api.AdmitTaskRequest{TaskID: ident.TaskID(t.id), TTL: &ttl, Detail: t.detail})
	if err != nil {
		return err
	}
	t.lease, t.until = lease, asked.Add(t.ttl)
	t.id = string(lease.TaskID)
	return nil
}

// temporary says whether a refusal may be none later.
func temporary(err error) bool {
	if p, ok := errors.AsType[*api.Problem](err); ok {
		return p.Status == 409 || p.Status == 429 || p.Status >= 500
	}
	return true // no agent answered
}

// reasonText is a refusal without what changes from try to try.
func reasonText(err error) string {
	if p, ok := errors.AsType[*api.Problem](err); ok {
		return p.Error()
	}
	if errors.Is(err, local.ErrNoAgent) {
		return local.ErrNoAgent.Error() + " on this machine"
	}
	return err.Error()
}

// supervise passes signals on and keeps the lease until the command ends. It says
// whether the command was ended because the lease was lost.
func (t *task) supervise(ctx context.Context, cmd *exec.Cmd, signals <-chan os.Signal) (lost bool) {
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended is in cmd.ProcessState
		close(ended)
	}()
	keepCtx, cancel := context.WithCancel(ctx)
	lostCh := make(chan struct{})
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		t.keep(keepCtx, lostCh)
	}()
	defer func() { cancel(); <-kept }()
	done := ctx.Done()
	var kill <-chan time.Time
	onTerminal := isTerminal(t.stdin)
	for {
		select {
		case <-ended:
			return lost
		case s := <-signals:
			// What the terminal's keys cause, the terminal sends to the command as well.
			if onTerminal && (s == syscall.SIGINT || s == syscall.SIGQUIT || s == syscall.SIGWINCH) {
				continue
			}
			_ = cmd.Process.Signal(s) // it may have ended this moment
		case <-lostCh:
			lostCh = nil
			lost = true
			t.say("lease lost: ending the command")
			_ = cmd.Process.Signal(syscall.SIGTERM)
			kill = time.After(stopPatience)
		case <-done:
			done = nil
			_ = cmd.Process.Signal(syscall.SIGTERM)
			kill = time.After(stopPatience)
		case <-kill:
			_ = cmd.Process.Kill()
		}
	}
}

// keep renews the lease until ctx ends. A lost one is asked for again, or lost is
// closed and keep returns.
func (t *task) keep(ctx context.Context, lost chan<- struct{}) {
	have := true
	next := t.ttl / 3
	warned := false
	for {
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		if !have {
			if err := t.admit(ctx); err == nil {
				have, warned, next = true, false, t.ttl/3
				t.say("lease taken again")
			}
			continue
		}
		err := t.renew(ctx)
		switch {
		case err == nil:
			if warned {
				t.say("lease renewed again")
			}
			warned, next = false, t.ttl/3
			continue
		case ctx.Err() != nil:
			return
		case !gone(err) && time.Now().Before(t.until):
			if !warned {
				warned = true
				t.say("lease not renewed, trying again until it ends in %s: %s", time.Until(t.until).Round(time.Second), reasonText(err))
			}
			next = min(max(t.ttl/20, 250*time.Millisecond), 5*time.Second, max(time.Until(t.until), 0))
			continue
		}
		have = false
		if t.stopWhenLost {
			close(lost)
			return
		}
		t.say("lease lost: the command goes on, but another task may run beside it: %s", reasonText(err))
		next = min(t.ttl/3, 5*time.Second)
	}
}

func (t *task) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, max(time.Second, min(callTime, time.Until(t.until))))
	defer cancel()
	ttl := api.Duration(t.ttl)
	asked := time.Now()
	lease, err := t.local.Renew(ctx, t.lease.TaskID, api.RenewTaskRequest{LeaseToken: t.lease.LeaseToken, TTL: &ttl})
	if err != nil {
		return err
	}
	if lease.LeaseToken != "" {
		t.lease.LeaseToken = lease.LeaseToken
	}
	t.until = asked.Add(t.ttl)
	return nil
}

// gone says whether the relay answered that the lease is no more.
func gone(err error) bool {
	var p *api.Problem
	return errors.As(err, &p) && (p.Status == 410 || p.Status == 404 || p.Status == 403)
}

// release gives the lease back. When that does not work it ends by itself.
func (t *task) release(outcome api.TaskOutcome) {
	ctx, cancel := context.WithTimeout(context.Background(), releaseTime)
	defer cancel()
	if err := t.local.Release(ctx, t.lease.TaskID, t.lease.LeaseToken, outcome); err != nil && !gone(err) {
		t.say("lease not given back, it ends by itself in %s: %s", max(0, time.Until(t.until)).Round(time.Second), reasonText(err))
	}
}

// isTerminal says whether a stream of the process is a terminal.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

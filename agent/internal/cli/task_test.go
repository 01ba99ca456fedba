package cli_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/agent/internal/local"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/testkit"
)

// localAPI is an agent's local interface whose answers the test chooses.
type localAPI struct {
	socket string
	mu     sync.Mutex
	calls  []string
	answer func(call string) *api.Problem // nil: granted
}

func (a *localAPI) list() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return strings.Join(a.calls, "\n")
}

func (a *localAPI) count(prefix string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for _, c := range a.calls {
		if strings.HasPrefix(c, prefix) {
			n++
		}
	}
	return n
}

func (a *localAPI) set(f func(string) *api.Problem) { a.mu.Lock(); defer a.mu.Unlock(); a.answer = f }

func startAPI(t *testing.T, answer func(string) *api.Problem) *localAPI {
	t.Helper()
	dir, err := os.MkdirTemp("", "adit") //nolint:usetesting // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	a := &localAPI{socket: filepath.Join(dir, "s"), answer: answer}
	l, err := local.ListenSocket(a.socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = local.Serve(ctx, l, a) }()
	t.Cleanup(func() { cancel(); <-done; _ = os.RemoveAll(dir) })
	return a
}

func (a *localAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var q struct {
		LeaseToken string `json:"lease_token"`
		TaskID     string `json:"task_id"`
	}
	_ = json.NewDecoder(r.Body).Decode(&q)
	call := r.Method + " " + r.URL.RequestURI()
	a.mu.Lock()
	a.calls = append(a.calls, call)
	answer := a.answer
	a.mu.Unlock()
	if answer != nil {
		if p := answer(call); p != nil {
			p.Write(w, "")
			return
		}
	}
	if r.Method != http.MethodPost && q.LeaseToken != "lt-secret" {
		api.NewProblem(api.CodeLeaseTokenInvalid, "wrong token").Write(w, "")
		return
	}
	id := q.TaskID
	if id == "" {
		id = "task-1"
	}
	fmt.Fprintf(w, `{"task_id":%q,"lease_token":"lt-secret","fencing_token":42}`, id)
}

type taskRun struct {
	cmd            *exec.Cmd
	stdout, stderr testkit.Buffer
}

// task starts `adit-agent task` as a process of its own.
func task(t *testing.T, a *localAPI, args ...string) *taskRun {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r := &taskRun{cmd: exec.CommandContext(t.Context(), self, append([]string{"task", "--socket", a.socket}, args...)...)}
	r.cmd.Env = append(os.Environ(), "ADIT_TEST_CLI=1", "GORACE="+noRaceWait, "ADIT_CREDENTIAL=ak-secret")
	r.cmd.Stdout, r.cmd.Stderr = &r.stdout, &r.stderr
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return r
}

// untilTold starts a task that runs until end is called, and then says "survived".
func untilTold(t *testing.T, a *localAPI, args ...string) (r *taskRun, end func()) {
	t.Helper()
	told := filepath.Join(t.TempDir(), "told")
	r = task(t, a, append(args, "--", "sh", "-c", `until [ -e "$0" ]; do sleep 0.05; done; echo survived`, told)...)
	return r, func() {
		if err := os.WriteFile(told, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func (r *taskRun) wait(t *testing.T) int {
	t.Helper()
	err := r.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return r.cmd.ProcessState.ExitCode()
}

func refusal(code api.Code) *api.Problem { return api.NewProblem(code, "because") }

func TestTaskHoldsALease(t *testing.T) {
	a := startAPI(t, nil)
	r := task(t, a, "--id", "job-7", "--", "sh", "-c", `echo "$ADIT_TASK_ID $ADIT_FENCING_TOKEN ${ADIT_CREDENTIAL-none}"; env | grep -c lt-secret; exit 0`)
	if code := r.wait(t); code != 0 {
		t.Fatalf("exit code %d: %s", code, r.stderr.String())
	}
	if out := r.stdout.String(); out != "job-7 42 none\n0\n" {
		t.Errorf("the command saw %q", out)
	}
	if got := a.list(); got != "POST /v1/tasks\nDELETE /v1/tasks/job-7?outcome=completed" {
		t.Errorf("the agent was asked\n%s", got)
	}
	if s := r.stderr.String(); s != "" {
		t.Errorf("stderr has %q", s)
	}
}

func TestTaskExitCodes(t *testing.T) {
	t.Parallel()
	a := startAPI(t, nil)
	for want, argv := range map[int][]string{
		3:   {"--", "sh", "-c", "exit 3"},
		137: {"--", "sh", "-c", "kill -9 $$"},
		127: {"--", "no-such-command-anywhere"},
		1:   {"sh", "-c", "exit 1"}, // without "--"
	} {
		if code := task(t, a, argv...).wait(t); code != want {
			t.Errorf("%v: exit code %d, expected %d", argv, code, want)
		}
	}
	if n := a.count("DELETE /v1/tasks/task-1?outcome=failed"); n != 3 {
		t.Errorf("%d leases were given back as failed, expected 3:\n%s", n, a.list())
	}
	if n := a.count("POST"); n != 3 {
		t.Errorf("%d leases were taken: a command that is not there must cost none", n)
	}
}

func TestTaskRefused(t *testing.T) {
	t.Parallel()
	a := startAPI(t, func(string) *api.Problem { return refusal(api.CodeAgentInTunnel) })
	r := task(t, a, "--", "touch", filepath.Join(t.TempDir(), "started"))
	if code := r.wait(t); code != 75 {
		t.Errorf("exit code %d, expected 75", code)
	}
	if s := r.stderr.String(); !strings.Contains(s, "task refused: agent_in_tunnel: because") {
		t.Errorf("stderr has %q", s)
	}
	a.set(func(string) *api.Problem { return refusal(api.CodeOutOfRange) })
	if code := task(t, a, "--", "true").wait(t); code != 1 {
		t.Errorf("a request that can never work gives exit code %d, expected 1", code)
	}
	a.set(func(string) *api.Problem { return refusal(api.CodeAgentBusy) })
	start := time.Now()
	if code := task(t, a, "--wait", "--wait-limit", "300ms", "--", "true").wait(t); code != 75 {
		t.Errorf("after the limit the exit code is %d", code)
	}
	testkit.Took(t, "a wait of 300 ms", time.Since(start), 10*time.Second)
}

func TestTaskWaits(t *testing.T) {
	t.Parallel()
	n := 0
	a := startAPI(t, nil)
	a.set(func(call string) *api.Problem {
		a.mu.Lock()
		defer a.mu.Unlock()
		if n++; n <= 2 {
			return refusal(api.CodeAgentBusy).WithRetry(time.Second)
		}
		return nil
	})
	r := task(t, a, "--wait", "--", "echo", "done")
	if code := r.wait(t); code != 0 || r.stdout.String() != "done\n" {
		t.Errorf("exit code %d, %q", code, r.stdout.String())
	}
	if s := r.stderr.String(); strings.Count(s, "waiting: agent_busy") != 1 {
		t.Errorf("stderr has %q, expected the reason once", s)
	}
}

func TestTaskPassesSignals(t *testing.T) {
	a := startAPI(t, nil)
	r := task(t, a, "--", "sh", "-c", `trap 'echo term; exit 5' TERM; trap 'echo usr1' USR1; echo ready; while :; do sleep 0.05; done`)
	testkit.Eventually(t, "the command runs", func() bool { return r.stdout.String() == "ready\n" })
	_ = r.cmd.Process.Signal(syscall.SIGUSR1)
	testkit.Eventually(t, "SIGUSR1 is passed on", func() bool { return strings.Contains(r.stdout.String(), "usr1") })
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	if code := r.wait(t); code != 5 || !strings.Contains(r.stdout.String(), "term") {
		t.Errorf("exit code %d, %q", code, r.stdout.String())
	}
	if a.count("DELETE") != 1 {
		t.Errorf("the lease was not given back:\n%s", a.list())
	}
}

func TestTaskSignalWhileWaiting(t *testing.T) {
	a := startAPI(t, func(string) *api.Problem { return refusal(api.CodeAgentBusy) })
	r := task(t, a, "--wait", "--", "true")
	testkit.Eventually(t, "it waits", func() bool { return strings.Contains(r.stderr.String(), "waiting") })
	_ = r.cmd.Process.Signal(syscall.SIGINT)
	if code := r.wait(t); code != 130 {
		t.Errorf("exit code %d, expected 130", code)
	}
}

func TestTaskRenews(t *testing.T) {
	t.Parallel()
	a := startAPI(t, nil)
	begun := time.Now()
	r, end := untilTold(t, a, "--ttl", "5s")
	testkit.Eventually(t, "the lease is renewed twice", func() bool { return a.count("PUT /v1/tasks/task-1") >= 2 })
	if d := time.Since(begun); d < 3*time.Second {
		t.Errorf("a lease of 5 s was renewed twice within %s", d)
	}
	end()
	if code := r.wait(t); code != 0 {
		t.Errorf("exit code %d: %s", code, r.stderr.String())
	}
}

func TestTaskGoesOnWhenTheLeaseIsLost(t *testing.T) {
	t.Parallel()
	lost := true
	a := startAPI(t, nil)
	a.set(func(call string) *api.Problem {
		a.mu.Lock()
		defer a.mu.Unlock()
		if strings.HasPrefix(call, "PUT") && lost {
			lost = false
			return refusal(api.CodeLeaseExpired)
		}
		return nil
	})
	r, end := untilTold(t, a, "--ttl", "5s")
	testkit.Eventually(t, "the lease is taken again", func() bool { return strings.Contains(r.stderr.String(), "lease taken again") })
	end()
	if code := r.wait(t); code != 0 || r.stdout.String() != "survived\n" {
		t.Errorf("exit code %d, %q", code, r.stdout.String())
	}
	if s := r.stderr.String(); !strings.Contains(s, "lease lost: the command goes on") {
		t.Errorf("stderr has %q", s)
	}
	if a.count("POST") != 2 {
		t.Errorf("the lease was not asked for again:\n%s", a.list())
	}
}

func TestTaskStopsWhenTheLeaseIsLost(t *testing.T) {
	t.Parallel()
	a := startAPI(t, func(call string) *api.Problem {
		if strings.HasPrefix(call, "PUT") {
			return refusal(api.CodeLeaseExpired)
		}
		return nil
	})
	r := task(t, a, "--stop-when-lost", "--ttl", "5s", "--", "sh", "-c", "trap 'echo term; exit 0' TERM; while :; do sleep 0.05; done")
	if code := r.wait(t); code != 75 || r.stdout.String() != "term\n" {
		t.Errorf("exit code %d, %q, stderr %q", code, r.stdout.String(), r.stderr.String())
	}
}

func TestTaskOutlivesAnOutageShorterThanItsLease(t *testing.T) {
	t.Parallel()
	a := startAPI(t, nil)
	n := 0
	a.set(func(call string) *api.Problem {
		a.mu.Lock()
		defer a.mu.Unlock()
		if strings.HasPrefix(call, "PUT") {
			if n++; n <= 3 {
				return refusal(api.CodeAgentOffline)
			}
		}
		return nil
	})
	r, end := untilTold(t, a, "--stop-when-lost", "--ttl", "12s")
	testkit.Eventually(t, "the lease is renewed again", func() bool { return strings.Contains(r.stderr.String(), "lease renewed again") })
	end()
	if code := r.wait(t); code != 0 {
		t.Errorf("exit code %d: %s", code, r.stderr.String())
	}
	if s := r.stderr.String(); !strings.Contains(s, "trying again") || strings.Contains(s, "lost") {
		t.Errorf("stderr has %q", s)
	}
}

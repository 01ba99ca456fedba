package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/testkit/wan"
)

// succeed calls the interface, and fails the test unless the answer is a success.
func succeed(r *world.Relay, secret, method, path string, body, out any) {
	r.W.T.Helper()
	if status, p := r.API(secret, method, path, body, out); status < 200 || status > 299 {
		r.W.T.Fatalf("%s %s: %d %v", method, path, status, p)
	}
}

// boxTask runs `adit-agent task …` on the agent's machine to its end, and returns
// its exit code and what it printed.
func boxTask(a *world.Agent, args ...string) (code int, stdout, stderr string) {
	a.W.T.Helper()
	cmd := exec.Command(filepath.Join(a.W.Bin, "adit-agent"), append([]string{"task"}, args...)...)
	cmd.Env = append(os.Environ(), a.Env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		a.W.T.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// While a tunnel is open and the relay cannot be reached, the box decides by itself,
// and says no; also when the agent died in between.
func TestTheBoxRefusesTasksWhenTheRelayIsAway(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	line := wan.Start(t, fmt.Sprintf("127.0.0.1:%d", r.Port), wan.Options{})
	a := w.Agent(r, "gpu-1", "ADIT_RELAY_URL=http://"+line.Addr())
	sk := r.Credential("integration", world.Team)
	if code, out, stderr := boxTask(a, "--", "echo", "ran"); code != 0 || out != "ran\n" {
		t.Fatalf("without a tunnel a task runs: exit %d %q %s", code, out, stderr)
	}
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": app(t, hello)})
	w.Eventually(5*time.Second, "the agent hears of the tunnel", func() bool {
		return strings.Contains(w.Run(a.Env, filepath.Join(w.Bin, "adit-agent"), "status", "--json"), string(tun.SessionID))
	})
	line.Cut()
	refusal := func(what, want string) {
		t.Helper()
		code, out, stderr := boxTask(a, "--", "echo", "ran")
		if code != 75 || out != "" || !strings.Contains(stderr, want) {
			t.Errorf("%s: exit %d, ran %q, says %q; want 75 and %q", what, code, out, stderr, want)
		}
	}
	refusal("the wire is cut, a tunnel was open", "tunnels were open when it was")
	a.Kill()
	a.Start()
	w.WaitPort(a.Local, 15*time.Second)
	refusal("the agent was killed meanwhile", "tunnels were open when it was")
	line.Heal()
	w.Eventually(20*time.Second, "the relay itself refuses again", func() bool {
		_, _, stderr := boxTask(a, "--", "true")
		return strings.Contains(stderr, "a tunnel is open on the agent")
	})
	if status, p := r.API(sk, http.MethodDelete, "/agents/gpu-1/tunnel", nil, nil); status != http.StatusOK {
		t.Fatalf("close: %d %v", status, p)
	}
	w.Eventually(10*time.Second, "tasks run again once the tunnel is closed", func() bool {
		code, _, _ := boxTask(a, "--", "true")
		return code == 0
	})
	line.Cut()
	refusal("without a tunnel and without a relay, which alone admits", "no link to a relay")
}

func TestTaskPassesExitCodesAndSignals(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	a := w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	for _, c := range []struct {
		name string
		args []string
		code int
	}{
		{"success", []string{"--", "true"}, 0},
		{"the command's own code", []string{"--", "sh", "-c", "exit 3"}, 3},
		{"a command ended by a signal", []string{"--", "sh", "-c", "kill -9 $$"}, 128 + 9},
		{"no such command", []string{"--", "no-such-command-anywhere"}, 127},
		{"not executable", []string{"--", w.WriteFile("plain", "text")}, 126},
		{"wrong usage", []string{"--ttl", "1s", "--", "true"}, 2},
	} {
		if code, _, stderr := boxTask(a, c.args...); code != c.code {
			t.Errorf("%s: exit %d, want %d: %s", c.name, code, c.code, stderr)
		}
	}
	if _, out, _ := boxTask(a, "--id", "train-7", "--", "sh", "-c", `echo "$ADIT_TASK_ID ${ADIT_FENCING_TOKEN:?}"`); !strings.HasPrefix(out, "train-7 ") {
		t.Errorf("the command finds its task in its environment: %q", out)
	}
	var before api.Agent
	succeed(r, sk, http.MethodGet, "/agents/gpu-1", nil, &before)
	if before.TasksCompleted != 2 || before.RunningCount != 0 {
		t.Errorf("the relay counts what completed: %d completed, %d running; want 2, 0", before.TasksCompleted, before.RunningCount)
	}

	marker := filepath.Join(w.Dir, "up")
	p := w.Start("adit-agent task", a.Env, filepath.Join(w.Bin, "adit-agent"), "task", "--id", "long", "--ttl", "5s", "--",
		"sh", "-c", `trap 'exit 9' TERM; trap 'echo usr1 >> "$0".usr1' USR1; touch "$0"; while :; do sleep 0.05; done`, marker)
	w.Eventually(10*time.Second, "the command runs", func() bool { _, err := os.Stat(marker); return err == nil })
	if code, _, stderr := boxTask(a, "--", "true"); code != 75 || !strings.Contains(stderr, "as many tasks as it takes") {
		t.Errorf("beside a running task: exit %d %s, want 75", code, stderr)
	}
	p.Signal(syscall.SIGUSR1)
	w.Eventually(5*time.Second, "SIGUSR1 is passed on", func() bool { _, err := os.Stat(marker + ".usr1"); return err == nil })
	<-time.After(6 * time.Second) // longer than the lease's time: it was renewed
	var during api.Agent
	succeed(r, sk, http.MethodGet, "/agents/gpu-1", nil, &during)
	if during.AgentStatus != api.StatusBusy || during.CurrentTaskID != "long" {
		t.Errorf("a lease of 5 s is kept for as long as the command runs: %+v", during)
	}
	p.Signal(syscall.SIGTERM)
	select {
	case <-p.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("SIGTERM reaches the command, which ends")
	}
	if code := p.Cmd.ProcessState.ExitCode(); code != 9 {
		t.Errorf("after SIGTERM the exit code is %d, want the command's own, 9", code)
	}
	w.Eventually(5*time.Second, "the lease was given back", func() bool {
		code, _, _ := boxTask(a, "--", "true")
		return code == 0
	})
}

// worker is the loop of the README: a job that is refused stays in the queue.
const worker = `
while [ -s "$QUEUE" ]; do
	job=$(head -n 1 "$QUEUE")
	"$AGENT" task --id "job-$job" -- sh -c 'echo "$0" >> "$DONE"; sleep 0.2' "$job"
	case $? in
	0) sed -i 1d "$QUEUE" ;;
	75) echo "$job" >> "$REFUSED"; sleep 0.3 ;;
	*) exit 1 ;;
	esac
done
`

func TestWorkerLoopRefusesWaitsAndGoesOn(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	a := w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	const jobs = 20
	var queue strings.Builder
	for i := range jobs {
		fmt.Fprintln(&queue, i)
	}
	done, refused := w.WriteFile("done", ""), w.WriteFile("refused", "")
	lines := func(path string) int {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Count(b, []byte("\n"))
	}
	p := w.Start("worker", append([]string{
		"QUEUE=" + w.WriteFile("queue", queue.String()), "DONE=" + done, "REFUSED=" + refused, "AGENT=" + filepath.Join(w.Bin, "adit-agent"),
	}, a.Env...), "sh", "-c", worker)
	w.Eventually(20*time.Second, "the worker works", func() bool { return lines(done) >= 3 })

	// Wait for the running job, keeping new ones out: then nothing runs beside people.
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": app(t, hello), "when_busy": "wait"})
	if tun.RunningTasks != 0 {
		t.Errorf("when_busy wait opened beside %d tasks", tun.RunningTasks)
	}
	at := lines(done)
	w.Eventually(10*time.Second, "the worker is refused", func() bool { return lines(refused) >= 3 })
	waiting := w.Start("adit-agent task --wait", a.Env, filepath.Join(w.Bin, "adit-agent"), "task", "--wait", "--", "true")
	if code, _, stderr := boxTask(a, "--wait", "--wait-limit", "1s", "--", "true"); code != 75 {
		t.Errorf("--wait-limit gives up with %d, want 75: %s", code, stderr)
	}
	if n := lines(done); n != at {
		t.Errorf("%d jobs began while the tunnel was open", n-at)
	}
	select {
	case <-waiting.Done():
		t.Errorf("--wait ended while the tunnel was open: %s", waiting.Log())
	default:
	}
	succeed(r, sk, http.MethodDelete, "/agents/gpu-1/tunnel", nil, nil)
	for what, ch := range map[string]<-chan struct{}{"the worker goes on and finishes its queue": p.Done(), "--wait runs its command": waiting.Done()} {
		select {
		case <-ch:
		case <-time.After(60 * time.Second):
			t.Fatal("expected within a minute: " + what)
		}
	}
	if code := p.Cmd.ProcessState.ExitCode(); code != 0 || lines(done) != jobs {
		t.Errorf("the worker ended with %d and did %d of %d jobs, each once:\n%s", code, lines(done), jobs, p.Log())
	}
	if code := waiting.Cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("--wait ended with %d: %s", code, waiting.Log())
	}
}

// What the machine says of itself decides, in the order of the API.
func TestMachineStatesKeepTasksAway(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	var healthy atomic.Bool
	health := app(t, func(w http.ResponseWriter, _ *http.Request) {
		if !healthy.Load() {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	a := w.Agent(r, "gpu-1", fmt.Sprintf("ADIT_HEALTH=http://127.0.0.1:%d/", health))
	sk := r.Credential("integration", world.Team)
	granted := 0
	expect := func(limit time.Duration, status api.AgentStatus, code string) {
		t.Helper()
		var last string
		w.Eventually(limit, fmt.Sprintf("the agent is %s and a task is answered %q", status, code), func() bool {
			var agent api.Agent
			var lease api.TaskLease
			_, _ = r.API(sk, http.MethodGet, "/agents/gpu-1", nil, &agent)
			st, p := r.API(sk, http.MethodPost, "/agents/gpu-1/tasks", nil, &lease)
			if st == http.StatusCreated {
				granted++
				succeed(r, sk, http.MethodDelete, "/agents/gpu-1/tasks/"+string(lease.TaskID), map[string]any{"lease_token": lease.LeaseToken}, nil)
				last = ""
			} else {
				last = string(p.Code)
			}
			return agent.AgentStatus == status && last == code
		})
	}
	adit := func(args ...string) { w.Run(a.Env, filepath.Join(w.Bin, "adit-agent"), args...) }
	expect(20*time.Second, api.StatusUnhealthy, "agent_unhealthy")
	if granted > 0 {
		t.Errorf("%d tasks were admitted before the first health check", granted)
	}
	r.Open(sk, "gpu-1", map[string]any{"target_port": app(t, hello)})
	expect(5*time.Second, api.StatusUnhealthy, "agent_unhealthy") // more than the tunnel
	healthy.Store(true)
	expect(40*time.Second, api.StatusTunnel, "agent_in_tunnel")
	adit("state", "syncing", "--detail", "models 3/12", "--percent", "25")
	expect(5*time.Second, api.StatusTunnel, "agent_in_tunnel") // more than syncing
	succeed(r, sk, http.MethodDelete, "/agents/gpu-1/tunnel", nil, nil)
	expect(5*time.Second, api.StatusSyncing, "agent_syncing")
	var agent api.Agent
	succeed(r, sk, http.MethodGet, "/agents/gpu-1", nil, &agent)
	if agent.SyncPhase != "syncing" || agent.SyncDetail != "models 3/12" || agent.SyncPercent == nil || *agent.SyncPercent != 25 {
		t.Errorf("the list says what is synced: %+v", agent)
	}
	a.Kill()
	a.Start()
	w.WaitPort(a.Local, 20*time.Second)
	expect(20*time.Second, api.StatusSyncing, "agent_syncing") // it holds until the machine reboots
	adit("state", "idle")
	expect(5*time.Second, api.StatusIdle, "")
	adit("pause")
	expect(5*time.Second, api.StatusIdle, "agent_paused")
	if status, p := r.API(sk, http.MethodPost, "/agents/gpu-1/tunnel", nil, nil); status != http.StatusConflict || p.Code != "agent_paused" {
		t.Errorf("a paused machine opens no tunnel: %d %v", status, p)
	}
	adit("resume")
	expect(5*time.Second, api.StatusIdle, "")
}

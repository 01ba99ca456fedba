package local_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/agent/internal/local"
	"github.com/adit-tunnel/adit/agent/internal/status"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/wire"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("ADIT_TEST_HOOKS"); dir != "" {
		hooksProcess(dir)
	}
	testkit.LeakCheck(m)
}

// table is a table of tunnels that the test sets.
type table struct {
	mu    sync.Mutex
	list  []wire.TunnelNotice
	known chan struct{}
	subs  map[chan struct{}]bool
}

func newTable(list ...wire.TunnelNotice) *table {
	return &table{list: list, known: make(chan struct{}), subs: map[chan struct{}]bool{}}
}

func (t *table) set(list ...wire.TunnelNotice) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.list = list
	select {
	case <-t.known:
	default:
		close(t.known)
	}
	for ch := range t.subs {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

func (t *table) List() []wire.TunnelNotice { t.mu.Lock(); defer t.mu.Unlock(); return t.list }
func (t *table) Count() int                { return len(t.List()) }
func (t *table) Known() <-chan struct{}    { return t.known }
func (t *table) Subscribe() (<-chan struct{}, func()) {
	ch := make(chan struct{}, 1)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.subs[ch] = true
	return ch, func() { t.mu.Lock(); defer t.mu.Unlock(); delete(t.subs, ch) }
}

func tunnel(n int) wire.TunnelNotice {
	return wire.TunnelNotice{Session: "0123456789abcdef0123456789abcde" + wireID(n), Port: uint16(8000 + n), Protocol: "http", Label: "a\x00b\n", OpenedBy: "user:alice", ExpiresAt: time.Now().Add(time.Hour)}
}

// script writes a shell script and returns its path.
func script(t *testing.T, dir, name, body string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\nset -eu\ncd '"+dir+"'\n"+body), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// logScript notes each run of a hook in the file "log".
const logScript = `echo "$ADIT_EVENT $ADIT_TUNNELS $ADIT_PORT ${ADIT_SESSION_ID#??????????????????????????????} $ADIT_AGENT_ID $ADIT_OPENED_BY [$ADIT_LABEL] ${ADIT_CREDENTIAL-none}" >>log
`

func lines(t *testing.T, dir string) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

type hooksWorld struct {
	dir      string
	tunnels  *table
	mu       sync.Mutex
	failures []*wire.HookFailure
	stop     func()
}

func (w *hooksWorld) last() *wire.HookFailure {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.failures) == 0 {
		return nil
	}
	return w.failures[len(w.failures)-1]
}

func runHooks(t *testing.T, dir string, tunnels *table, change func(*local.HooksConfig)) *hooksWorld {
	t.Helper()
	w := &hooksWorld{dir: dir, tunnels: tunnels}
	both := script(t, dir, "both", logScript)
	conf := local.HooksConfig{
		Opened: []string{both}, Closed: []string{both}, Timeout: 10 * time.Second, Agent: "box", Tunnels: tunnels,
		Path: filepath.Join(dir, "hooks.json"), Logger: testkit.Logger(t),
		Report: func(f *wire.HookFailure) { w.mu.Lock(); defer w.mu.Unlock(); w.failures = append(w.failures, f) },
	}
	if change != nil {
		change(&conf)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = local.NewHooks(conf).Run(ctx) }()
	w.stop = func() { cancel(); <-done }
	t.Cleanup(w.stop)
	return w
}

func TestHooksFollowFirstAndLastTunnel(t *testing.T) {
	t.Setenv("ADIT_CREDENTIAL", "ak-secret")
	w := runHooks(t, t.TempDir(), newTable(), nil)
	w.tunnels.set(tunnel(1))
	testkit.Eventually(t, "the opened hook runs", func() bool { return len(lines(t, w.dir)) == 1 && lines(t, w.dir)[0] != "" })
	if got := lines(t, w.dir)[0]; got != "opened 1 8001 e1 box user:alice [ab] none" {
		t.Errorf("the opened hook saw %q", got)
	}
	w.tunnels.set(tunnel(1), tunnel(2))
	w.tunnels.set(tunnel(2))
	w.tunnels.set()
	testkit.Eventually(t, "the closed hook runs", func() bool { return len(lines(t, w.dir)) == 2 })
	if got := lines(t, w.dir)[1]; !strings.HasPrefix(got, "closed 0 800") {
		t.Errorf("the closed hook saw %q", got)
	}
}

func TestHooksThatFailAreTriedAgain(t *testing.T) {
	dir := t.TempDir()
	flaky := script(t, dir, "flaky", logScript+`[ -e fixed ] || { echo "scontrol: no such node" >&2; touch fixed; exit 3; }`)
	w := runHooks(t, dir, newTable(), func(c *local.HooksConfig) { c.Opened = []string{flaky} })
	w.tunnels.set(tunnel(1))
	testkit.Eventually(t, "the failure is reported with what the hook said", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.failures) > 0 && w.failures[0] != nil && w.failures[0].Hook == "opened" && strings.Contains(w.failures[0].Detail, "no such node")
	})
	testkit.Eventually(t, "it is tried again and the failure is taken back", func() bool { return w.last() == nil && len(lines(t, dir)) == 2 })
}

func TestHookThatFailedHalfwayIsUndone(t *testing.T) {
	dir := t.TempDir()
	bad := script(t, dir, "bad", "touch half; exit 1\n")
	w := runHooks(t, dir, newTable(), func(c *local.HooksConfig) { c.Opened = []string{bad} })
	w.tunnels.set(tunnel(1))
	testkit.Eventually(t, "the failure is reported", func() bool { return w.last() != nil })
	w.tunnels.set()
	testkit.Eventually(t, "the closed hook undoes what the opened one did half", func() bool {
		return strings.HasPrefix(lines(t, dir)[0], "closed") && w.last() == nil
	})
}

func TestHookThatHangsIsEnded(t *testing.T) {
	t.Parallel() // it waits
	dir := t.TempDir()
	hang := script(t, dir, "hang", "echo $$ >pid\nsleep 600 & echo $! >child\nwait\n")
	w := runHooks(t, dir, newTable(), func(c *local.HooksConfig) {
		c.Opened, c.Timeout = []string{hang}, 3*time.Second
	})
	w.tunnels.set(tunnel(1))
	testkit.Eventually(t, "the time limit is reported", func() bool { return w.last() != nil && strings.Contains(w.last().Detail, "still running after") })
	w.stop()
	for _, name := range []string{"pid", "child"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		var pid int
		_, _ = fmt.Sscan(string(b), &pid)
		testkit.Eventually(t, "the hook's "+name+" is gone", func() bool { return !alive(pid) })
	}
}

// alive says whether a process runs; one that nobody waited for does not.
func alive(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(b), ") Z ")
}

func TestHookMayLeaveSomethingBehind(t *testing.T) {
	dir := t.TempDir()
	// What it leaves in the background holds its output open.
	leaves := script(t, dir, "leaves", logScript+"sleep 8 &\n")
	w := runHooks(t, dir, newTable(), func(c *local.HooksConfig) { c.Opened = []string{leaves} })
	w.tunnels.set(tunnel(1))
	testkit.Eventually(t, "the hook counts as run", func() bool {
		var s struct{ Phase string }
		return status.ReadJSON(filepath.Join(dir, "hooks.json"), &s) == nil && s.Phase == "opened"
	})
	if w.last() != nil {
		t.Errorf("reported %v", w.last())
	}
}

// hooksProcess is an agent's hooks in a process of their own, for a crash: a tunnel
// is open, and the hook never ends.
func hooksProcess(dir string) {
	tunnels := newTable()
	tunnels.set(tunnel(1))
	hook := filepath.Join(dir, os.Getenv("ADIT_TEST_HOOK"))
	_ = local.NewHooks(local.HooksConfig{
		Opened: []string{hook}, Closed: []string{hook}, Timeout: time.Hour, Agent: "box", Tunnels: tunnels,
		Path: filepath.Join(dir, "hooks.json"), Logger: testkitDiscard(), Report: func(*wire.HookFailure) {},
	}).Run(context.Background())
	os.Exit(0)
}

func TestCrashNeverLeavesTheMachineDrained(t *testing.T) {
	for name, hook := range map[string]string{
		"after the hook":  logScript,
		"during the hook": logScript + "exec sleep 600\n",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			script(t, dir, "child", hook)
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), self)
			cmd.Env = append(os.Environ(), "ADIT_TEST_HOOKS="+dir, "ADIT_TEST_HOOK=child")
			cmd.Stderr = os.Stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			want := "opened"
			if name == "during the hook" {
				want = "opening"
			}
			testkit.Eventually(t, "the child process drained the machine", func() bool {
				var s struct{ Phase string }
				return status.ReadJSON(filepath.Join(dir, "hooks.json"), &s) == nil && s.Phase == want && lines(t, dir)[0] != ""
			})
			_ = cmd.Process.Kill() // kill -9: no goodbye
			_ = cmd.Wait()

			// While the agent was away, the tunnel was closed.
			tunnels := newTable()
			w := runHooks(t, dir, tunnels, nil)
			<-time.After(100 * time.Millisecond)
			if n := len(lines(t, dir)); n != 1 {
				t.Fatalf("a hook ran before anybody knew which tunnels are open: %v", lines(t, dir))
			}
			tunnels.set()
			testkit.Eventually(t, "the next start finds it drained and undoes it", func() bool {
				l := lines(t, dir)
				var s struct{ Phase string }
				return len(l) == 2 && strings.HasPrefix(l[1], "closed 0 8001 e1") &&
					status.ReadJSON(filepath.Join(dir, "hooks.json"), &s) == nil && s.Phase == "closed"
			})
			w.stop()

			// And the start after that has nothing to do.
			again := newTable()
			again.set()
			w = runHooks(t, dir, again, nil)
			<-time.After(100 * time.Millisecond)
			w.stop()
			if n := len(lines(t, dir)); n != 2 {
				t.Errorf("hooks ran without a change: %v", lines(t, dir))
			}
		})
	}
}

func TestUnreachableRelayDoesNotLeaveTheMachineDrained(t *testing.T) {
	dir := t.TempDir()
	if err := status.WriteJSON(filepath.Join(dir, "hooks.json"), map[string]any{"phase": "opened", "last": tunnel(1)}); err != nil {
		t.Fatal(err)
	}
	runHooks(t, dir, newTable(), func(c *local.HooksConfig) { c.Settle = 50 * time.Millisecond })
	testkit.Eventually(t, "nothing is open by all that is known: the machine is given back", func() bool {
		return strings.HasPrefix(lines(t, dir)[0], "closed")
	})
}

func TestBrokenHookStateIsPutRight(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "hooks.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	tunnels := newTable()
	tunnels.set()
	runHooks(t, dir, tunnels, nil)
	testkit.Eventually(t, "the closed hook is run to be safe", func() bool { return strings.HasPrefix(lines(t, dir)[0], "closed") })
}

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
)

// machine is a GPU box on which nothing of Adit is configured yet.
type machine struct {
	w    *world.World
	dir  string
	home string
}

func newMachine(w *world.World, name string) *machine {
	m := &machine{w: w, dir: filepath.Join(w.Dir, name), home: filepath.Join(w.Dir, name, "home")}
	if err := os.MkdirAll(m.home, 0o700); err != nil {
		w.T.Fatal(err)
	}
	return m
}

func (m *machine) config() string     { return filepath.Join(m.dir, "etc", "agent.yaml") }
func (m *machine) credential() string { return filepath.Join(m.dir, "etc", "agent.credential") }

// enroll runs the command and returns its output, stdout and stderr, and exit code.
func (m *machine) enroll(env []string, args ...string) (string, int) {
	m.w.T.Helper()
	ctx, cancel := context.WithTimeout(m.w.T.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(m.w.Bin, "adit-agent"), append([]string{"enroll", "--config", m.config()}, args...)...)
	cmd.Env = append([]string{"HOME=" + m.home, "PATH=" + os.Getenv("PATH")}, env...)
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		m.w.T.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// enrollToken makes one over the admin socket.
func enrollToken(r *world.Relay, more ...string) string {
	r.W.T.Helper()
	args := append([]string{"enroll", "create", "--team", world.Team, "--socket", filepath.Join(r.DataDir, "admin.sock")}, more...)
	return strings.TrimSpace(r.W.Run(nil, filepath.Join(r.W.Bin, "adit-relay"), args...))
}

func TestFromTokenToTunnel(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	m := newMachine(w, "box")
	first := enrollToken(r, "--agent", "gpu-7")
	if !strings.HasPrefix(first, "en-") {
		t.Fatalf("enroll create prints the token alone: %q", first)
	}
	url := fmt.Sprintf("http://127.0.0.1:%d", r.Port)

	// What is wrong costs no token and leaves nothing.
	if out, code := m.enroll([]string{"ADIT_ENROLL_TOKEN=" + first}, "--relay-url", url, "--agent-id", "gpu-8"); code != 1 || !strings.Contains(out, "the token is for the agent gpu-7") {
		t.Errorf("another agent's token: %d %s", code, out)
	}
	if out, code := m.enroll(nil, "--relay-url", url, "--agent-id", "gpu-7"); code != 2 || !strings.Contains(out, "--token-file") {
		t.Errorf("without a token: %d %s", code, out)
	}
	for _, f := range []string{m.credential(), m.config()} {
		if _, err := os.Stat(f); !os.IsNotExist(err) {
			t.Errorf("%s is there after refusals: %v", f, err)
		}
	}

	out, code := m.enroll([]string{"ADIT_ENROLL_TOKEN=" + first}, "--relay-url", url, "--agent-id", "gpu-7")
	if code != 0 || !strings.Contains(out, "enrolled as gpu-7") || strings.Contains(out, "ak-") {
		t.Fatalf("enroll: %d %s", code, out)
	}
	info, err := os.Stat(m.credential())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the credential is its owner's alone: %v %v", info, err)
	}
	secret, err := os.ReadFile(m.credential())
	if err != nil || !strings.HasPrefix(string(secret), "ak-") {
		t.Fatalf("the credential file holds a credential: %v", err)
	}
	config, _ := os.ReadFile(m.config())
	for _, line := range []string{"relay_url: " + url, "agent_id: gpu-7", "credential_file: " + m.credential()} {
		if !strings.Contains(string(config), line+"\n") {
			t.Errorf("the configuration lacks %q:\n%s", line, config)
		}
	}
	left, err := os.ReadDir(filepath.Join(m.dir, "etc"))
	if err != nil || len(left) != 2 {
		t.Errorf("enrolling leaves two files: %v %v", left, err)
	}

	// Again: safe, with a token, a used one, or none.
	second := enrollToken(r)
	for _, env := range [][]string{nil, {"ADIT_ENROLL_TOKEN=" + first}, {"ADIT_ENROLL_TOKEN=" + second}} {
		if out, code := m.enroll(env, "--relay-url", url, "--agent-id", "gpu-7"); code != 0 || !strings.Contains(out, "already enrolled") {
			t.Errorf("again: %d %s", code, out)
		}
	}
	if now, _ := os.ReadFile(m.credential()); string(now) != string(secret) {
		t.Errorf("enrolling again changed the credential")
	}

	// A used token gives nobody anything, and says what to do.
	other := newMachine(w, "other")
	out, code = other.enroll([]string{"ADIT_ENROLL_TOKEN=" + first}, "--relay-url", url, "--agent-id", "gpu-7")
	if code != 1 || !strings.Contains(out, "used or expired") || !strings.Contains(out, "adit-relay enroll create") {
		t.Errorf("a used token: %d %s", code, out)
	}
	// The second token was not spent by the machine that needed none; from a file.
	file := filepath.Join(other.dir, "token")
	if err := os.WriteFile(file, []byte(second+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := other.enroll(nil, "--relay-url", url, "--agent-id", "gpu-9", "--token-file", file); code != 0 {
		t.Errorf("a token for any name, from a file: %d %s", code, out)
	}

	// What was written is all that the agent needs.
	w.Start("agent", []string{"HOME=" + m.home, fmt.Sprintf("ADIT_METRICS_LISTEN=127.0.0.1:%d", w.FreePort())},
		filepath.Join(w.Bin, "adit-agent"), "run", "--config", m.config(), "--state_dir", filepath.Join(m.dir, "state"))
	sk := r.Credential("integration", world.Team)
	w.Eventually(15*time.Second, "the relay lists the enrolled agent", func() bool {
		status, _ := r.Raw(sk, http.MethodGet, "/agents/gpu-7", nil)
		return status == http.StatusOK
	})
	tun := r.Open(sk, "gpu-7", map[string]any{"target_port": app(t, hello), "host_header": "public"})
	if status, body := world.Get(w.HTTP(), tun.TunnelURL); status != http.StatusOK || body != "hello from /" {
		t.Errorf("the tunnel to the enrolled machine: %d %q", status, body)
	}

	log := w.Run(nil, filepath.Join(w.Bin, "adit-relay"), "audit", "--socket", filepath.Join(r.DataDir, "admin.sock"))
	for event, n := range map[string]int{"enrolment_created": 2, "enrolment_taken": 2} {
		if got := strings.Count(log, `"event":"`+event+`"`); got != n {
			t.Errorf("the audit log has %s %d times, want %d", event, got, n)
		}
	}
	for _, s := range []string{first, second, strings.TrimSpace(string(secret))} {
		if strings.Contains(log, s) || strings.Contains(r.Log(), s) {
			t.Errorf("a secret is in the relay's audit or log")
		}
	}
}

func TestEnrollmentsAreLimited(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	good := enrollToken(r)
	limited := 0
	for range 40 {
		a := call(r, http.MethodPost, api.EnrollPath, `{"agent_id":"gpu-1"}`, "Authorization", "Bearer en-"+strings.Repeat("a", 40))
		switch {
		case a.Status == http.StatusTooManyRequests && a.Header.Get("Retry-After") != "":
			limited++
		case a.Status != http.StatusUnauthorized:
			t.Fatalf("an unknown token: %s", a)
		}
	}
	if limited < 15 {
		t.Errorf("of 40 tries at once %d were limited, want nearly half", limited)
	}
	m := newMachine(w, "box")
	out, code := m.enroll([]string{"ADIT_ENROLL_TOKEN=" + good}, "--relay-url", fmt.Sprintf("http://127.0.0.1:%d", r.Port), "--agent-id", "gpu-1")
	if code != 75 && code != 0 { // 0 when the tries took so long that one is free again
		t.Errorf("a machine that is limited is told to try again: %d %s", code, out)
	}
}

// enrollment asks for a credential with every secret that is no enrollment token.
func (m *matrix) enrollment(t *testing.T) {
	for _, c := range m.callers {
		want := "401 enrolment_refused"
		switch {
		case c.name == "nobody" || c.name == "an empty secret" || strings.HasPrefix(c.name, "two ") || strings.Contains(c.name, "Basic") || strings.Contains(c.name, "cookie"):
			want = unknown
		}
		// The limit by address lets 20 try at once, and one more every two seconds.
		var a answer
		m.r.W.Eventually(10*time.Second, "the limit lets another try", func() bool {
			a = m.ask(http.MethodPost, api.EnrollPath, `{"agent_id":"gpu-2"}`, c.header...)
			return a.Status != http.StatusTooManyRequests
		})
		if got := strings.TrimSpace(a.String()); got != want {
			t.Errorf("POST %s as %s: expected %s, got %s", api.EnrollPath, c.name, want, got)
		}
		m.guarded(t, "POST "+api.EnrollPath+" as "+c.name, a)
	}
}

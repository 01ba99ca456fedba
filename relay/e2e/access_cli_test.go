package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
)

// The command line says by its login who the user is, where a tunnel asks: in both forms of
// a tunnel's address, and to no other relay.
func TestTheLoginOpensOnesTeamsTunnels(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r, foreign := w.Relay("ADIT_WILDCARD_DOMAIN=localhost"), w.Relay("ADIT_WILDCARD_DOMAIN=localhost")
	w.Agent(r, "gpu-1")
	sk, stranger := r.Credential("integration", world.Team), foreign.Credential("integration", world.Team)
	adit := func(env []string, in string, args ...string) (out, errors string, code int) {
		cmd := exec.CommandContext(t.Context(), filepath.Join(w.Bin, "adit"), args...)
		cmd.Env = append(os.Environ(), append([]string{"HOME=" + t.TempDir()}, env...)...)
		cmd.Stdin = strings.NewReader(in)
		var o, e bytes.Buffer
		cmd.Stdout, cmd.Stderr = &o, &e
		_ = cmd.Run() // its exit code says how it went
		return o.String(), e.String(), cmd.ProcessState.ExitCode()
	}
	login := []string{"ADIT_URL=" + r.URL, "ADIT_TOKEN=" + sk}
	url, _, code := adit(login, "", "open", "gpu-1", "--port", fmt.Sprint(tcpEcho(t)), "--protocol", "tcp", "--access", "team")
	if code != 0 {
		t.Fatalf("adit open exits %d", code)
	}
	url = strings.TrimSpace(url)
	var st api.TunnelStatus
	r.API(sk, "GET", "/agents/gpu-1/tunnel", nil, &st)
	if len(st.Sessions) != 1 || st.Sessions[0].Access.Access != api.AccessTeam {
		t.Fatalf("the relay has %+v", st.Sessions)
	}
	id := st.Sessions[0].SessionID
	inPath := "ws" + strings.TrimPrefix(r.URL, "http") + "/tunnel/" + hostLabel(url) + "/"
	for _, at := range []string{url, inPath} {
		through := func(env []string) (string, string, int) {
			return adit(append([]string{"ADIT_TUNNEL_URL=" + at}, env...), "hello", "connect", "--stdio")
		}
		if out, errors, code := through(login); code != 0 || out != "hello" {
			t.Errorf("%s, logged in: %q, exit %d: %s", at, out, code, errors)
		}
		if _, errors, code := through(nil); code != 1 || !strings.Contains(errors, "access_required") {
			t.Errorf("%s, by nobody: exit %d: %s", at, code, errors)
		}
		if _, errors, code := through([]string{"ADIT_URL=" + foreign.URL, "ADIT_TOKEN=" + stranger}); code != 1 || !strings.Contains(errors, "access_required") {
			t.Errorf("%s, logged in elsewhere: exit %d: %s", at, code, errors)
		}
	}
	// A host that asks as a relay does is shown nothing: the login goes to its relay alone.
	var shown atomic.Value
	thief := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, q *http.Request) {
		if v := q.Header.Get(api.HeaderAuthorization) + q.Header.Get("Authorization"); v != "" {
			shown.Store(q.URL.Path)
		}
		api.NewProblem(api.CodeAccessRequired, "sign in").Write(rw, "req-1")
	}))
	t.Cleanup(thief.Close)
	at := "ws" + strings.TrimPrefix(thief.URL, "http") + "/tunnel/" + hostLabel(url) + "/"
	if out, errors, code := adit(append([]string{"ADIT_TUNNEL_URL=" + at}, login...), "hello", "connect", "--stdio"); code != 0 || out != "hello" {
		t.Errorf("through the relay of the login: %q, exit %d: %s", out, code, errors)
	}
	if v := shown.Load(); v != nil {
		t.Errorf("another host was shown the login, at %v", v)
	}
	// The doctor goes on to the app of a web tunnel that asks.
	web, _ := sharedApp(t)
	if _, errors, code := adit(login, "", "open", "gpu-1", "--port", fmt.Sprint(web), "--access", "team"); code != 0 {
		t.Errorf("adit open exits %d: %s", code, errors)
	}
	if out, errors, code := adit(login, "", "doctor", "gpu-1"); code != 0 || !strings.Contains(out, "accepts connections") || !strings.Contains(out, "answers 200") {
		t.Errorf("adit doctor exits %d: %s%s", code, out, errors)
	}
	out, errors, code := adit(login, "", "access", string(id), "--people", "alice@example.com")
	if code != 0 || strings.TrimSpace(out) != "alice@example.com" {
		t.Errorf("adit access: %q, exit %d: %s", out, code, errors)
	}
}

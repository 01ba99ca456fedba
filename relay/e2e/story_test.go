package e2e

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
)

// app starts a small HTTP app in this process and returns its port.
func app(t *testing.T, h http.HandlerFunc) int {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.Listener.Addr().(*net.TCPAddr).Port
}

// hello is an app that says where a request arrived.
func hello(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "hello from %s", r.URL.RequestURI())
}

func TestTunnelIsOpenedUsedAndClosed(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay(world.PathForm)
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	port := app(t, hello)
	c := w.HTTP()

	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": port, "label": "first"})
	if tun.TunnelProtocol != api.ProtocolHTTP || tun.TargetPort != port || len(tun.SessionID) != 32 || !strings.HasPrefix(tun.AdminToken, "adm-") {
		t.Fatalf("the answer to opening a tunnel keeps the contract's four fields: %+v", tun)
	}
	for _, base := range []string{r.HostURL(tun), r.PathURL(tun)} {
		if status, body := world.Get(c, base+"a/b?c=d"); status != http.StatusOK || body != "hello from /a/b?c=d" {
			t.Errorf("%s answered %d %q, want the app's page", base, status, body)
		}
	}
	var st api.TunnelStatus
	r.API(sk, http.MethodGet, "/agents/gpu-1/tunnel", nil, &st)
	if !st.IsActive || st.SessionID != tun.SessionID || st.TunnelURL != tun.TunnelURL || len(st.Sessions) != 1 || st.Sessions[0].BytesOut == 0 {
		t.Errorf("the status names the active session and its use: %+v", st)
	}
	var agent api.Agent
	r.API(sk, http.MethodGet, "/agents/gpu-1", nil, &agent)
	if agent.AgentStatus != api.StatusTunnel || agent.Tunnels != 1 {
		t.Errorf("the agent is in state tunnel while one is open: %+v", agent)
	}
	if status, p := r.API(sk, http.MethodPost, "/agents/gpu-1/tasks", map[string]any{}, nil); status != http.StatusConflict || p.Code != "agent_in_tunnel" {
		t.Errorf("no task is admitted beside a tunnel: %d %v", status, p)
	}
	var closed api.Closed
	if status, p := r.API(sk, http.MethodDelete, "/agents/gpu-1/tunnel?session_id="+string(tun.SessionID), nil, &closed); status != http.StatusOK || len(closed.Closed) != 1 {
		t.Fatalf("close: %d %v %v", status, p, closed)
	}
	if status, _ := world.Get(c, tun.TunnelURL); status != http.StatusNotFound {
		t.Errorf("a closed tunnel answers %d, want 404", status)
	}
	var lease api.TaskLease
	if status, p := r.API(sk, http.MethodPost, "/agents/gpu-1/tasks", map[string]any{}, &lease); status != http.StatusCreated || lease.FencingToken == 0 {
		t.Errorf("a task is admitted once the tunnel is closed: %d %v", status, p)
	}
}

func TestSixteenTunnelsOnOneAgent(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	c := w.HTTP()
	for i := range 16 {
		name := fmt.Sprintf("app %d", i)
		port := app(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(name)) })
		tun := r.Open(sk, "gpu-1", map[string]any{"target_port": port})
		if status, body := world.Get(c, tun.TunnelURL); status != http.StatusOK || body != name {
			t.Errorf("tunnel %d answered %d %q, want its own app", i, status, body)
		}
	}
	var st api.TunnelStatus
	r.API(sk, http.MethodGet, "/agents/gpu-1/tunnel", nil, &st)
	if len(st.Sessions) != 16 {
		t.Errorf("the status lists %d sessions, want 16", len(st.Sessions))
	}
}

func TestTwoPeopleOnOneTunnel(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	release := make(chan struct{})
	var inside atomic.Int32
	port := app(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/work" { // the agent's probe asks for /
			return
		}
		inside.Add(1)
		_ = http.NewResponseController(w).Flush()
		select {
		case <-release:
		case <-r.Context().Done():
		}
		_, _ = w.Write([]byte("done"))
	})
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": port, "host_header": "public"})
	type answer struct {
		status int
		body   string
	}
	answers := make(chan answer, 2)
	for _, agent := range []string{"alice", "bob"} {
		go func() {
			status, body := world.Get(w.HTTP(), tun.TunnelURL+"work", "User-Agent", agent)
			answers <- answer{status, body}
		}()
	}
	w.Eventually(5*time.Second, "both people's requests are in the app at once", func() bool { return inside.Load() == 2 })
	var v api.ViewerList
	r.API(tun.AdminToken, http.MethodGet, "/tunnels/"+string(tun.SessionID)+"/viewers", nil, &v)
	if len(v.Viewers) != 2 {
		t.Errorf("two people show as %d viewers: %+v", len(v.Viewers), v)
	}
	close(release)
	for range 2 {
		if a := <-answers; a.status != http.StatusOK || a.body != "done" {
			t.Errorf("one of the two got %+v", a)
		}
	}
}

func TestSecondAgentOfTheSameNameTakesOver(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	first := w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": app(t, hello)})

	second := w.NewAgent(r, "gpu-1")
	second.Start()
	w.Eventually(10*time.Second, "the first agent is told that another process took over", func() bool {
		return strings.Contains(first.Log(), "superseded")
	})
	status, body := world.Get(w.HTTP(), tun.TunnelURL)
	if status != http.StatusOK || body != "hello from /" {
		t.Errorf("the tunnel goes on through the second agent: %d %q", status, body)
	}
	second.Kill()
	first.Kill()
}

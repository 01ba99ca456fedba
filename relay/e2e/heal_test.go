package e2e

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/testkit/wan"
)

// healed measures the time from now until the URL answers 200 again.
func healed(w *world.World, url string, limit time.Duration) time.Duration {
	w.T.Helper()
	start := time.Now()
	c := w.HTTP()
	c.Timeout = limit
	w.Eventually(limit, "the same URL works again without anyone doing anything", func() bool {
		status, _ := world.Get(c, url)
		return status == http.StatusOK
	})
	return time.Since(start)
}

const healTime = 5 * time.Second

func TestRelayKilledAndRestarted(t *testing.T) {
	together(t)
	w := world.New(t)
	r := w.Relay()
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": app(t, hello)})
	other := r.Open(sk, "gpu-1", map[string]any{"target_port": 9, "label": "second"})
	var lease api.TaskLease
	for i := range 3 {
		r.Kill()
		r.Start()
		r.WaitReady(20 * time.Second)
		t.Logf("after kill %d the tunnel works %v after the relay is ready", i, healed(w, tun.TunnelURL, healTime))
	}
	var st api.TunnelStatus
	if status, p := r.API(sk, http.MethodGet, "/agents/gpu-1/tunnel", nil, &st); status != http.StatusOK || len(st.Sessions) != 2 {
		t.Errorf("both acknowledged tunnels and the credential survive: %d %v %+v", status, p, st)
	}
	if status, p := r.API(sk, http.MethodPost, "/agents/gpu-1/tasks", nil, &lease); status != http.StatusConflict || p.Code != "agent_in_tunnel" {
		t.Errorf("after the restart the gate still refuses: %d %v", status, p)
	}
	if status, p := r.API(other.AdminToken, http.MethodPost, "/tunnels/"+string(other.SessionID)+"/extend", map[string]any{"expires_in": "2h"}, nil); status != http.StatusOK {
		t.Errorf("an admin token from before the restart works: %d %v", status, p)
	}
}

func TestAgentKilledAndRestarted(t *testing.T) {
	together(t)
	w := world.New(t)
	r := w.Relay()
	a := w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": app(t, hello)})
	a.Kill()
	a.Start()
	t.Logf("the tunnel works %v after the agent was started", healed(w, tun.TunnelURL, healTime))
	if out := w.Run(a.Env, filepath.Join(w.Bin, "adit-agent"), "status", "--json"); !strings.Contains(out, string(tun.SessionID)) {
		t.Errorf("the fresh agent was told of the open tunnel: %s", out)
	}
}

// A stopped process is a machine that sleeps: its connections are half-open.
func TestAgentSleepsAndWakes(t *testing.T) {
	together(t)
	w := world.New(t)
	r := w.Relay()
	a := w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": app(t, hello)})
	a.Signal(syscall.SIGSTOP)
	w.Eventually(20*time.Second, "the relay notices within 15 s that the agent is gone", func() bool {
		return strings.Contains(r.Log(), "agent gone")
	})
	a.Signal(syscall.SIGCONT)
	t.Logf("the tunnel works %v after the agent woke", healed(w, tun.TunnelURL, healTime))
}

func TestLinkIsCut(t *testing.T) {
	together(t)
	w := world.New(t)
	r := w.Relay()
	line := wan.Start(t, fmt.Sprintf("127.0.0.1:%d", r.Port), wan.Options{})
	w.Agent(r, "gpu-1", "ADIT_RELAY_URL=http://"+line.Addr())
	sk := r.Credential("integration", world.Team)
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": app(t, hello)})
	for _, outage := range []time.Duration{time.Second, 5 * time.Second} {
		line.Cut()
		w.Eventually(time.Second, "a browser gets a page that says what is down and reloads itself", func() bool {
			c := w.HTTP()
			c.Timeout = 200 * time.Millisecond
			status, _ := world.Get(c, tun.TunnelURL)
			return status == 0 // held, not refused
		})
		<-time.After(outage) // the outage itself is the test
		line.Heal()
		t.Logf("after an outage of %v the tunnel works after %v", outage, healed(w, tun.TunnelURL, healTime))
	}
}

func TestHeldRequestIsAnsweredWhenTheAgentReturns(t *testing.T) {
	together(t)
	w := world.New(t)
	r := w.Relay()
	a := w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": app(t, hello)})
	a.Kill()
	type answer struct {
		status int
		body   string
	}
	got := make(chan answer, 1)
	go func() {
		status, body := world.Get(w.HTTP(), tun.TunnelURL+"held")
		got <- answer{status, body}
	}()
	select {
	case a := <-got:
		t.Fatalf("a request while the agent is away is held, not answered at once: %+v", a)
	case <-time.After(500 * time.Millisecond):
	}
	a.Start()
	if a := <-got; a.status != http.StatusOK || a.body != "hello from /held" {
		t.Errorf("the held request is answered by the app: %+v", a)
	}
}

func TestErrorsNameTheHop(t *testing.T) {
	together(t)
	w := world.New(t)
	r := w.Relay("ADIT_TUNNEL_HOLD=300ms")
	a := w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	c := w.HTTP()
	closed := r.Open(sk, "gpu-1", map[string]any{"target_port": w.FreePort()})
	if status, body := world.Get(c, closed.TunnelURL); status != http.StatusBadGateway || !strings.Contains(body, `"app_refused"`) || !strings.Contains(body, `"hop":"app"`) {
		t.Errorf("a closed port: %d %s, want 502 app_refused at the app", status, body)
	}
	if status, p := r.API(sk, http.MethodPost, "/agents/gpu-1/tunnel", map[string]any{"target_port": a.Local}, nil); status < 400 {
		tun := r.Open(sk, "gpu-1", map[string]any{"target_port": a.Local})
		if status, body := world.Get(c, tun.TunnelURL); status != http.StatusForbidden || !strings.Contains(body, `"hop":"agent"`) {
			t.Errorf("the agent's own port: %d %s, want 403 from the agent", status, body)
		}
	} else if p.Code != "port_not_allowed" {
		t.Errorf("the agent's own port: %v", p)
	}
	a.Kill()
	if status, body := world.Get(c, closed.TunnelURL); status != http.StatusServiceUnavailable || !strings.Contains(body, `"agent_offline"`) || !strings.Contains(body, `"hop":"link"`) {
		t.Errorf("an agent that is away: %d %s, want 503 agent_offline at the link", status, body)
	}
	if status, body := world.Get(c, closed.TunnelURL, "Accept", "text/html"); status != http.StatusServiceUnavailable || !strings.Contains(body, "<html") {
		t.Errorf("a browser gets a page: %d %s", status, body)
	}
	if status, p := r.API(sk, http.MethodPost, "/agents/gpu-1/tunnel", nil, nil); status != http.StatusConflict || p.Code != "agent_offline" {
		t.Errorf("opening on an agent that is away: %d %v, want 409 agent_offline", status, p)
	}
}

func TestClosedTunnelEndsItsConnections(t *testing.T) {
	together(t)
	w := world.New(t)
	r := w.Relay()
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	var open atomic.Int32
	port := app(t, func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		open.Add(1)
		defer open.Add(-1)
		for {
			typ, b, err := c.Read(r.Context())
			if err != nil {
				return
			}
			if c.Write(r.Context(), typ, b) != nil {
				return
			}
		}
	})
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": port})
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancel()
	c, _, err := websocket.Dial(ctx, "ws"+strings.TrimPrefix(r.HostURL(tun), "http")+"ws", &websocket.DialOptions{HTTPClient: w.HTTP()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.CloseNow() }()
	if err := c.Write(ctx, websocket.MessageText, []byte("hi")); err != nil {
		t.Fatal(err)
	}
	if _, b, err := c.Read(ctx); err != nil || string(b) != "hi" {
		t.Fatalf("the WebSocket echoes %q %v", b, err)
	}
	start := time.Now()
	r.API(sk, http.MethodDelete, "/agents/gpu-1/tunnel", nil, nil)
	_, _, err = c.Read(ctx)
	if code := websocket.CloseStatus(err); code != websocket.StatusGoingAway {
		t.Errorf("the WebSocket ends with %v, want close code 1001", err)
	}
	testkit.Took(t, "closing a tunnel ends its WebSocket", time.Since(start), time.Second)
	w.Eventually(3*time.Second, "the app sees its connection end too", func() bool { return open.Load() == 0 })
}

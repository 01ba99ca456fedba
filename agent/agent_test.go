package agent_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/agent"
	"github.com/adit-tunnel/adit/agent/internal/fakerelay"
	"github.com/adit-tunnel/adit/agent/internal/local"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/wire"
)

func TestMain(m *testing.M) { testkit.LeakCheck(m) }

type running struct {
	*agent.Agent
	conf  agent.Config
	local *local.Client
	stop  func() error
}

// configure returns the least that runs against a relay.
func configure(t *testing.T, relay string) agent.Config {
	t.Helper()
	dir, err := os.MkdirTemp("", "adit") //nolint:usetesting // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	c := agent.DefaultConfig()
	c.RelayURL, c.AgentID, c.Credential = []string{relay}, "box", fakerelay.Token
	c.StateDir, c.Local.Socket = filepath.Join(dir, "state"), filepath.Join(dir, "s")
	c.ExtraLinks = 0 // the test counts links
	c.Metrics.Listen, c.Local.Listen = "127.0.0.1:0", "127.0.0.1:0"
	c.Facts.ComfyUI = nil
	return c
}

func run(t *testing.T, c agent.Config) *running {
	t.Helper()
	ready := make(chan struct{})
	a, err := agent.New(c, agent.Options{Version: "v1", Logger: testkit.Logger(t), Registry: prometheus.NewRegistry(), Ready: func() { close(ready) }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatalf("the agent does not start: %v", err)
	}
	r := &running{Agent: a, conf: c, local: local.NewClient(c.Local.Socket)}
	stopped := false
	r.stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel(errors.New("the test stops the agent"))
		return <-done
	}
	t.Cleanup(func() { _ = r.stop() })
	return r
}

func appPort(t *testing.T, h http.HandlerFunc) uint16 {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	n, _ := strconv.Atoi(port)
	return uint16(n)
}

func TestOneDay(t *testing.T) {
	r := fakerelay.Start(t)
	r.Gate(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, `{"task_id":"job-1","lease_token":"lt-1","fencing_token":3}`)
	}))
	c := configure(t, r.URL)
	dir := filepath.Dir(c.StateDir)
	hook := filepath.Join(dir, "hook")
	if err := os.WriteFile(hook, []byte("#!/bin/sh\necho \"$ADIT_EVENT\" >>'"+dir+"/log'\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	c.Hooks.Opened, c.Hooks.Closed = []string{hook}, []string{hook}
	a := run(t, c)
	link := r.Next()

	// A tunnel opens: the hook runs, the app is reached.
	tunnel := wire.TunnelNotice{Session: "0123456789abcdef0123456789abcdef", Port: appPort(t, func(w http.ResponseWriter, q *http.Request) { fmt.Fprint(w, "hello "+q.Host) }), Protocol: "http", ExpiresAt: time.Now().Add(time.Hour)}
	link.Send(wire.Message{Type: wire.TypeTunnelOpened, TunnelOpened: &tunnel})
	log := func() string { b, _ := os.ReadFile(dir + "/log"); return string(b) }
	testkit.Eventually(t, "the opened hook ran", func() bool { return log() == "opened\n" })
	s := link.Open(wire.Hello{Kind: wire.KindTCP, Port: tunnel.Port, Session: tunnel.Session})
	fmt.Fprint(s, "GET / HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n")
	if b, err := io.ReadAll(s); err != nil || !strings.HasSuffix(string(b), "hello app") {
		t.Errorf("through the tunnel came %q, %v", b, err)
	}
	_ = s.Close()

	// Programs on the machine ask.
	rep, err := a.local.Report(t.Context())
	if err != nil || rep.AgentID != "box" || len(rep.Links.Up) != 1 || len(rep.Tunnels) != 1 || !rep.TunnelsKnown || rep.Links.Up[0].Relay != "fake" {
		t.Errorf("the report is %+v, %v", rep, err)
	}
	if lease, err := a.local.Admit(t.Context(), api.AdmitTaskRequest{}); err != nil || lease.FencingToken != 3 {
		t.Errorf("the lease is %+v, %v", lease, err)
	}

	// The kill switch ends what runs, and what is to come.
	s = link.Open(wire.Hello{Kind: wire.KindTCP, Port: tunnel.Port, Session: tunnel.Session})
	if err := s.Verdict(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := a.local.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(s); err == nil {
		t.Error("the pause ended a stream as if it were complete")
	}
	link.Expect(wire.TypeState, func(m wire.Message) bool { return m.State.Paused })
	if v := link.Verdict(wire.Hello{Kind: wire.KindTCP, Port: tunnel.Port}); v.Code != wire.CodePaused {
		t.Errorf("a stream to a paused machine gets %d %q", v.Code, v.Text)
	}

	// A restart changes nothing of that, and tells the relay what it knows.
	if err := a.stop(); err != nil {
		t.Fatalf("stopped with %v", err)
	}
	link.Expect(wire.TypeGoodbye, func(m wire.Message) bool { return m.Goodbye.Reason == wire.GoodbyeShutdown })
	a = run(t, c)
	link = r.Next()
	if !link.Hello.State.Paused || len(link.Hello.Tunnels) != 1 {
		t.Errorf("after a restart the hello is %+v", link.Hello)
	}
	// The welcome lists no tunnel: it was closed meanwhile.
	testkit.Eventually(t, "the closed hook ran", func() bool { return log() == "opened\nclosed\n" })
	if _, err := a.local.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if v := link.Verdict(wire.Hello{Kind: wire.KindTCP, Port: tunnel.Port}); v.Code != wire.CodeOK {
		t.Errorf("after resume a stream gets %d %q", v.Code, v.Text)
	}
}

func TestOwnPortsAreRefused(t *testing.T) {
	r := fakerelay.Start(t)
	a := run(t, configure(t, r.URL))
	link := r.Next()
	ports := agent.OwnPorts(a.Agent)
	if len(ports) != 2 {
		t.Fatalf("the agent has the ports %v", ports)
	}
	for _, port := range ports {
		if v := link.Verdict(wire.Hello{Kind: wire.KindTCP, Port: port}); v.Code != wire.CodePortNotAllowed {
			t.Errorf("the agent's own port %d gets %d %q", port, v.Code, v.Text)
		}
	}
	link.Send(wire.Message{Type: wire.TypeProbe, Probe: &wire.Probe{ID: 1, Port: ports[0]}})
	link.Expect(wire.TypeProbed, func(m wire.Message) bool { return m.Probed.ID == 1 && !m.Probed.Allowed && !m.Probed.Listening })
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", ports[1]))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	for _, name := range []string{"adit_agent_link_up 1", `adit_agent_streams_total{kind="tcp",outcome="port_not_allowed"} 2`, "adit_agent_link_rtt_seconds_count"} {
		if !strings.Contains(string(b), name) {
			t.Errorf("the metrics lack %s", name)
		}
	}
	if resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/debug/pprof/", ports[1])); err != nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("profiles are served without having been turned on: %v", err)
	} else {
		_ = resp.Body.Close()
	}
}

func TestPprofWhenWanted(t *testing.T) {
	c := configure(t, "http://127.0.0.1:1")
	c.Metrics.Pprof = true
	a := run(t, c)
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/debug/pprof/cmdline", agent.OwnPorts(a.Agent)[1]))
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("profiles are not served: %v", err)
	}
	_ = resp.Body.Close()
}

func TestTwoAgentsDoNotShareAState(t *testing.T) {
	r := fakerelay.Start(t)
	c := configure(t, r.URL)
	run(t, c)
	second, err := agent.New(c, agent.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "another agent") {
		t.Errorf("a second agent over the same state ended with %v", err)
	}
}

func TestTakenPortIsAnError(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := configure(t, "http://127.0.0.1:1")
	c.Metrics.Listen = l.Addr().String()
	a, err := agent.New(c, agent.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "metrics.listen") {
		t.Errorf("a taken port gives %v", err)
	}
	if _, err := os.Stat(c.Local.Socket); !errors.Is(err, os.ErrNotExist) {
		t.Error("the socket is left behind")
	}
}

func TestInvalidConfigIsRefused(t *testing.T) {
	if _, err := agent.New(agent.Config{}, agent.Options{}); err == nil {
		t.Error("an empty configuration was taken")
	}
}

func TestReplacedCredentialIsTakenUp(t *testing.T) {
	r := fakerelay.Start(t)
	c := configure(t, r.URL)
	c.Credential, c.CredentialFile = "", filepath.Join(filepath.Dir(c.StateDir), "credential")
	if err := os.WriteFile(c.CredentialFile, []byte(fakerelay.Token.Reveal()), 0o600); err != nil {
		t.Fatal(err)
	}
	a := run(t, c)
	link := r.Next()
	if err := os.WriteFile(c.CredentialFile, []byte("ak-wrong"), 0o600); err != nil {
		t.Fatal(err)
	}
	_ = link.Link.Close(errors.New("lost"))
	testkit.Eventually(t, "the new credential was used, and refused", func() bool {
		return strings.Contains(a.Report().Links.LastError, "unauth")
	})
}

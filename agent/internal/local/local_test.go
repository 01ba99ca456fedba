package local_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/adit-tunnel/adit/agent/internal/local"
	"github.com/adit-tunnel/adit/agent/internal/status"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/testkit"
)

func wireID(n int) ident.SessionID { return ident.SessionID(fmt.Sprint(n)) }
func testkitDiscard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// relayLink is the way to a relay's gate that is a plain server.
type relayLink struct {
	addr string
	mu   sync.Mutex
	err  error // set: the link is down
}

func (l *relayLink) down(err error) { l.mu.Lock(); defer l.mu.Unlock(); l.err = err }
func (l *relayLink) Wait(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}
func (l *relayLink) OpenGate(ctx context.Context, _ ident.RequestID) (net.Conn, error) {
	if err := l.Wait(ctx); err != nil {
		return nil, err
	}
	return new(net.Dialer).DialContext(ctx, "tcp", l.addr)
}

type localWorld struct {
	client  *local.Client
	link    *relayLink
	tunnels *table
	board   *status.Board
	reg     *prometheus.Registry
	socket  string
	server  *local.Server
	paused  []bool
}

func newWorld(t *testing.T, relay http.HandlerFunc) *localWorld {
	t.Helper()
	server := httptest.NewServer(relay)
	t.Cleanup(server.Close)
	w := &localWorld{link: &relayLink{addr: server.Listener.Addr().String()}, tunnels: newTable(), reg: prometheus.NewRegistry()}
	w.board = status.NewBoard(filepath.Join(t.TempDir(), "state.json"))
	w.server = local.New(local.Config{
		Agent: "box", Link: w.link, Tunnels: w.tunnels, Board: w.board,
		Report: func() status.Report { return status.Report{AgentID: "box", Version: "v9"} },
		Pause: func(p bool) error {
			w.paused = append(w.paused, p)
			return w.board.SetPaused(p)
		},
		Metrics: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, "# metrics") }),
		Hold:    100 * time.Millisecond, CallTime: 2 * time.Second, Logger: testkitDiscard(), Registerer: w.reg,
	})
	dir, err := os.MkdirTemp("", "adit") //nolint:usetesting // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w.socket = filepath.Join(dir, "run", "agent.sock")
	l, err := local.ListenSocket(w.socket)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, l, w.server.Socket())
	w.client = local.NewClient("/does/not/exist.sock", w.socket)
	return w
}

func serve(t *testing.T, l net.Listener, h http.Handler) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = local.Serve(ctx, l, h) }()
	t.Cleanup(func() { cancel(); <-done })
}

func problem(t *testing.T, err error) *api.Problem {
	t.Helper()
	var p *api.Problem
	if !errors.As(err, &p) {
		t.Fatalf("expected a problem, got %v", err)
	}
	return p
}

func TestTaskCallsReachTheRelay(t *testing.T) {
	var got []string
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got = append(got, r.Method+" "+r.URL.RequestURI()+" "+string(b))
		if r.Header.Get(api.HeaderRequestID) == "" {
			t.Error("the relay got no request id")
		}
		if r.Method == http.MethodDelete {
			rw.WriteHeader(http.StatusNoContent)
			return
		}
		rw.Header().Set("Content-Type", "application/json")
		if r.Method == http.MethodPost {
			rw.WriteHeader(http.StatusCreated)
		}
		_ = json.NewEncoder(rw).Encode(api.TaskLease{TaskID: "job-1", LeaseToken: "lt-abc", FencingToken: 7})
	})
	ttl := api.Duration(time.Minute)
	lease, err := w.client.Admit(t.Context(), api.AdmitTaskRequest{TaskID: "job-1", TTL: &ttl})
	if err != nil || lease.LeaseToken != "lt-abc" || lease.FencingToken != 7 {
		t.Fatalf("admitted %+v, %v", lease, err)
	}
	if _, err := w.client.Renew(t.Context(), "job-1", api.RenewTaskRequest{LeaseToken: "lt-abc"}); err != nil {
		t.Fatal(err)
	}
	if err := w.client.Release(t.Context(), "job-1", "lt-abc", "completed"); err != nil {
		t.Fatal(err)
	}
	want := []string{
		`POST /api/v1/agents/box/tasks {"task_id":"job-1","ttl":"1m0s"}`,
		`PUT /api/v1/agents/box/tasks/job-1 {"lease_token":"lt-abc"}`,
		`DELETE /api/v1/agents/box/tasks/job-1?outcome=completed {"lease_token":"lt-abc"}`,
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("the relay got\n%s\nexpected\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestRelaysRefusalPassesAsItIs(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, _ *http.Request) {
		api.NewProblem(api.CodeAgentBusy, "1 of 1 tasks runs").WithRetry(7*time.Second).Write(rw, "r")
	})
	_, err := w.client.Admit(t.Context(), api.AdmitTaskRequest{})
	p := problem(t, err)
	if p.Code != "agent_busy" || p.Status != 409 || p.Hop != api.HopRelay || p.RetryAfter.D() != 7*time.Second {
		t.Errorf("the caller got %+v", p)
	}
	if n := testutil.CollectAndCount(w.reg, "adit_agent_gate_refusals_total"); n != 1 {
		t.Errorf("%d kinds of refusal counted", n)
	}
}

func TestWithoutRelay(t *testing.T) {
	calls := 0
	w := newWorld(t, func(http.ResponseWriter, *http.Request) { calls++ })
	w.link.down(errors.New("no link"))
	_, err := w.client.Admit(t.Context(), api.AdmitTaskRequest{})
	if p := problem(t, err); p.Status != 503 || p.Code != "agent_offline" || p.Hop != api.HopLink || p.RetryAfter == 0 {
		t.Errorf("without a relay and without a tunnel a task gets %+v", p)
	}
	w.tunnels.set(tunnel(1))
	_, err = w.client.Admit(t.Context(), api.AdmitTaskRequest{})
	if p := problem(t, err); p.Status != 409 || p.Code != "agent_in_tunnel" || p.Hop != api.HopAgent {
		t.Errorf("without a relay, while a tunnel is open, a task gets %+v", p)
	}
	// A lease that runs is not the tunnel's business.
	_, err = w.client.Renew(t.Context(), "job-1", api.RenewTaskRequest{LeaseToken: "lt-x"})
	if p := problem(t, err); p.Status != 503 || p.Code != "agent_offline" {
		t.Errorf("a renewal without a relay gets %+v", p)
	}
	if calls != 0 {
		t.Error("the relay was called over a link that is down")
	}
}

func TestRelayThatHangsOrBreaks(t *testing.T) {
	w := newWorld(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // only then the server sees the caller go
		if strings.Contains(r.URL.Path, "hang") {
			<-r.Context().Done()
		}
		panic(http.ErrAbortHandler)
	})
	w.tunnels.set(tunnel(1))
	_, err := w.client.Admit(t.Context(), api.AdmitTaskRequest{})
	if p := problem(t, err); p.Code != "agent_in_tunnel" {
		t.Errorf("a relay that broke off gives %+v", p)
	}
	start := time.Now()
	_, err = w.client.Renew(t.Context(), "hang", api.RenewTaskRequest{})
	if p := problem(t, err); p.Code != "agent_offline" {
		t.Errorf("a relay that hangs gives %+v", p)
	}
	testkit.Took(t, "a relay that hangs is given up", time.Since(start), 5*time.Second)
}

func TestStateAndPause(t *testing.T) {
	w := newWorld(t, nil)
	percent := 25.0
	if s, err := w.client.Declare(t.Context(), local.StateRequest{Phase: "syncing", Detail: "models", Percent: &percent}); err != nil || s.SyncPhase != "syncing" {
		t.Fatalf("declared %+v, %v", s, err)
	}
	if s := w.board.State(); s.SyncPhase != "syncing" || *s.SyncPercent != 25 {
		t.Errorf("the board has %+v", s)
	}
	percent = 101
	_, err := w.client.Declare(t.Context(), local.StateRequest{Phase: "syncing", Percent: &percent})
	if p := problem(t, err); p.Status != 422 {
		t.Errorf("101 percent gets %+v", p)
	}
	if s, err := w.client.Pause(t.Context()); err != nil || !s.Paused {
		t.Errorf("paused: %+v, %v", s, err)
	}
	if s, err := w.client.Resume(t.Context()); err != nil || s.Paused {
		t.Errorf("resumed: %+v, %v", s, err)
	}
	if len(w.paused) != 2 || !w.paused[0] || w.paused[1] {
		t.Errorf("the switch was thrown %v", w.paused)
	}
	if r, err := w.client.Report(t.Context()); err != nil || r.Version != "v9" {
		t.Errorf("the report is %+v, %v", r, err)
	}
}

func TestSocket(t *testing.T) {
	w := newWorld(t, nil)
	info, err := os.Stat(w.socket)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("the socket has mode %v, %v", info.Mode(), err)
	}
	if _, err := local.ListenSocket(w.socket); err == nil {
		t.Error("a socket that an agent serves was taken over")
	}
	// One that a crash left behind is.
	stale := filepath.Join(filepath.Dir(w.socket), "stale.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	l2, err := local.ListenSocket(stale)
	if err != nil {
		t.Fatalf("a stale socket stays in the way: %v", err)
	}
	_ = l2.Close()
	file := filepath.Join(filepath.Dir(w.socket), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := local.ListenSocket(file); err == nil {
		t.Error("a file was replaced by a socket")
	}
	_, err = local.NewClient(file + "-none").Report(t.Context())
	if !errors.Is(err, local.ErrNoAgent) {
		t.Errorf("without an agent the client says %v", err)
	}
}

func TestLoopbackRefusesBrowsers(t *testing.T) {
	w := newWorld(t, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, l, w.server.Loopback())
	_, port, _ := net.SplitHostPort(l.Addr().String())
	tests := []struct {
		name         string
		method, path string
		host         string
		header       map[string]string
		want         int
	}{
		{"a program", "GET", "/v1/status", "127.0.0.1:" + port, nil, 200},
		{"by name", "GET", "/v1/status", "localhost:" + port, nil, 200},
		{"by IPv6", "GET", "/v1/status", "[::1]:" + port, nil, 200},
		{"a name that was pointed here", "GET", "/v1/status", "evil.example.com:" + port, nil, 421},
		{"a name that looks local", "GET", "/v1/status", "127.0.0.1.evil.example.com", nil, 421},
		{"no host", "GET", "/v1/status", "", nil, 421},
		{"a page's script", "GET", "/v1/status", "127.0.0.1:" + port, map[string]string{"Origin": "https://evil.example.com"}, 403},
		{"a page without origin", "GET", "/v1/status", "127.0.0.1:" + port, map[string]string{"Origin": "null"}, 403},
		{"a local page", "GET", "/v1/status", "127.0.0.1:" + port, map[string]string{"Origin": "http://localhost:3000"}, 200},
		{"a page's image", "GET", "/v1/status", "127.0.0.1:" + port, map[string]string{"Sec-Fetch-Site": "cross-site"}, 403},
		{"a page's form", "POST", "/v1/pause", "127.0.0.1:" + port, map[string]string{"Content-Type": "application/x-www-form-urlencoded"}, 415},
		{"a page's plain text", "POST", "/v1/pause", "127.0.0.1:" + port, map[string]string{"Content-Type": "text/plain"}, 415},
		{"no type", "POST", "/v1/pause", "127.0.0.1:" + port, nil, 415},
		{"a program's write", "POST", "/v1/pause", "127.0.0.1:" + port, map[string]string{"Content-Type": "application/json"}, 200},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			var b bytes.Buffer
			fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nContent-Length: 0\r\n", tt.method, tt.path, tt.host)
			for k, v := range tt.header {
				fmt.Fprintf(&b, "%s: %s\r\n", k, v)
			}
			b.WriteString("\r\n")
			_, _ = c.Write(b.Bytes())
			answer, _ := io.ReadAll(c)
			if want := fmt.Sprintf("HTTP/1.1 %d ", tt.want); !strings.HasPrefix(string(answer), want) {
				t.Errorf("answered %.60q, expected %d", answer, tt.want)
			}
		})
	}
}

func TestBadRequests(t *testing.T) {
	w := newWorld(t, func(http.ResponseWriter, *http.Request) { t.Error("a bad call reached the relay") })
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", w.socket)
	}}}
	tests := []struct {
		method, path, body string
		want               int
	}{
		{"POST", "/v1/state", `{"phase":"syncing","extra":1}`, 400},
		{"POST", "/v1/state", `{"phase":"syncing"} {}`, 400},
		{"POST", "/v1/state", `{"phase":7}`, 400},
		{"POST", "/v1/tasks", strings.Repeat("x", 65<<10), 413},
		{"PUT", "/v1/tasks/a%2F..%2Fb", `{}`, 400},
		{"GET", "/v1/nothing", "", 404},
		{"DELETE", "/v1/status", "", 404},
	}
	for _, tt := range tests {
		req, _ := http.NewRequestWithContext(t.Context(), tt.method, "http://localhost"+tt.path, strings.NewReader(tt.body))
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != tt.want && !(tt.want == 404 && resp.StatusCode == 405) {
			t.Errorf("%s %s: %d %s, expected %d", tt.method, tt.path, resp.StatusCode, b, tt.want)
		}
	}
	for _, path := range []string{"/healthz", "/metrics"} {
		resp, err := client.Get("http://localhost" + path)
		if err != nil || resp.StatusCode != 200 {
			t.Errorf("%s: %v", path, err)
		}
		_ = resp.Body.Close()
	}
}

func TestMetricNames(t *testing.T) {
	w := newWorld(t, nil)
	local.NewHooks(local.HooksConfig{Registerer: w.reg})
	problems, err := testutil.GatherAndLint(w.reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
}

package uplink_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/adit-tunnel/adit/agent/internal/desk"
	"github.com/adit-tunnel/adit/agent/internal/fakerelay"
	"github.com/adit-tunnel/adit/agent/internal/forward"
	"github.com/adit-tunnel/adit/agent/internal/status"
	"github.com/adit-tunnel/adit/agent/internal/uplink"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/carrier"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/splice"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/wire"
)

// world is an uplink with a real desk behind it.
type world struct {
	t       *testing.T
	up      *uplink.Uplink
	board   *status.Board
	desk    *desk.Desk
	tunnels *uplink.Tunnels
	reg     *prometheus.Registry
	stop    func() // ends the uplink and waits
}

func start(t *testing.T, change func(*uplink.Config), urls ...string) *world {
	t.Helper()
	w := &world{t: t, reg: prometheus.NewRegistry()}
	w.board = status.NewBoard(filepath.Join(t.TempDir(), "state.json"))
	w.tunnels = uplink.NewTunnels(filepath.Join(t.TempDir(), "tunnels.json"), testkit.Logger(t))
	ports, _ := api.ParsePorts("1-65535")
	w.desk = desk.New(desk.Config{
		Ports: ports, OwnPorts: func() []uint16 { return nil }, Epoch: func() uint64 { return w.up.Epoch() },
		Paused: w.board.Paused, Closed: w.tunnels.Closed,
		Dial:   func(ctx context.Context, port uint16) (splice.Conn, error) { return forward.Dial(ctx, port) },
		Logger: testkit.Logger(t),
	})
	conf := uplink.Config{
		RelayURLs: urls, Links: 1, Agent: "box", Version: "v1", Platform: "linux/amd64",
		Labels: map[string]string{"rack": "7"}, Capabilities: []string{wire.CapProbe}, TaskCapacity: 2,
		Dial: func(ctx context.Context, url string) (*link.Link, error) {
			return link.Dial(ctx, carrier.DialOptions{URL: url, Token: fakerelay.Token}, link.Config{KeepAlive: time.Second})
		},
		Machine: w.board, Desk: w.desk, Tunnels: w.tunnels, Logger: testkit.Logger(t), Registerer: w.reg,
		Probe: func(_ context.Context, q wire.Probe) wire.Probed {
			if q.Port == 666 {
				panic("strange app")
			}
			return wire.Probed{ID: q.ID, Listening: true, App: "comfyui"}
		},
		StopGrace: 3 * time.Second,
	}
	if change != nil {
		change(&conf)
	}
	w.up = uplink.New(conf)
	ctx, cancel := context.WithCancelCause(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = w.up.Run(ctx) })
	w.stop = func() { cancel(errors.New("stop")); wg.Wait() }
	t.Cleanup(w.stop)
	return w
}

func TestIntroducesItself(t *testing.T) {
	r := fakerelay.Start(t)
	w := start(t, nil, r.URL)
	c := r.Next()
	h := c.Hello
	if h.Agent != "box" || h.Version != "v1" || h.Platform != "linux/amd64" || h.Labels["rack"] != "7" || h.TaskCapacity != 2 ||
		!slices.Contains(h.Capabilities, wire.CapProbe) || h.Generation != 0 || len(h.Instance) != 32 {
		t.Errorf("the hello is %+v", h)
	}
	testkit.Eventually(t, "the uplink is online with the relay's generation", func() bool { return w.up.Online() && w.up.Epoch() == c.Generation })
	// Relays of the last release ask on the control stream.
	c.Send(wire.Message{Type: wire.TypePing, Ping: &wire.Ping{ID: 77, Sent: 5}})
	c.Expect(wire.TypePong, func(m wire.Message) bool { return m.Ping.ID == 77 && m.Ping.Sent == 5 })
	testkit.Eventually(t, "the round trip is measured", func() bool { return len(w.up.Status().Up) == 1 && w.up.Status().Up[0].RTTMillis > 0 })
}

func TestChangesAreSentAtOnce(t *testing.T) {
	r := fakerelay.Start(t)
	w := start(t, nil, r.URL)
	c := r.Next()
	testkit.Eventually(t, "the agent is online", w.up.Online)
	if err := w.board.Declare("syncing", "models", nil); err != nil {
		t.Fatal(err)
	}
	c.Expect(wire.TypeState, func(m wire.Message) bool { return m.State.SyncPhase == "syncing" })
	w.board.Update(func(f *wire.Facts) { f.Unhealthy = "ComfyUI does not answer" })
	c.Expect(wire.TypeFacts, func(m wire.Message) bool { return m.Facts.Unhealthy != "" && m.Facts.Link != nil })
}

func TestUnknownMessagesAreIgnoredAndProbesAnswered(t *testing.T) {
	r := fakerelay.Start(t)
	start(t, nil, r.URL)
	c := r.Next()
	c.Raw([]byte(`{"v":9,"type":"from_the_future","hello":{"surprise":[1,2,3]},"x":{"y":1}}` + "\n"))
	c.Send(wire.Message{Type: wire.TypeProbe, Probe: &wire.Probe{ID: 3, Port: 666}})
	c.Send(wire.Message{Type: wire.TypeProbe, Probe: &wire.Probe{ID: 4, Port: 8188}})
	c.Expect(wire.TypeProbed, func(m wire.Message) bool { return m.Probed.ID == 4 && m.Probed.App == "comfyui" })
}

func TestTunnelNotices(t *testing.T) {
	r := fakerelay.Start(t)
	a, b := notice('a', time.Hour), notice('b', time.Hour)
	r.SetTunnels(a)
	w := start(t, nil, r.URL)
	c := r.Next()
	testkit.Eventually(t, "the welcome's tunnel is known", func() bool { return w.tunnels.Count() == 1 })
	c.Send(wire.Message{Type: wire.TypeTunnelOpened, TunnelOpened: &b})
	testkit.Eventually(t, "the opened tunnel is known", func() bool { return w.tunnels.Count() == 2 })
	c.Send(wire.Message{Type: wire.TypeTunnelClosed, TunnelClosed: &a})
	testkit.Eventually(t, "the closed tunnel is gone", func() bool { return w.tunnels.Count() == 1 && w.tunnels.Closed(a.Session) })
	if v := c.Verdict(wire.Hello{Kind: wire.KindTCP, Port: 1, Session: a.Session}); v.Code != wire.CodeUnknownTunnel {
		t.Errorf("a stream of the closed tunnel gets %d %q", v.Code, v.Text)
	}
	// The link goes, the knowledge stays; the next welcome puts it right.
	r.SetTunnels()
	r.Refuse(func() *api.Problem {
		return api.NewProblem(api.CodeRelayDraining, "not yet")
	})
	_ = c.Link.Close(errors.New("lost"))
	testkit.Eventually(t, "the agent is offline", func() bool { return !w.up.Online() })
	if w.tunnels.Count() != 1 {
		t.Error("the tunnel was forgotten with the link")
	}
	r.Refuse(nil)
	c = r.Next()
	if !slices.Contains(c.Hello.Tunnels, b.Session) {
		t.Errorf("the hello names the tunnels %v", c.Hello.Tunnels)
	}
	testkit.Eventually(t, "the next welcome ends the tunnel", func() bool { return w.tunnels.Count() == 0 })
}

func TestClosedTunnelEndsItsStreams(t *testing.T) {
	r := fakerelay.Start(t)
	n := notice('a', time.Hour)
	r.SetTunnels(n)
	start(t, nil, r.URL)
	c := r.Next()
	s := c.Open(wire.Hello{Kind: wire.KindTCP, Port: testkit.ServeTCP(t, echo), Session: n.Session})
	defer s.Close()
	roundTrip(t, s)
	begun := time.Now()
	c.Send(wire.Message{Type: wire.TypeTunnelClosed, TunnelClosed: &n})
	if _, err := io.ReadAll(s); err == nil {
		t.Error("the stream ended as if it were complete")
	}
	testkit.Took(t, "a closed tunnel's stream ends", time.Since(begun), time.Second)
}

func echo(c net.Conn) { _, _ = io.Copy(c, c) }

func roundTrip(t *testing.T, s net.Conn) {
	t.Helper()
	_ = s.SetDeadline(time.Now().Add(testkit.Patience))
	if _, err := s.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4)
	if _, err := io.ReadFull(s, b); err != nil || string(b) != "ping" {
		t.Fatalf("expected an echo, got %q, %v", b, err)
	}
}

func TestSupersededStaysAwayAndSaysWhy(t *testing.T) {
	r := fakerelay.Start(t)
	w := start(t, nil, r.URL)
	c := r.Next()
	c.Goodbye(wire.GoodbyeSuperseded, "another process named box")
	testkit.Eventually(t, "the status says why the agent stays away", func() bool {
		return strings.Contains(w.up.Status().Superseded, "another process") && !w.up.Online()
	})
	if n := r.Attempts(); n != 1 {
		t.Errorf("the superseded agent came back at once (%d attempts)", n)
	}
	if n := testutil.ToFloat64(mustCollector(t, w.reg, "superseded")); n != 1 {
		t.Errorf("the metric counts %v", n)
	}
}

// mustCollector finds the counter of one reason.
func mustCollector(t *testing.T, reg *prometheus.Registry, reason string) prometheus.Collector {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "x"})
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "adit_agent_reconnects_total" && m.GetLabel()[0].GetValue() == reason {
				g.Set(m.GetCounter().GetValue())
			}
		}
	}
	return g
}

func TestRevokedAndUnauthorized(t *testing.T) {
	r := fakerelay.Start(t)
	r.Refuse(func() *api.Problem {
		return api.NewProblem(api.CodeUnauthenticated, "revoked")
	})
	w := start(t, nil, r.URL)
	testkit.Eventually(t, "the status says what the relay answered", func() bool { return strings.Contains(w.up.Status().LastError, "revoked") })
	if n := r.Attempts(); n != 1 {
		t.Errorf("%d attempts with a credential that is not accepted", n)
	}
}

func TestLowerGenerationIsRefused(t *testing.T) {
	r := fakerelay.Start(t)
	first := true
	r.Admit(func(wire.AgentHello) (*wire.Welcome, *wire.Goodbye) {
		if first {
			first = false
			return &wire.Welcome{Generation: 50, Relay: "fake"}, nil
		}
		return &wire.Welcome{Generation: 49, Relay: "fake"}, nil
	})
	w := start(t, nil, r.URL)
	_ = r.Next().Link.Close(errors.New("lost"))
	r.Next()
	testkit.Eventually(t, "a relay whose store was set back is not believed", func() bool {
		return strings.Contains(w.up.Status().LastError, "generation 49") && !w.up.Online()
	})
	if w.up.Epoch() != 50 {
		t.Errorf("the generation went back to %d", w.up.Epoch())
	}
}

func TestStreamOfOldGenerationIsRefused(t *testing.T) {
	r := fakerelay.Start(t)
	start(t, nil, r.URL)
	c := r.Next()
	port := testkit.ServeTCP(t, echo)
	if v := c.Verdict(wire.Hello{Kind: wire.KindTCP, Port: port, Epoch: c.Generation - 1}); v.Code != wire.CodeStaleEpoch {
		t.Errorf("a stream of the older generation gets %d %q", v.Code, v.Text)
	}
	if v := c.Verdict(wire.Hello{Kind: wire.KindTCP, Port: port, Epoch: c.Generation}); v.Code != wire.CodeOK {
		t.Errorf("a stream of this generation gets %d %q", v.Code, v.Text)
	}
}

func TestHostileControlStream(t *testing.T) {
	for name, garbage := range map[string][]byte{
		"no JSON":       []byte("HTTP/1.1 200 OK\r\n"),
		"no type":       []byte("{}\n"),
		"a huge line":   append([]byte(`{"type":"`), []byte(strings.Repeat("x", wire.MaxMessage+10)+"\n")...),
		"a wrong shape": []byte(`{"type":"probe","probe":"now"}` + "\n"),
	} {
		t.Run(name, func(t *testing.T) {
			r := fakerelay.Start(t)
			w := start(t, nil, r.URL)
			c := r.Next()
			c.Raw(garbage)
			<-c.Link.Done()
			r.Next() // it comes back
			testkit.Eventually(t, "the agent is online again", w.up.Online)
		})
	}
}

func TestFurtherLinksJoinTheSession(t *testing.T) {
	r := fakerelay.Start(t)
	w := start(t, func(c *uplink.Config) { c.Links = 3 }, r.URL)
	conns := []*fakerelay.Conn{r.Next(), r.Next(), r.Next()}
	seen := map[int]bool{}
	for _, c := range conns {
		seen[c.Hello.LinkIndex] = true
		if c.Hello.Instance != conns[0].Hello.Instance || c.Generation != conns[0].Generation {
			t.Errorf("link %d is of another session", c.Hello.LinkIndex)
		}
	}
	if len(seen) != 3 {
		t.Errorf("the links have the indices %v", seen)
	}
	testkit.Eventually(t, "three links are up", func() bool { return len(w.up.Status().Up) == 3 })
	port := testkit.ServeTCP(t, echo)
	for _, c := range conns {
		s := c.Open(wire.Hello{Kind: wire.KindTCP, Port: port})
		roundTrip(t, s)
		_ = s.Close()
	}
}

func TestThroughHTTPProxy(t *testing.T) {
	r := fakerelay.Start(t)
	proxy := connectProxy(t)
	w := start(t, func(c *uplink.Config) {
		c.Dial = func(ctx context.Context, url string) (*link.Link, error) {
			return link.Dial(ctx, carrier.DialOptions{URL: url, Token: fakerelay.Token, Proxy: proxy.find}, link.Config{})
		}
	}, r.URL)
	r.Next()
	testkit.Eventually(t, "the agent is online through the proxy", w.up.Online)
	if proxy.count() == 0 {
		t.Error("the proxy was not used")
	}
}

func TestOfflineCalls(t *testing.T) {
	w := start(t, nil, "http://127.0.0.1:1")
	if _, err := w.up.OpenGate(t.Context(), ""); !errors.Is(err, uplink.ErrOffline) {
		t.Errorf("a gate call without a link gives %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := w.up.Wait(ctx); !errors.Is(err, uplink.ErrOffline) {
		t.Errorf("waiting for a link gives %v", err)
	}
}

func TestGateStream(t *testing.T) {
	r := fakerelay.Start(t)
	r.Gate(http.HandlerFunc(func(rw http.ResponseWriter, q *http.Request) { fmt.Fprint(rw, q.Method, " ", q.URL.Path) }))
	w := start(t, nil, r.URL)
	r.Next()
	if err := w.up.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return w.up.OpenGate(ctx, "req-1")
	}}}
	resp, err := client.Get("http://relay/api/v1/agents/box/tasks")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); string(b) != "GET /api/v1/agents/box/tasks" {
		t.Errorf("the relay's gate answered %q", b)
	}
}

func TestMetricNames(t *testing.T) {
	r := fakerelay.Start(t)
	w := start(t, nil, r.URL)
	r.Next()
	problems, err := testutil.GatherAndLint(w.reg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

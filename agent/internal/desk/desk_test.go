package desk_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/adit-tunnel/adit/agent/internal/desk"
	"github.com/adit-tunnel/adit/agent/internal/forward"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/splice"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/wire"
)

func TestMain(m *testing.M) { testkit.LeakCheck(m) }

// world is a desk behind one link, whose relay end the test holds.
type world struct {
	t      *testing.T
	desk   *desk.Desk
	relay  *link.Link
	reg    *prometheus.Registry
	logs   *testkit.Buffer
	epoch  atomic.Uint64
	paused atomic.Bool
	closed sync.Map
	dials  atomic.Int64
}

func newWorld(t *testing.T, change func(*desk.Config)) *world {
	t.Helper()
	w := &world{t: t, reg: prometheus.NewRegistry(), logs: &testkit.Buffer{}}
	w.epoch.Store(5)
	ports, err := api.ParsePorts("1-65535")
	if err != nil {
		t.Fatal(err)
	}
	conf := desk.Config{
		Ports: ports, OwnPorts: func() []uint16 { return []uint16{9465} },
		Epoch: w.epoch.Load, Paused: w.paused.Load,
		Closed: func(id ident.SessionID) bool { _, ok := w.closed.Load(id); return ok },
		Dial: func(ctx context.Context, port uint16) (splice.Conn, error) {
			w.dials.Add(1)
			return forward.Dial(ctx, port)
		},
		Logger: slog.New(slog.NewTextHandler(w.logs, &slog.HandlerOptions{Level: slog.LevelDebug})), Registerer: w.reg,
	}
	if change != nil {
		change(&conf)
	}
	w.desk = desk.New(conf)
	near, far := testkit.TCP(t)
	agentEnd, err := link.NewClient(near, link.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if w.relay, err = link.NewServer(far, link.Config{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = w.desk.Serve(ctx, agentEnd)
	}()
	t.Cleanup(func() {
		_ = w.relay.Close(nil)
		cancel()
		<-served
		_ = agentEnd.Close(nil)
		if n := w.desk.Active(); n != 0 {
			t.Errorf("%d streams are left after the link ended", n)
		}
	})
	return w
}

func (w *world) open(h wire.Hello) *link.Stream {
	w.t.Helper()
	s, err := link.OpenHello(context.Background(), w.relay, h)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *world) verdict(h wire.Hello) wire.Verdict {
	w.t.Helper()
	s := w.open(h)
	defer s.Close()
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
	defer cancel()
	err := s.Verdict(ctx)
	if err == nil {
		return wire.Verdict{}
	}
	var v wire.Verdict
	if !errors.As(err, &v) {
		w.t.Fatalf("expected a verdict, got: %v", err)
	}
	return v
}

func echo(c net.Conn) { _, _ = io.Copy(c, c) }

func TestCarriesBytesAndHalfClose(t *testing.T) {
	w := newWorld(t, nil)
	port := testkit.ServeTCP(t, func(c net.Conn) {
		b, _ := io.ReadAll(c) // returns only if the half-close gets here
		fmt.Fprintf(c, "got %d", len(b))
	})
	s := w.open(wire.Hello{Kind: wire.KindTCP, Port: port, Epoch: 5})
	defer s.Close()
	if _, err := s.Write(bytes.Repeat([]byte("x"), 300_000)); err != nil {
		t.Fatal(err)
	}
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(s)
	if err != nil || string(got) != "got 300000" {
		t.Fatalf("the app's answer after the half-close is %q, %v", got, err)
	}
	testkit.Eventually(t, "the bytes are counted", func() bool {
		return testutil.CollectAndCount(w.reg, "adit_agent_bytes_total") == 2 &&
			metric(t, w.reg, `adit_agent_streams_total`, "kind", "tcp", "outcome", "ok") == 1
	})
	if n := metric(t, w.reg, "adit_agent_bytes_total", "direction", "in"); n != 300_000 {
		t.Errorf("counted %v bytes in, not 300000", n)
	}
}

func metric(t *testing.T, reg *prometheus.Registry, name string, labels ...string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	next:
		for _, m := range f.GetMetric() {
			have := map[string]string{}
			for _, l := range m.GetLabel() {
				have[l.GetName()] = l.GetValue()
			}
			for i := 0; i < len(labels); i += 2 {
				if have[labels[i]] != labels[i+1] {
					continue next
				}
			}
			return m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return 0
}

func TestHostileRelayIsRefused(t *testing.T) {
	const session = ident.SessionID("0123456789abcdef0123456789abcdef")
	tests := []struct {
		name    string
		prepare func(*world)
		hello   wire.Hello
		want    wire.Code
		text    string
	}{
		{name: "the agent's own port", hello: wire.Hello{Kind: wire.KindTCP, Port: 9465, Epoch: 5}, want: wire.CodePortNotAllowed, text: "the agent's own"},
		{name: "a port outside the policy", hello: wire.Hello{Kind: wire.KindTCP, Port: 22, Epoch: 5}, want: wire.CodePortNotAllowed, text: "8188,8888-8899"},
		{name: "port zero", hello: wire.Hello{Kind: wire.KindTCP, Epoch: 5}, want: wire.CodePortNotAllowed},
		{name: "an older generation", hello: wire.Hello{Kind: wire.KindTCP, Port: 8188, Epoch: 4}, want: wire.CodeStaleEpoch},
		{name: "no generation", hello: wire.Hello{Kind: wire.KindTCP, Port: 8188}, want: wire.CodeStaleEpoch},
		{name: "while paused", prepare: func(w *world) { w.paused.Store(true) }, hello: wire.Hello{Kind: wire.KindTCP, Port: 8188, Epoch: 5}, want: wire.CodePaused, text: "resume"},
		{name: "a closed tunnel", prepare: func(w *world) { w.closed.Store(session, true) }, hello: wire.Hello{Kind: wire.KindTCP, Port: 8188, Epoch: 5, Session: session}, want: wire.CodeUnknownTunnel},
		{name: "a terminal where none is enabled", hello: wire.Hello{Kind: wire.KindTerminal, Epoch: 5}, want: wire.CodeTerminalDisabled},
		{name: "a gate stream", hello: wire.Hello{Kind: wire.KindGate, Epoch: 5}, want: wire.CodeBadHello},
		{name: "a control stream", hello: wire.Hello{Kind: wire.KindControl, Epoch: 5}, want: wire.CodeBadHello},
		{name: "an unknown kind", hello: wire.Hello{Kind: 99, Epoch: 5}, want: wire.CodeBadHello},
		{
			// There is no field for a host. What a relay may try to smuggle in is ignored.
			name:  "another host in the payload",
			hello: wire.Hello{Kind: wire.KindTCP, Port: 80, Epoch: 5, Payload: []byte(`{"host":"169.254.169.254"}`)}, want: wire.CodePortNotAllowed,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, func(c *desk.Config) {
				ports, err := api.ParsePorts("8188,8888-8899,9465")
				if err != nil {
					t.Fatal(err)
				}
				c.Ports = ports
			})
			if tt.prepare != nil {
				tt.prepare(w)
			}
			v := w.verdict(tt.hello)
			if v.Code != tt.want || !strings.Contains(v.Text, tt.text) {
				t.Errorf("the verdict is %d %q, expected code %d with %q", v.Code, v.Text, tt.want, tt.text)
			}
			if n := w.dials.Load(); n != 0 {
				t.Errorf("the agent dialled %d times for a refused stream", n)
			}
			if !strings.Contains(w.logs.String(), "audit=true") {
				t.Errorf("the refusal is not in the audit log: %s", w.logs)
			}
		})
	}
}

func TestGarbageInsteadOfHello(t *testing.T) {
	w := newWorld(t, nil)
	s, err := w.relay.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Write([]byte("GET / HTTP/1.1\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	v, err := new(wire.VerdictReader).Read(s)
	if err != nil || v.Code != wire.CodeBadHello {
		t.Fatalf("garbage is answered by %v, %v", v, err)
	}
}

func TestSilentStreamEnds(t *testing.T) {
	w := newWorld(t, func(c *desk.Config) { c.HelloTimeout = 50 * time.Millisecond })
	s, err := w.relay.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Write([]byte{1}); err != nil { // one byte of a hello, and no more
		t.Fatal(err)
	}
	testkit.Eventually(t, "a stream that says no hello is given up", func() bool {
		return metric(t, w.reg, "adit_agent_streams_total", "outcome", "bad_hello") == 1 && w.desk.Active() == 0
	})
}

func TestAppNotThere(t *testing.T) {
	w := newWorld(t, nil)
	port := uint16(testkit.FreePort(t))
	v := w.verdict(wire.Hello{Kind: wire.KindTCP, Port: port, Epoch: 5})
	if v.Code != wire.CodeAppRefused || !strings.Contains(v.Text, fmt.Sprint(port)) {
		t.Fatalf("a closed port gives %d %q", v.Code, v.Text)
	}
}

func TestPauseAndCloseCutLiveStreams(t *testing.T) {
	const one, other = ident.SessionID("11111111111111111111111111111111"), ident.SessionID("22222222222222222222222222222222")
	w := newWorld(t, nil)
	port := testkit.ServeTCP(t, echo)
	open := func(id ident.SessionID) *link.Stream {
		s := w.open(wire.Hello{Kind: wire.KindTCP, Port: port, Epoch: 5, Session: id})
		roundTrip(t, s)
		return s
	}
	a, b := open(one), open(other)
	defer a.Close()
	defer b.Close()
	start := time.Now()
	if n := w.desk.Cut(one); n != 1 {
		t.Fatalf("cut %d streams of the closed tunnel, not 1", n)
	}
	if _, err := io.ReadAll(a); err == nil {
		t.Fatal("a cut stream ended as if it were complete")
	}
	testkit.Took(t, "cutting a stream", time.Since(start), time.Second)
	roundTrip(t, b) // the other tunnel's goes on
	w.desk.CutAll(desk.ErrPaused)
	if _, err := io.ReadAll(b); err == nil {
		t.Fatal("pausing ended a stream as if it were complete")
	}
}

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

func TestLinkCutMidStream(t *testing.T) {
	w := newWorld(t, nil)
	began, gone := make(chan struct{}), make(chan error, 1)
	port := testkit.ServeTCP(t, func(c net.Conn) {
		_, _ = io.ReadFull(c, make([]byte, 1))
		close(began)
		_, err := io.Copy(io.Discard, c)
		gone <- err
	})
	s := w.open(wire.Hello{Kind: wire.KindTCP, Port: port, Epoch: 5})
	if _, err := s.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	<-began
	_ = w.relay.Close(errors.New("cable pulled"))
	select {
	case err := <-gone:
		if err == nil {
			t.Error("the app took the lost link for a complete request")
		}
	case <-time.After(testkit.Patience):
		t.Fatal("the app's connection outlives the link")
	}
}

func TestOverload(t *testing.T) {
	w := newWorld(t, func(c *desk.Config) { c.MaxStreams = 3 })
	port := testkit.ServeTCP(t, echo)
	var streams []*link.Stream
	for range 3 {
		s := w.open(wire.Hello{Kind: wire.KindTCP, Port: port, Epoch: 5})
		roundTrip(t, s)
		streams = append(streams, s)
	}
	if v := w.verdict(wire.Hello{Kind: wire.KindTCP, Port: port, Epoch: 5}); v.Code != wire.CodeOverloaded {
		t.Fatalf("a stream over the limit gets %d %q", v.Code, v.Text)
	}
	for _, s := range streams {
		roundTrip(t, s)
		_ = s.Close()
	}
	testkit.Eventually(t, "the places are free again", func() bool { return w.desk.Active() == 0 })
	if v := w.verdict(wire.Hello{Kind: wire.KindTCP, Port: port, Epoch: 5}); v.Code != wire.CodeOK {
		t.Fatalf("after the overload a stream gets %d %q", v.Code, v.Text)
	}
}

func TestPanicEndsOneStream(t *testing.T) {
	first := true
	w := newWorld(t, func(c *desk.Config) {
		dial := c.Dial
		c.Dial = func(ctx context.Context, port uint16) (splice.Conn, error) {
			if first {
				first = false
				panic("strange app")
			}
			return dial(ctx, port)
		}
	})
	port := testkit.ServeTCP(t, echo)
	s := w.open(wire.Hello{Kind: wire.KindTCP, Port: port, Epoch: 5})
	if _, err := io.ReadAll(s); err == nil {
		t.Error("a stream that panicked ended as if it were complete")
	}
	_ = s.Close()
	s = w.open(wire.Hello{Kind: wire.KindTCP, Port: port, Epoch: 5})
	defer s.Close()
	roundTrip(t, s)
	if !strings.Contains(w.logs.String(), "strange app") {
		t.Error("the panic is not in the log")
	}
}

func TestRefusalsDoNotFloodTheLog(t *testing.T) {
	w := newWorld(t, nil)
	for range 200 {
		_ = w.verdict(wire.Hello{Kind: wire.KindTCP, Port: 9465, Epoch: 5})
	}
	if n := strings.Count(w.logs.String(), "stream refused"); n < 50 || n > 120 {
		t.Errorf("200 refusals in a burst made %d lines of log, expected about 50", n)
	}
}

func TestBusy(t *testing.T) {
	w := newWorld(t, nil)
	release := make(chan struct{})
	port := testkit.ServeTCP(t, func(c net.Conn) {
		b := make([]byte, 1)
		_, _ = c.Read(b)
		<-release
		_, _ = c.Write(b)
		_, _ = c.Read(b)
	})
	s := w.open(wire.Hello{Kind: wire.KindTCP, Port: port, Epoch: 5})
	defer s.Close()
	if _, err := s.Write([]byte("q")); err != nil {
		t.Fatal(err)
	}
	if err := s.Verdict(t.Context()); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "a request without its answer counts as busy", func() bool { moving, _ := w.desk.Busy(); return moving == 1 })
	close(release)
	if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "an answered connection that is kept counts as idle", func() bool { moving, open := w.desk.Busy(); return moving == 0 && open == 1 })
}

func TestMetricNames(t *testing.T) {
	w := newWorld(t, nil)
	problems, err := testutil.GatherAndLint(w.reg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	var _ promlint.Problem
}

package hub_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/fleet"
	"github.com/adit-tunnel/adit/relay/internal/gate"
	"github.com/adit-tunnel/adit/relay/internal/hub"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/carrier"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const team = ident.TeamID("6f1d3c52-7a94-4c1e-9d3b-2f6a1e0c9b11")

var key = ident.AgentKey{Team: team, Agent: "gpu-1"}

// fakes stand for the gate, the store and creds: the parts that have tests of
// their own.
type fakes struct {
	mu        sync.Mutex
	epoch     uint64
	instance  string
	presences map[ident.AgentKey]store.Presence
	fenced    chan struct{}
	live      context.Context
	revoke    context.CancelCauseFunc
	events    []hub.Event
}

func (f *fakes) Connect(_ context.Context, _ ident.AgentKey, c gate.Claim) (uint64, store.AgentRecord, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c.Seen > 0 && c.Live && f.instance != c.Instance {
		return 0, store.AgentRecord{}, gate.ErrSuperseded
	}
	f.epoch++
	f.instance = c.Instance
	return f.epoch, store.AgentRecord{}, nil
}

func (f *fakes) Declare(context.Context, ident.AgentKey, uint64, wire.State, string) error {
	return nil
}

func (f *fakes) PutPresence(_ context.Context, p store.Presence) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.presences[p.Key()] = p
	return nil
}

func (f *fakes) DeletePresence(_ context.Context, k ident.AgentKey, epoch uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.presences[k].Epoch == epoch {
		delete(f.presences, k)
	}
	return nil
}

func (f *fakes) Presence(k ident.AgentKey) (store.Presence, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, ok := f.presences[k]
	return p, ok
}

func (f *fakes) AgentTunnels(ident.AgentKey) []store.TunnelRecord { return nil }
func (f *fakes) Room() bool                                       { return true }
func (f *fakes) Fenced() <-chan struct{}                          { return f.fenced }

func (f *fakes) Agent(ident.AgentKey) (store.AgentRecord, bool) { return store.AgentRecord{}, false }
func (f *fakes) Relay(ident.RelayID) (store.RelayRecord, bool)  { return store.RelayRecord{}, false }

func (f *fakes) MayLink(p creds.Principal, key ident.AgentKey) error {
	if !p.MayLink(key) {
		return fmt.Errorf("not for %q", key.Agent)
	}
	return nil
}

func (f *fakes) Watch(ctx context.Context, _ creds.Principal) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(f.live, func() { cancel(context.Cause(f.live)) })
	return ctx, func() { stop(); cancel(nil) }
}

// world is a hub behind a real HTTP server.
type world struct {
	*fakes
	hub *hub.Hub
	url string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	f := &fakes{presences: map[ident.AgentKey]store.Presence{}, fenced: make(chan struct{})}
	f.live, f.revoke = context.WithCancelCause(context.Background())
	h, err := hub.New(hub.Config{
		Relay: "r1", Version: "test", Gate: f, Store: f, Creds: f, Budget: link.NewBudget(1 << 30), MaxStreams: 4096, MaxAgents: 20000, AgentsPerTeam: 10000, Logger: slog.New(slog.DiscardHandler), Grace: 50 * time.Millisecond,
		GateHTTP: func(p creds.Principal) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprintf(w, "%s asks for %s", p.Agent, r.URL.Path)
			})
		},
		Event: func(e hub.Event) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.events = append(f.events, e)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := creds.Principal{Kind: creds.KindAgent, Team: team, Credential: "cred_0000000000000001"}
		if r.Header.Get("Authorization") == "Bearer user" {
			p.Kind = creds.KindUser
		}
		if err := h.ServeLink(w, r, p); err != nil {
			if problem, ok := errors.AsType[*api.Problem](err); ok {
				problem.Write(w, "r")
			}
		}
	}))
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("the hub ended with %v", err)
		}
		srv.Close()
	})
	return &world{fakes: f, hub: h, url: srv.URL}
}

// agent is the other end of a link, as plain as the protocol allows.
type agent struct {
	t       *testing.T
	link    *link.Link
	in      *wire.Decoder
	out     *wire.Encoder
	welcome *wire.Welcome
	bye     *wire.Goodbye
}

func (w *world) agent(t *testing.T, instance string, seen uint64, index int) *agent {
	t.Helper()
	l, err := link.Dial(t.Context(), carrier.DialOptions{URL: w.url, Token: "agent"}, link.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close(errors.New("the test is over")) })
	st, err := link.OpenHello(t.Context(), l, wire.Hello{Kind: wire.KindControl})
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{t: t, link: l, in: wire.NewDecoder(st), out: wire.NewEncoder(st)}
	a.say(wire.Message{Type: wire.TypeHello, Hello: &wire.AgentHello{Agent: key.Agent, Instance: instance, Generation: seen, LinkIndex: index, Version: "test"}})
	msg := a.hear()
	a.welcome, a.bye = msg.Welcome, msg.Goodbye
	return a
}

func (a *agent) say(m wire.Message) {
	a.t.Helper()
	if err := a.out.Write(m); err != nil {
		a.t.Fatal(err)
	}
}

// hear returns the next message.
func (a *agent) hear() wire.Message {
	a.t.Helper()
	m, err := a.in.Read()
	if err != nil {
		a.t.Fatalf("the control stream ended: %v", err)
	}
	return m
}

// echo answers one stream: verdict, then what it reads.
func (a *agent) echo() {
	st, err := a.link.Accept(a.t.Context())
	if err != nil {
		return
	}
	defer st.Close()
	if _, err := wire.ReadHello(st); err != nil {
		return
	}
	_, _ = st.Write(wire.AppendVerdict(nil, wire.Verdict{}))
	_, _ = io.Copy(st, st)
}

func within(t *testing.T, what string, cond func() bool) {
	t.Helper()
	testkit.Eventually(t, what, cond)
}

func TestStreamGoesToTheAgentAndBack(t *testing.T) {
	w := newWorld(t)
	if _, err := w.hub.Open(t.Context(), key, wire.Hello{Kind: wire.KindTCP}); !errors.Is(err, fleet.ErrAway) {
		t.Errorf("a stream to an agent that is not here: %v, want ErrAway", err)
	}
	waited := make(chan error, 1)
	go func() { waited <- w.hub.Wait(t.Context(), key) }()
	a := w.agent(t, "a", 0, 0)
	if a.welcome == nil || a.welcome.Generation != 1 || a.welcome.Relay != "r1" {
		t.Fatalf("the agent is welcomed as generation 1 by r1: %+v %+v", a.welcome, a.bye)
	}
	if err := <-waited; err != nil {
		t.Errorf("who waits for the agent is woken: %v", err)
	}
	go a.echo()
	session := ident.NewSessionID()
	st, err := w.hub.Open(t.Context(), key, wire.Hello{Kind: wire.KindTCP, Port: 8188, Session: session})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 5)
	if _, err := io.ReadFull(st, buf); err != nil || string(buf) != "hello" {
		t.Errorf("the stream echoes %q, %v", buf, err)
	}
	if n := w.hub.Cut(key, session, "closed"); n != 1 {
		t.Errorf("closing the tunnel ends %d streams, want 1", n)
	}
	if _, err := st.Read(buf); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a cut stream reads as %v, want an error that is no clean end", err)
	}
	if _, err := w.hub.Open(t.Context(), key, wire.Hello{Kind: wire.KindTCP, Session: session}); !errors.Is(err, fleet.ErrCut) {
		t.Errorf("a closed tunnel opens streams: %v, want ErrCut", err)
	}
	_ = st.Close()
	if _, streams := w.hub.Count(); streams != 0 {
		t.Errorf("%d streams are counted after all closed", streams)
	}
}

func TestNewerProcessTakesOver(t *testing.T) {
	w := newWorld(t)
	first := w.agent(t, "a", 0, 0)
	second := w.agent(t, "b", 0, 0)
	if second.welcome == nil || second.welcome.Generation != 2 {
		t.Fatalf("the second process is welcomed as generation 2: %+v", second.welcome)
	}
	if m := first.hear(); m.Goodbye == nil || m.Goodbye.Reason != wire.GoodbyeSuperseded {
		t.Errorf("the first process is told that it was superseded: %+v", m)
	}
	again := w.agent(t, "a", 1, 0)
	if again.bye == nil || again.bye.Reason != wire.GoodbyeSuperseded {
		t.Errorf("the first process does not take over while the second lives: %+v", again.welcome)
	}
	_ = second.link.Close(errors.New("gone"))
	within(t, "the second process's session is over", func() bool { _, ok := w.hub.Online(key); return !ok })
	if back := w.agent(t, "a", 1, 0); back.welcome == nil {
		t.Errorf("the first process comes back once the second is gone: %+v", back.bye)
	}
}

func TestSecondLinkJoinsItsSession(t *testing.T) {
	w := newWorld(t)
	a := w.agent(t, "a", 0, 0)
	b := w.agent(t, "a", 1, 1)
	if b.welcome == nil || b.welcome.Generation != 1 {
		t.Fatalf("a further link of the same process joins generation 1: %+v %+v", b.welcome, b.bye)
	}
	_ = a.link.Close(errors.New("cut"))
	go b.echo()
	within(t, "streams go over the link that is left", func() bool {
		st, err := w.hub.Open(t.Context(), key, wire.Hello{Kind: wire.KindTCP})
		if err != nil {
			return false
		}
		defer st.Close()
		return st.Verdict(t.Context()) == nil
	})
}

func TestLostAgentFadesFromLists(t *testing.T) {
	w := newWorld(t)
	a := w.agent(t, "a", 0, 0)
	_ = a.link.Close(errors.New("cut"))
	within(t, "the agent is marked gone", func() bool { p, ok := w.Presence(key); return !ok || !p.GoneSince.IsZero() })
	within(t, "the agent is forgotten after the grace time", func() bool { _, ok := w.Presence(key); return !ok })
}

func TestProbeIsAnswered(t *testing.T) {
	w := newWorld(t)
	a := w.agent(t, "a", 0, 0)
	got := make(chan wire.Probed, 1)
	go func() {
		p, err := w.hub.Probe(t.Context(), key, wire.Probe{Port: 8888})
		if err != nil {
			t.Errorf("probe: %v", err)
		}
		got <- p
	}()
	m := a.hear()
	if m.Probe == nil || m.Probe.Port != 8888 {
		t.Fatalf("the agent is asked about port 8888: %+v", m)
	}
	a.say(wire.Message{Type: wire.TypeProbed, Probed: &wire.Probed{ID: m.Probe.ID, App: "jupyter"}})
	if p := <-got; p.App != "jupyter" {
		t.Errorf("the answer arrives: %+v", p)
	}
}

func TestAgentAsksTheGateOverItsLink(t *testing.T) {
	w := newWorld(t)
	a := w.agent(t, "a", 0, 0)
	c := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return link.OpenHello(ctx, a.link, wire.Hello{Kind: wire.KindGate})
		},
	}}
	resp, err := c.Get("http://relay/api/v1/agents/gpu-1/tasks")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "gpu-1 asks for /api/v1/agents/gpu-1/tasks" {
		t.Errorf("the gate answers %q %v", body, err)
	}
}

func TestRevokedCredentialEndsTheLink(t *testing.T) {
	w := newWorld(t)
	a := w.agent(t, "a", 0, 0)
	w.revoke(creds.ErrRevoked)
	if m := a.hear(); m.Goodbye == nil || m.Goodbye.Reason != wire.GoodbyeRevoked {
		t.Errorf("the agent is told that its credential was revoked: %+v", m)
	}
	<-a.link.Done()
}

func TestDrainTellsAgentsAndAdmitsNoMore(t *testing.T) {
	w := newWorld(t)
	a := w.agent(t, "a", 0, 0)
	w.hub.Drain(t.Context())
	if m := a.hear(); m.Goodbye == nil || m.Goodbye.Reason != wire.GoodbyeDrain {
		t.Errorf("the agent is told to move: %+v", m)
	}
	_, err := link.Dial(t.Context(), carrier.DialOptions{URL: w.url, Token: "agent"}, link.Config{})
	var refused *carrier.RefusedError
	if !errors.As(err, &refused) || refused.Problem == nil || refused.Problem.Code != "relay_draining" {
		t.Errorf("a new link is refused with relay_draining: %v", err)
	}
	if _, err := w.hub.Open(t.Context(), key, wire.Hello{Kind: wire.KindTCP}); !errors.Is(err, fleet.ErrDraining) {
		t.Errorf("a stream is refused: %v, want ErrDraining", err)
	}
}

func TestFencedRelayEndsItsSessions(t *testing.T) {
	w := newWorld(t)
	a := w.agent(t, "a", 0, 0)
	close(w.fenced)
	if m := a.hear(); m.Goodbye == nil || m.Goodbye.Reason != wire.GoodbyeFenced {
		t.Errorf("the agent is told that the relay was fenced: %+v", m)
	}
}

func TestOnlyAgentsLink(t *testing.T) {
	w := newWorld(t)
	_, err := link.Dial(t.Context(), carrier.DialOptions{URL: w.url, Token: "user"}, link.Config{})
	var refused *carrier.RefusedError
	if !errors.As(err, &refused) || refused.Status != http.StatusForbidden {
		t.Errorf("a user's credential opens no link: %v", err)
	}
}

func TestWrongFirstStreamIsRefused(t *testing.T) {
	w := newWorld(t)
	l, err := link.Dial(t.Context(), carrier.DialOptions{URL: w.url, Token: "agent"}, link.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close(errors.New("over")) }()
	st, err := link.OpenHello(t.Context(), l, wire.Hello{Kind: wire.KindTCP, Port: 22})
	if err != nil {
		t.Fatal(err)
	}
	var v wire.Verdict
	if err := st.Verdict(t.Context()); !errors.As(err, &v) || v.Code != wire.CodeBadHello {
		// The link may close before the verdict is read; both refuse.
		if !errors.Is(err, link.ErrClosed) {
			t.Errorf("a link that begins with a tcp stream is refused: %v", err)
		}
	}
	<-l.Done()
}

// A link that says no hello has one stream: what it sends on others would be nobody's,
// and memory that no budget gets back.
func TestASilentLinkHoldsNothing(t *testing.T) {
	w := newWorld(t)
	l, err := link.Dial(t.Context(), carrier.DialOptions{URL: w.url, Token: "agent"}, link.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close(errors.New("over")) }()
	for range 2 {
		if _, err := l.Open(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-l.Done():
	case <-time.After(5 * time.Second): // before its time for a hello is over
		t.Error("it goes on with a second stream")
	}
}

// One team's links that say no hello are bounded by its share, and an agent of the
// same team gets in beside them.
func TestSilentLinksKeepNoAgentOut(t *testing.T) {
	w := newWorld(t)
	dropped := make(chan int, 1024+1)
	for i := range 1024 + 1 {
		l, err := link.Dial(t.Context(), carrier.DialOptions{URL: w.url, Token: "agent"}, link.Config{})
		if err != nil {
			t.Fatalf("link %d: %v", i, err)
		}
		t.Cleanup(func() { _ = l.Close(errors.New("the test is over")) })
		go func() { <-l.Done(); dropped <- i }()
	}
	select {
	case i := <-dropped:
		if i > 32 { // the relay may notice neighbours the other way round
			t.Errorf("link %d makes room for the newest one of its team, and not the one that was silent longest", i)
		}
	case <-time.After(5 * time.Second): // before its time for a hello is over
		t.Error("no silent link makes room for the newest one of its team")
	}
	if a := w.agent(t, "one", 0, 0); a.welcome == nil {
		t.Errorf("an agent that says hello gets in beside silent links: %+v", a.bye)
	}
}

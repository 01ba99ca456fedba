package terminal_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/caller"
	"github.com/adit-tunnel/adit/relay/internal/fleet"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/relay/internal/terminal"
	"github.com/adit-tunnel/adit/relay/internal/usage"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/wire"
)

func TestMain(m *testing.M) { testkit.LeakCheck(m) }

const (
	session ident.SessionID = "3f0c8a5e9b7d4c21a6e8f0b1d2c3e4f5"
	other   ident.SessionID = "00000000000000000000000000000001"
	origin                  = "https://relay.example.com"
)

func tokenOf(id ident.SessionID) ident.Secret { return ident.Secret("adm-" + string(id)) }

// world is a relay of which all but the terminal is pretended, with an agent at the
// other end of a link.
type world struct {
	*testing.T
	fleet.Hub // what is not below is not asked
	meter     *usage.Meter
	term      *terminal.Terminal
	server    *httptest.Server
	open      atomic.Bool
	away      atomic.Bool
	stale     atomic.Bool                        // what the relay knows of the store
	revoked   atomic.Bool                        // maker
	removed   atomic.Bool                        // alice
	signedOut atomic.Bool                        // her browser
	place     atomic.Pointer[store.MemberRecord] // hers in the team
	kept      atomic.Bool                        // her tunnels, when she was removed
	others    atomic.Bool                        // somebody else opened the tunnels
	// noTerminal is of tunnels that a key for some ports opened.
	noTerminal atomic.Bool
	refusal    atomic.Pointer[wire.Verdict]
	opens      atomic.Int32
	why        atomic.Pointer[string] // the tunnel is over; nil: nobody knows why

	mu      sync.Mutex
	codes   map[string]store.CodeRecord
	down    bool // the store does not take codes
	records []audit.Record
	broken  bool // the audit log cannot be written
	agents  chan *stream
	link    *link.Link
}

func newWorld(t *testing.T, change func(*terminal.Config)) *world {
	t.Helper()
	w := &world{T: t, meter: usage.New(usage.Config{}), agents: make(chan *stream, 16), codes: map[string]store.CodeRecord{}}
	w.open.Store(true)
	w.connect()
	cfg := terminal.Config{
		Page:   http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, "page") }),
		Origin: origin, Store: w, AdminToken: tokenOf, Why: w.whyOver, Fleet: fleet.New(fleet.Config{Hub: w}), Meter: w.meter, Audit: w, Remote: func(r *http.Request) string { return caller.Peer(r).String() }, Hold: testkit.Patience, FirstMessage: 5 * time.Second, Logger: testkit.Logger(t),
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	if w.term, err = terminal.New(cfg); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	for pattern, h := range w.term.Routes() {
		mux.Handle(pattern, h)
	}
	w.server = httptest.NewServer(mux)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = w.term.Drain(ctx)
		w.server.Close()
	})
	return w
}

func (w *world) whyOver(ident.SessionID) (string, bool) {
	if why := w.why.Load(); why != nil {
		return *why, true
	}
	return "", false
}

func (w *world) CreateCode(_ context.Context, r store.CodeRecord, most int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.codes) >= most {
		return store.ErrLimit
	}
	w.codes[r.Hash] = r
	return nil
}

func (w *world) TakeCode(_ context.Context, session ident.SessionID, hash string) (store.CodeRecord, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r, ok := w.codes[hash]
	switch {
	case w.down:
		return r, store.ErrUnavailable
	case !ok || r.Session != session || !time.Now().Before(r.ExpiresAt):
		return r, store.ErrNotFound
	}
	delete(w.codes, hash)
	return r, nil
}

// maker is the credential that the tests' codes are made with.
const maker ident.CredentialID = "cred_0123456789abcdef"

func (w *world) Credential(id ident.CredentialID) (store.CredentialRecord, bool) {
	r := store.CredentialRecord{ID: id, Team: "t"}
	if w.revoked.Load() {
		r.RevokedAt = time.Now()
	}
	return r, id == maker
}

func (w *world) Member(team ident.TeamID, user ident.UserID) (store.MemberRecord, bool) {
	r := store.MemberRecord{Team: team, User: user}
	if place := w.place.Load(); place != nil {
		r.Role, r.Source = place.Role, place.Source
	}
	if w.removed.Load() {
		r.RemovedAt, r.KeepTunnels = time.Now(), w.kept.Load()
	}
	return r, user == "alice"
}

func (w *world) SignIn(hash string) (store.SignInRecord, bool) {
	return store.SignInRecord{Hash: hash}, hash == "browser" && !w.signedOut.Load()
}

func (w *world) CatchUp(context.Context) error { return nil }

func (w *world) Status() store.Status {
	return store.Status{Quorum: true, Stale: w.stale.Load()}
}

func (w *world) Tunnel(id ident.SessionID) (store.TunnelRecord, bool) {
	by := ident.UserID("alice")
	if w.others.Load() {
		by = "bob"
	}
	return store.TunnelRecord{Session: id, Team: "t", Agent: "gpu-1", OpenedBy: "user:" + string(by), User: by, ExpiresAt: time.Now().Add(time.Hour), AdminHash: tokenOf(id).Hash(), NoTerminal: w.noTerminal.Load()}, w.open.Load()
}

func (w *world) Agent(ident.AgentKey) (store.AgentRecord, bool) {
	return store.AgentRecord{Tunnels: map[ident.SessionID]store.TunnelState{session: {State: store.TunnelOpen}, other: {State: store.TunnelOpen}}}, true
}

func (w *world) Append(_ context.Context, r audit.Record) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken && r.Event == audit.TerminalOpened {
		return errors.New("disk full")
	}
	w.records = append(w.records, r)
	return nil
}

func (w *world) audited(e audit.Event) (found []audit.Record) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.records {
		if r.Event == e {
			found = append(found, r)
		}
	}
	return found
}

// stream is the agent's end of a stream.
type stream struct {
	peer  *link.Stream
	hello wire.Hello
}

// connect makes the agent's link.
func (w *world) connect() {
	w.Helper()
	near, far := net.Pipe()
	var err error
	if w.link, err = link.NewServer(near, link.Config{}); err != nil {
		w.Fatal(err)
	}
	agent, err := link.NewClient(far, link.Config{})
	if err != nil {
		w.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			st, err := agent.Accept(ctx)
			if err != nil {
				return
			}
			serving.Go(func() { w.take(ctx, st) })
		}
	})
	w.Cleanup(func() {
		cancel()
		_ = w.link.Close(nil)
		_ = agent.Close(nil)
		serving.Wait()
	})
}

// take answers a stream as the agent, and gives it to the test.
func (w *world) take(ctx context.Context, st *link.Stream) {
	hello, err := wire.ReadHello(st)
	if err != nil {
		_ = st.Close()
		return
	}
	select {
	case w.agents <- &stream{st, hello}:
	case <-ctx.Done():
		return
	}
	if v := w.refusal.Load(); v != nil {
		_, _ = st.Write(wire.AppendVerdict(nil, *v))
		_ = st.Close()
		return
	}
	_, _ = st.Write(wire.AppendVerdict(nil, wire.Verdict{}))
}

func (w *world) Open(ctx context.Context, _ ident.AgentKey, h wire.Hello) (*fleet.Stream, error) {
	w.opens.Add(1)
	if w.away.Load() {
		return nil, fmt.Errorf("open: %w", fleet.ErrAway)
	}
	st, err := link.OpenHello(ctx, w.link, h)
	if err != nil {
		return nil, err
	}
	return fleet.NewStream(st, h.Session, nil), nil
}

func (w *world) Wait(ctx context.Context, _ ident.AgentKey) error {
	for w.away.Load() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

func (w *world) url(id ident.SessionID) string {
	return "ws" + strings.TrimPrefix(w.server.URL, "http") + wire.TerminalPath + string(id) + wire.TerminalSocket
}

// dial opens a WebSocket; the header of Origin is absent when empty.
func (w *world) dial(id ident.SessionID, from string) (*websocket.Conn, *http.Response, error) {
	w.Helper()
	h := http.Header{}
	if from != "" {
		h.Set("Origin", from)
	}
	ctx, cancel := context.WithTimeout(w.Context(), testkit.Patience)
	defer cancel()
	return websocket.Dial(ctx, w.url(id), &websocket.DialOptions{HTTPHeader: h})
}

// enter opens a WebSocket and sends the first message.
func (w *world) enter(id ident.SessionID, first any) *websocket.Conn {
	w.Helper()
	c, _, err := w.dial(id, origin)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = c.CloseNow() })
	b, err := json.Marshal(first)
	if err != nil {
		w.Fatal(err)
	}
	if err := c.Write(w.Context(), websocket.MessageText, b); err != nil {
		w.Fatal(err)
	}
	return c
}

func (w *world) read(c *websocket.Conn) (websocket.MessageType, string, error) {
	ctx, cancel := context.WithTimeout(w.Context(), testkit.Patience)
	defer cancel()
	typ, b, err := c.Read(ctx)
	return typ, string(b), err
}

// ends says with which code and reason a socket ends.
func (w *world) ends(c *websocket.Conn) (websocket.StatusCode, string) {
	w.Helper()
	for {
		if _, _, err := w.read(c); err != nil {
			var ce websocket.CloseError
			if !errors.As(err, &ce) {
				w.Fatalf("the socket ends with a close frame, got %v", err)
			}
			return ce.Code, ce.Reason
		}
	}
}

func TestPageTellsNothing(t *testing.T) {
	w := newWorld(t, nil)
	w.open.Store(false)
	for path, want := range map[string]int{
		"/terminal/" + string(session): 200, "/terminal/" + string(other): 200, "/terminal/x": 404, "/terminal/" + strings.ToUpper(string(session)): 404,
		"/terminal/" + string(session) + "/ws": 426, "/terminal/" + string(session) + "/": 404, "/terminal/x/ws": 404,
	} {
		res, err := http.Get(w.server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("GET %s answers %d, want %d", path, res.StatusCode, want)
		}
	}
}

func TestFramesPassBothWays(t *testing.T) {
	w := newWorld(t, nil)
	c := w.enter(session, wire.TerminalAttach{Token: tokenOf(session).Reveal(), Cols: 91, Rows: 17, Instance: "abc", Seen: 5})
	s := <-w.agents
	o, err := wire.ParseTerminalOpen(s.hello.Payload)
	if err != nil || o.Terminal != "main" || o.Cols != 91 || o.Rows != 17 || o.Instance != "abc" || o.Seen != 5 || o.ReadOnly || s.hello.Session != session {
		t.Errorf("the agent is asked for what the viewer said: %+v %v", o, err)
	}
	if typ, b, err := w.read(c); err != nil || typ != websocket.MessageText || !strings.Contains(b, `"state":"attached"`) || !strings.Contains(b, `"agent":"gpu-1"`) {
		t.Errorf("the viewer is told that it is attached: %s %v", b, err)
	}
	if _, err := s.peer.Write(wire.AppendFrame(nil, wire.FrameData, []byte("hello"))); err != nil {
		t.Fatal(err)
	}
	if typ, b, err := w.read(c); err != nil || typ != websocket.MessageBinary || b != "\x00hello" {
		t.Errorf("the viewer gets what the agent sends: %q %v", b, err)
	}
	long := strings.Repeat("x", wire.MaxFrame+10)
	for _, message := range []string{"\x00" + long, "\x01\x00\x50\x00\x18", "\xc8of a later version", "\x00!"} {
		if err := c.Write(t.Context(), websocket.MessageBinary, []byte(message)); err != nil {
			t.Fatal(err)
		}
	}
	got := ""
	for !strings.HasSuffix(got, "!") {
		typ, p, _, err := wire.ReadFrame(s.peer, nil)
		if err != nil {
			t.Fatal(err)
		}
		if typ == wire.FrameResize {
			got += "(resize)"
			continue
		}
		got += string(p)
	}
	if got != long+"(resize)!" {
		t.Errorf("the agent gets what the viewer sends, in order: %d bytes", len(got))
	}
	if _, err := s.peer.Write(wire.AppendFrame(nil, wire.FrameExit, wire.Exit{Status: 3}.Payload())); err != nil {
		t.Fatal(err)
	}
	if code, _ := w.ends(c); code != wire.CloseEnded {
		t.Errorf("the program's end is code %d, want %d", code, wire.CloseEnded)
	}
	testkit.Eventually(t, "both ends are audited, with who and how much", func() bool {
		o, c := w.audited(audit.TerminalOpened), w.audited(audit.TerminalClosed)
		return len(o) == 1 && len(c) == 1 && o[0].Actor == "admin:"+string(session) && strings.Contains(o[0].Detail, "user:alice") &&
			strings.Contains(c[0].Detail, fmt.Sprint(len(long)+1, " bytes typed, 5 bytes printed"))
	})
	if totals := w.meter.Totals(session); totals.BytesIn != int64(len(long)+1) || totals.BytesOut != 5 {
		t.Errorf("it is use of the tunnel: %+v", totals)
	}
}

// An acknowledgement that crosses the program's end does not make it a loss.
func TestEndIsNoLoss(t *testing.T) {
	w := newWorld(t, nil)
	for range 20 { // the two cross now and then
		c := w.enter(session, wire.TerminalAttach{Token: tokenOf(session).Reveal()})
		s := <-w.agents
		if _, _, err := w.read(c); err != nil {
			t.Fatal(err)
		}
		acknowledged := make(chan struct{})
		go func() {
			defer close(acknowledged)
			for range 20 {
				_ = c.Write(t.Context(), websocket.MessageBinary, append([]byte{byte(wire.FrameAck)}, wire.Position(1)...))
			}
		}()
		// The agent's last word; from here on it takes nothing.
		if _, err := s.peer.Write(wire.AppendFrame(nil, wire.FrameExit, wire.Exit{}.Payload())); err != nil {
			t.Fatal(err)
		}
		_ = s.peer.Reset()
		if code, _ := w.ends(c); code != wire.CloseEnded {
			t.Errorf("the viewer is told %d, want the program's end, %d", code, wire.CloseEnded)
		}
		<-acknowledged
	}
}

func TestRefusals(t *testing.T) {
	right := wire.TerminalAttach{Token: tokenOf(session).Reveal()}
	for name, c := range map[string]struct {
		first   any
		prepare func(*world)
		code    websocket.StatusCode
		opens   int32
	}{
		"no token":              {first: wire.TerminalAttach{}, code: wire.CloseRefused},
		"a wrong token":         {first: wire.TerminalAttach{Token: "adm-wrong"}, code: wire.CloseRefused},
		"another tunnel's":      {first: wire.TerminalAttach{Token: tokenOf(other).Reveal()}, code: wire.CloseRefused},
		"a closed tunnel":       {first: right, prepare: func(w *world) { w.open.Store(false) }, code: websocket.StatusGoingAway},
		"no JSON":               {first: []int{1}, code: websocket.StatusPolicyViolation},
		"a bad name":            {first: wire.TerminalAttach{Token: right.Token, Attach: "../x"}, code: websocket.StatusPolicyViolation},
		"terminals are off":     {first: right, prepare: refuse(wire.CodeTerminalDisabled), code: wire.CloseDenied, opens: 1},
		"a paused agent":        {first: right, prepare: refuse(wire.CodePaused), code: wire.CloseDenied, opens: 1},
		"nothing to look on at": {first: right, prepare: refuse(wire.CodeNoTerminal), code: wire.CloseNothing, opens: 1},
		"too many":              {first: right, prepare: refuse(wire.CodeOverloaded), code: wire.CloseLimit, opens: 1},
		"a shell that is gone":  {first: right, prepare: refuse(wire.CodeInternal), code: wire.CloseInternal, opens: 1},
		"no record possible":    {first: right, prepare: func(w *world) { w.broken = true }, code: wire.CloseInternal, opens: 1},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			if c.prepare != nil {
				c.prepare(w)
			}
			s := w.enter(session, c.first)
			code, reason := w.ends(s)
			if code != c.code || reason == "" {
				t.Errorf("refused with %d %q, want %d", code, reason, c.code)
			}
			if n := w.opens.Load(); n != c.opens {
				t.Errorf("the agent was asked %d times, want %d", n, c.opens)
			}
			if (c.code == wire.CloseRefused || c.code == websocket.StatusGoingAway) && len(w.audited(audit.TerminalRefused)) != 1 {
				t.Error("the refusal is audited")
			}
		})
	}
}

func refuse(code wire.Code) func(*world) {
	return func(w *world) { w.refusal.Store(&wire.Verdict{Code: code, Text: "said the agent"}) }
}

// Nobody learns from the answer whether a tunnel exists, or why it is over, but who
// has its token.
func TestRefusalsAreTheSame(t *testing.T) {
	w := newWorld(t, nil)
	wrongCode, wrong := w.ends(w.enter(session, wire.TerminalAttach{Token: "adm-wrong"}))
	w.open.Store(false)
	why := "the tunnel expired"
	w.why.Store(&why)
	goneCode, gone := w.ends(w.enter(session, wire.TerminalAttach{Token: "adm-wrong"}))
	foreignCode, foreign := w.ends(w.enter(session, wire.TerminalAttach{Token: tokenOf(other).Reveal()}))
	if wrongCode != goneCode || wrong != gone || goneCode != foreignCode || gone != foreign {
		t.Errorf("%d %q, %d %q, %d %q", wrongCode, wrong, goneCode, gone, foreignCode, foreign)
	}
}

// A right token of a tunnel that is over is no guess.
func TestARightTokenIsNoGuess(t *testing.T) {
	w := newWorld(t, nil)
	w.open.Store(false)
	for range 12 {
		if code, _ := w.ends(w.enter(session, wire.TerminalAttach{Token: tokenOf(session).Reveal()})); code != websocket.StatusGoingAway {
			t.Fatalf("told %d, want that the tunnel is closed", code)
		}
	}
}

// Who is cut off is told the true reason, whichever comes first: the close frame, or
// a try of theirs to come back.
func TestTheTrueReasonWhicheverRoadIsFaster(t *testing.T) {
	over := func(text string) func(*world) {
		return func(w *world) {
			w.why.Store(&text)
			w.open.Store(false)
			w.meter.Cut(session, &usage.Over{Of: usage.ErrClosed, Text: text})
		}
	}
	for name, c := range map[string]struct {
		end    func(*world)
		code   websocket.StatusCode
		reason string
	}{
		"closed":  {over("the tunnel was closed"), websocket.StatusGoingAway, "the tunnel was closed"},
		"expired": {over("the tunnel expired"), websocket.StatusGoingAway, "the tunnel expired"},
		"idle":    {over("the tunnel was closed: nobody used it for 30m"), websocket.StatusGoingAway, "nobody used it for 30m"},
		"revoked": {over("the tunnel was closed: the credential that opened it was revoked"), websocket.StatusGoingAway, "credential that opened it was revoked"},
		"unknown": {func(w *world) {
			w.open.Store(false)
			w.meter.Cut(session, usage.ErrClosed)
		}, websocket.StatusGoingAway, "the tunnel is closed"},
		"kicked": {func(w *world) { w.meter.Kick(session, w.meter.Viewers(session)[0].ViewerID) }, wire.CloseDenied, "disconnected by the tunnel's owner"},
		"restart": {func(w *world) {
			go func() { _ = w.term.Drain(context.Background()) }()
			testkit.Eventually(w.T, "the relay drains", func() bool {
				c, res, err := w.dial(other, origin)
				if err == nil {
					_ = c.CloseNow()
				}
				return err != nil && res != nil && res.StatusCode == http.StatusServiceUnavailable
			})
		}, websocket.StatusServiceRestart, "the relay restarts"},
	} {
		attach := wire.TerminalAttach{Token: tokenOf(session).Reveal()}
		start := func(t *testing.T) (*world, *websocket.Conn) {
			w := newWorld(t, nil)
			s := w.enter(session, attach)
			if _, b, err := w.read(s); err != nil || !strings.Contains(b, wire.TerminalAttached) {
				t.Fatalf("attach: %s %v", b, err)
			}
			return w, s
		}
		t.Run(name+", the close frame first", func(t *testing.T) {
			w, s := start(t)
			c.end(w)
			if code, reason := w.ends(s); code != c.code || !strings.Contains(reason, c.reason) {
				t.Errorf("told %d %q, want %d and that %s", code, reason, c.code, c.reason)
			}
		})
		t.Run(name+", the new attempt first", func(t *testing.T) {
			w, s := start(t)
			if name == "kicked" { // while there is somebody to kick
				c.end(w)
			}
			_ = s.CloseNow()
			if name != "kicked" {
				c.end(w)
			}
			if name == "restart" {
				_, res, err := w.dial(session, origin)
				if err == nil || res == nil || res.StatusCode != http.StatusServiceUnavailable {
					t.Fatalf("a new attempt at a relay that restarts: %+v %v", res, err)
				}
				if b, _ := io.ReadAll(res.Body); !strings.Contains(string(b), c.reason) {
					t.Errorf("told %s, want that %s", b, c.reason)
				}
				return
			}
			if code, reason := w.ends(w.enter(session, attach)); code != c.code || !strings.Contains(reason, c.reason) {
				t.Errorf("told %d %q, want %d and that %s", code, reason, c.code, c.reason)
			}
		})
	}
}

// The machine may hear of the end before this relay's users do.
func TestTheMachineHeardFirst(t *testing.T) {
	w := newWorld(t, nil)
	refuse(wire.CodeUnknownTunnel)(w)
	why := "the tunnel expired"
	s := w.enter(session, wire.TerminalAttach{Token: tokenOf(session).Reveal()})
	<-w.agents
	w.why.Store(&why)
	w.open.Store(false)
	if code, reason := w.ends(s); code != websocket.StatusGoingAway || reason != why {
		t.Errorf("told %d %q, want that %s", code, reason, why)
	}
}

func TestOrigins(t *testing.T) {
	w := newWorld(t, nil)
	for from, want := range map[string]bool{
		origin: true, "": true, "https://evil.example": false, "null": false, "https://sub.relay.example.com": false, "https://relay.example.com.evil.example": false,
		"http://relay.example.com": false, "https://relay.example.com:8443": false, "HTTPS://RELAY.example.com": true,
	} {
		c, res, err := w.dial(session, from)
		if (err == nil) != want {
			t.Errorf("Origin %q: %v, want admitted %v", from, err, want)
		}
		if err == nil {
			_ = c.CloseNow()
		} else if res == nil || res.StatusCode != http.StatusForbidden {
			t.Errorf("Origin %q is refused with 403, got %+v", from, res)
		}
	}
	if n := w.opens.Load(); n != 0 {
		t.Errorf("the agent was asked %d times", n)
	}
}

// TestAStaleIndexOpensNoTerminal has a relay that heard nothing of its store for a
// while: the tunnel may have been closed, and its token with it.
func TestAStaleIndexOpensNoTerminal(t *testing.T) {
	w := newWorld(t, nil)
	w.stale.Store(true)
	_, resp, err := w.dial(session, origin)
	if err == nil || resp == nil || resp.StatusCode != http.StatusServiceUnavailable {
		t.Fatalf("a terminal on a relay that is cut off: %v %v", resp, err)
	}
	w.stale.Store(false)
	c, _, err := w.dial(session, origin)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.CloseNow()
}

func TestSilenceIsEnded(t *testing.T) {
	w := newWorld(t, func(c *terminal.Config) { c.FirstMessage = 500 * time.Millisecond })
	c, _, err := w.dial(session, origin)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.CloseNow() }()
	if code, _ := w.ends(c); code != websocket.StatusPolicyViolation {
		t.Errorf("who sends no token is sent away with 1008, got %d", code)
	}
	long := w.enter(session, wire.TerminalAttach{Token: strings.Repeat("x", 9<<10)})
	if code, _ := w.ends(long); code != websocket.StatusMessageTooBig {
		t.Errorf("an endless first message is 1009, got %d", code)
	}
}

func TestGuessesAreSlowedDown(t *testing.T) {
	w := newWorld(t, nil)
	for range 10 {
		w.ends(w.enter(session, wire.TerminalAttach{Token: "adm-guess"}))
	}
	_, res, err := w.dial(session, origin)
	if err == nil || res == nil || res.StatusCode != http.StatusTooManyRequests || res.Header.Get("Retry-After") == "" {
		t.Errorf("after ten wrong tokens an address waits: %+v %v", res, err)
	}
}

func TestReadOnlyIsKeptByTheRelayToo(t *testing.T) {
	w := newWorld(t, nil)
	c := w.enter(session, wire.TerminalAttach{Token: tokenOf(session).Reveal(), ReadOnly: true})
	s := <-w.agents
	if o, err := wire.ParseTerminalOpen(s.hello.Payload); err != nil || !o.ReadOnly {
		t.Errorf("the agent is told: %+v %v", o, err)
	}
	for _, m := range []string{"\x00rm -rf\r", "\x02" + string(wire.Position(1))} {
		if err := c.Write(t.Context(), websocket.MessageBinary, []byte(m)); err != nil {
			t.Fatal(err)
		}
	}
	if typ, _, _, err := wire.ReadFrame(s.peer, nil); err != nil || typ != wire.FrameAck {
		t.Errorf("the first that comes through is the acknowledgement: %d %v", typ, err)
	}
}

func TestEnds(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(*world, *stream)
		code websocket.StatusCode
	}{
		"the tunnel closes":    {func(w *world, _ *stream) { w.meter.Cut(session, usage.ErrClosed) }, websocket.StatusGoingAway},
		"the viewer is kicked": {func(w *world, _ *stream) { w.meter.Kick(session, w.meter.Viewers(session)[0].ViewerID) }, wire.CloseDenied},
		"the agent hears of the close first": {func(w *world, s *stream) {
			_ = s.peer.Close()
			time.AfterFunc(100*time.Millisecond, func() { w.meter.Cut(session, usage.ErrClosed) })
		}, websocket.StatusGoingAway},
		"the agent ends without a word": {func(_ *world, s *stream) { _ = s.peer.Close() }, wire.CloseLost},
		"the relay drains":              {func(w *world, _ *stream) { go func() { _ = w.term.Drain(context.Background()) }() }, websocket.StatusServiceRestart},
		"the viewer is too slow": {func(_ *world, s *stream) {
			_, _ = s.peer.Write(wire.AppendFrame(nil, wire.FrameDropped, []byte("too slow")))
		}, wire.CloseDropped},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			s := w.enter(session, wire.TerminalAttach{Token: tokenOf(session).Reveal()})
			if _, _, err := w.read(s); err != nil {
				t.Fatal(err)
			}
			agent := <-w.agents
			start := time.Now()
			c.end(w, agent)
			if code, _ := w.ends(s); code != c.code {
				t.Errorf("the viewer is told %d, want %d", code, c.code)
			}
			if c.code != wire.CloseLost {
				testkit.Took(t, "telling the viewer", time.Since(start), time.Second)
			}
			testkit.Eventually(t, "the end is audited", func() bool { return len(w.audited(audit.TerminalClosed)) == 1 })
		})
	}
}

func TestViewerWaitsForTheAgent(t *testing.T) {
	w := newWorld(t, nil)
	w.away.Store(true)
	c := w.enter(session, wire.TerminalAttach{Token: tokenOf(session).Reveal()})
	if _, b, err := w.read(c); err != nil || !strings.Contains(b, `"state":"waiting"`) {
		t.Errorf("the viewer is told that the machine is away: %s %v", b, err)
	}
	w.away.Store(false)
	if _, b, err := w.read(c); err != nil || !strings.Contains(b, `"state":"attached"`) {
		t.Errorf("and attached when it is back: %s %v", b, err)
	}
}

package terminal_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/relay/internal/terminal"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

// mint makes a code of a tunnel.
func (w *world) mint(id ident.SessionID, lives time.Duration, readOnly bool) string {
	w.Helper()
	tunnel, _ := w.Tunnel(id)
	address, until, err := w.term.Mint(w.Context(), tunnel, alice, lives, readOnly)
	if err != nil {
		w.Fatal(err)
	}
	code, ok := strings.CutPrefix(address, origin+"/terminal/"+string(id)+"#code=")
	if !ok || !strings.HasPrefix(code, "tc-") || time.Until(until) > lives {
		w.Fatalf("the address is %q, until %v", address, until)
	}
	return code
}

// admitted enters with a code and returns the right that came with it.
func (w *world) admitted(first wire.TerminalAttach) (*websocket.Conn, wire.TerminalReady) {
	w.Helper()
	c := w.enter(session, first)
	var ready wire.TerminalReady
	_, b, err := w.read(c)
	if err != nil || json.Unmarshal([]byte(b), &ready) != nil || ready.State != wire.TerminalAdmitted || !strings.HasPrefix(ready.Right, "tr-") {
		w.Fatalf("a code is answered %s %v", b, err)
	}
	if _, b, err := w.read(c); err != nil || !strings.Contains(b, wire.TerminalAttached) {
		w.Fatalf("then comes %s %v", b, err)
	}
	return c, ready
}

// alice has everything with which what she opens ends.
var alice = creds.Principal{Kind: creds.KindUser, Team: "t", User: "alice", Credential: maker, SignIn: "browser", Name: "user:alice"}

// What a code opens ends with the credential, the person and the browser that made it:
// who is there, who comes back, and whoever has a code of it still.
func TestWhatACodeOpensEndsWithItsMaker(t *testing.T) {
	for name, end := range map[string]func(*world){
		"the credential is revoked":  func(w *world) { w.revoked.Store(true) },
		"the person is removed":      func(w *world) { w.removed.Store(true) },
		"removed, the tunnels kept":  func(w *world) { w.kept.Store(true); w.removed.Store(true) },
		"the browser was signed out": func(w *world) { w.signedOut.Store(true) },
		"a viewer now":               func(w *world) { w.place.Store(&store.MemberRecord{Role: api.RoleViewer, Source: store.SourceOwner}) },
		"a member now, of another's": func(w *world) {
			w.place.Store(&store.MemberRecord{Role: api.RoleMember, Source: store.SourceInvite})
		},
	} {
		t.Run(name, func(t *testing.T) { endsWithItsMaker(t, strings.HasSuffix(name, "another's"), end) })
	}
}

func endsWithItsMaker(t *testing.T, others bool, end func(*world)) {
	w := newWorld(t, nil)
	w.others.Store(others)
	unused := w.mint(session, time.Minute, false)
	c, ready := w.admitted(wire.TerminalAttach{Code: w.mint(session, time.Minute, false)})
	<-w.agents
	back := w.enter(session, wire.TerminalAttach{Token: ready.Right})
	if _, b, err := w.read(back); err != nil || !strings.Contains(b, wire.TerminalAttached) {
		t.Fatalf("before, its right is answered %s %v", b, err)
	}
	<-w.agents
	end(w)
	for who, c := range map[string]*websocket.Conn{
		"who is there by a code": c, "who is there by a right": back,
		"who comes with a right": w.enter(session, wire.TerminalAttach{Token: ready.Right}),
		"who comes with a code":  w.enter(session, wire.TerminalAttach{Code: unused}),
	} {
		if code, reason := w.ends(c); code != wire.CloseDenied || !strings.HasPrefix(reason, "who let you in may not any more") {
			t.Errorf("%s is told %d %q", who, code, reason)
		}
	}
	c = w.enter(session, wire.TerminalAttach{Token: tokenOf(session).Reveal()})
	if w.removed.Load() { // it was theirs, too
		if code, reason := w.ends(c); code != wire.CloseDenied || !strings.HasPrefix(reason, "who let you in may not any more") {
			t.Errorf("the tunnel's own token is told %d %q", code, reason)
		}
		return
	}
	if _, b, err := w.read(c); err != nil || !strings.Contains(b, wire.TerminalAttached) {
		t.Errorf("the tunnel's own token is answered %s %v", b, err)
	}
}

// A member goes on in a terminal of their own tunnel.
func TestAMemberKeepsATerminalOfTheirs(t *testing.T) {
	w := newWorld(t, nil)
	w.place.Store(&store.MemberRecord{Role: api.RoleMember, Source: store.SourceInvite})
	_, ready := w.admitted(wire.TerminalAttach{Code: w.mint(session, time.Minute, false)})
	<-w.agents
	c := w.enter(session, wire.TerminalAttach{Token: ready.Right})
	if _, b, err := w.read(c); err != nil || !strings.Contains(b, wire.TerminalAttached) {
		t.Errorf("the right is answered %s %v", b, err)
	}
}

// A tunnel that a credential for some ports opened has no terminals, whatever is shown.
func TestATunnelForAPortHasNoTerminal(t *testing.T) {
	w := newWorld(t, nil)
	c, ready := w.admitted(wire.TerminalAttach{Code: w.mint(session, time.Minute, false)})
	<-w.agents
	_ = c.CloseNow()
	code := w.mint(session, time.Minute, false)
	w.noTerminal.Store(true)
	for what, first := range map[string]wire.TerminalAttach{"its admin token": {Token: tokenOf(session).Reveal()}, "a right": {Token: ready.Right}, "a code": {Code: code}} {
		if code, reason := w.ends(w.enter(session, first)); code != wire.CloseDenied || !strings.Contains(reason, "a terminal is the whole machine") {
			t.Errorf("%s is told %d %q", what, code, reason)
		}
	}
}

// A code enters once; what it brings comes back as often as the tunnel is open.
func TestACodeWorksOnce(t *testing.T) {
	w := newWorld(t, nil)
	code := w.mint(session, time.Minute, false)
	c, ready := w.admitted(wire.TerminalAttach{Code: code})
	s := <-w.agents
	if err := c.Write(t.Context(), websocket.MessageBinary, []byte("\x00ls")); err != nil {
		t.Fatal(err)
	}
	if typ, p, _, err := wire.ReadFrame(s.peer, nil); err != nil || typ != wire.FrameData || string(p) != "ls" {
		t.Errorf("the agent gets %q %v", p, err)
	}
	_ = c.CloseNow()
	again, reason := w.ends(w.enter(session, wire.TerminalAttach{Code: code}))
	if again != wire.CloseRefused || reason != "the code is not right, was used already, or has expired" {
		t.Errorf("a used code is told %d %q", again, reason)
	}
	for range 3 {
		c := w.enter(session, wire.TerminalAttach{Token: ready.Right})
		if _, b, err := w.read(c); err != nil || !strings.Contains(b, wire.TerminalAttached) {
			t.Errorf("its right is answered %s %v", b, err)
		}
		_ = c.CloseNow()
		<-w.agents
	}
	if made, opened := w.audited(audit.TerminalCode), w.audited(audit.TerminalOpened); len(made) != 1 || made[0].Actor != "user:alice" || len(opened) != 4 || opened[0].Actor != "code of user:alice" || opened[1].Actor != "terminal:"+string(session) {
		t.Errorf("it is audited who made the code and that it was used: %+v %+v", made, opened)
	}
	// With the tunnel the right is over, and told so.
	w.open.Store(false)
	why := "the tunnel expired"
	w.why.Store(&why)
	for _, a := range []wire.TerminalAttach{{Token: ready.Right}, {Code: code}} {
		if code, reason := w.ends(w.enter(session, a)); code != websocket.StatusGoingAway || reason != why {
			t.Errorf("after the tunnel's end it is told %d %q", code, reason)
		}
	}
}

func TestOfTwoWithOneCodeOneEnters(t *testing.T) {
	w := newWorld(t, nil)
	code := w.mint(session, time.Minute, false)
	var wg sync.WaitGroup
	var mu sync.Mutex
	in, out := 0, 0
	for range 8 {
		c := w.enter(session, wire.TerminalAttach{Code: code})
		wg.Go(func() {
			_, b, err := w.read(c)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil && strings.Contains(b, wire.TerminalAdmitted):
				in++
			case websocket.CloseStatus(err) == wire.CloseRefused:
				out++
			default:
				t.Errorf("%s %v", b, err)
			}
		})
	}
	wg.Wait()
	if in != 1 || out != 7 {
		t.Errorf("%d entered and %d were refused", in, out)
	}
}

// Who was given a code to look on types nothing, whatever their page says, now and
// when they come back.
func TestAReadOnlyCodeTypesNothing(t *testing.T) {
	w := newWorld(t, nil)
	c, ready := w.admitted(wire.TerminalAttach{Code: w.mint(session, time.Minute, true), ReadOnly: false})
	for again := range 2 {
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
		if !ready.ReadOnly {
			t.Error("the page is told that it looks on")
		}
		if again == 0 {
			_ = c.CloseNow()
			c = w.enter(session, wire.TerminalAttach{Token: ready.Right})
		}
	}
}

func TestCodesThatOpenNothing(t *testing.T) {
	w := newWorld(t, nil)
	foreign := newWorld(t, func(c *terminal.Config) { c.Key = ident.ClusterKey{9} })
	late := w.mint(session, time.Minute, false)
	w.mu.Lock()
	for hash, r := range w.codes {
		r.ExpiresAt = time.Now().Add(-time.Second)
		w.codes[hash] = r
	}
	w.mu.Unlock()
	for name, code := range map[string]string{
		"another tunnel's": w.mint(other, time.Minute, false), "of another cluster": foreign.mint(session, time.Minute, false), "an expired one": late,
		"a guess": ident.NewSecret(ident.PrefixCode).Reveal(), "no code at all": "tc-x", "a right": "tr-x", "an admin token": tokenOf(session).Reveal(),
	} {
		if got, reason := w.ends(w.enter(session, wire.TerminalAttach{Code: code})); got != wire.CloseRefused || !strings.Contains(reason, "code") {
			t.Errorf("%s is told %d %q", name, got, reason)
		}
	}
	for range 5 { // wrong codes count as wrong tokens do
		if c, _, err := w.dial(session, origin); err == nil {
			_ = c.Write(t.Context(), websocket.MessageText, []byte(`{"code":"tc-guess"}`))
			w.ends(c)
		}
	}
	if _, res, err := w.dial(session, origin); err == nil || res == nil || res.StatusCode != http.StatusTooManyRequests {
		t.Errorf("after ten wrong codes an address waits: %+v %v", res, err)
	}
}

// While the store is away a code is neither used nor lost.
func TestACodeOutlivesAStoreThatIsAway(t *testing.T) {
	w := newWorld(t, nil)
	code := w.mint(session, time.Minute, false)
	down := func(v bool) { w.mu.Lock(); w.down = v; w.mu.Unlock() }
	down(true)
	if got, _ := w.ends(w.enter(session, wire.TerminalAttach{Code: code})); got != wire.CloseLost {
		t.Errorf("told %d, want to try again", got)
	}
	down(false)
	w.admitted(wire.TerminalAttach{Code: code})
}

func TestCodesAreBounded(t *testing.T) {
	w := newWorld(t, nil)
	tunnel, _ := w.Tunnel(session)
	for range 16 {
		w.mint(session, time.Minute, false)
	}
	_, _, err := w.term.Mint(t.Context(), tunnel, alice, time.Minute, false)
	if p, ok := errors.AsType[*api.Problem](err); !ok || p.Status != http.StatusTooManyRequests {
		t.Errorf("the seventeenth code: %v", err)
	}
	w.mu.Lock()
	clear(w.codes)
	w.mu.Unlock()
	tunnel.ExpiresAt = time.Now().Add(time.Minute)
	if _, until, err := w.term.Mint(t.Context(), tunnel, alice, time.Hour, false); err != nil || until.After(tunnel.ExpiresAt) {
		t.Errorf("a code lives no longer than its tunnel: %v %v", until, err)
	}
}

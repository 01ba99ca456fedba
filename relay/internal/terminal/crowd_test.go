package terminal_test

import (
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/terminal"
	"github.com/adit-tunnel/adit/shared/wire"
)

// addressed is a relay whose viewers say in a header from which address they come.
func addressed(c *terminal.Config) {
	c.Remote = func(r *http.Request) string { return r.Header.Get("X-Test-Address") }
	c.FirstMessage = time.Minute // so that nothing but the crowd ends a silent socket
}

func (w *world) from(address string) *websocket.Conn {
	w.Helper()
	c, _, err := websocket.Dial(w.Context(), w.url(session), &websocket.DialOptions{HTTPHeader: http.Header{"X-Test-Address": {address}}})
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = c.CloseNow() })
	return c
}

// token sends the first message on a socket.
func (w *world) token(c *websocket.Conn) {
	w.Helper()
	if err := c.Write(w.Context(), websocket.MessageText, []byte(`{"token":"`+tokenOf(session).Reveal()+`"}`)); err != nil {
		w.Fatal(err)
	}
}

func TestSilentSocketsShutNobodyOut(t *testing.T) {
	w := newWorld(t, addressed)
	honest := w.from("203.0.113.1") // before the crowd, and slower than all of it
	var first *websocket.Conn
	for i := range 600 {
		c := w.from("198.51.100." + strconv.Itoa(i%10+1))
		if first == nil {
			first = c
		}
	}
	if code, why := w.ends(first); code != websocket.StatusTryAgainLater || !strings.Contains(why, "connect again") {
		t.Errorf("the socket that was silent longest makes room, and is told to come again: %d %q", code, why)
	}
	late := w.from("203.0.113.2")
	for name, c := range map[string]*websocket.Conn{"who came before the crowd": honest, "who came after it": late} {
		w.token(c)
		if _, ready, err := w.read(c); err != nil || !strings.Contains(ready, `"attached"`) {
			t.Errorf("%s gets the terminal, in spite of 600 silent sockets of ten addresses: %q %v", name, ready, err)
		}
	}
}

func TestAnAddressHasAShareOfSilentSockets(t *testing.T) {
	w := newWorld(t, addressed)
	var own []*websocket.Conn
	for range 65 {
		own = append(own, w.from("2001:db8::"+strconv.Itoa(len(own)+1))) // one network is one address
	}
	if code, _ := w.ends(own[0]); code != websocket.StatusTryAgainLater {
		t.Errorf("the oldest of an address that has its share makes room for its newest: %d", code)
	}
	w.token(own[1])
	if _, ready, err := w.read(own[1]); err != nil || !strings.Contains(ready, `"attached"`) {
		t.Errorf("the others of the address are left alone: %q %v", ready, err)
	}
}

func TestATeamHasAShareOfViewers(t *testing.T) {
	w := newWorld(t, addressed)
	attach := func() *websocket.Conn {
		c := w.from("203.0.113.1")
		w.token(c)
		return c
	}
	const share = 512
	var last *websocket.Conn
	for range share {
		last = attach()
		if _, ready, err := w.read(last); err != nil || !strings.Contains(ready, `"attached"`) {
			t.Fatalf("within the team's share a viewer gets in: %q %v", ready, err)
		}
		<-w.agents
	}
	if code, why := w.ends(attach()); code != wire.CloseLimit || !strings.Contains(why, "team") {
		t.Errorf("a viewer beyond the team's share is told so: %d %q", code, why)
	}
	if n := len(w.audited(audit.TerminalRefused)); n != 1 {
		t.Errorf("%d refusals are audited, want 1", n)
	}
	_ = last.CloseNow()
	deadline := time.After(10 * time.Second)
	for {
		c := attach()
		if _, ready, err := w.read(c); err == nil && strings.Contains(ready, `"attached"`) {
			return
		}
		select {
		case <-deadline:
			t.Fatal("a viewer that leaves frees its place in the team's share")
		default:
		}
	}
}

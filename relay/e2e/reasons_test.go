package e2e

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/testkit/wan"
)

// relayBehind starts a relay whose users reach it over a line that tests can cut; its
// agents and the tests' own calls do not take that way.
func relayBehind(w *world.World) (*world.Relay, *wan.Link) {
	w.T.Helper()
	r := w.NewRelay(world.PathForm)
	line := wan.Start(w.T, r.Addr(), wan.Options{})
	_, port, err := net.SplitHostPort(line.Addr())
	if err != nil {
		w.T.Fatal(err)
	}
	r.URL = "http://localhost:" + port
	r.Env = append(r.Env, "ADIT_PUBLIC_URL="+r.URL)
	r.Start()
	r.WaitReady(30 * time.Second)
	return r, line
}

// cutOff are users of tunnels of one relay, of every kind: a terminal's page, `adit
// terminal`, `adit connect`, and a WebSocket through an HTTP tunnel.
type cutOff struct {
	w       *world.World
	r       *world.Relay
	page    *screen
	seat    *seat
	connect *world.Process
	port    int    // of connect
	address string // of the WebSocket
	socket  *websocket.Conn
	all     []api.Tunnel
}

// newCutOff opens the tunnels and has everybody use them.
func newCutOff(w *world.World, r *world.Relay, sk string, tab *screen, port int, limits map[string]any) *cutOff {
	t := w.T
	t.Helper()
	open := func(more map[string]any) api.Tunnel {
		maps.Copy(more, limits)
		return r.Open(sk, "gpu-1", more)
	}
	// Those that take longest to begin come first: a tunnel's time runs from its opening.
	c := &cutOff{w: w, r: r, page: tab, port: w.FreePort()}
	tcp, ws := open(map[string]any{"target_port": port, "tunnel_protocol": "tcp"}), open(map[string]any{"target_port": port})
	shell := open(map[string]any{"target_port": 9})
	c.all = []api.Tunnel{tcp, ws, shell}
	c.seat = sit(w, []string{"ADIT_URL=" + r.URL, "ADIT_ADMIN_TOKEN=" + shell.AdminToken}, "terminal", string(shell.SessionID))
	c.connect = w.Start("adit connect", []string{"ADIT_TUNNEL_URL=" + tcp.TunnelURL}, filepath.Join(w.Bin, "adit"), "connect", "-L", fmt.Sprintf("127.0.0.1:%d", c.port))
	c.page.do("the terminal's page attaches", world.Navigate("about:blank"), world.Navigate(terminalURL(r, shell, false)), connected())
	c.seat.sees("# ")
	c.address = strings.Replace(r.PathURL(ws), "http", "ws", 1) + "ws"
	var err error
	if c.socket, _, err = websocket.Dial(t.Context(), c.address, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.socket.CloseNow() })
	c.carry()
	return c
}

// carry has a connection through adit connect that stays.
func (c *cutOff) carry() {
	t := c.w.T
	t.Helper()
	conn := c.local()
	if _, err := io.WriteString(conn, "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 12)
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != "HTTP/1.1 101" {
		t.Fatalf("through adit connect: %q %v", b, err)
	}
}

// connectSays waits until adit connect has said something.
func (c *cutOff) connectSays(text string) {
	c.w.T.Helper()
	c.w.Eventually(30*time.Second, fmt.Sprintf("adit connect says that %s", text), func() bool { return strings.Contains(c.connect.Log(), text) })
}

// leave ends the programs.
func (c *cutOff) leave() {
	c.connect.Kill()
	_ = c.seat.cmd.Process.Kill()
}

// local is a connection of a local client to adit connect.
func (c *cutOff) local() net.Conn {
	c.w.T.Helper()
	var conn net.Conn
	c.w.Eventually(30*time.Second, "adit connect listens", func() (ok bool) {
		var err error
		conn, err = net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", c.port))
		return err == nil
	})
	c.w.T.Cleanup(func() { _ = conn.Close() })
	return conn
}

// over waits until the relay says that the tunnels are.
func (c *cutOff) over() {
	c.w.T.Helper()
	for _, tun := range c.all {
		c.w.Eventually(60*time.Second, "tunnel "+string(tun.SessionID)+" is over", func() bool {
			status, _ := c.r.Raw(tun.AdminToken, http.MethodGet, "/tunnels/"+string(tun.SessionID)+"/viewers", nil)
			return status == http.StatusNotFound
		})
	}
}

// frame is the close frame that ends the WebSocket.
func (c *cutOff) frame() websocket.CloseError {
	c.w.T.Helper()
	_, _, err := c.socket.Read(c.w.T.Context())
	ce, ok := errors.AsType[websocket.CloseError](err)
	if !ok {
		c.w.T.Errorf("the WebSocket ends with a close frame, got %v", err)
	}
	return ce
}

// Whoever is cut off is told the true reason, whichever is faster: the close frame, or
// their own try to come back after the line broke first.
func TestTheTrueReason(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r, line := relayBehind(w)
	terminalAgent(w, r)
	sk := r.Credential("integration", world.Team)
	echo := app(t, wsEcho)
	tab := &screen{w, w.Browser(15 * time.Minute)}
	closeAll := func() { r.API(sk, http.MethodDelete, "/agents/gpu-1/tunnel", nil, nil) }
	for _, c := range []struct {
		says   string
		limits map[string]any
		end    func()
	}{
		{"the tunnel was closed", nil, closeAll},
		{"the tunnel expired", map[string]any{"expires_in": "30s"}, func() {}},
	} {
		page := world.Until(fmt.Sprintf(`!document.getElementById("over").hidden && document.getElementById("over-title").textContent === "The tunnel is closed" && document.getElementById("over-text").textContent.includes(%q)`, c.says[4:]))

		u := newCutOff(w, r, sk, tab, echo, c.limits)
		c.end()
		if ce := u.frame(); ce.Code != websocket.StatusGoingAway || !strings.Contains(ce.Reason, c.says) {
			t.Errorf("the close frame says %v, want that %s", ce, c.says)
		}
		tab.do("the close frame first: the page says that "+c.says, page)
		u.seat.sees(c.says)
		u.connectSays(c.says)
		u.leave()

		u = newCutOff(w, r, sk, tab, echo, c.limits)
		line.Cut()
		tab.do("the page looks for its terminal", world.Until(`document.getElementById("state").dataset.tone === "warn"`))
		c.end()
		u.over()
		line.Heal()
		tab.do("the new attempt first: the page says that "+c.says, page)
		u.seat.sees(c.says)
		_ = u.local()
		u.connectSays(c.says)
		_, res, err := websocket.Dial(t.Context(), u.address, nil)
		if err == nil || res == nil {
			t.Fatalf("a closed tunnel takes a WebSocket: %v", err)
		}
		if b, _ := io.ReadAll(res.Body); res.StatusCode != http.StatusNotFound || !strings.Contains(string(b), "it was closed or taken back, has expired") {
			t.Errorf("a WebSocket's new attempt is answered %d %s", res.StatusCode, b)
		}
		u.leave()
	}

	for _, frameFirst := range []bool{true, false} {
		u := newCutOff(w, r, sk, tab, echo, nil)
		if !frameFirst {
			line.Cut()
		}
		if err := r.Stop(30 * time.Second); err != nil {
			t.Errorf("the relay stops: %v", err)
		}
		if frameFirst {
			if ce := u.frame(); ce.Code != websocket.StatusServiceRestart || !strings.Contains(ce.Reason, "the relay restarts") {
				t.Errorf("the close frame says %v, want that the relay restarts", ce)
			}
			u.seat.sees("the relay restarts")
			u.connectSays("the relay restarts")
		} else {
			line.Heal()
		}
		tab.do("the page says that the relay is away, and waits", world.Until(`/^reconnecting.*the relay (restarts|cannot be reached)/.test(document.getElementById("state").textContent)`))
		r.Start()
		r.WaitReady(30 * time.Second)
		tab.do("and is back by itself", connected())
		u.seat.types("echo ba'ck'\r")
		u.seat.sees("back\r\n")
		socket, _, err := websocket.Dial(t.Context(), u.address, nil)
		if err != nil {
			t.Fatalf("a new WebSocket after the restart: %v", err)
		}
		_ = socket.CloseNow()
		closeAll()
		u.leave()
	}
}

// The console says what happened to tunnels and to itself, also when the line to it
// broke first.
func TestTheTrueReasonInTheConsole(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r, line := relayBehind(w)
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team, "--name", "console")
	other := r.Credential("integration", world.Team)
	c := newConsole(w, r)
	c.signIn(sk)
	for _, x := range []struct {
		says   string
		limits map[string]any
		end    func()
	}{
		{"a tunnel to gpu-1 is over: closed by a user", map[string]any{"target_port": 9}, func() { r.API(other, http.MethodDelete, "/agents/gpu-1/tunnel", nil, nil) }},
		{"a tunnel to gpu-1 is over: expired", map[string]any{"target_port": 9, "expires_in": "10s"}, func() {}},
		{"a tunnel to gpu-1 is over: idle", map[string]any{"target_port": 9, "idle_timeout": "10s"}, func() {}},
	} {
		// A message stays for 6 s, and another page may be slow: it is noted when it comes.
		note := evaluate(`(() => { window.said = ""; window.noter?.disconnect(); window.noter = new MutationObserver(() => { window.said += document.querySelector(".toasts").innerText.toLowerCase() + "\n"; });
			window.noter.observe(document.querySelector(".toasts"), { childList: true, subtree: true, characterData: true }); })()`)
		said := world.Until(fmt.Sprintf(`window.said.includes(%q)`, x.says))
		for _, eventFirst := range []bool{true, false} {
			tun := r.Open(other, "gpu-1", x.limits)
			c.do("the tunnel is shown", note, text("port 9"))
			if !eventFirst {
				line.Cut()
				c.do("the console is cut off", world.Until(`document.querySelector(".pulse.lost")`))
			}
			x.end()
			(&cutOff{w: w, r: r, all: []api.Tunnel{tun}}).over()
			if !eventFirst {
				line.Heal()
			}
			c.do(fmt.Sprintf("it says that %s (the event first: %v)", x.says, eventFirst), said, world.Until(`document.querySelector(".pulse.live") && !document.querySelector(".tunnel")`))
		}
	}

	if err := r.Stop(30 * time.Second); err != nil {
		t.Errorf("the relay stops: %v", err)
	}
	c.do("at a restart the console says so", text("the relay restarts"))
	r.Start()
	r.WaitReady(30 * time.Second)
	c.do("and is back by itself", world.Until(`document.querySelector(".pulse.live") && !document.querySelector(".banner")`))

	for _, name := range []string{"console", "console-2"} { // the event first, then the new attempt
		if name == "console-2" {
			secret := r.Credential("integration", world.Team, "--name", name)
			c.do("the form is emptied", fill("#secret", ""))
			c.signIn(secret)
			line.Cut()
			c.do("the console is cut off", world.Until(`document.querySelector(".pulse.lost")`))
		}
		admin := []string{"--socket", filepath.Join(r.DataDir, "admin.sock")}
		for l := range strings.Lines(w.Run(nil, filepath.Join(w.Bin, "adit-relay"), append([]string{"credential", "list", "--team", world.Team}, admin...)...)) {
			if f := strings.Fields(l); slices.Contains(f, name) {
				w.Run(nil, filepath.Join(w.Bin, "adit-relay"), append([]string{"credential", "revoke", f[0]}, admin...)...)
			}
		}
		line.Heal()
		c.do("whose credential was revoked is told so, at the form", world.Until(`document.querySelector("#secret")`), text("the credential was revoked"))
	}
}

// The same for a named link that is taken back while its tunnel goes on.
func TestTheTrueReasonOfALink(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r, line := relayBehind(w)
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": app(t, wsEcho), "tunnel_protocol": "tcp"})
	for _, frameFirst := range []bool{true, false} {
		var l api.NamedLink
		r.API(sk, http.MethodPost, "/tunnels/"+string(tun.SessionID)+"/links", map[string]any{"name": "x"}, &l)
		u := &cutOff{w: w, r: r, port: w.FreePort()}
		u.connect = w.Start("adit connect", []string{"ADIT_TUNNEL_URL=" + l.URL}, filepath.Join(w.Bin, "adit"), "connect", "-L", fmt.Sprintf("127.0.0.1:%d", u.port))
		u.carry()
		if !frameFirst {
			line.Cut()
		}
		if status, p := r.API(sk, http.MethodDelete, "/tunnels/"+string(tun.SessionID)+"/links/"+string(l.LinkID), nil, nil); status != http.StatusNoContent {
			t.Fatalf("revoke: %d %v", status, p)
		}
		if !frameFirst {
			line.Heal()
			_ = u.local()
		}
		u.connectSays("the link was revoked")
		u.connect.Kill()
	}
}

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
)

// club is a pool of two relays, an app that notes what it learns, and people.
type club struct {
	*fleet

	console string // origin of the relays' own pages
	web     int    // port of the app

	mu      sync.Mutex
	learned []string // cookies and secrets of ours that reached the app: none
}

func newClub(t *testing.T) *club {
	t.Helper()
	c := &club{}
	c.fleet = newFleet(t, 2, func(f *fleet, _ int) []string {
		return []string{"ADIT_CONSOLE_URL=" + strings.Replace(f.lb.url, "localhost", "127.0.0.1", 1)}
	})
	c.console = strings.Replace(c.lb.url, "localhost", "127.0.0.1", 1)
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Method+" "+r.RequestURI) })
	mux.HandleFunc("/events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "data: begun\n\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	mux.HandleFunc("/ws", wsEcho)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var head strings.Builder
		_ = r.Header.Write(&head)
		if s := strings.ToLower(head.String()); strings.Contains(s, "adit-pass") || strings.Contains(s, "adit-ask") || strings.Contains(s, "adit-authorization") || strings.Contains(s, "=ps-") {
			c.mu.Lock()
			c.learned = append(c.learned, s)
			c.mu.Unlock()
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(app.CloseClientConnections)
	c.web = app.Listener.Addr().(*net.TCPAddr).Port
	c.run(1, 1)
	return c
}

// guest is a browser at one of the relays. Names lead to that relay, whatever they are.
type guest struct {
	*visitor
	dial func(ctx context.Context, network, _ string) (net.Conn, error)
}

const guestAgent = "a guest's browser"

// guest opens a browser. Who has a name accepts an invitation to a team with it.
func (c *club) guest(at int, name string, team ...string) *guest {
	c.t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		c.t.Fatal(err)
	}
	g := &guest{dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, c.relays[at].Addr())
	}}
	tr := &http.Transport{DialContext: g.dial}
	c.t.Cleanup(tr.CloseIdleConnections)
	own := &world.Relay{W: c.w, URL: c.console, DataDir: c.relays[at].DataDir}
	g.visitor = &visitor{r: own, client: &http.Client{Jar: jar, Transport: tr}, passed: map[string]string{}}
	if name != "" {
		if status, p := g.door("invite", map[string]string{"invite": invited(own, name, "member", team...)}, nil); status != http.StatusOK {
			c.t.Fatalf("%s accepts an invitation: %d %v", name, status, p)
		}
	}
	return g
}

// opens opens a page, follows where it leads and says what comes in the end.
func (g *guest) opens(address string) (at *url.URL, status int, body string) {
	g.r.W.T.Helper()
	req, err := http.NewRequestWithContext(g.r.W.T.Context(), http.MethodGet, address, nil)
	if err != nil {
		g.r.W.T.Fatal(err)
	}
	req.Header.Set("Accept", "text/html")
	req.Header.Set("User-Agent", guestAgent)
	return g.visit(req)
}

// pass is the cookie header with which the browser comes to an address.
func (g *guest) pass(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		g.r.W.T.Fatal(err)
	}
	for _, c := range g.client.Jar.Cookies(u) {
		if c.Name == "adit-pass" {
			return c.Name + "=" + c.Value
		}
	}
	return ""
}

// come is one way to use a tunnel at one relay: by HTTP, an event stream, a WebSocket or
// TCP. It returns the status, the code of a refusal, and what waits for the end.
func (c *club) come(at int, kind, address string, header http.Header) (status int, code string, over func() error) {
	c.t.Helper()
	client := &http.Client{
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, c.relays[at].Addr())
		}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	address = strings.Replace(address, "ws://", "http://", 1)
	refused := func(status int, body io.Reader) (int, string, func() error) {
		var p api.Problem
		b, _ := io.ReadAll(body)
		if err := json.Unmarshal(b, &p); err != nil {
			return status, fmt.Sprintf("no problem: %s", b), nil
		}
		return status, string(p.Code), nil
	}
	switch kind {
	case "websocket", "tcp":
		path := ""
		if kind == "websocket" {
			path = "ws"
		}
		s, resp, err := websocket.Dial(c.t.Context(), address+path, &websocket.DialOptions{HTTPClient: client, HTTPHeader: header})
		if err != nil {
			if resp == nil {
				c.t.Fatal(err)
			}
			return refused(resp.StatusCode, resp.Body)
		}
		c.t.Cleanup(func() { _ = s.CloseNow() })
		return http.StatusSwitchingProtocols, "", func() error { _, _, err := s.Read(context.Background()); return err }
	}
	path := ""
	if kind == "events" {
		path = "events"
	}
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodGet, address+path, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header = header
	resp, err := client.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = resp.Body.Close() })
	if resp.StatusCode >= 300 {
		return refused(resp.StatusCode, resp.Body)
	}
	return resp.StatusCode, "", func() error { _, err := io.Copy(io.Discard, resp.Body); return err }
}

// open opens a tunnel to the app, or to what echoes TCP.
func (c *club) openFor(kind string, access map[string]any) api.Tunnel {
	req := map[string]any{"target_port": c.web}
	if kind == "tcp" {
		req = map[string]any{"target_port": c.echo, "tunnel_protocol": "tcp"}
	}
	maps.Copy(req, access)
	return c.relays[0].Open(c.secret, agentName(0), req)
}

func (c *club) address(form string, t api.Tunnel) string {
	a := c.relays[0].PathURL(t)
	if form == "subdomain" {
		a = c.relays[0].HostURL(t)
	}
	return strings.Replace(a, "ws://", "http://", 1)
}

func header(cookie, auth string) http.Header {
	h := http.Header{"User-Agent": {guestAgent}}
	if cookie != "" {
		h.Set("Cookie", cookie)
	}
	if auth != "" {
		h.Set("Adit-Authorization", "Bearer "+auth)
	}
	return h
}

// Who may use a tunnel, by every way and in both forms, whichever relay is asked.
func TestWhoMayUseATunnel(t *testing.T) {
	t.Parallel()
	c := newClub(t)
	other := "11111111-2222-4333-8444-999999999999"
	alice, bob := c.guest(0, "alice"), c.guest(1, "bob", other)
	var me api.BrowserToken
	if status, p := alice.door("token", struct{}{}, &me); status != http.StatusOK {
		t.Fatalf("%d %v", status, p)
	}
	foreign := c.relays[0].Credential("integration", other, "--name", "foreign")
	rules := map[string]map[string]any{
		"team":      {"access": "team"},
		"people":    {"access": "people", "people": []string{me.UserID}},
		"elsewhere": {"access": "anyone", "from": []string{"203.0.113.0/24"}},
		"here":      {"access": "team", "from": []string{"127.0.0.0/8"}},
	}
	for rule, access := range rules {
		for _, kind := range []string{"http", "events", "websocket", "tcp"} {
			tun, second := c.openFor(kind, access), c.openFor(kind, access)
			for i, form := range []string{"subdomain", "path"} {
				where, elsewhere := c.address(form, tun), c.address(form, second)
				name := rule + ", " + kind + ", " + form
				// The way to a pass goes over one relay, and its use over the other.
				status, body := 0, ""
				if _, status, body = alice.opens(where + "deep?q=1"); rule == "elsewhere" {
					if status != http.StatusForbidden {
						t.Errorf("%s: from another network: %d", name, status)
					}
				} else if kind != "tcp" && (status != http.StatusOK || body != "GET /deep?q=1") {
					t.Errorf("%s: alice comes back to %d %q", name, status, body)
				}
				if at, status, body := bob.opens(where + "deep"); rule != "elsewhere" && (status != http.StatusForbidden || at.Path != "/auth/pass" || !strings.Contains(body, "You are bob")) {
					t.Errorf("%s: bob ends at %s with %d %s", name, at, status, body)
				}
				alice.opens(elsewhere)
				pass, wrong := alice.pass(where), alice.pass(elsewhere)
				type row struct {
					name   string
					header http.Header
					want   string
				}
				rows := []row{
					{"nothing", header("", ""), "access_required"}, {"her pass", header(pass, ""), ""}, {"the pass of another tunnel", header(wrong, ""), "access_required"},
					{"no pass at all", header("adit-pass=ps-AAAA", ""), "access_required"}, {"the team's secret", header("", c.secret), ""}, {"a secret that is none", header("", "sk-wrong"), "unauthenticated"},
					{"another team's secret", header("", foreign), "access_denied"},
				}
				copied := header(pass, "")
				copied.Set("User-Agent", "another browser")
				rows = append(rows, row{"her pass, copied to another browser", copied, "access_required"})
				for _, r := range rows {
					if rule == "elsewhere" {
						r.want = "access_denied"
					}
					if _, code, _ := c.come((i+1)%2, kind, where, r.header); code != r.want {
						t.Errorf("%s: with %s: %q, want %q", name, r.name, code, r.want)
					}
				}
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.learned) > 0 {
		t.Errorf("the app learned %q", c.learned)
	}
}

// What is open ends within a second of the right to it, at both relays.
func TestWhatIsOpenEndsWithTheRight(t *testing.T) {
	t.Parallel()
	c := newClub(t)
	for name, end := range map[string]func(g *guest, tun []api.Tunnel){
		"the rule changes": func(_ *guest, tun []api.Tunnel) {
			for _, t := range tun {
				if status, p := c.relays[1].API(c.secret, http.MethodPut, "/tunnels/"+string(t.SessionID)+"/access", map[string]any{"access": "people", "people": []string{"nobody@example.com"}}, nil); status != http.StatusOK {
					c.t.Errorf("change who may use it: %d %v", status, p)
				}
			}
		},
		"they sign out": func(g *guest, _ []api.Tunnel) {
			if status, p := g.door("logout", map[string]bool{"everywhere": true}, nil); status != http.StatusNoContent {
				c.t.Errorf("sign out: %d %v", status, p)
			}
		},
		"they are removed": func(g *guest, _ []api.Tunnel) {
			var me api.BrowserToken
			if status, p := g.door("token", struct{}{}, &me); status != http.StatusOK {
				c.t.Fatalf("%d %v", status, p)
			}
			c.w.Run(nil, filepath.Join(c.w.Bin, "adit-relay"), "member", "remove", me.UserID, "--team", world.Team, "--socket", filepath.Join(c.relays[1].DataDir, "admin.sock"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := c.guest(0, "alice")
			var tunnels []api.Tunnel
			type open struct {
				what string
				over chan struct{}
				err  error
			}
			var all []*open
			for _, kind := range []string{"events", "websocket", "tcp"} {
				tun := c.openFor(kind, map[string]any{"access": "team"})
				tunnels = append(tunnels, tun)
				for _, form := range []string{"subdomain", "path"} {
					where := c.address(form, tun)
					g.opens(where)
					for at := range c.relays {
						status, code, over := c.come(at, kind, where, header(g.pass(where), ""))
						if over == nil {
							t.Fatalf("%s at %s: %d %s", kind, c.names[at], status, code)
						}
						o := &open{what: kind + " in " + form + " form at " + c.names[at], over: make(chan struct{})}
						all = append(all, o)
						go func() { o.err = over(); close(o.over) }()
					}
				}
			}
			select {
			case <-all[0].over:
				t.Fatalf("%s ended before: %v", all[0].what, all[0].err)
			default:
			}
			end(g, tunnels)
			since := time.Now()
			for _, o := range all {
				within(t, o.what, o.over, since)
				if o.err == nil || strings.Contains(o.what, "websocket") && websocket.CloseStatus(o.err) != websocket.StatusPolicyViolation {
					t.Errorf("%s ended with %v", o.what, o.err)
				}
			}
		})
	}
}

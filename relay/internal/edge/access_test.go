package edge_test

import (
	"context"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/relay/internal/access"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/edge"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

const consoleOrigin = "https://console.example.com"

// guests are who may come: alice is signed in, in the team.
type guests struct {
	*world
	used    map[string]bool
	changes chan store.Change
}

func (g *guests) User(id ident.UserID) (store.UserRecord, bool) {
	return store.UserRecord{ID: id, Name: string(id)}, true
}

func (g *guests) SignIn(hash string) (store.SignInRecord, bool) {
	return store.SignInRecord{Hash: hash, User: ident.UserID(hash)}, true
}

func (g *guests) SignIns(ident.UserID) []store.SignInRecord { return nil }

func (g *guests) UseTicket(_ context.Context, hash string, _ time.Time) error {
	if g.used[hash] {
		return store.ErrExists
	}
	g.used[hash] = true
	return nil
}

func (g *guests) Shown(_ context.Context, values []string, _ ident.TeamID, _ netip.Addr) (creds.Principal, error) {
	if len(values) == 1 && values[0] == "Bearer right" {
		return creds.Principal{Kind: creds.KindDevice, Team: team, User: "alice", Role: api.RoleMember}, nil
	}
	return creds.Principal{}, api.NewProblem(api.CodeUnauthenticated, "no such credential")
}

func (g *guests) SignedIn(_ context.Context, hash string, _ ident.TeamID, _ netip.Addr) (creds.Principal, error) {
	return creds.Principal{Kind: creds.KindUser, Team: team, User: ident.UserID(hash), SignIn: hash, Role: api.RoleMember}, nil
}

func (g *guests) Owns(creds.Principal, store.Opened) bool { return false }

func (g *guests) Valid(creds.Principal) bool { return true }

// newGuests starts a world whose edge applies rules.
func newGuests(t *testing.T, change func(*edge.Config)) (*world, *guests, *access.Access) {
	t.Helper()
	g := &guests{used: map[string]bool{}, changes: make(chan store.Change)}
	var meter func(ident.SessionID, ident.LinkID, error) int
	a := access.New(access.Config{
		Store: g, Creds: g, Key: clusterKey, Now: time.Now,
		CutUnwatched: func(s ident.SessionID, l ident.LinkID, cause error) int { return meter(s, l, cause) },
		Changes: func(ctx context.Context, changed func(store.Change)) error {
			for {
				select {
				case <-ctx.Done():
					return nil
				case c := <-g.changes:
					changed(c)
				}
			}
		},
	})
	w := newWorld(t, func(c *edge.Config) {
		c.Access, c.SignIn = a, consoleOrigin
		if change != nil {
			change(c)
		}
	})
	g.world, meter = w, w.meter.CutUnwatched
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-over; err != nil {
			t.Errorf("the watch ended with %v", err)
		}
	})
	return w, g, a
}

// rule gives a tunnel another rule, and tells of it.
func (g *guests) rule(r store.TunnelRecord, rule *store.AccessRule) {
	g.mu.Lock()
	r.Access = rule
	g.tunnels[r.Session] = r
	g.mu.Unlock()
	g.changes <- store.Change{Kind: store.KindTunnel, Session: r.Session}
}

func ruled(rule store.AccessRule) func(*store.TunnelRecord) {
	return func(r *store.TunnelRecord) { r.Access = &rule }
}

// browser makes a request what a browser sends that opens a page.
func browser(r *http.Request) *http.Request {
	r.Header.Set("Accept", "text/html")
	r.Header.Set("User-Agent", "test browser")
	return r
}

func cookieOf(t *testing.T, resp *http.Response, name string) *http.Cookie {
	t.Helper()
	for _, c := range resp.Cookies() {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no cookie %s: %q", name, resp.Header["Set-Cookie"])
	return nil
}

// pass is a pass of alice's to a tunnel for the test browser.
func pass(t *testing.T, a *access.Access, r store.TunnelRecord) ident.Secret {
	t.Helper()
	req, nonce := access.Request{Tunnel: &r, Browser: "test browser"}, access.Nonce()
	back, err := a.Grant(t.Context(), a.Ask(req, "https://x", "/", nonce), "alice", "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	_, code, _ := strings.Cut(back, "?code=")
	secret, _, _, err := a.Redeem(t.Context(), req, ident.Secret(code), nonce)
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

func TestABrowserComesBackWithAPass(t *testing.T) {
	for name, form := range map[string]struct {
		secure, host bool
		pass, ask    string
	}{
		"path, http":       {false, false, "adit-pass", "adit-ask"},
		"path, https":      {true, false, "__Secure-adit-pass", "__Secure-adit-ask"},
		"subdomain, http":  {false, true, "adit-pass", "adit-ask"},
		"subdomain, https": {true, true, "__Host-adit-pass", "__Host-adit-ask"},
	} {
		t.Run(name, func(t *testing.T) {
			w, _, a := newGuests(t, func(c *edge.Config) {
				if form.secure {
					c.PathFallback = "tls"
				}
			})
			var seen []string
			port := w.appFunc(func(rw http.ResponseWriter, r *http.Request) {
				seen = append(seen, r.Header.Get("Cookie")+r.Header.Get("Adit-Authorization"))
				rw.Header()["Set-Cookie"] = []string{"adit-pass=x", "=__Host-adit-pass=x", " __Secure-adit-pass=x; Path=/", "theirs=1"}
				rw.Header()["Cache-Control"] = []string{"public, max-age=60, s-maxage=100"}
				_, _ = io.WriteString(rw, "the app: "+r.RequestURI)
			})
			_, segment := w.tunnel(port, ruled(store.AccessRule{Mode: api.AccessTeam, Version: 2}))
			prefix, origin := "/tunnel/"+segment, w.public.String()
			if form.host {
				prefix, origin = "", w.public.Scheme+"://"+segment+".localhost:"+w.public.Port()
			}
			ask := func(method, path string, cookies ...string) *http.Response {
				t.Helper()
				req := browser(w.request(method, segment, "", nil))
				req.URL.Path, req.URL.RawQuery, _ = strings.Cut(prefix+path, "?")
				req.Host = strings.TrimPrefix(origin, w.public.Scheme+"://")
				if len(cookies) > 0 {
					req.Header.Set("Cookie", strings.Join(cookies, "; "))
				}
				return w.do(req)
			}
			// Without a pass it is sent to where it signs in.
			resp := ask("GET", "/deep/page?q=1")
			to, ticket, _ := strings.Cut(resp.Header.Get("Location"), "?t=")
			if resp.StatusCode != http.StatusSeeOther || to != consoleOrigin+"/auth/pass" || resp.Header.Get("Cache-Control") != "no-store" {
				t.Fatalf("a page without a pass: %d, to %q", resp.StatusCode, to)
			}
			nonce := cookieOf(t, resp, form.ask)
			path := prefix
			if path == "" {
				path = "/"
			}
			if nonce.Path != path || !nonce.HttpOnly || nonce.Secure != form.secure || nonce.SameSite != http.SameSiteLaxMode || nonce.Domain != "" {
				t.Errorf("the cookie is %v", nonce)
			}
			if second := cookieOf(t, ask("GET", "/other", form.ask+"="+nonce.Value), form.ask); second.Value != nonce.Value {
				t.Error("a second tab ends the way of the first one")
			}
			back, err := a.Grant(t.Context(), ticket, "alice", "127.0.0.1")
			if err != nil {
				t.Fatal(err)
			}
			u, err := url.Parse(back)
			if err != nil || u.Scheme+"://"+u.Host != origin || u.Path != prefix+"/_adit/pass" {
				t.Fatalf("it leads back to %s (%v)", back, err)
			}
			// The code opens nothing in another browser, and once in the right one.
			if resp := ask("GET", "/_adit/pass?"+u.RawQuery); resp.StatusCode != http.StatusUnauthorized || len(resp.Cookies()) > 0 || resp.Header.Get("Location") != "" {
				t.Errorf("the code in another browser: %d %v", resp.StatusCode, resp.Header)
			}
			resp = ask("GET", "/_adit/pass?"+u.RawQuery, form.ask+"="+nonce.Value)
			if resp.StatusCode != http.StatusSeeOther || resp.Header.Get("Location") != origin+prefix+"/deep/page?q=1" {
				t.Fatalf("the code: %d, to %q", resp.StatusCode, resp.Header.Get("Location"))
			}
			got := cookieOf(t, resp, form.pass)
			if got.Path != path || !got.HttpOnly || got.Secure != form.secure || got.SameSite != http.SameSiteLaxMode || got.Domain != "" || got.MaxAge > 12*3600 {
				t.Errorf("the pass is %v", got)
			}
			if resp := ask("GET", "/_adit/pass?"+u.RawQuery, form.ask+"="+nonce.Value); resp.StatusCode != http.StatusUnauthorized {
				t.Errorf("the code a second time: %d", resp.StatusCode)
			}
			// With the pass it gets the app, which learns nothing of it.
			if len(seen) > 0 {
				t.Fatalf("the app was asked before: %q", seen)
			}
			resp = ask("GET", "/deep/page?q=1", "theirs=2", form.pass+"="+got.Value, "adit-sign-in=x", "__Host-adit=y", "last=3")
			if body := text(t, resp.Body); resp.StatusCode != http.StatusOK || body != "the app: /deep/page?q=1" {
				t.Errorf("with the pass: %d %q", resp.StatusCode, body)
			}
			if len(seen) != 1 || seen[0] != "theirs=2; last=3" {
				t.Errorf("the app sees the cookies %q", seen)
			}
			if set := resp.Header["Set-Cookie"]; len(set) != 1 || !strings.HasPrefix(set[0], "theirs=1") {
				t.Errorf("the app sets %q", set)
			}
			if cc := resp.Header.Get("Cache-Control"); cc != "private, max-age=60" {
				t.Errorf("caches may keep it by %q", cc)
			}
			// Of two passes one is somebody else's; a new one would not help.
			if resp := ask("GET", "/", form.pass+"="+got.Value, form.pass+"=ps-other"); resp.StatusCode != http.StatusUnauthorized || !strings.Contains(text(t, resp.Body), "two passes") {
				t.Errorf("two passes: %d", resp.StatusCode)
			}
			// What no page shows is told, not led.
			resp = ask("POST", "/form")
			if body := text(t, resp.Body); resp.StatusCode != http.StatusUnauthorized || resp.Header.Get("Location") != "" || strings.Contains(body, "/auth/pass") {
				t.Errorf("a POST of a program: %d %s", resp.StatusCode, body)
			}
			req := browser(w.request("POST", segment, "", strings.NewReader("a=b")))
			req.URL.Path, req.Host = prefix+"/form", strings.TrimPrefix(origin, w.public.Scheme+"://")
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			req.Header.Set("Referer", origin+prefix+"/the/form")
			resp = w.do(req)
			body := text(t, resp.Body)
			if resp.StatusCode != http.StatusUnauthorized || !strings.Contains(body, consoleOrigin+"/auth/pass?t=") || !strings.Contains(body, "send it again") {
				t.Errorf("a form: %d %s", resp.StatusCode, body)
			}
			if len(seen) != 1 {
				t.Errorf("the app got %q", seen)
			}
		})
	}
}

func TestWhatOthersAreTold(t *testing.T) {
	w, _, _ := newGuests(t, nil)
	var methods []string
	port := w.appFunc(func(rw http.ResponseWriter, r *http.Request) {
		methods = append(methods, r.Method+r.Header.Get("X-HTTP-Method-Override")+r.Header.Get("Adit-Authorization")+r.Header.Get("Adit_authorization"))
		_, _ = io.WriteString(rw, r.RequestURI)
	})
	_, segment := w.tunnel(port, ruled(store.AccessRule{Mode: api.AccessTeam, Version: 2, ReadOnly: true}))
	_, tcp := w.tunnel(port, func(r *store.TunnelRecord) {
		r.Protocol, r.Access = api.ProtocolTCP, &store.AccessRule{Mode: api.AccessTeam, Version: 1}
	})
	_, elsewhere := w.tunnel(port, ruled(store.AccessRule{Mode: api.AccessAnyone, Version: 1, From: []string{"203.0.113.0/24"}}))
	_, open := w.tunnel(port, nil)
	for _, c := range []struct {
		name, segment, method, path string
		header                      []string
		body                        string
		status                      int
		code                        api.Code
	}{
		{"a program", segment, "GET", "/", nil, "", 401, api.CodeAccessRequired},
		{"a page's script", segment, "GET", "/", []string{"Accept", "text/html", "Sec-Fetch-Mode", "cors"}, "", 401, api.CodeAccessRequired},
		{"an event stream", segment, "GET", "/", []string{"Accept", "text/event-stream"}, "", 401, api.CodeAccessRequired},
		{"a WebSocket", segment, "GET", "/", []string{"Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA==", "Accept", "text/html"}, "", 401, api.CodeAccessRequired},
		{"TCP", tcp, "GET", "/", []string{"Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="}, "", 401, api.CodeAccessRequired},
		{"a wrong secret, also of a browser", segment, "GET", "/", []string{"Adit-Authorization", "Bearer wrong", "Accept", "text/html"}, "", 401, api.CodeUnauthenticated},
		{"two secrets", segment, "GET", "/", []string{"Adit-Authorization", "Bearer right", "Adit-Authorization", "Bearer right"}, "", 401, api.CodeUnauthenticated},
		{"the right secret in the app's header", segment, "GET", "/", []string{"Authorization", "Bearer right"}, "", 401, api.CodeAccessRequired},
		{"the right secret", segment, "GET", "/x", []string{"Adit-Authorization", "Bearer right", "Adit_Authorization", "y", "X-HTTP-Method-Override", "DELETE"}, "", 200, ""},
		{"HEAD", segment, "HEAD", "/", []string{"Adit-Authorization", "Bearer right"}, "", 200, ""},
		{"a change", segment, "POST", "/", []string{"Adit-Authorization", "Bearer right"}, "x", 403, api.CodeReadOnly},
		{"a method of its own", segment, "PURGE", "/", []string{"Adit-Authorization", "Bearer right"}, "", 403, api.CodeReadOnly},
		{"a GET with a body", segment, "GET", "/", []string{"Adit-Authorization", "Bearer right"}, "x", 403, api.CodeReadOnly},
		{"from another network", elsewhere, "GET", "/", nil, "", 403, api.CodeAccessDenied},
		{"no rule, and a wrong secret", open, "GET", "/y", []string{"Adit-Authorization", "Bearer wrong"}, "", 200, ""},
		{"no rule: the path is the app's", open, "GET", "/_adit/pass", nil, "", 200, ""},
	} {
		req := w.request(c.method, c.segment, c.path, nil)
		if c.body != "" {
			req = w.request(c.method, c.segment, c.path, strings.NewReader(c.body))
		}
		for i := 0; i < len(c.header); i += 2 {
			req.Header[http.CanonicalHeaderKey(c.header[i])] = append(req.Header[http.CanonicalHeaderKey(c.header[i])], c.header[i+1])
		}
		resp := w.do(req)
		body := text(t, resp.Body)
		if resp.StatusCode != c.status || c.code != "" && !strings.Contains(body, string(c.code)) {
			t.Errorf("%s: %d %s", c.name, resp.StatusCode, body)
		}
	}
	if got := strings.Join(methods, " "); got != "GET HEAD GET GET" {
		t.Errorf("the app saw %q", got)
	}
}

// socket opens a WebSocket with a pass.
func (w *world) socketWith(t *testing.T, segment string, pass ident.Secret) *websocket.Conn {
	t.Helper()
	h := http.Header{"User-Agent": {"test browser"}, "Cookie": {"adit-pass=" + pass.Reveal()}}
	c, _, err := websocket.Dial(t.Context(), w.pathURL(segment, "/"), &websocket.DialOptions{HTTPHeader: h, Host: w.public.Host})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.CloseNow() })
	return c
}

func TestAWebSocketToLookAt(t *testing.T) {
	w, _, a := newGuests(t, nil)
	got := make(chan string, 10)
	port := w.appFunc(func(rw http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(rw, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
		if err != nil {
			return
		}
		defer c.CloseNow()
		_ = c.Write(r.Context(), websocket.MessageText, []byte("of the app"))
		for {
			_, b, err := c.Read(r.Context())
			if err != nil {
				close(got)
				return
			}
			got <- string(b)
		}
	})
	r, segment := w.tunnel(port, ruled(store.AccessRule{Mode: api.AccessTeam, Version: 2, ReadOnly: true}))
	c := w.socketWith(t, segment, pass(t, a, r))
	if _, b, err := c.Read(t.Context()); err != nil || string(b) != "of the app" {
		t.Fatalf("what the app sends: %q %v", b, err)
	}
	ponged := make(chan error, 1)
	go func() { ponged <- c.Ping(t.Context()) }()
	ended := make(chan error, 1)
	go func() {
		_, _, err := c.Read(t.Context())
		ended <- err
	}()
	if err := <-ponged; err != nil {
		t.Fatalf("a ping: %v", err)
	}
	if err := c.Write(t.Context(), websocket.MessageText, []byte("of the user")); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; websocket.CloseStatus(err) != websocket.StatusPolicyViolation || !strings.Contains(err.Error(), "looked at only") {
		t.Errorf("it ends with %v", err)
	}
	for b := range got {
		t.Errorf("the app got %q", b)
	}
}

func TestWhatIsOpenEndsWithARule(t *testing.T) {
	w, g, a := newGuests(t, nil)
	port := w.appFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			c, err := websocket.Accept(rw, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
			if err == nil {
				_, _, _ = c.Read(r.Context())
				_ = c.CloseNow()
			}
			return
		}
		_, _ = io.WriteString(rw, "begun\n")
		_ = http.NewResponseController(rw).Flush()
		<-r.Context().Done()
	})
	for name, first := range map[string]*store.AccessRule{"there was none": nil, "it changed": {Mode: api.AccessTeam, Version: 1}} {
		r, segment := w.tunnel(port, func(r *store.TunnelRecord) { r.Access = first })
		secret := ident.Secret("none")
		if first != nil {
			secret = pass(t, a, r)
		}
		c := w.socketWith(t, segment, secret)
		req := browser(w.request("GET", segment, "/events", nil))
		req.Header.Set("Cookie", "adit-pass="+secret.Reveal())
		resp := w.do(req)
		head := make([]byte, 6)
		if _, err := io.ReadFull(resp.Body, head); err != nil || string(head) != "begun\n" {
			t.Fatalf("%s: %d %q %v", name, resp.StatusCode, head, err)
		}
		begin := time.Now()
		g.rule(r, &store.AccessRule{Mode: api.AccessPeople, People: []string{"nobody"}, Version: 2})
		if _, _, err := c.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusPolicyViolation || !strings.Contains(err.Error(), "was changed") {
			t.Errorf("%s: the WebSocket ends with %v", name, err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err == nil {
			t.Errorf("%s: the stream ended as if it were whole", name)
		}
		if d := time.Since(begin); d > time.Second {
			t.Errorf("%s: it took %v", name, d)
		}
		if resp := w.do(req.Clone(t.Context())); resp.StatusCode == http.StatusOK {
			t.Errorf("%s: it goes on", name)
		}
	}
}

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/testkit"
)

// requestPage is where a page shows its request.
var requestPage = regexp.MustCompile(`request [0-9a-f]{16}`)

// seen counts an app's requests, by what they came as.
type seen struct {
	mu   sync.Mutex
	list []string
}

func (s *seen) add(r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, r.Method+" "+r.UserAgent())
}

func (s *seen) count(what string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.list {
		if strings.Contains(x, what) {
			n++
		}
	}
	return n
}

// sharedApp sets a cookie, says who asks, and echoes on /ws.
func sharedApp(t *testing.T) (int, *seen) {
	s := &seen{}
	return app(t, func(w http.ResponseWriter, r *http.Request) {
		s.add(r)
		if r.URL.Path != "/ws" {
			http.SetCookie(w, &http.Cookie{Name: "app", Value: "1", Path: "/"})
			fmt.Fprintf(w, "hello from %s as %s", r.URL.Path, r.Header.Get("Cookie"))
			return
		}
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
		if err != nil {
			return
		}
		defer c.CloseNow()
		for {
			kind, b, err := c.Read(r.Context())
			if err != nil || c.Write(r.Context(), kind, b) != nil {
				return
			}
		}
	}), s
}

func makeLink(r *world.Relay, secret string, tun api.Tunnel, body map[string]any) api.NamedLink {
	r.W.T.Helper()
	var l api.NamedLink
	if status, p := r.API(secret, http.MethodPost, "/tunnels/"+string(tun.SessionID)+"/links", body, &l); status != 201 {
		r.W.T.Fatalf("make a link: %d %v", status, p)
	}
	return l
}

func linksOf(r *world.Relay, secret string, tun api.Tunnel) map[string]api.NamedLink {
	r.W.T.Helper()
	var l api.NamedLinkList
	if status, p := r.API(secret, http.MethodGet, "/tunnels/"+string(tun.SessionID)+"/links", nil, &l); status != 200 {
		r.W.T.Fatalf("list links: %d %v", status, p)
	}
	out := map[string]api.NamedLink{}
	for _, x := range l.Links {
		out[x.Name] = x
	}
	return out
}

// as asks for a link, in both forms, as a program with a name.
func as(r *world.Relay, l api.NamedLink, method, agent string, header ...string) (path, host answer) {
	r.W.T.Helper()
	header = append(header, "User-Agent", agent)
	path = call(r, method, "/tunnel/"+l.Segment+"/x", "", header...)
	host = call(r, method, "/x", "", append(header, "Host", fmt.Sprintf("%s.localhost:%d", l.Segment, r.Port))...)
	return path, host
}

func TestNamedLinks(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay("ADIT_WILDCARD_DOMAIN=localhost", world.PathForm)
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	port, asked := sharedApp(t)
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": port, "host_header": "public"})
	once := makeLink(r, tun.AdminToken, tun, map[string]any{"name": "once", "max_uses": 1})
	many := makeLink(r, sk, tun, map[string]any{"name": "many", "expires_in": "1h"})

	t.Run("one viewer, as often as they like, in both forms", func(t *testing.T) {
		for range 3 {
			path, host := as(r, once, "GET", "Ann")
			if path.Status != 200 || host.Status != 200 || !strings.HasPrefix(host.Body, "hello from /x") {
				t.Errorf("the first viewer: path form %s, subdomain form %s", path, host)
			}
			if c := path.Header.Get("Set-Cookie"); !strings.Contains(c, "Path=/tunnel/"+once.Segment) {
				t.Errorf("an app's cookie stays with its link: %s", c)
			}
		}
		if l := linksOf(r, sk, tun)["once"]; l.Uses != 1 || l.MaxUses != 1 || l.LastUsedAt.IsZero() || l.Viewers != 1 {
			t.Errorf("the list: %+v", l)
		}
		if path, host := as(r, once, "GET", "Ann", "Origin", "http://evil.example"); path.Status != 200 || host.Status != 200 {
			t.Errorf("a GET with a foreign Origin passes as on the tunnel's own address: %s %s", path, host)
		}
		if path, host := as(r, once, "POST", "Ann", "Origin", "http://evil.example"); path.Status != 403 || host.Status != 403 {
			t.Errorf("an unsafe request of another origin is refused: %s %s", path, host)
		}
		if _, host := as(r, once, "POST", "Ann", "Origin", fmt.Sprintf("http://%s.localhost:%d", once.Segment, r.Port)); host.Status != 200 {
			t.Errorf("the link's own origin is the page's: %s", host)
		}
	})

	t.Run("used up, revoked, expired and never there are one answer", func(t *testing.T) {
		short := makeLink(r, sk, tun, map[string]any{"name": "short", "expires_in": "1s"})
		gone := makeLink(r, sk, tun, map[string]any{"name": "gone"})
		if status, p := r.API(sk, http.MethodDelete, "/tunnels/"+string(tun.SessionID)+"/links/"+string(gone.LinkID), nil, nil); status != 204 {
			t.Fatalf("revoke: %d %v", status, p)
		}
		w.Eventually(5*time.Second, "a link ends at its end", func() bool { path, _ := as(r, short, "GET", "Bob"); return path.Status == 404 })
		never := once
		never.Segment = once.Segment[:58] + string('a'+(once.Segment[58]-'a'+1)%26)
		for _, html := range [][]string{nil, {"Accept", "text/html"}} {
			var want string
			for name, l := range map[string]api.NamedLink{"never": never, "used up": once, "revoked": gone, "expired": short} {
				path, host := as(r, l, "GET", "Bob", html...)
				for _, a := range []answer{path, host} {
					if a.Status != 404 {
						t.Errorf("%s: expected 404, got %s", name, a)
					}
					shape := requestPage.ReplaceAllString(a.shape(), "request")
					if want == "" {
						want = shape
					}
					if shape != want {
						t.Errorf("%s is told apart:\n %s\n %s", name, shape, want)
					}
				}
			}
		}
		if a := call(r, "GET", "/tunnel/"+once.Segment, "", "User-Agent", "Bob"); a.Status != 404 {
			t.Errorf("without the slash, too: %s", a)
		}
		if asked.count("Bob") != 1 { // the short one, before its end, if the test was quick
			t.Logf("the app saw Bob %d times", asked.count("Bob"))
		}
	})

	t.Run("previews use nothing up and see nothing of the app", func(t *testing.T) {
		l := makeLink(r, sk, tun, map[string]any{"name": "preview", "max_uses": 1})
		for _, bot := range []string{"Slackbot-LinkExpanding 1.0", "Twitterbot/1.0", "facebookexternalhit/1.1", "Mozilla/5.0 (compatible; Discordbot/2.0)", "TelegramBot (like TwitterBot)", "WhatsApp/2.2", "LinkedInBot/1.0", "Googlebot/2.1"} {
			path, host := as(r, l, "GET", bot)
			if path.Status != 200 || host.Status != 200 || strings.Contains(path.Body, "hello") || !strings.Contains(path.Body, "private link") {
				t.Errorf("%s: %s %s", bot, path, host)
			}
		}
		if path, host := as(r, l, "HEAD", "curl/8"); path.Status != 200 || host.Status != 200 {
			t.Errorf("HEAD: %s %s", path, host)
		}
		if path, _ := as(r, l, "GET", "Chrome", "Sec-Purpose", "prefetch;prerender"); path.Status != 503 {
			t.Errorf("a browser ahead of its user is told to come again: %s", path)
		}
		for _, who := range []string{"bot", "Bot", "facebook", "WhatsApp", "curl/8", "Chrome"} {
			if n := asked.count(who); n != 0 {
				t.Errorf("a preview reached the app %d times as %s", n, who)
			}
		}
		if got := linksOf(r, sk, tun)["preview"]; got.Uses != 0 {
			t.Errorf("previews used %d of the link", got.Uses)
		}
		if path, _ := as(r, l, "GET", "Carol"); path.Status != 200 {
			t.Errorf("the person after the previews: %s", path)
		}
		if path, _ := as(r, l, "HEAD", "Carol"); path.Status != 200 || asked.count("HEAD Carol") != 2 {
			t.Errorf("a HEAD of an admitted viewer is the app's: %s", path)
		}
		// Of a link without limit a preview gets the app, and is no use either.
		if path, _ := as(r, many, "GET", "Slackbot 1.0"); path.Status != 200 || !strings.HasPrefix(path.Body, "hello") {
			t.Errorf("a preview of a link without limit: %s", path)
		}
		if got := linksOf(r, sk, tun)["many"]; got.Uses != 0 {
			t.Errorf("a preview used %d of a link without limit", got.Uses)
		}
		// What calls itself a preview and does more than look is a use, and a preview
		// leaves a trace.
		posted := makeLink(r, sk, tun, map[string]any{"name": "posted"})
		if path, _ := as(r, posted, "POST", "Slackbot 2.0", "Sec-Purpose", "prefetch"); path.Status != 200 {
			t.Errorf("a POST that says it is a preview: %s", path)
		}
		if got := linksOf(r, sk, tun)["posted"]; got.Uses != 1 {
			t.Errorf("a POST that says it is a preview is a use like any other; the link has %d", got.Uses)
		}
		for _, want := range []string{`link ` + string(l.LinkID) + ` \"preview\", by \"Slackbot-LinkExpanding 1.0\"`, `link ` + string(many.LinkID) + ` \"many\", by \"Slackbot 1.0\"`} {
			if log := w.Run(nil, filepath.Join(w.Bin, "adit-relay"), "audit", "--event", "link_previewed", "--socket", filepath.Join(r.DataDir, "admin.sock")); strings.Count(log, want) != 1 {
				t.Errorf("the audit has the preview %q once: %s", want, log)
			}
		}
	})

	t.Run("revoking cuts the link's connections within a second and no others", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
		defer cancel()
		dial := func(url string) *websocket.Conn {
			c, _, err := websocket.Dial(ctx, strings.Replace(url, "http", "ws", 1)+"ws", &websocket.DialOptions{HTTPClient: w.HTTP()})
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Write(ctx, websocket.MessageText, []byte("hi")); err != nil {
				t.Fatal(err)
			}
			if _, _, err := c.Read(ctx); err != nil {
				t.Fatal(err)
			}
			return c
		}
		mine, own := []*websocket.Conn{dial(many.URL), dial(many.AlternateURLs[0])}, dial(tun.TunnelURL)
		defer own.CloseNow()
		if got := linksOf(r, sk, tun)["many"]; got.Uses != 1 || got.Viewers < 1 {
			t.Errorf("two WebSockets of one program are one use: %+v", got)
		}
		var viewers api.ViewerList
		r.API(sk, http.MethodGet, "/tunnels/"+string(tun.SessionID)+"/viewers", nil, &viewers)
		by := 0
		for _, v := range viewers.Viewers {
			if v.LinkID == many.LinkID {
				by++
			}
		}
		if by == 0 {
			t.Errorf("viewers say by which link they came: %+v", viewers)
		}
		start := time.Now()
		if status, _ := r.API(tun.AdminToken, http.MethodDelete, "/tunnels/"+string(tun.SessionID)+"/links/"+string(many.LinkID), nil, nil); status != 204 {
			t.Fatalf("revoke: %d", status)
		}
		for _, c := range mine {
			_, _, err := c.Read(ctx)
			var closed websocket.CloseError
			if !errors.As(err, &closed) || closed.Code != websocket.StatusGoingAway {
				t.Errorf("expected close code 1001, got %v", err)
			}
		}
		took := time.Since(start)
		testkit.Took(t, "cutting a link's connections", took, time.Second)
		t.Logf("cut %s after the revocation was asked for", took)
		if err := own.Write(ctx, websocket.MessageText, []byte("still")); err != nil {
			t.Fatal(err)
		}
		if _, b, err := own.Read(ctx); err != nil || string(b) != "still" {
			t.Errorf("the session's own address goes on: %s %v", b, err)
		}
	})

	t.Run("a restart keeps uses and viewers", func(t *testing.T) {
		l := makeLink(r, sk, tun, map[string]any{"name": "kept", "max_uses": 2})
		as(r, l, "GET", "Dora")
		if err := r.Stop(20 * time.Second); err != nil {
			t.Fatal(err)
		}
		r.Start()
		r.WaitReady(30 * time.Second)
		w.Eventually(20*time.Second, "the link works after the restart", func() bool { path, _ := as(r, l, "GET", "Dora"); return path.Status == 200 })
		if got := linksOf(r, sk, tun)["kept"]; got.Uses != 1 || got.LastUsedAt.IsZero() {
			t.Errorf("after the restart: %+v", got)
		}
		as(r, l, "GET", "Emil")
		if path, _ := as(r, l, "GET", "Fred"); path.Status != 404 {
			t.Errorf("a third viewer of two: %s", path)
		}
		if path, _ := as(r, l, "GET", "Dora"); path.Status != 200 {
			t.Errorf("the first viewer may come back: %s", path)
		}
	})

	t.Run("links end with their tunnel", func(t *testing.T) {
		l := linksOf(r, sk, tun)["kept"]
		closeAll(r, sk, "gpu-1", tun)
		path, host := as(r, l, "GET", "Dora")
		if path.Status != 404 || host.Status != 404 {
			t.Errorf("a link of a closed tunnel: %s %s", path, host)
		}
		if status, _ := r.API(sk, http.MethodGet, "/tunnels/"+string(tun.SessionID)+"/links", nil, nil); status != 404 {
			t.Errorf("the links of a closed tunnel: %d", status)
		}
	})

	t.Run("who did what, and no secret", func(t *testing.T) {
		var log strings.Builder
		files, _ := filepath.Glob(filepath.Join(r.DataDir, "audit", "*"))
		for _, f := range files {
			b, _ := os.ReadFile(f)
			log.Write(b)
		}
		for _, want := range []string{`"link_created"`, `"link_used"`, `"link_revoked"`, `"links_listed"`, string(many.LinkID)} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("the audit has no %s", want)
			}
		}
		for _, text := range []string{log.String(), r.Log()} {
			for _, l := range []api.NamedLink{once, many} {
				if _, token, _ := ident.Segment(l.Segment).Split(); strings.Contains(text, token) {
					t.Error("a link's token is in a log")
				}
			}
		}
	})
}

func TestNamedLinkOfATCPTunnel(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": w.Redis(), "tunnel_protocol": "tcp"})
	l := makeLink(r, sk, tun, map[string]any{"name": "redis", "max_uses": 1})
	if !strings.HasPrefix(l.URL, "ws://") {
		t.Errorf("a link of a tcp tunnel is %s", l.URL)
	}
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancel()
	c, _, err := websocket.Dial(ctx, l.URL, &websocket.DialOptions{HTTPClient: w.HTTP()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	if err := c.Write(ctx, websocket.MessageBinary, []byte("PING\r\n")); err != nil {
		t.Fatal(err)
	}
	if _, b, err := c.Read(ctx); err != nil || string(b) != "+PONG\r\n" {
		t.Errorf("redis by a named link: %q %v", b, err)
	}
	if _, resp, err := websocket.Dial(ctx, l.URL, &websocket.DialOptions{HTTPClient: w.HTTP(), HTTPHeader: http.Header{"User-Agent": {"another"}}}); err == nil || resp.StatusCode != 404 {
		t.Errorf("the second program: %v", err)
	}
}

func TestLinksByCommand(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	env := []string{"ADIT_URL=" + fmt.Sprintf("http://127.0.0.1:%d", r.Port), "ADIT_TOKEN=" + sk, "XDG_CONFIG_HOME=" + w.Dir}
	adit := func(args ...string) (string, error) { return w.Try(env, filepath.Join(w.Bin, "adit"), args...) }
	if _, err := adit("links", "gpu-1"); err == nil || !strings.Contains(err.Error(), "no open tunnel") {
		t.Errorf("links of a machine without a tunnel: %v", err)
	}
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": app(t, hello)})
	out, err := adit("links", "create", "gpu-1", "--name", "for Ann", "--expires", "1h", "--max-uses", "2")
	if err != nil {
		t.Fatal(err)
	}
	url := strings.TrimSpace(out)
	if status, body := world.Get(w.HTTP(), url); status != 200 || body != "hello from /" {
		t.Errorf("the printed link: %d %s", status, body)
	}
	if out, err = adit("links", string(tun.SessionID)); err != nil || !strings.Contains(out, "for Ann") || !strings.Contains(out, "1 of 2") || !strings.Contains(out, url) {
		t.Errorf("the list: %v\n%s", err, out)
	}
	if out, err = adit("links", tun.TunnelURL, "--json"); err != nil || !strings.Contains(out, `"max_uses": 2`) {
		t.Errorf("the list as JSON: %v\n%s", err, out)
	}
	if _, err = adit("links", "revoke", "gpu-1", url); err != nil {
		t.Error(err)
	}
	if status, _ := world.Get(w.HTTP(), url); status != 404 {
		t.Errorf("a revoked link: %d", status)
	}
	if _, err = adit("links", "create", "gpu-1"); err == nil || !strings.Contains(err.Error(), "--name is missing") {
		t.Errorf("without a name: %v", err)
	}
}

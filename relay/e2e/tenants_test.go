package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
)

// tenantAgent starts an agent of another team than the world's.
func tenantAgent(w *world.World, r *world.Relay, team, id string) *world.Agent {
	w.T.Helper()
	a := w.NewAgent(r, id)
	file := filepath.Join(a.StateDir, "credential-of-its-team")
	if err := os.WriteFile(file, []byte(r.Credential("agent", team, "--agent", id)+"\n"), 0o600); err != nil {
		w.T.Fatal(err)
	}
	a.Env = append(a.Env, "ADIT_CREDENTIAL_FILE="+file)
	a.Start()
	a.WaitOnline(r, r.Credential("integration", team, "--name", "world-"+id), 15*time.Second)
	return a
}

// tenant is the app of one team: it keeps what it is sent, serves a page that runs
// no script of its own, and sets cookies of every kind.
type tenant struct {
	name   string
	domain func() string
	mu     sync.Mutex
	seen   []*http.Request
}

func (a *tenant) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	a.seen = append(a.seen, r)
	a.mu.Unlock()
	h := w.Header()
	switch r.URL.Path {
	case "/toss":
		for _, d := range []string{"Domain=localhost; ", "Domain=.localhost; ", "Domain=" + a.domain() + "; ", "domain = localhost; ", ""} {
			h.Add("Set-Cookie", fmt.Sprintf("tossed-%s-%d=1; %sPath=/", a.name, len(h["Set-Cookie"]), d))
		}
	case "/sw.js":
		h.Set("Content-Type", "text/javascript")
		h.Set("Service-Worker-Allowed", "/")
		_, _ = io.WriteString(w, `self.addEventListener("fetch", e => e.respondWith(new Response("stolen")))`)
		return
	}
	h.Set("Content-Type", "text/html")
	fmt.Fprintf(w, "<title>%s</title><p>secret of %s", a.name, a.name)
}

// cookies are the names of all cookies that the app was ever sent.
func (a *tenant) cookies() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var names []string
	for _, r := range a.seen {
		for _, c := range r.Cookies() {
			names = append(names, c.Name)
		}
	}
	return strings.Join(names, " ")
}

func (a *tenant) requests(path string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for _, r := range a.seen {
		if r.URL.Path == path {
			n++
		}
	}
	return n
}

// js runs an asynchronous function in the page and returns its text.
func js(w *world.World, ctx context.Context, body string) string {
	w.T.Helper()
	text, err := chromedp.Run(ctx, func(ctx context.Context, target *chromedp.Target) (string, error) {
		return chromedp.Evaluate[string]("(async () => { try { return String(await (async () => {"+body+"})()) } catch (e) { return 'refused: ' + e.name } })()", chromedp.EvalAwaitPromise)(ctx, target)
	})
	if err != nil {
		w.T.Fatalf("run %s: %v", body, err)
	}
	return text
}

func TestTunnelsAreStrangersInABrowser(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay(world.PathForm)
	w.Agent(r, "gpu-1")
	tenantAgent(w, r, otherTeam, "gpu-1")
	skA, skB := r.Credential("integration", world.Team), r.Credential("integration", otherTeam)
	a, b := &tenant{name: "A"}, &tenant{name: "B"}
	tunA := r.Open(skA, "gpu-1", map[string]any{"target_port": app(t, a.ServeHTTP), "host_header": "public"})
	tunB := r.Open(skB, "gpu-1", map[string]any{"target_port": app(t, b.ServeHTTP), "host_header": "public"})
	a.domain = func() string { return strings.Split(strings.TrimPrefix(r.HostURL(tunB), "http://"), ":")[0] }
	b.domain = a.domain
	relay := strings.TrimSuffix(r.URL, "/")
	ctx := w.Browser(time.Minute)

	// The person has used B before, in both forms: it has a session cookie there.
	for _, url := range []string{r.HostURL(tunB), r.PathURL(tunB)} {
		w.Do(ctx, "B's page opens", world.Navigate(url), world.Until(`document.title === "B"`))
		js(w, ctx, `document.cookie = "session-of-B=1; path=" + location.pathname`)
	}

	t.Run("a page of A cannot read B nor the API", func(t *testing.T) {
		w.Do(ctx, "A's page opens", world.Navigate(r.HostURL(tunA)), world.Until(`document.title === "A"`))
		for what, url := range map[string]string{
			"B, subdomain form": r.HostURL(tunB), "B, path form": r.PathURL(tunB), "the API": relay + "/api/v1/agents", "the description": relay + "/api/v1/openapi.json", "the relay's health": relay + "/healthz",
		} {
			for _, options := range []string{`{}`, `{credentials: "include"}`, `{headers: {Authorization: "Bearer x"}}`, `{method: "POST", body: "x"}`, `{method: "DELETE"}`} {
				if got := js(w, ctx, fmt.Sprintf(`const r = await fetch(%q, %s); return r.status + await r.text()`, url, options)); got != "refused: TypeError" {
					t.Errorf("a page of A fetches %s with %s: expected the browser to refuse, got %q", what, options, got)
				}
			}
			if got := js(w, ctx, fmt.Sprintf(`const r = await fetch(%q, {mode: "no-cors"}); return r.type + r.status + await r.text()`, url)); got != "opaque0" {
				t.Errorf("a page of A fetches %s without CORS: expected nothing to read, got %q", what, got)
			}
			if got := js(w, ctx, fmt.Sprintf(`const f = document.createElement("iframe"); f.src = %q; document.body.append(f);
				await new Promise(r => { f.onload = r; setTimeout(r, 2000) }); return f.contentWindow.document.body.innerText`, url)); got != "refused: SecurityError" {
				t.Errorf("a page of A frames %s: expected the browser to refuse reading it, got %q", what, got)
			}
		}
		for _, ws := range []string{r.HostURL(tunB) + "ws", r.PathURL(tunB) + "ws"} {
			before := b.requests("/ws")
			if got := js(w, ctx, fmt.Sprintf(`const s = new WebSocket(%q); return await new Promise(r => { s.onopen = () => r("open"); s.onerror = () => r("refused") })`, "ws"+strings.TrimPrefix(ws, "http"))); got != "refused" || b.requests("/ws") != before {
				t.Errorf("a page of A opens a WebSocket to B: expected that B never hears of it, got %s, and %d requests at B", got, b.requests("/ws")-before)
			}
		}
		before := b.requests("/post")
		js(w, ctx, fmt.Sprintf(`await fetch(%q, {method: "POST", mode: "no-cors", credentials: "include", body: "x"}); await fetch(%q, {method: "POST", mode: "no-cors", body: "x"})`, r.HostURL(tunB)+"post", r.PathURL(tunB)+"post"))
		if n := b.requests("/post") - before; n != 0 {
			t.Errorf("a page of A posts to B blindly: expected that B never hears of it, got %d requests", n)
		}
	})
	t.Run("the API takes nothing from a browser's cookies", func(t *testing.T) {
		w.Do(ctx, "A's page in path form opens", world.Navigate(r.PathURL(tunA)), world.Until(`document.title === "A"`))
		js(w, ctx, fmt.Sprintf(`document.cookie = "authorization=%s; path=/"; document.cookie = "adit_tunnel=%s; path=/"`, "sk-"+strings.Repeat("a", 40), strings.Split(r.PathURL(tunB), "/")[4]))
		if got := js(w, ctx, `const r = await fetch("/api/v1/agents"); return r.status`); got != "401" {
			t.Errorf("a page of A in path form asks the API, whose origin it has, without a secret: expected 401, got %s", got)
		}
		if got := js(w, ctx, `const r = await fetch("/api/v1/agents", {headers: {Authorization: "Bearer " + "sk-" + "a".repeat(40)}}); return r.status`); got != "401" {
			t.Errorf("…with a wrong secret: expected 401, got %s", got)
		}
		before := b.requests("/absolute")
		if js(w, ctx, `const r = await fetch("/absolute", {referrerPolicy: "no-referrer"}); return r.status`); b.requests("/absolute") != before {
			t.Errorf("a cookie chose the tunnel of a request, which only path_fallback: cookie may do")
		}
		js(w, ctx, `document.cookie = "authorization=; path=/; max-age=0"; document.cookie = "adit_tunnel=; path=/; max-age=0"`)
	})
	t.Run("cookies of A do not reach B", func(t *testing.T) {
		for _, url := range []string{r.HostURL(tunA), r.PathURL(tunA)} {
			w.Do(ctx, "A tosses cookies at its siblings", world.Navigate(url+"toss"), world.Until(`document.title === "A"`))
		}
		// By script too, in subdomain form: localhost is nobody's to set cookies for.
		w.Do(ctx, "A's page opens", world.Navigate(r.HostURL(tunA)), world.Until(`document.title === "A"`))
		js(w, ctx, fmt.Sprintf(`for (const d of ["localhost", ".localhost", %q]) document.cookie = "tossed-script=1; path=/; domain=" + d`, a.domain()))
		w.Do(ctx, "A has its own cookies back", world.Navigate(r.HostURL(tunA)+"again"), world.Until(`document.title === "A"`))
		w.Do(ctx, "A has its own cookies back, path form", world.Navigate(r.PathURL(tunA)+"again"), world.Until(`document.title === "A"`))
		for _, url := range []string{r.HostURL(tunB), r.PathURL(tunB)} {
			w.Do(ctx, "B's page opens again", world.Navigate(url+"later"), world.Until(`document.title === "B"`))
		}
		if got := b.cookies(); strings.Contains(got, "tossed") {
			t.Errorf("B is sent cookies of A: %s", got)
		}
		if got := a.cookies(); !strings.Contains(got, "tossed-A-4") || strings.Contains(got, "session-of-B") {
			t.Errorf("A is sent its own cookies and none of B's: %s", got)
		}
		if !strings.Contains(b.cookies(), "session-of-B") {
			t.Errorf("B keeps its own cookies: %s", b.cookies())
		}
	})
	t.Run("a service worker of A stays in its tunnel", func(t *testing.T) {
		w.Do(ctx, "A's page in path form opens", world.Navigate(r.PathURL(tunA)), world.Until(`document.title === "A"`))
		for _, scope := range []string{"/", "/tunnel/", "/api/", strings.TrimPrefix(r.PathURL(tunB), relay), strings.TrimPrefix(r.PathURL(tunA), relay)} {
			if got := js(w, ctx, fmt.Sprintf(`return (await navigator.serviceWorker.register("sw.js", {scope: %q})).scope`, scope)); !strings.HasPrefix(got, "refused: ") {
				t.Errorf("a service worker of A in path form, for %s: expected a refusal, got %q", strings.SplitN(scope, "-", 2)[0], got)
			}
		}
		w.Do(ctx, "A's page in subdomain form opens", world.Navigate(r.HostURL(tunA)), world.Until(`document.title === "A"`))
		if got := js(w, ctx, `const reg = await navigator.serviceWorker.register("sw.js"); await navigator.serviceWorker.ready; return reg.scope`); got != r.HostURL(tunA) {
			t.Errorf("a service worker of A on its own host works: expected the scope to be its tunnel, got %q", got)
		}
		w.Do(ctx, "A's worker serves A", world.Navigate(r.HostURL(tunA)+"x"), world.Until(`document.body.innerText === "stolen"`))
		w.Do(ctx, "A's worker does not serve B", world.Navigate(r.HostURL(tunB)+"x"), world.Until(`document.title === "B"`))
		w.Do(ctx, "nor the relay", world.Navigate(relay+"/healthz"), world.Until(`document.body.innerText.startsWith("ok")`))
	})
	t.Run("a link from A to B does not tell B where A is", func(t *testing.T) {
		w.Do(ctx, "the person follows a link to B", world.Navigate(r.PathURL(tunA)), world.Until(`document.title === "A"`),
			evaluate(fmt.Sprintf(`(async () => { const a = document.createElement("a"); a.href = %q; a.referrerPolicy = "unsafe-url"; a.textContent = "B"; document.body.append(a); a.click(); })()`, r.PathURL(tunB)+"linked")),
			world.Until(`document.title === "B"`))
		segment := strings.Split(r.PathURL(tunA), "/")[4]
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, req := range b.seen {
			for name, values := range req.Header {
				if strings.Contains(strings.Join(values, " "), segment[33:]) {
					t.Errorf("B's app reads A's address in %s", name)
				}
			}
		}
	})
}

// serveHTTP answers HTTP on one stream and says when it is used.
func serveHTTP(name string, streams *[]string, mu *sync.Mutex) func(net.Conn) {
	return func(c net.Conn) {
		mu.Lock()
		*streams = append(*streams, name)
		mu.Unlock()
		in := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, req.Body)
			text := name + " got " + req.URL.Path
			if _, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text); err != nil {
				return
			}
		}
	}
}

// Two machines have an app each on the same port, and one of them two tunnels to it:
// each tunnel has streams of its own, however quickly people change between them.
func TestStreamsAreNotSharedBetweenTunnels(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay(world.PathForm)
	const port = 8188
	var mu sync.Mutex
	var streams []string
	fakeAgent(r, world.Team, "gpu-1", serveHTTP("one", &streams, &mu))
	fakeAgent(r, otherTeam, "gpu-1", serveHTTP("two", &streams, &mu)) // the same name, the same port
	skA, skB := r.Credential("integration", world.Team), r.Credential("integration", otherTeam)
	tunnels := []struct {
		tun  api.Tunnel
		name string
	}{
		{r.Open(skA, "gpu-1", map[string]any{"target_port": port, "host_header": "public"}), "one"},
		{r.Open(skB, "gpu-1", map[string]any{"target_port": port, "host_header": "public"}), "two"},
		{r.Open(skA, "gpu-1", map[string]any{"target_port": port, "host_header": "local"}), "one"},
	}
	c := w.HTTP()
	for i := range 60 {
		tn := tunnels[i%3]
		url := []string{r.PathURL(tn.tun), r.HostURL(tn.tun)}[i/3%2]
		path := fmt.Sprintf("x%d", i)
		if status, body := world.Get(c, url+path); status != 200 || body != tn.name+" got /"+path {
			t.Errorf("request %d: expected the app of machine %s, got %d %q", i, tn.name, status, body)
		}
	}
	mu.Lock()
	sorted := slices.Sorted(slices.Values(streams))
	mu.Unlock()
	if got := strings.Join(sorted, " "); got != "one one two" {
		t.Errorf("sixty requests in turn should use one stream per tunnel, kept and never shared: expected one one two, got %s", got)
	}
	// With many at once, on one connection of the user's each, nobody gets another's answer.
	var wg sync.WaitGroup
	for i := range 12 {
		tn := tunnels[i%3]
		wg.Go(func() {
			for j := range 30 {
				path := fmt.Sprintf("y%d-%d", i, j)
				if status, body := world.Get(c, r.PathURL(tn.tun)+path); status != 200 || body != tn.name+" got /"+path {
					t.Errorf("expected %s for %s, got %d %q", tn.name, path, status, body)
				}
			}
		})
	}
	wg.Wait()
	// A closed tunnel's streams serve nobody any more, not even its twin.
	closeAll(r, skA, "gpu-1", tunnels[0].tun)
	if status, body := world.Get(c, r.PathURL(tunnels[0].tun)); status != 404 {
		t.Errorf("a closed tunnel: %d %q", status, body)
	}
	if status, body := world.Get(c, r.PathURL(tunnels[2].tun)+"z"); status != 200 || body != "one got /z" {
		t.Errorf("its twin on the same port: %d %q", status, body)
	}
	var st api.TunnelStatus
	if _, raw := r.Raw(skB, http.MethodGet, "/agents/gpu-1/tunnel", nil); json.Unmarshal(raw, &st) != nil || len(st.Sessions) != 1 {
		t.Errorf("the other team sees its own tunnel only: %s", raw)
	}
}

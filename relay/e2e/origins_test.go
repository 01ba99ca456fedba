package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/wire"
)

// hostileApp is an app that wants more than its own: each page is titled "hostile",
// and its worker tells whose pages it sees.
func hostileApp(rw http.ResponseWriter, r *http.Request) {
	rw.Header().Set("Service-Worker-Allowed", "/")
	rw.Header().Set("Referrer-Policy", "no-referrer") // the relay's redirects by Referer are in its way
	if strings.HasSuffix(r.URL.Path, ".js") {
		rw.Header().Set("Content-Type", "text/javascript")
		_, _ = io.WriteString(rw, `
			self.addEventListener("install", () => self.skipWaiting());
			self.addEventListener("activate", (e) => e.waitUntil(self.clients.claim()));
			self.addEventListener("fetch", (e) => { if (e.request.mode === "navigate" && e.request.url.endsWith("/console")) e.respondWith(new Response("<title>stolen</title>", {headers: {"Content-Type": "text/html"}})) });
			self.addEventListener("message", (e) => e.waitUntil((async () => e.ports[0].postMessage((await self.clients.matchAll({includeUncontrolled: true, type: "all"})).map((c) => c.url).join(" ")))()));`)
		return
	}
	rw.Header().Set("Content-Type", "text/html")
	_, _ = io.WriteString(rw, `<title>hostile</title>hostile`)
}

// spy has a page register a worker and returns the addresses of all pages that it sees.
const spy = `const reg = await navigator.serviceWorker.register(%q, %s);
	for (let i = 0; i < 400 && !reg.active; i++) await new Promise((r) => setTimeout(r, 50));
	const c = new MessageChannel(); const said = new Promise((r) => { c.port1.onmessage = (e) => r(e.data) });
	reg.active.postMessage("who is there?", [c.port2]); return await said;`

// bomb sets as many cookies as a browser keeps, as large as it takes, for all paths of
// the page's host.
const bomb = `for (let i = 0; i < 180; i++) document.cookie = "bomb" + i + "=" + "x".repeat(4000) + "; path=/"; return document.cookie.length > 100000;`

// consoleAt says in JavaScript that the tab shows the console of an origin.
func consoleAt(origin string) string {
	return fmt.Sprintf(`location.origin === %q && document.querySelector("#secret")`, origin)
}

func needsPages(w *world.World, r *world.Relay) {
	w.T.Helper()
	if _, body := world.Get(w.HTTP(), r.URL+"/console"); !strings.Contains(body, "<script") {
		w.T.Skip("this relay has no pages: scripts/build makes them")
	}
}

// With a wildcard domain, no page of an app is ever of the relay's origin: whatever its
// script does there, it does to itself.
func TestAnAppsScriptNeverHasTheRelaysOrigin(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	needsPages(w, r)
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": app(t, hostileApp), "host_header": "public"})
	ctx := w.Browser(3 * time.Minute)
	// What other tabs of the relay's origin show: the console, and a terminal.
	w.Do(ctx, "the console opens", world.Navigate(r.URL+"/console"), world.Until(consoleAt(r.URL)))
	terminal := w.Tab(ctx)
	w.Do(terminal, "a terminal's page opens", world.Navigate(r.URL+wire.TerminalPath+string(tun.SessionID)))

	tab := w.Tab(ctx)
	w.Do(tab, "the app's page opens on its own host", world.Navigate(r.HostURL(tun)), world.Until(`document.title === "hostile"`))
	inPath := "/tunnel/" + world.Segment(tun) + "/"
	w.Do(tab, "the page moves itself to the path form", evaluate(fmt.Sprintf(`{ window.before = 1; location = %q }`, r.URL+inPath)), world.Until(`!window.before && document.title === "hostile"`))
	if got := js(w, tab, `return location.href`); got != r.HostURL(tun) {
		t.Errorf("the path form leads to the tunnel's own host, %s, but the page is at %s", r.HostURL(tun), got)
	}
	if seen := js(w, tab, fmt.Sprintf(spy, "sw.js", "{}")); strings.Contains(seen, r.URL+"/") || !strings.Contains(seen, r.HostURL(tun)) {
		t.Errorf("the app's worker sees its own pages and none of the relay's origin: it sees %s", seen)
	}
	if got := js(w, tab, fmt.Sprintf(`history.pushState({}, "", %q)`, r.URL+"/console")); got != "refused: SecurityError" {
		t.Errorf("the app's page takes the console's address: %q", got)
	}
	if got := js(w, tab, `history.pushState({}, "", "/console"); return location.origin`); got != strings.TrimSuffix(r.HostURL(tun), "/") {
		t.Errorf("the app's page is at %s after pushState", got)
	}
	if got := js(w, tab, bomb); got != "true" {
		t.Errorf("this browser keeps fewer cookies than expected: %s", got)
	}
	js(w, tab, `for (let i = 0; i < 180; i++) for (const d of ["localhost", ".localhost"]) document.cookie = "tossed" + i + "=" + "x".repeat(4000) + "; path=/; domain=" + d`)
	w.Do(ctx, "the console opens after the app set all cookies that it could", world.Navigate(r.URL+"/console"), world.Until(consoleAt(r.URL)))
}

// Beside a wildcard domain the path form leads to the tunnel's own host, where nothing
// is the relay's; TCP, which shows no page, works in both forms.
func TestThePathFormLeadsToTheTunnelsHost(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": app(t, hello), "host_header": "public"})
	if tun.AlternateURLs == nil || len(tun.AlternateURLs) != 0 {
		t.Errorf("the tunnel has one address: %v", tun.AlternateURLs)
	}
	inPath := "/tunnel/" + world.Segment(tun)
	for path, want := range map[string]string{"": "", "/": "", "/a%2fb?c=d": "a%2fb?c=d"} {
		for _, method := range []string{"GET", "HEAD", "POST"} {
			if a := call(r, method, inPath+path, ""); a.Status != http.StatusPermanentRedirect || a.Header.Get("Location") != r.HostURL(tun)+want {
				t.Errorf("%s of the path form with %q: %s to %s", method, path, a, a.Header.Get("Location"))
			}
		}
	}
	if a := call(r, "GET", "/static/app.js", "", "Referer", r.URL+inPath+"/", "Cookie", "adit_tunnel="+world.Segment(tun)); a.Status != 404 || a.code() != "not_found" {
		t.Errorf("an absolute path: %s", a)
	}
	host := fmt.Sprintf("%s.localhost:%d", world.Segment(tun), r.Port)
	for _, path := range []string{"/console", wire.TerminalPath + string(tun.SessionID), api.Base + "/agents", "/healthz", "/readyz", "/install", "/_adit/ui/x", inPath + "/"} {
		if a := call(r, "GET", path, "", "Host", host); a.Status != 200 || a.Body != "hello from "+path {
			t.Errorf("%s on a tunnel's host is the app's: %s", path, a)
		}
		if a := call(r, "GET", path, "", "Host", fmt.Sprintf("www.localhost:%d", r.Port)); a.Status != 404 || a.code() != "tunnel_not_found" {
			t.Errorf("%s on a host that is nobody's: %s", path, a)
		}
	}

	env := func(url string) []string {
		return []string{"ADIT_TUNNEL_URL=" + url, "ADIT_URL=" + r.URL, "XDG_CONFIG_HOME=" + w.Dir}
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(w.Bin, "adit"), "doctor", "-")
	cmd.Env, cmd.Stdin = append(cmd.Environ(), env("")...), strings.NewReader(r.URL+inPath+"/\n")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "leads to the tunnel's own host") || !strings.Contains(string(out), "answers 200") {
		t.Errorf("adit doctor goes the whole way: %v\n%s", err, out)
	}
	tcp := r.Open(sk, "gpu-1", map[string]any{"target_port": tcpEcho(t), "tunnel_protocol": "tcp"})
	for _, url := range []string{r.HostURL(tcp), r.PathURL(tcp)} {
		cmd := exec.CommandContext(t.Context(), filepath.Join(w.Bin, "adit"), "connect", "--stdio")
		cmd.Env, cmd.Stdin = append(cmd.Environ(), env(url)...), strings.NewReader("over the command\n")
		if out, err := cmd.Output(); err != nil || string(out) != "over the command\n" {
			t.Errorf("adit connect: %q, %v", out, err)
		}
	}
	closeAll(r, sk, "gpu-1", tun)
	if a := call(r, "GET", inPath+"/", ""); a.Status != 404 || a.code() != "tunnel_not_found" {
		t.Errorf("a closed tunnel's path form: %s", a)
	}
}

// Where the path form is on, no worker begins there: not for a tunnel's own path, whose
// worker would see the pages of all others, and not for the host that the cookie leads
// to the tunnel, where it would be in the console's place when the tunnel is long closed.
func TestNoServiceWorkerBeginsInPathForm(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay(world.PathForm, "ADIT_PATH_FALLBACK=cookie")
	needsPages(w, r)
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": app(t, hostileApp), "host_header": "public"})
	victim := r.Open(sk, "gpu-1", map[string]any{"target_port": app(t, hello), "host_header": "public"})
	ctx := w.Browser(3 * time.Minute)
	w.Do(ctx, "another tunnel's page opens", world.Navigate(r.PathURL(victim)))
	tab := w.Tab(ctx)
	w.Do(tab, "the app's page opens", world.Navigate(r.PathURL(tun)), world.Until(`document.title === "hostile"`))
	for where, how := range map[string][2]string{"its own path": {"sw.js", `{updateViaCache: "all"}`}, "the whole host": {"/sw.js", `{scope: "/", updateViaCache: "all"}`}} {
		if got := js(w, tab, fmt.Sprintf(`return (await fetch(%q)).status`, how[0])); got != "200" {
			t.Errorf("as a script for pages it may be had: %s", got)
		}
		if seen := js(w, tab, fmt.Sprintf(spy, how[0], how[1])); !strings.HasPrefix(seen, "refused: ") {
			t.Errorf("a worker for %s began, and sees %s", where, seen)
		}
	}
	closeAll(r, sk, "gpu-1", tun)
	w.Do(tab, "the console is the relay's when the tunnel is closed", world.Navigate(r.URL+"/console"), world.Until(consoleAt(r.URL)))
}

// Where the path form is all there is, the relay's own pages can have a host to
// themselves.
func TestTheConsolesHostIsNobodyElses(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.NewRelay()
	public := fmt.Sprintf("http://127.0.0.1:%d", r.Port)
	r.Env = append(r.Env, "ADIT_PUBLIC_URL="+public, "ADIT_CONSOLE_URL="+r.URL, "ADIT_PATH_FALLBACK=cookie")
	r.Start()
	r.WaitReady(30 * time.Second)
	needsPages(w, r)
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": app(t, hostileApp), "host_header": "public"})
	if tun.TunnelURL != public+"/tunnel/"+world.Segment(tun)+"/" || len(tun.AlternateURLs) != 0 {
		t.Errorf("without a wildcard domain the path form is the tunnel's URL: %s %v", tun.TunnelURL, tun.AlternateURLs)
	}
	ctx := w.Browser(3 * time.Minute)
	w.Do(ctx, "the console's address leads to its own host", world.Navigate(public+"/console"), world.Until(consoleAt(r.URL)))

	tab := w.Tab(ctx)
	open := func() {
		t.Helper()
		w.Do(tab, "the app's page opens", world.Navigate(tun.TunnelURL), world.Until(`document.title === "hostile"`))
	}
	open()
	w.Do(tab, "the app's page takes the console's path", evaluate(`history.pushState({}, "", "/console")`), world.Until(`location.pathname === "/console" && document.title === "hostile"`))
	w.Do(tab, "and loses it when it is loaded", evaluate(`setTimeout(() => location.reload())`), world.Until(consoleAt(r.URL)))
	open()
	js(w, tab, bomb)
	w.Do(ctx, "the console opens after the app set all cookies that it could, and its API answers",
		world.Navigate(r.URL+"/console"), world.Until(consoleAt(r.URL)))
	(&consolePage{w: w, r: r, ctx: ctx}).signIn(sk)

	// Without a browser: the one host has the pages, the other the tunnels.
	host := strings.TrimPrefix(r.URL, "http://")
	for _, path := range []string{"/console", wire.TerminalPath + string(tun.SessionID) + "?a=%2F%2Fevil.example"} {
		if a := call(r, "GET", path, ""); a.Status != http.StatusTemporaryRedirect || a.Header.Get("Location") != r.URL+path {
			t.Errorf("%s at the public host: %s to %s", path, a, a.Header.Get("Location"))
		}
		if a := call(r, "GET", path, "", "Host", host); a.Status != 200 {
			t.Errorf("%s at the console's host: %s", path, a)
		}
	}
	for _, path := range []string{"//evil.example/console", "/console//evil.example", "/\\evil.example/console"} {
		if a := call(r, "GET", path, ""); strings.Contains(a.Header.Get("Location"), "evil.example") && !strings.HasPrefix(a.Header.Get("Location"), r.URL+"/") {
			t.Errorf("%s leads to %s", path, a.Header.Get("Location"))
		}
	}
	for _, path := range []string{"/tunnel/" + world.Segment(tun) + "/", "/x"} {
		if a := call(r, "GET", path, "", "Host", host, "Referer", tun.TunnelURL, "Cookie", "adit_tunnel="+world.Segment(tun)); a.Status != 404 || a.code() != "not_found" {
			t.Errorf("%s at the console's host: %s", path, a)
		}
	}
	if a := call(r, "GET", api.Base+"/agents", "", "Host", host, "Authorization", "Bearer "+sk); a.Status != 200 {
		t.Errorf("the API at the console's host: %s", a)
	}
	if _, err := dialTerminal(t, r, string(tun.SessionID), public, wire.TerminalAttach{}); err == nil {
		t.Error("a page of the public host, where apps are, gets a terminal")
	}
	if c, err := dialTerminal(t, r, string(tun.SessionID), r.URL, wire.TerminalAttach{}); err != nil {
		t.Errorf("a page of the console's host gets no terminal: %v", err)
	} else if end := terminalEnd(t, c); end.Code != websocket.StatusCode(wire.CloseRefused) {
		t.Errorf("without a token it ends with %v", end)
	}
}

// What an app's answer says of the whole origin, and beyond, does not reach browsers:
// not in the answer, not before it, not behind it.
func TestAnAppsHeadersSpeakForItselfOnly(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay(world.PathForm)
	w.Agent(r, "gpu-1")
	const powers = "Reporting-Endpoints: default=\"https://evil.example/\"\r\n" +
		"NEL: {\"report_to\":\"spy\",\"max_age\":2592000,\"include_subdomains\":true,\"success_fraction\":1}\r\n" +
		"Report-To: {\"group\":\"spy\",\"max_age\":2592000,\"include_subdomains\":true,\"endpoints\":[{\"url\":\"https://evil.example/\"}]}\r\n"
	const shared = "Accept-CH: Sec-CH-UA-Model\r\nUse-As-Dictionary: match=\"/*\"\r\nSet-Login: logged-in\r\n" +
		"Expect-CT: max-age=99\r\nPublic-Key-Pins: x\r\nOrigin-Agent-Cluster: ?0\r\nService-Worker-Allowed: /\r\n"
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				in := bufio.NewReader(c)
				for {
					if _, err := http.ReadRequest(in); err != nil {
						return
					}
					_, _ = io.WriteString(c, "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload; as=style\r\nReferrer-Policy: unsafe-url\r\n"+powers+shared+
						"\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: NEL, X-Sum\r\nReferrer-Policy: origin\r\nX-Own: 1\r\n"+powers+shared+"\r\n2\r\nok\r\n0\r\n"+powers+"X-Sum: 1\r\n\r\n")
				}
			}()
		}
	}()
	tun := r.Open(r.Credential("integration", world.Team), "gpu-1", map[string]any{"target_port": l.Addr().(*net.TCPAddr).Port, "host_header": "public"})
	for form, url := range map[string]string{"path form": r.PathURL(tun), "subdomain form": r.HostURL(tun)} {
		var got []http.Header
		trace := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(_ int, h textproto.MIMEHeader) error {
			got = append(got, http.Header(h).Clone())
			return nil
		}})
		req, err := http.NewRequestWithContext(trace, http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := w.HTTP().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "ok" {
			t.Errorf("%s: the body %q %v", form, body, err)
		}
		_ = resp.Body.Close()
		if len(got) != 1 || got[0].Get("Link") == "" || resp.Header.Get("X-Own") != "1" || resp.Trailer.Get("X-Sum") != "1" {
			t.Errorf("%s: what is the app's own passes: hints %v, header %v, trailer %v", form, got, resp.Header, resp.Trailer)
		}
		for i, h := range append(got, resp.Header, resp.Trailer) {
			what := fmt.Sprintf("%s, %d of hints, answer, trailer", form, i+1)
			if p := h.Get("Referrer-Policy"); i < 2 && p != "same-origin" {
				t.Errorf("%s: the policy %q shows the address to others", what, p)
			}
			for line := range strings.SplitSeq(powers+shared, "\r\n") {
				name, _, _ := strings.Cut(line, ":")
				if name != "" && h.Get(name) != "" && (form == "path form" || i != 1 || strings.Contains(powers, name)) {
					t.Errorf("%s: %s reaches the browser", what, name)
				}
			}
		}
	}
}

// The host name is the key: no third party learns it by a Referer or a report, whatever
// policies the app has.
func TestNoThirdPartyLearnsATunnelsAddress(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	w.Agent(r, "gpu-1")
	var mu sync.Mutex
	referers := map[string]string{}
	third := fmt.Sprintf("http://127.0.0.1:%d", app(t, func(rw http.ResponseWriter, req *http.Request) {
		mu.Lock()
		referers[req.URL.Path] = req.Header.Get("Referer")
		mu.Unlock()
		if strings.HasSuffix(req.URL.Path, ".svg") {
			rw.Header().Set("Content-Type", "image/svg+xml")
			_, _ = io.WriteString(rw, `<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>`)
			return
		}
		rw.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(rw, "<title>third party</title>")
	}))
	reported := make(chan struct{})
	var report sync.Once
	policies := []string{"origin", "strict-origin", "origin-when-cross-origin", "strict-origin-when-cross-origin", "unsafe-url", "no-referrer-when-downgrade", "no-referrer, unsafe-url", "none-such"}
	tun := r.Open(r.Credential("integration", world.Team), "gpu-1", map[string]any{"host_header": "public", "target_port": app(t, func(rw http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/report" {
			report.Do(func() { close(reported) })
			return
		}
		policy := req.URL.Query().Get("policy")
		rw.Header().Set("Referrer-Policy", policy)
		if strings.HasPrefix(req.URL.Path, "/go") {
			http.Redirect(rw, req, third+req.URL.Path, http.StatusFound)
			return
		}
		i := strings.TrimPrefix(req.URL.Path, "/")
		rw.Header()["Content-Security-Policy-Report-Only"] = []string{"img-src 'none'; report-uri " + third + "/report", "img-src 'none'; report-uri /report"}
		rw.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(rw, `<title>app</title><img id=a src="%s/image%s.svg"><img id=b src="/go%s.svg?policy=%s"><a id=c href="%s/page%s">away</a>`, third, i, i, policy, third, i)
	})})
	ctx := w.Browser(3 * time.Minute)
	for i, policy := range policies {
		w.Do(ctx, "a page with "+policy+" shows images of a third party, and leads there",
			world.Navigate(fmt.Sprintf("%s%d?policy=%s", r.HostURL(tun), i, strings.ReplaceAll(policy, " ", "%20"))),
			world.Until(`document.title === "app" && document.getElementById("a").naturalWidth > 0 && document.getElementById("b").naturalWidth > 0`),
			evaluate(`document.getElementById("c").click()`), world.Until(`document.title === "third party"`))
	}
	select {
	case <-reported:
	case <-time.After(testkit.Patience):
		t.Error("a report of a policy's violation reaches the app itself")
	}
	mu.Lock()
	defer mu.Unlock()
	if _, ok := referers["/report"]; ok {
		t.Error("a report of a policy's violation, with the page's address, reaches the third party")
	}
	if len(referers) < 3*len(policies) {
		t.Errorf("the third party was asked %d times: %v", len(referers), referers)
	}
	for path, referer := range referers {
		if referer != "" && !strings.HasPrefix(referer, third+"/") {
			t.Errorf("the third party learned at %s where the app is: %s", path, referer)
		}
	}
}

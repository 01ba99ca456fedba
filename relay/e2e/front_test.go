package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

// asked is how the same address is asked for, and whether a person reads the answer.
var asked = []struct {
	by     string
	person bool
	header []string
}{
	{"a browser", true, []string{"Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "Sec-Fetch-Mode", "navigate"}},
	{"a browser on plain http", true, []string{"Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}},
	{"fetch() of a page", false, []string{"Accept", "*/*", "Sec-Fetch-Mode", "cors"}},
	{"curl", false, []string{"Accept", "*/*"}},
	{"a program that wants JSON", false, []string{"Accept", "application/json"}},
	{"a program that says nothing", false, nil},
}

// Whoever opens an address of the relay in a browser reads a page, at every door and for
// every refusal; whatever asks by program reads a document. Neither gets the other's.
func TestPeopleGetPagesAndProgramsDocuments(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay(world.PathForm)
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	nobody := r.Open(sk, "gpu-1", map[string]any{"target_port": w.FreePort()})
	tcp := r.Open(sk, "gpu-1", map[string]any{"target_port": app(t, hello), "tunnel_protocol": "tcp"})
	web := r.Open(sk, "gpu-1", map[string]any{"target_port": app(t, hello)})
	closed := r.Open(sk, "gpu-1", map[string]any{"target_port": 9})
	closeAll(r, sk, "gpu-1", closed)
	path := func(tun api.Tunnel) string { return "/tunnel/" + world.Segment(tun) + "/" }
	host := func(tun api.Tunnel) []string {
		return []string{"Host", fmt.Sprintf("%s.localhost:%d", world.Segment(tun), r.Port)}
	}
	member, agent := []string{"Authorization", "Bearer " + sk}, []string{"Authorization", "Bearer " + r.Credential("agent", world.Team, "--agent", "gpu-1")}
	form := []string{"Content-Type", "application/x-www-form-urlencoded"}
	terminal := wire.TerminalPath + string(ident.NewSessionID())
	for _, door := range []struct {
		what, method, path string
		header             []string
		status             int
		code               api.Code
	}{
		{"nowhere", "GET", "/nowhere", nil, 404, api.CodeNotFound},
		{"nowhere, by a form", "POST", "/nowhere", form, 404, api.CodeNotFound},
		{"below the console", "GET", "/console/x", nil, 404, api.CodeNotFound},
		{"the console, by a form", "POST", "/console", form, 405, api.CodeMethodNotAllowed},
		{"the front door, by a form", "POST", "/", form, 405, api.CodeMethodNotAllowed},
		{"health, by a form", "POST", "/readyz", form, 405, api.CodeMethodNotAllowed},
		{"a file of pages", "GET", "/_adit/ui/x.js", nil, 404, api.CodeNotFound},
		{"a package", "GET", "/install/x", nil, 404, api.CodeNotFound},
		{"enrollment", "GET", api.EnrollPath, nil, 405, api.CodeMethodNotAllowed},
		{"enrollment, by a form", "POST", api.EnrollPath, form, 401, api.CodeUnauthenticated},
		{"an agent's link", "GET", wire.LinkPath, nil, 401, api.CodeUnauthenticated},
		{"an agent's link, by a form", "POST", wire.LinkPath, form, 405, api.CodeMethodNotAllowed},
		{"no terminal", "GET", wire.TerminalPath + "x", nil, 404, api.CodeNotFound},
		{"a terminal, by a form", "POST", terminal, form, 405, api.CodeMethodNotAllowed},
		{"a terminal's WebSocket", "GET", terminal + wire.TerminalSocket, nil, 426, api.CodeUpgradeRequired},
		{"the API", "GET", api.Base + "/agents", nil, 401, api.CodeUnauthenticated},
		{"the API, by a form", "POST", api.Base + "/agents/gpu-1/tunnel", form, 401, api.CodeUnauthenticated},
		{"the API's base", "GET", api.Base, nil, 401, api.CodeUnauthenticated},
		{"the API, no route", "GET", api.Base + "/nowhere", member, 404, api.CodeNotFound},
		{"the API, another method", "POST", api.Base + "/agents", append(form, member...), 405, api.CodeMethodNotAllowed},
		{"the API, a form's body", "POST", api.Base + "/agents/gpu-1/tunnel", append(form, member...), 415, api.CodeUnsupportedMediaType},
		{"the API, not for agents", "GET", api.Base + "/agents", agent, 403, api.CodeForbidden},
		{"the API, a parameter", "GET", api.Base + "/agents?x=1", member, 400, api.CodeUnknownParameter},
		{"a closed tunnel", "GET", path(closed), nil, 404, api.CodeTunnelNotFound},
		{"a closed tunnel's host", "GET", "/", host(closed), 404, api.CodeTunnelNotFound},
		{"a closed tunnel, by a form", "POST", path(closed), form, 404, api.CodeTunnelNotFound},
		{"a tunnel where nothing listens", "GET", path(nobody), nil, 502, api.CodeAppRefused},
		{"a tunnel where nothing listens, by a form", "POST", "/", append(form, host(nobody)...), 502, api.CodeAppRefused},
		{"a tunnel, by a form of another site", "POST", "/", append(append(form, host(web)...), "Origin", "https://evil.example"), 403, api.CodeCrossOrigin},
		{"a tunnel for TCP", "GET", path(tcp), nil, 426, api.CodeUpgradeRequired},
	} {
		for _, as := range asked {
			header := append(append([]string(nil), as.header...), door.header...)
			body := ""
			if door.method == http.MethodPost {
				body = "a=b"
			}
			a := call(r, door.method, door.path, body, header...)
			kind := a.Header.Get("Content-Type")
			switch {
			case a.Status != door.status:
				t.Errorf("%s, as %s: expected %d, got %s %s", door.what, as.by, door.status, a, a.Body)
			case as.person && (kind != "text/html; charset=utf-8" || !strings.HasPrefix(a.Body, "<!doctype html>") || !strings.Contains(a.Body, string(door.code))):
				t.Errorf("%s, as %s: a person should read a page that ends in %s, not %s %s", door.what, as.by, door.code, kind, a.Body)
			case !as.person && (kind != api.ProblemContentType || a.code() != string(door.code)):
				t.Errorf("%s, as %s: a program should read a document with %s, not %s %s", door.what, as.by, door.code, kind, a.Body)
			}
			if csp := a.Header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") {
				t.Errorf("%s, as %s: the policy is %q", door.what, as.by, csp)
			}
			if as.person && (strings.Contains(a.Body, "<script") || strings.Contains(a.Body, world.Segment(web)) || strings.Contains(a.Body, world.Segment(nobody)) || !strings.Contains(a.Body, "request ")) {
				t.Errorf("%s, as %s: a page runs nothing, gives no address away and names the request: %s", door.what, as.by, a.Body)
			}
		}
	}
}

// The relay's bare address leads to the console, by every name that is not a tunnel's.
func TestTheFrontDoorLeadsToTheConsole(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.NewRelay()
	public := fmt.Sprintf("http://127.0.0.1:%d", r.Port)
	r.Env = append(r.Env, "ADIT_PUBLIC_URL="+public, "ADIT_CONSOLE_URL="+r.URL)
	r.Start()
	r.WaitReady(30 * time.Second)
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": app(t, hello)})
	for _, method := range []string{"GET", "HEAD"} {
		for what, host := range map[string]string{"public_url": "", "console_url": strings.TrimPrefix(r.URL, "http://"), "another name": "relay.internal"} {
			header := []string{"Accept", "text/html"}
			if host != "" {
				header = append(header, "Host", host)
			}
			if a := call(r, method, "/?x=//evil.example", "", header...); a.Status != http.StatusSeeOther || a.Header.Get("Location") != r.URL+"/console" || a.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("%s / at %s: expected 303 to the console, got %s to %q", method, what, a, a.Header.Get("Location"))
			}
		}
	}
	// A page of a tunnel in path form that links to "/" means its own.
	own := "/tunnel/" + world.Segment(tun) + "/"
	if a := call(r, "GET", "/", "", "Referer", public+own+"page"); a.Status != http.StatusTemporaryRedirect || a.Header.Get("Location") != own {
		t.Errorf("a link to / on a tunnel's page: expected the tunnel, got %s to %q", a, a.Header.Get("Location"))
	}
}

func TestRefusalsInABrowser(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	nobody := r.Open(sk, "gpu-1", map[string]any{"target_port": w.FreePort()})
	closed := r.Open(sk, "gpu-1", map[string]any{"target_port": 9})
	closeAll(r, sk, "gpu-1", closed)
	c := newConsole(w, r)
	heading := func(s string) chromedp.Action[chromedp.Void] {
		return world.Until(fmt.Sprintf(`document.querySelector("h1") && document.querySelector("h1").textContent === %q`, s))
	}
	c.do("the bare address leads to the console", world.Navigate(r.URL+"/"), world.Until(consoleAt(r.URL)))
	for name, p := range map[string]struct{ url, title string }{
		"nowhere": {r.URL + "/nowhere", "Nothing is here"},
		"api":     {r.URL + api.Base + "/agents", "This address is for programs"},
		"closed":  {closed.TunnelURL, "There is no tunnel here"},
	} {
		c.do("a person reads a page: "+name, world.Navigate(p.url), heading(p.title))
		c.see("front-" + name)
	}
	c.do("an app that is not running has a page that reloads by itself", world.Navigate(nobody.TunnelURL), heading("The app is not running"), world.Until(`document.querySelector("meta[http-equiv=refresh]")`))
	c.do("the page of an address of the relay's own leads to the console", world.Navigate(r.URL+"/nowhere"), press("To the console"), world.Until(consoleAt(r.URL)))
	if got := js(w, c.ctx, `const r = await fetch("/nowhere"); return r.status + " " + r.headers.get("content-type")`); got != "404 "+api.ProblemContentType {
		t.Errorf("a page's script gets %q", got)
	}
	other := app(t, func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(rw, `<!doctype html><form method="post" action=%q><input name="a" value="b"><button>Send</button></form>`, nobody.TunnelURL)
	})
	c.do("a form that is refused shows a page", world.Navigate(fmt.Sprintf("http://127.0.0.1:%d/", other)), press("Send"), heading("Refused for your safety"))
	c.see("front-form")
}

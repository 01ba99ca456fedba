package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/adit-tunnel/adit/relay/e2e/world"
)

// formApp is an app with a form, a download and a script that asks for more.
func formApp(t *testing.T, downloads *atomic.Int64) int {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		http.SetCookie(w, &http.Cookie{Name: "theirs", Value: "1", Path: "/"})
		_, _ = io.WriteString(w, `<h1>the app</h1><form method="post" action="/send"><input name="word" value="hello"><button>Send</button></form><a href="/file" download>Download</a>`)
	})
	mux.HandleFunc("POST /send", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = fmt.Fprintf(w, "<p>got %s</p>", r.FormValue("word"))
	})
	mux.HandleFunc("/file", func(w http.ResponseWriter, _ *http.Request) {
		downloads.Add(1)
		w.Header().Set("Content-Disposition", `attachment; filename="a.txt"`)
		_, _ = io.WriteString(w, "a file")
	})
	mux.HandleFunc("/cookies", func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Header.Get("Cookie")) })
	app := httptest.NewServer(mux)
	t.Cleanup(app.CloseClientConnections)
	return app.Listener.Addr().(*net.TCPAddr).Port
}

// atIssuer types a name and a password at the issuer's page.
func atIssuer(w *world.World, tab context.Context, issuer, name string) {
	w.T.Helper()
	w.Do(tab, name+" signs in", press("Sign in with "+issuer), world.Until(`document.querySelector("#username")`),
		chromedp.SendKeys("#username", name), chromedp.SendKeys("#password", name), chromedp.Click(`button[type=submit]`))
}

func TestSignInForATunnelInABrowser(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.NewRelay()
	o := w.NewOIDC(r, "alice", "bob")
	o.Start()
	o.Control(map[string]any{"teams": map[string][]string{"alice": {world.Team}}})
	r.Start()
	r.WaitReady(30 * time.Second)
	needPages(r)
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	var downloads atomic.Int64
	port := formApp(t, &downloads)
	team := r.Open(sk, "gpu-1", map[string]any{"target_port": port, "access": "team"})
	named := r.Open(sk, "gpu-1", map[string]any{"target_port": port, "access": "people", "people": []string{"*@example.com"}})
	issuer := strings.TrimPrefix(o.URL, "http://")

	tab := w.Browser(2 * time.Minute)
	w.Do(tab, "a tunnel of the team's leads to the sign-in view", world.Navigate(team.TunnelURL+"deep/page?q=1"), text("Sign in for a tunnel"))
	atIssuer(w, tab, issuer, "alice")
	w.Do(tab, "and back to the page that was asked for first", world.Until(fmt.Sprintf(`location.href === %q && document.querySelector("h1")`, team.TunnelURL+"deep/page?q=1")))
	if seen := reads(w, tab, `document.cookie`); seen != "theirs=1" {
		t.Errorf("the app's script sees the cookies %q", seen)
	}
	if seen := reads(w, tab, `(() => { const x = new XMLHttpRequest(); x.open("GET", "/cookies", false); x.send(); return x.responseText; })()`); seen != "theirs=1" {
		t.Errorf("the app sees the cookies %q", seen)
	}
	w.Do(tab, "a form", press("Send"), text("got hello"), evaluate(`setTimeout(() => history.back())`), text("the app"), press("Download"))
	w.Eventually(20*time.Second, "the file is downloaded", func() bool { return downloads.Load() > 0 })
	second := w.Tab(tab)
	w.Do(second, "another tunnel asks nothing any more", world.Navigate(named.TunnelURL+"x"), world.Until(fmt.Sprintf(`location.href === %q && document.querySelector("h1")`, named.TunnelURL+"x")))

	// A change takes the passes; what a form sends then is not lost without a word.
	if status, p := r.API(sk, http.MethodPut, "/tunnels/"+string(team.SessionID)+"/access", map[string]any{"access": "people", "people": []string{"alice@example.com"}}, nil); status != http.StatusOK {
		t.Fatalf("change who may use it: %d %v", status, p)
	}
	w.Do(tab, "a form without a pass", press("Send"), text("send it again"), press("Sign in"), world.Until(fmt.Sprintf(`location.href === %q && document.querySelector("h1")`, team.TunnelURL+"deep/page")))

	guest := w.Browser(2 * time.Minute)
	w.Do(guest, "somebody of no team, who is named", world.Navigate(named.TunnelURL+"y"), text("Sign in for a tunnel"))
	atIssuer(w, guest, issuer, "bob")
	w.Do(guest, "comes in", world.Until(fmt.Sprintf(`location.href === %q && document.querySelector("h1")`, named.TunnelURL+"y")))
	w.Do(guest, "and is told who they are where they may not", world.Navigate(team.TunnelURL), text("you are bob"), text("ask whoever sent you the address"))
	w.Do(tab, "signing out ends the pass", world.Navigate(r.URL+"/console#devices"), press("Sign out everywhere"), world.Until(`document.querySelector("dialog[open]")`), press("Sign out everywhere"), text("Sign in with "+issuer),
		world.Navigate(team.TunnelURL), text("Sign in for a tunnel"))
}

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
)

const (
	theirPIN   = "sesame-7"
	asABrowser = "text/html,application/xhtml+xml,*/*;q=0.8"
)

// outsider is a browser somewhere, as two relays behind a trusted proxy see it: cookies, and
// no redirects followed.
type outsider struct {
	f       *fleet
	c       *http.Client
	tun     api.Tunnel
	addr    string
	cookies map[string]string
}

func (f *fleet) outsider(c *http.Client, tun api.Tunnel, addr string) *outsider {
	return &outsider{f, c, tun, addr, map[string]string{}}
}

// ask sends a request through one of the relays: with a form, a POST of it.
func (g *outsider) ask(relay int, path string, form url.Values, header ...string) (int, http.Header, string) {
	g.f.t.Helper()
	method, body := http.MethodGet, io.Reader(nil)
	if form != nil {
		method, body = http.MethodPost, strings.NewReader(form.Encode())
	}
	req, err := http.NewRequestWithContext(g.f.t.Context(), method, g.f.through(g.f.relays[relay], g.tun, path), body)
	if err != nil {
		g.f.t.Fatal(err)
	}
	req.Host = strings.TrimPrefix(g.f.lb.url, "http://")
	req.Header.Set("Accept", asABrowser)
	req.Header.Set("User-Agent", "Mozilla/5.0 guest")
	req.Header.Set("X-Forwarded-For", g.addr)
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("Origin", g.f.lb.url)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	for name, value := range g.cookies {
		req.AddCookie(&http.Cookie{Name: name, Value: value})
	}
	resp, err := g.c.Do(req)
	if err != nil {
		g.f.t.Error(err)
		return 0, nil, ""
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		g.f.t.Error(err)
	}
	for _, c := range resp.Cookies() {
		if !c.HttpOnly || c.SameSite != http.SameSiteLaxMode {
			g.f.t.Errorf("the cookie %s is not HttpOnly and SameSite=Lax", c.Name)
		}
		if g.cookies[c.Name] = c.Value; c.MaxAge < 0 {
			delete(g.cookies, c.Name)
		}
	}
	return resp.StatusCode, resp.Header, string(b)
}

// page is what the page says first, or what the app says.
func page(status int, _ http.Header, body string) string {
	if _, rest, ok := strings.Cut(body, "<h1>"); ok {
		title, _, _ := strings.Cut(rest, "</h1>")
		return fmt.Sprint(status, " ", title)
	}
	return fmt.Sprint(status, " ", body)
}

func (g *outsider) want(what, want string, relay int, path string, form url.Values, header ...string) {
	g.f.t.Helper()
	if got := page(g.ask(relay, path, form, header...)); got != want {
		g.f.t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// follow is want, after a redirect within the tunnel.
func (g *outsider) follow(what, want string, relay int, path string, form url.Values) {
	g.f.t.Helper()
	status, h, body := g.ask(relay, path, form)
	to, ok := strings.CutPrefix(h.Get("Location"), strings.TrimSuffix(g.f.relays[0].PathURL(g.tun), "/"))
	if status != http.StatusSeeOther || !ok {
		g.f.t.Errorf("%s: it does not lead on within the tunnel: %s to %q", what, page(status, h, body), h.Get("Location"))
		return
	}
	g.want(what, want, relay, strings.TrimPrefix(to, "/"), nil)
}

// A tunnel with a PIN and one to knock at, used through two relays behind a proxy.
func TestPINAndKnockThroughTwoRelays(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2, nil)
	f.run(1, 1)
	t.Run("a PIN, and a thousand addresses that guess", f.pins)
	t.Run("who knocks waits until somebody answers", f.knocks)
}

func (f *fleet) pins(t *testing.T) {
	f.t = t
	var mu sync.Mutex
	var seen []string // by the app
	port := app(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		mu.Lock()
		seen = append(seen, fmt.Sprint(r.Method, " ", r.URL, " ", r.Header, " ", string(b)))
		mu.Unlock()
		fmt.Fprint(w, "the app at ", r.URL.RequestURI())
	})
	tun := f.relays[0].Open(f.secret, agentName(0), map[string]any{"target_port": port, "access": "pin", "pin": theirPIN})
	c := f.w.HTTP()
	g := f.outsider(c, tun, "198.51.100.7")
	_, h, body := g.ask(0, "deep/?a=1&b=2", nil)
	to := f.pathOf(tun) + "deep/?a=1&b=2"
	if !strings.Contains(body, "asks for a PIN") || !strings.Contains(body, `name="to" value="`+strings.ReplaceAll(to, "&", "&amp;")+`"`) {
		t.Errorf("a browser is asked for the PIN: %s", body)
	}
	if p := h.Get("Content-Security-Policy"); !strings.Contains(p, "form-action 'self'") || !strings.Contains(p, "default-src 'none'") || h.Get("Cache-Control") != "no-store" {
		t.Errorf("the page may %q, %q", p, h.Get("Cache-Control"))
	}
	status, _, body := g.ask(0, "", nil, "Accept", "*/*")
	var problem api.Problem
	if err := json.Unmarshal([]byte(body), &problem); err != nil || status != http.StatusUnauthorized || problem.Code != api.CodePINRequired {
		t.Errorf("a program is told: %d %s", status, body)
	}
	if status, _, body := g.ask(1, "x", nil, "Sec-Fetch-Mode", "cors"); status != http.StatusUnauthorized || strings.Contains(body, "<form") {
		t.Errorf("a page's script gets %d %s", status, body)
	}
	g.want("a wrong PIN", "401 This tunnel asks for a PIN", 1, "_adit/pin", url.Values{"pin": {"sesame-8"}, "to": {to}})
	g.want("a page of another origin", "403 Refused for your safety", 1, "_adit/pin", url.Values{"pin": {theirPIN}}, "Origin", "https://evil.example")
	for _, away := range []string{"https://evil.example/", "//evil.example/", "/elsewhere", f.pathOf(tun) + "\r\nX: y"} {
		other := f.outsider(c, tun, "198.51.100.8")
		other.follow("the right PIN with another way on, "+away, "200 the app at /", 0, "_adit/pin", url.Values{"pin": {theirPIN}, "to": {away}})
	}
	g.follow("the right PIN", "200 the app at /deep/?a=1&b=2", 0, "_adit/pin", url.Values{"pin": {theirPIN}, "to": {to}})
	g.want("the pass at the other relay", "200 the app at /deep", 1, "deep", nil)

	// Each guess comes from an address of its own, through either relay.
	var wg sync.WaitGroup
	said := map[string]int{}
	turn := make(chan int)
	for range 16 {
		wg.Go(func() {
			for i := range turn {
				thief := f.outsider(c, tun, fmt.Sprintf("10.9.%d.%d", i>>8, i&255))
				got := page(thief.ask(i%2, "_adit/pin", url.Values{"pin": {fmt.Sprint("guess-", i)}}))
				mu.Lock()
				said[got]++
				mu.Unlock()
			}
		})
	}
	for i := range 1000 {
		turn <- i
	}
	close(turn)
	wg.Wait()
	if said["401 This tunnel asks for a PIN"] != 18 || said["429 Too many wrong PINs"] < 900 { // g had one of 20, and the last locks
		t.Errorf("a thousand guesses were answered %v", said)
	}
	late := f.outsider(c, tun, "198.51.100.9")
	for relay := range f.relays {
		late.want("the right PIN when it is locked", "429 Too many wrong PINs", relay, "_adit/pin", url.Values{"pin": {theirPIN}})
	}
	g.want("who was in before", "200 the app at /", 1, "", nil)
	late.want("the owner with a secret", "200 the app at /", 0, "", nil, "Adit-Authorization", "Bearer "+f.secret)
	if status, p := f.relays[1].API(f.secret, http.MethodPut, "/tunnels/"+string(tun.SessionID)+"/access", map[string]any{"access": "pin"}, nil); p != nil {
		t.Fatalf("the owner sets the access anew: %d %v", status, p)
	}
	f.w.Eventually(10*time.Second, "the pass of before is over at both relays", func() bool {
		return page(g.ask(0, "", nil)) == "401 This tunnel asks for a PIN" && page(g.ask(1, "", nil)) == "401 This tunnel asks for a PIN"
	})
	late.follow("the right PIN afterwards", "200 the app at /", 0, "_adit/pin", url.Values{"pin": {theirPIN}})
	mu.Lock()
	defer mu.Unlock()
	if all := strings.Join(seen, "\n"); regexp.MustCompile(`guess-|sesame|adit-pass|ps-|_adit|` + regexp.QuoteMeta(f.secret)).MatchString(all) {
		t.Errorf("the app learns what is the relay's: %s", all)
	}
}

func (f *fleet) pathOf(tun api.Tunnel) string {
	u, err := url.Parse(f.relays[0].PathURL(tun))
	if err != nil {
		f.t.Fatal(err)
	}
	return u.Path
}

func (f *fleet) knocks(t *testing.T) {
	f.t = t
	port := app(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "the app at ", r.URL.RequestURI()) })
	tun := f.relays[0].Open(f.secret, agentName(0), map[string]any{"target_port": port, "access": "knock"})
	c := f.w.HTTP()
	const asked, waits = "401 Somebody has to let you in", "this page goes on as soon as"
	waiting := func(relay int) []api.Knock {
		t.Helper()
		var list api.KnockList
		if status, p := f.relays[relay].API(f.secret, http.MethodGet, "/tunnels/"+string(tun.SessionID)+"/knocks", nil, &list); p != nil {
			t.Fatalf("who waits: %d %v", status, p)
		}
		return list.Knocks
	}
	answer := func(relay int, k api.Knock, admit bool) {
		t.Helper()
		if status, p := f.relays[relay].API(f.secret, http.MethodPost, "/tunnels/"+string(tun.SessionID)+"/knocks/"+k.KnockID, map[string]any{"admit": admit}, nil); p != nil {
			t.Fatalf("answer %s: %d %v", k.Name, status, p)
		}
	}
	told := f.listen(0)
	alice, mallory := f.outsider(c, tun, "198.51.100.21"), f.outsider(c, tun, "198.51.100.22")
	alice.want("before", asked, 0, "x", nil)
	alice.follow("Alice knocks", asked, 0, "_adit/knock", url.Values{"name": {"Alice"}, "to": {f.pathOf(tun) + "x"}})
	mallory.follow("Mallory knocks", asked, 1, "_adit/knock", url.Values{"name": {"Mallory"}})
	f.w.Eventually(10*time.Second, "both relays know both", func() bool { return len(waiting(0)) == 2 && len(waiting(1)) == 2 })
	told("Alice waits to be let in, from 198.51.100.21")
	for relay := range f.relays {
		if _, h, body := alice.ask(relay, "x", nil); !strings.Contains(strings.ToLower(body), waits) || h.Get("Retry-After") == "" {
			t.Errorf("Alice's page at relay %d does not wait: %s", relay, body)
		}
	}
	list := waiting(1)
	if list[0].Name != "Alice" || list[0].RemoteAddr != "198.51.100.21" || list[1].RemoteAddr != "198.51.100.22" {
		t.Fatalf("who waits: %+v", list)
	}
	stolen := f.outsider(c, tun, "203.0.113.66")
	maps.Copy(stolen.cookies, alice.cookies)
	answer(1, list[0], true)
	answer(0, list[1], false)
	told("somebody who waited was answered, or left")
	f.w.Eventually(10*time.Second, "both relays know the answers", func() bool { return len(waiting(0))+len(waiting(1)) == 0 })
	alice.follow("Alice is let in", "200 the app at /x", 0, "x", nil)
	alice.want("at the other relay too", "200 the app at /y", 1, "y", nil)
	for relay := range f.relays {
		mallory.want("Mallory is not", "403 You may not use this tunnel", relay, "", nil)
		stolen.want("the secret of Alice's knock once more", asked, relay, "", nil)
		if _, _, body := stolen.ask(relay, "", nil); strings.Contains(strings.ToLower(body), waits) {
			t.Error("whoever brings the secret of a knock that was used waits as if it were theirs")
		}
	}

	// The room has 20 places, and no network has more than three.
	full := 0
	for i := range 24 {
		one := f.outsider(c, tun, fmt.Sprintf("10.8.0.%d", i))
		if got := page(one.ask(i%2, "_adit/knock", url.Values{"name": {fmt.Sprint("Guest ", i)}})); strings.HasPrefix(got, "429") {
			full++
		}
		f.w.Eventually(10*time.Second, "both relays know it", func() bool { return len(waiting(0)) == len(waiting(1)) })
	}
	if n := len(waiting(0)); n != 20 || full != 4 {
		t.Errorf("%d wait and %d were turned away, want 20 and 4", n, full)
	}
	var log []string
	for _, r := range f.relays {
		for _, rec := range audited(t, r) {
			log = append(log, string(rec.Event)+" "+rec.Detail)
		}
	}
	for _, want := range []string{"tunnel_knock Alice", "knock_answered admitted Alice, from 198.51.100.21", "knock_answered refused Mallory, from 198.51.100.22"} {
		if !slices.Contains(log, want) {
			t.Errorf("the audit logs do not have %q", want)
		}
	}
}

// listen follows a relay's events. What it returns waits for one of a knock that says a text.
func (f *fleet) listen(relay int) (told func(detail string)) {
	f.t.Helper()
	req, err := http.NewRequestWithContext(f.t.Context(), http.MethodGet, "http://"+f.relays[relay].Addr()+api.Base+"/agents/watch", nil)
	if err != nil {
		f.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+f.secret)
	resp, err := http.DefaultClient.Do(req)
	if err != nil || resp.StatusCode != http.StatusOK {
		f.t.Fatalf("watch: %v %v", resp, err)
	}
	f.t.Cleanup(func() { _ = resp.Body.Close() })
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	lines.Scan() // so that it listens from here on
	return func(detail string) {
		f.t.Helper()
		for lines.Scan() {
			if text := lines.Text(); strings.Contains(text, `"`+api.EventTunnelKnock+`"`) && strings.Contains(text, detail) {
				return
			}
		}
		f.t.Fatalf("the events end before one says %q", detail)
	}
}

// A person's browser: the PIN's page, then one who knocks while the team looks on.
func TestPINAndKnockInABrowser(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay("ADIT_WILDCARD_DOMAIN=localhost")
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	port := app(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, "<!doctype html><html lang=en><title>app</title><main><h1>The app</h1><p>at %s, cookies: %s.</p></main>", r.URL.RequestURI(), r.Header.Get("Cookie"))
	})
	pin := r.Open(sk, "gpu-1", map[string]any{"target_port": port, "access": "pin", "pin": theirPIN})
	knock := r.Open(sk, "gpu-1", map[string]any{"target_port": port, "access": "knock", "label": "renders"})
	c := newConsole(w, r)
	c.signIn(sk)
	c.do("the team's page shows the tunnel", text("renders"))

	g := c.another()
	g.do("a person opens the address", world.Navigate(pin.TunnelURL+"?q=1"), text("asks for a PIN"), world.Until(`document.activeElement.name === "pin"`))
	g.see("pin")
	g.do("a wrong PIN", evaluate(`document.querySelector("[name=pin]").value = "sesame-8"`), press("Open"), text("This is not the PIN"))
	g.do("the right one", evaluate(`document.querySelector("[name=pin]").value = "`+theirPIN+`"`), press("Open"), text("The app"), text("at /?q=1, cookies: ."))

	g.do("a person opens an address to knock at", world.Navigate(knock.TunnelURL+"graph"), text("let you in"))
	g.see("knock")
	g.do("and knocks", evaluate(`document.querySelector("[name=name]").value = "Alice"`), press("Knock"), text("this page goes on"))
	// axe is not asked: it holds pages that load again by themselves against them, and that is what
	// this one is for, without a script.
	c.do("the team sees who, at once", text("Alice"), text("waits to be let in"), text("127.0.0.1"))
	c.see("knock-console")
	c.do("and lets them in", press("Admit Alice"), text("Alice is let in"), world.Until(`!document.querySelector("[aria-label='Admit Alice']")`))
	g.do("their page goes on by itself", text("The app"), text("at /graph, cookies: ."))

	bad := c.another()
	bad.do("somebody else knocks", world.Navigate(knock.TunnelURL), text("let you in"), evaluate(`document.querySelector("[name=name]").value = "Mallory"`), press("Knock"), text("this page goes on"))
	c.do("and is refused", press("Refuse Mallory"), text("Mallory is refused"))
	bad.do("and told so", text("You were not let in"))
}

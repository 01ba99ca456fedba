package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
)

// visitor is a person's browser without its screen: cookies, redirects and forms.
type visitor struct {
	r      *world.Relay
	client *http.Client
	passed map[string]string // codes and states in the addresses that it was led through
}

func newVisitor(r *world.Relay) *visitor {
	jar, err := cookiejar.New(nil)
	if err != nil {
		r.W.T.Fatal(err)
	}
	tr := &http.Transport{}
	r.W.T.Cleanup(tr.CloseIdleConnections)
	v := &visitor{r: r, passed: map[string]string{}}
	v.client = &http.Client{Jar: jar, Transport: tr, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		for _, name := range []string{"code", "state", "nonce"} {
			if secret := req.URL.Query().Get(name); secret != "" {
				v.passed[name] = secret
			}
		}
		if len(via) > 10 {
			return errors.New("more than 10 redirects")
		}
		return nil
	}}
	return v
}

// secrets adds what the browser holds, and what it was led through.
func (v *visitor) secrets(c *canaries, who string) {
	c.t.Helper()
	for name, secret := range v.passed {
		c.add(name+" of "+who, secret)
	}
	at, err := url.Parse(v.r.URL)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, cookie := range v.client.Jar.Cookies(at) {
		c.add("cookie "+cookie.Name+" of "+who, cookie.Value)
	}
	bearer := v.token()
	c.add("bearer of "+who, bearer[strings.LastIndexByte(bearer, '-')+1:]) // before it stands the hash that the store has
}

// visit follows an address to where it leads in the end.
func (v *visitor) visit(req *http.Request) (at *url.URL, status int, body string) {
	v.r.W.T.Helper()
	resp, err := v.client.Do(req)
	if err != nil {
		v.r.W.T.Fatalf("visit %s: %v", req.URL, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		v.r.W.T.Fatal(err)
	}
	return resp.Request.URL, resp.StatusCode, string(b)
}

func (v *visitor) get(address string) (*url.URL, int, string) {
	v.r.W.T.Helper()
	req, err := http.NewRequestWithContext(v.r.W.T.Context(), http.MethodGet, address, nil)
	if err != nil {
		v.r.W.T.Fatal(err)
	}
	return v.visit(req)
}

// begin goes to the issuer's own page.
func (v *visitor) begin() (request string) {
	v.r.W.T.Helper()
	at, status, body := v.get(v.r.URL + "/auth/login?return_to=/console")
	request = at.Query().Get("authRequestID")
	if status != 200 || request == "" {
		v.r.W.T.Fatalf("signing in leads to the issuer's page, got %d at %s: %s", status, at, body)
	}
	return request
}

// enter types a name and a password there.
func (v *visitor) enter(o *world.OIDC, name string) (*url.URL, int, string) {
	v.r.W.T.Helper()
	form := url.Values{"id": {v.begin()}, "username": {name}, "password": {name}}
	req, err := http.NewRequestWithContext(v.r.W.T.Context(), http.MethodPost, o.URL+"/login/username", strings.NewReader(form.Encode()))
	if err != nil {
		v.r.W.T.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return v.visit(req)
}

// door asks what stands under /auth, as the console's page does.
func (v *visitor) door(path string, body, out any) (int, *api.Problem) {
	v.r.W.T.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		v.r.W.T.Fatal(err)
	}
	req, err := http.NewRequestWithContext(v.r.W.T.Context(), http.MethodPost, v.r.URL+"/auth/"+path, bytes.NewReader(b))
	if err != nil {
		v.r.W.T.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Origin", v.r.URL)
	_, status, text := v.visit(req)
	if status >= 400 {
		var p api.Problem
		if err := json.Unmarshal([]byte(text), &p); err != nil {
			v.r.W.T.Fatalf("%s answered %d with no problem: %s", path, status, text)
		}
		return status, &p
	}
	if out != nil {
		if err := json.Unmarshal([]byte(text), out); err != nil {
			v.r.W.T.Fatalf("%s answered %d with %s: %v", path, status, text, err)
		}
	}
	return status, nil
}

// token is the page's bearer; empty: the browser is not signed in.
func (v *visitor) token() string {
	v.r.W.T.Helper()
	var t api.BrowserToken
	if status, p := v.door("token", struct{}{}, &t); status != 200 && (p == nil || p.Code != api.CodeNotSignedIn) {
		v.r.W.T.Fatalf("ask for a bearer: %d %v", status, p)
	}
	return t.Token
}

// invited makes an invitation as the operator does, and returns the secret in its URL.
func invited(r *world.Relay, name, role string, team ...string) string {
	r.W.T.Helper()
	args := []string{"invite", "create", "--team", append(team, world.Team)[0], "--role", role, "--name", name, "--socket", filepath.Join(r.DataDir, "admin.sock")}
	out := strings.TrimSpace(r.W.Run(nil, filepath.Join(r.W.Bin, "adit-relay"), args...))
	found := regexp.MustCompile(`^` + regexp.QuoteMeta(r.URL) + `/console#invite=(inv-[a-z2-7]{40})$`).FindStringSubmatch(out)
	if found == nil {
		r.W.T.Fatalf("the operator gets the invitation's address alone: %q", out)
	}
	return found[1]
}

// inTeam is how a page calls.
func inTeam(bearer string) []string {
	return []string{"Authorization", "Bearer " + bearer, "X-Team-ID", world.Team}
}

// within waits until c is closed, which must be within a second.
func within(t *testing.T, what string, c <-chan struct{}, since time.Time) {
	t.Helper()
	select {
	case <-c:
		if d := time.Since(since); d > time.Second {
			t.Errorf("%s ended after %s, want within a second", what, d.Round(time.Millisecond))
		}
	case <-time.After(10 * time.Second):
		t.Errorf("%s did not end", what)
	}
}

// silentWebSocket is an app that takes WebSockets and waits for their end.
func silentWebSocket(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer func() { _ = c.CloseNow() }()
	_, _, _ = c.Read(r.Context())
}

// held opens a WebSocket through a tunnel, and notices its end.
func held(w *world.World, tun api.Tunnel) <-chan struct{} {
	w.T.Helper()
	ws, _, err := websocket.Dial(w.T.Context(), strings.Replace(tun.TunnelURL, "http", "ws", 1)+"ws", &websocket.DialOptions{HTTPClient: w.HTTP()})
	if err != nil {
		w.T.Fatalf("a WebSocket through the tunnel: %v", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer func() { _ = ws.CloseNow() }()
		_, _, _ = ws.Read(w.T.Context())
	}()
	return ended
}

// An issuer that is real, and none of ours: what it does to people who sign in.
func TestPeopleSignInAtARealIssuer(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.NewRelay()
	o := w.NewOIDC(r, "alice", "bob")
	r.Start() // before its issuer
	r.WaitReady(30 * time.Second)
	early := newVisitor(r)
	if _, status, body := early.get(r.URL + "/auth/login"); status != 503 || !strings.Contains(body, "try again") {
		t.Errorf("while the issuer is down people are told so: %d %s", status, body)
	}
	o.Start()
	o.Control(map[string]any{"teams": map[string][]string{"alice": {world.Team}}})

	alice := newVisitor(r)
	w.Eventually(10*time.Second, "the issuer is asked again", func() bool {
		_, status, _ := alice.get(r.URL + "/auth/login")
		return status == 200
	})
	if at, status, body := alice.enter(o, "alice"); status != 200 || at.String() != r.URL+"/console" {
		t.Fatalf("alice comes to the console: %d at %s: %s", status, at, body)
	}
	bearer := alice.token()
	if a := asPerson(r, bearer, world.Team, http.MethodGet, "/agents", ""); a.Status != 200 {
		t.Errorf("the page's bearer works in alice's team: %s %s", a, a.Body)
	}
	if a := asPerson(r, bearer, otherTeam, http.MethodGet, "/agents", ""); a.Status != 403 || a.code() != "not_a_member" {
		t.Errorf("and in no other: %s %s", a, a.Body)
	}
	var me api.Me
	if a := call(r, http.MethodGet, api.Base+"/me", "", "Authorization", "Bearer "+bearer); a.Status != 200 || json.Unmarshal([]byte(a.Body), &me) != nil || me.UserID != "alice" || me.Email != "alice@example.com" || len(me.Teams) != 1 {
		t.Errorf("the relay knows who alice is: %s %s", a, a.Body)
	}
	// The cookie opens the door, and nothing else.
	for _, path := range []string{api.Base + "/agents", api.Base + "/me", api.Base + "/devices"} {
		if _, status, _ := alice.get(r.URL + path); status != 401 {
			t.Errorf("GET %s with the cookie alone answers %d, want 401", path, status)
		}
	}

	bob := newVisitor(r)
	if _, status, body := bob.enter(o, "bob"); status != 403 || !strings.Contains(body, "in no team") || bob.token() != "" {
		t.Errorf("bob is in no team, and is told so: %d %s", status, body)
	}
	carol := newVisitor(r)
	if at, status, body := carol.get(o.URL + "/deny?authRequestID=" + carol.begin()); status != 401 || at.Path != "/auth/callback" || !strings.Contains(body, "did not agree") || carol.token() != "" {
		t.Errorf("who does not agree is not let in, and can begin again: %d at %s: %s", status, at, body)
	}

	enters := func(want bool, what string) {
		t.Helper()
		v := newVisitor(r)
		if _, status, body := v.enter(o, "alice"); (v.token() != "") != want {
			t.Errorf("%s: signed in is to be %v, got %d %s", what, want, status, body)
		}
	}
	o.Control(map[string]any{"lifetime": "-30s"})
	enters(true, "a clock that differs by half a minute")
	o.Control(map[string]any{"lifetime": "-2m"})
	enters(false, "a token that expired two minutes ago")
	o.Control(map[string]any{"lifetime": "1h", "rotate": true})
	enters(true, "after the issuer changed its keys")
	o.Kill()
	o.Start() // all in memory: another key again, of the same name
	o.Control(map[string]any{"teams": map[string][]string{"alice": {world.Team}}, "rotate": true})
	enters(true, "after the issuer was away, with new keys")

	if alice.token() == "" {
		t.Error("all the while, alice stays signed in")
	}
	laptop, phone := newVisitor(r), newVisitor(r)
	for _, v := range []*visitor{laptop, phone} {
		if _, status, body := v.enter(o, "alice"); status != 200 {
			t.Fatalf("alice signs in with one more browser: %d %s", status, body)
		}
	}
	events, since := watch(r, inTeam(phone.token())...), time.Now()
	if status, p := laptop.door("logout", map[string]bool{"everywhere": true}, nil); status != 204 {
		t.Errorf("alice signs out everywhere: %d %v", status, p)
	}
	within(t, "the event stream of another browser of a person who signed out everywhere", events.ended, since)
	if phone.token()+laptop.token()+alice.token() != "" {
		t.Error("everywhere is not everywhere")
	}
	if _, status, body := alice.enter(o, "alice"); status != 200 || alice.token() == "" {
		t.Errorf("and alice can sign in again: %d %s", status, body)
	}
	// What the issuer says no more is over, also for browsers from before.
	o.Control(map[string]any{"teams": map[string][]string{"alice": {}}})
	enters(false, "alice is in no team any more")
	if a := asPerson(r, alice.token(), world.Team, http.MethodGet, "/agents", ""); a.Status != 403 {
		t.Errorf("the team that the issuer took from alice is closed to her: %s %s", a, a.Body)
	}

	c := &canaries{t: t, value: map[string]string{}}
	alice.secrets(c, "alice")
	invite := invited(r, "dora", "viewer")
	dora := newVisitor(r)
	if status, p := dora.door("invite", map[string]string{"invite": invite}, nil); status != 200 {
		t.Fatalf("dora opens the invitation: %d %v", status, p)
	}
	dora.secrets(c, "dora")
	c.add("invitation", invite)
	c.add("invitation that nobody opened", invited(r, "erin", "viewer"))
	c.add("secret of the relay at the issuer", "client-secret-of-the-relay")
	if len(c.value) < 9 { // and what attempts that nobody ended left behind
		t.Errorf("only %d secrets are looked for", len(c.value))
	}
	status, metrics := world.Get(w.HTTP(), fmt.Sprintf("http://127.0.0.1:%d/metrics", r.Metrics))
	if status != 200 || !strings.Contains(metrics, `adit_relay_sign_ins_total{method="invite",result="ok"} 1`) {
		t.Errorf("the metrics (%d) count who signed in", status)
	}
	c.search("the metrics", []byte(metrics))
	if err := r.Stop(30 * time.Second); err != nil {
		t.Errorf("the relay stops: %v", err)
	}
	c.search("the relay's log", []byte(r.Log()))
	c.files(r.DataDir)
}

// Whoever signs out, or is removed, holds nothing open: within a second, whatever it is.
func TestSignedOutAndRemovedPeopleHoldNothingOpen(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay("ADIT_TUNNEL_HOLD=500ms")
	w.Agent(r, "gpu-1")
	port := app(t, silentWebSocket)
	owner, alice := newVisitor(r), newVisitor(r)
	for v, who := range map[*visitor][2]string{owner: {"olga", "owner"}, alice: {"alice", "member"}} {
		if status, p := v.door("invite", map[string]string{"invite": invited(r, who[0], who[1])}, nil); status != 200 {
			t.Fatalf("%s opens the invitation: %d %v", who[0], status, p)
		}
	}
	t.Run("sign out", func(t *testing.T) {
		bearer := alice.token()
		events := watch(r, inTeam(bearer)...)
		since := time.Now()
		if status, p := alice.door("logout", map[string]bool{"everywhere": false}, nil); status != 204 {
			t.Fatalf("sign out: %d %v", status, p)
		}
		within(t, "the event stream of a browser that signed out", events.ended, since)
		if a := asPerson(r, bearer, world.Team, http.MethodGet, "/agents", ""); a.Status != 401 {
			t.Errorf("its bearer is worth nothing: %s", a)
		}
	})
	t.Run("removed", func(t *testing.T) {
		bob := newVisitor(r)
		if status, p := bob.door("invite", map[string]string{"invite": invited(r, "bob", "member")}, nil); status != 200 {
			t.Fatalf("%d %v", status, p)
		}
		bearer := bob.token()
		events := watch(r, inTeam(bearer)...)
		tun := openAsPerson(r, bearer, port)
		ended := held(w, tun)
		var list api.MemberList
		if a := asPerson(r, owner.token(), world.Team, http.MethodGet, "/members", ""); json.Unmarshal([]byte(a.Body), &list) != nil {
			t.Fatalf("members: %s %s", a, a.Body)
		}
		var id string
		for _, m := range list.Members {
			if m.UserName == "bob" {
				id = string(m.UserID)
			}
		}
		since := time.Now()
		if a := asPerson(r, owner.token(), world.Team, http.MethodDelete, "/members/"+url.PathEscape(id), ""); a.Status != 200 && a.Status != 204 {
			t.Fatalf("the owner removes bob (%s): %s %s", id, a, a.Body)
		}
		within(t, "the event stream of a removed member", events.ended, since)
		within(t, "the WebSocket through a tunnel that a removed member opened", ended, since)
		if a := asPerson(r, bearer, world.Team, http.MethodGet, "/agents", ""); a.Status != 403 && a.Status != 401 {
			t.Errorf("bob is not in the team any more: %s", a)
		}
	})
	if owner.token() == "" {
		t.Error("the owner stays signed in")
	}
	before := r.Log()
	if err := r.Stop(30 * time.Second); err != nil {
		t.Errorf("the relay stops: %v", err)
	}
	r.Start()
	r.WaitReady(30 * time.Second)
	if owner.token() == "" {
		t.Error("a restart of the relay signs nobody out")
	}
	if regexp.MustCompile(`(si|inv)-[a-z2-7]{40}`).MatchString(before + r.Log()) {
		t.Error("a cookie or an invitation is in the relay's log")
	}
}

// A person signs in at one relay of a pool, works through others, and signs out at one:
// what they hold open at any ends within a second.
func TestSignedInThroughAPool(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3, func(*fleet, int) []string { return []string{"ADIT_PATH_FORM=auto"} })
	home := f.lb.url
	door := func(i int, path, body, cookie string) answer {
		header := []string{"Host", strings.TrimPrefix(home, "http://"), "Origin", home}
		if cookie != "" {
			header = append(header, "Cookie", cookie)
		}
		return call(f.relays[i], http.MethodPost, "/auth/"+path, body, header...)
	}
	invite, err := operate(t, f.relays[0], "invite", "create", "--team", world.Team, "--role", "member", "--name", "alice")
	_, secret, ok := strings.Cut(strings.TrimSpace(invite), home+"/console#invite=")
	if err != nil || !ok {
		t.Fatalf("the operator makes an invitation: %q %v", invite, err)
	}
	body := `{"invite":"` + secret + `"}`
	a := door(1, "invite", body, "") // at once, at another relay than the one that made it
	cookie, _, _ := strings.Cut(a.Header.Get("Set-Cookie"), ";")
	if a.Status != 200 || !strings.HasPrefix(cookie, "adit-sign-in=si-") {
		t.Fatalf("alice opens the invitation: %s %s", a, a.Body)
	}
	if again := door(2, "invite", body, ""); again.Status != 401 || again.code() != "invite_refused" {
		t.Errorf("it works once, whichever relay is asked: %s", again)
	}
	var tokens [3]api.BrowserToken
	var events [3]*watcher
	for i := range f.relays {
		if a := door(i, "token", "{}", cookie); a.Status != 200 || json.Unmarshal([]byte(a.Body), &tokens[i]) != nil {
			t.Fatalf("relay %d knows alice's browser: %s %s", i, a, a.Body)
		}
	}
	for i, r := range f.relays { // each with the bearer of another one
		events[i] = watch(r, inTeam(tokens[(i+1)%3].Token)...)
	}
	since := time.Now()
	if a := door(2, "logout", "{}", cookie); a.Status != 204 {
		t.Fatalf("alice signs out: %s %s", a, a.Body)
	}
	for i, r := range f.relays {
		within(t, "the event stream at relay "+f.names[i], events[i].ended, since)
		if a := asPerson(r, tokens[i].Token, world.Team, http.MethodGet, "/agents", ""); a.Status != 401 {
			t.Errorf("the bearer is worth nothing at relay %d: %s", i, a)
		}
		if a := door(i, "token", "{}", cookie); a.Status != 401 || a.code() != "not_signed_in" {
			t.Errorf("nor is the cookie: %s", a)
		}
	}
}

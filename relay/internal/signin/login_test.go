package signin_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/signin"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/testkit/issuer"
)

func TestSignInWithTheIssuer(t *testing.T) {
	h := newHouse(t)
	b := h.browser()
	if b.signedIn() {
		t.Fatal("a fresh browser is not signed in")
	}
	at := b.login("/desktop/pair?user_code=AB7K-PNQ3")
	for name, want := range map[string]string{
		"response_type": "code", "client_id": issuer.Audience, "redirect_uri": origin + "/auth/callback", "scope": "openid email", "code_challenge_method": "S256",
	} {
		if got := at.query.Get(name); got != want {
			t.Errorf("the issuer is asked with %s=%q, want %q", name, got, want)
		}
	}
	for _, name := range []string{"state", "nonce", "code_challenge"} {
		if len(at.query.Get(name)) < 40 {
			t.Errorf("the issuer is asked with %s=%q, want what nobody guesses", name, at.query.Get(name))
		}
	}
	for _, c := range b.seen {
		if !strings.HasPrefix(c.Name, "__Host-adit-login-") || !c.HttpOnly || !c.Secure || c.SameSite != http.SameSiteLaxMode || c.Path != "/" || c.Domain != "" || c.MaxAge != 600 {
			t.Errorf("the cookie of an attempt is %v", c)
		}
		if strings.Contains(c.Value, at.query.Get("nonce")) {
			t.Error("the cookie of an attempt can be read")
		}
	}
	resp := b.back(at, h.grant(at, issuer.Claims{"email": "alice@example.com", "email_verified": true}))
	if got := resp.Header.Get("Location"); resp.StatusCode != http.StatusSeeOther || got != "/desktop/pair?user_code=AB7K-PNQ3" {
		t.Fatalf("after signing in: %d to %q: %s", resp.StatusCode, got, text(resp))
	}
	if resp.Header.Get("Referrer-Policy") != "no-referrer" || resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("the code's address stays here: %v", resp.Header)
	}
	for _, c := range b.seen {
		if c.Name == "__Host-adit" && (!c.HttpOnly || !c.Secure || c.SameSite != http.SameSiteLaxMode || c.Path != "/" || c.Domain != "" || c.MaxAge < 43000 || c.MaxAge > 43200) {
			t.Errorf("the cookie is %v", c)
		}
	}
	resp = b.post("/auth/token", struct{}{})
	var token api.BrowserToken
	if err := json.Unmarshal([]byte(text(resp)), &token); err != nil || token.Token != "bt-for-alice" || token.UserName != "Alice" || len(token.Teams) != 1 || token.Teams[0].TeamID != teamA {
		t.Errorf("the page gets a bearer and who it is for: %d %+v %v", resp.StatusCode, token, err)
	}
	if u := h.town.users["alice"]; u.Email != "alice@example.com" {
		t.Errorf("what the issuer says is kept: %+v", u)
	}
}

func TestTheRestOfWhatTheIssuerSays(t *testing.T) {
	for _, c := range []struct {
		name   string
		claims issuer.Claims
		info   issuer.Claims
		in     bool
		want   store.UserRecord
	}{
		{"teams in the userinfo", issuer.Claims{"teams": nil, "name": nil}, issuer.Claims{"sub": "alice", "teams": []string{string(teamA)}, "name": "Alice B."}, true, store.UserRecord{Name: "Alice B."}},
		{"an address that nobody vouches for", issuer.Claims{"email": "bob@example.com"}, nil, true, store.UserRecord{Name: "Alice"}},
		{"one of which the issuer knows that it may be another's", issuer.Claims{"email": "bob@example.com", "email_verified": false}, nil, true, store.UserRecord{Name: "Alice"}},
		{"verified as a text", issuer.Claims{"email": "a@example.com", "email_verified": "true"}, nil, true, store.UserRecord{Name: "Alice", Email: "a@example.com"}},
		{"an address in a claim that looks alike", issuer.Claims{"Email": "a@example.com", "EMAIL_VERIFIED": true}, nil, true, store.UserRecord{Name: "Alice"}},
		{"an address that is too long to be one", issuer.Claims{"email": strings.Repeat("a", 250) + "@b.example", "email_verified": true}, nil, true, store.UserRecord{Name: "Alice"}},
		{"no name but that of the account", issuer.Claims{"name": nil, "preferred_username": "alice7"}, nil, true, store.UserRecord{Name: "alice7"}},
		{"a name that steers terminals", issuer.Claims{"name": "\x1b[31mAli\u202ece"}, nil, true, store.UserRecord{Name: "?[31mAli?ce"}},
		{"in no team", issuer.Claims{"teams": nil}, nil, false, store.UserRecord{}},
		{"in teams that are none here", issuer.Claims{"teams": []string{}}, issuer.Claims{"sub": "alice", "teams": []string{}}, false, store.UserRecord{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHouse(t)
			b := h.browser()
			at := b.login("/console")
			resp := b.back(at, h.grant(at, c.claims, func(g *issuer.Grant) { g.UserInfo = c.info }))
			if in := b.signedIn(); in != c.in {
				t.Fatalf("signed in: %v, want %v: %s", in, c.in, text(resp))
			}
			u, known := h.town.users["alice"]
			if known != c.in || u.Name != c.want.Name || u.Email != c.want.Email {
				t.Errorf("kept of the person: %+v, want %+v", u, c.want)
			}
			if !c.in {
				wantPage(t, c.name, resp, http.StatusForbidden, "in no team")
			}
		})
	}
}

// The issuer's groups are those of the sign-in, as names or not at all.
func TestGroupsAreTheIssuers(t *testing.T) {
	many := make([]string, 1000)
	for i := range many {
		many[i] = fmt.Sprintf("g%d", i)
	}
	for _, c := range []struct {
		name string
		said any
		want []string
	}{
		{"none", nil, nil}, {"a list", []string{"vision", "all staff"}, []string{"vision", "all staff"}}, {"one", "vision", []string{"vision"}},
		{"names twice, and what is none", []any{"a", "a", "", 7, "b\nc", strings.Repeat("x", 300), map[string]any{"a": 1}, "d"}, []string{"a", "d"}},
		{"an object", map[string]any{"vision": true}, nil}, {"too many", many, many[:200]},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHouse(t)
			b := h.browser()
			at := b.login("/console")
			b.back(at, h.grant(at, issuer.Claims{"groups": c.said, "Groups": []string{"root"}}, func(*issuer.Grant) {}))
			if !b.signedIn() || len(h.town.signIns) != 1 {
				t.Fatal("not signed in")
			}
			for _, rec := range h.town.signIns {
				if !slices.Equal(rec.Groups, c.want) {
					t.Errorf("the sign-in has the groups %q, want %q", rec.Groups, c.want)
				}
			}
		})
	}
}

// Whoever is known, and whom the issuer names in no team any more, is not forgotten
// half: what it said before must go.
func TestAKnownPersonInNoTeamIsToldToTheRecords(t *testing.T) {
	h := newHouse(t)
	b := h.browser()
	b.enter()
	at := b.login("/console")
	wantPage(t, "no team any more", b.back(at, h.grant(at, issuer.Claims{"teams": nil, "name": "Renamed"})), http.StatusForbidden, "in no team")
	if h.town.users["alice"].Name != "Renamed" {
		t.Error("people was not told what the issuer says now")
	}
}

func TestForgedAndForeignTokens(t *testing.T) {
	is := issuer.Start(t)
	past := func(d time.Duration) int64 { return time.Now().Add(-d).Unix() }
	for _, c := range []struct {
		name   string
		claims issuer.Claims
		change func(h *house, at begun, g *issuer.Grant)
		in     bool
	}{
		{name: "as it should be", in: true},
		{name: "expired within the leeway", claims: issuer.Claims{"exp": past(40 * time.Second)}, in: true},
		{name: "expired", claims: issuer.Claims{"exp": past(80 * time.Second)}},
		{name: "no expiry", claims: issuer.Claims{"exp": nil}},
		{name: "not valid for a long time yet", claims: issuer.Claims{"nbf": past(-10 * time.Minute)}},
		{name: "of another client", claims: issuer.Claims{"aud": "other"}},
		{name: "for us among others, by another client", claims: issuer.Claims{"aud": []string{issuer.Audience, "other"}, "azp": "other"}},
		{name: "for us among others, by nobody", claims: issuer.Claims{"aud": []string{issuer.Audience, "other"}}},
		{name: "for us among others, by us", claims: issuer.Claims{"aud": []string{issuer.Audience, "other"}, "azp": issuer.Audience}, in: true},
		{name: "for us, by another client", claims: issuer.Claims{"azp": "other"}},
		{name: "another nonce", claims: issuer.Claims{"nonce": "another"}},
		{name: "no nonce", claims: issuer.Claims{"nonce": nil}},
		{name: "another issuer", claims: issuer.Claims{"iss": "https://evil.example.com"}},
		{name: "a subject that only looks like one", claims: issuer.Claims{"sub": nil, "SUB": "mallory"}},
		{name: "no subject", claims: issuer.Claims{"sub": nil}},
		{name: "a subject that this relay made", claims: issuer.Claims{"sub": "adit:0123"}},
		{name: "a subject that steers terminals", claims: issuer.Claims{"sub": "a\x1b[31m"}},
		{name: "a very long subject", claims: issuer.Claims{"sub": strings.Repeat("a", 256)}},
		{name: "no id token", change: func(_ *house, _ begun, g *issuer.Grant) { g.IDToken = "" }},
		{name: "an id token that is none", change: func(_ *house, _ begun, g *issuer.Grant) { g.IDToken = "a.b" }},
		{name: "a code of another attempt (PKCE)", change: func(_ *house, _ begun, g *issuer.Grant) { g.Challenge = "another" }},
		{name: "a code of another client", change: func(_ *house, _ begun, g *issuer.Grant) { g.ClientID = "other" }},
		{name: "userinfo of somebody else", claims: issuer.Claims{"teams": nil}, change: func(_ *house, _ begun, g *issuer.Grant) {
			g.UserInfo = issuer.Claims{"sub": "mallory", "teams": []string{string(teamA)}}
		}},
	} {
		t.Run(c.name, func(t *testing.T) { tryToken(t, is, c.claims, c.change, c.in) })
	}
	for _, how := range issuer.Wrongs() {
		t.Run(string(how), func(t *testing.T) {
			tryToken(t, is, nil, func(h *house, at begun, g *issuer.Grant) {
				g.IDToken = h.issuer.TokenWrong(how, issuer.Claims{"nonce": at.query.Get("nonce"), "teams": []string{string(teamA)}})
			}, false)
		})
	}
}

func tryToken(t *testing.T, is *issuer.Issuer, claims issuer.Claims, change func(*house, begun, *issuer.Grant), in bool) {
	t.Helper()
	h := newHouseAt(t, is)
	b := h.browser()
	at := b.login("/console")
	code := h.grant(at, claims, func(g *issuer.Grant) {
		if change != nil {
			change(h, at, g)
		}
	})
	resp := b.back(at, code)
	if got := b.signedIn(); got != in || got != (h.town.open() == 1) {
		t.Fatalf("signed in: %v with %d sign-ins, want %v: %s", got, h.town.open(), in, text(resp))
	}
	if !in {
		wantPage(t, "refused", resp, http.StatusUnauthorized, "begin again")
		if !strings.Contains(h.log.String(), "level=INFO msg=\"the issuer's answer is not taken\" code=unauthenticated") {
			t.Errorf("the log does not say why, as the page promises: %s", h.log.String())
		}
		for _, secret := range []string{code, at.query.Get("state"), at.query.Get("nonce")} {
			if strings.Contains(h.log.String(), secret) {
				t.Errorf("a secret of the attempt is in the log: %s", h.log.String())
			}
		}
	}
}

func TestAttemptsAreBoundToTheirBrowser(t *testing.T) {
	h := newHouse(t)
	mallory, victim := h.browser(), h.browser()
	at := mallory.login("/console")
	code := h.grant(at, issuer.Claims{"sub": "mallory"})
	wantPage(t, "a link that signs the victim in as somebody else", victim.back(at, code), http.StatusUnauthorized, "another browser")
	if victim.signedIn() {
		t.Error("the victim is signed in as the attacker")
	}
	own := victim.login("/console")
	wantPage(t, "the same, while the victim signs in", victim.back(at, code), http.StatusUnauthorized, "another browser")
	if n := h.issuer.CodeRequests(); n != 0 {
		t.Errorf("the issuer was asked %d times about codes of others", n)
	}
	if resp := victim.back(own, h.grant(own, nil)); resp.StatusCode != http.StatusSeeOther {
		t.Errorf("the victim's own attempt goes on: %d %s", resp.StatusCode, text(resp))
	}
	// A cookie that the attacker's page of a sibling host set, beside the own one.
	own = victim.login("/console")
	id, _, _ := strings.Cut(own.query.Get("state"), ".")
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, origin+"/auth/callback?code=x&state="+own.query.Get("state"), nil)
	r.AddCookie(&http.Cookie{Name: "__Host-adit-login-" + id, Value: "tossed"})
	r.Header.Set("Accept", asPerson)
	delete(victim.cookies, "__Host-adit")
	wantPage(t, "two cookies of one attempt", victim.do(r), http.StatusUnauthorized, "another browser")
}

func TestAttemptsWorkOnceAndNotForLong(t *testing.T) {
	h := newHouse(t)
	b := h.browser()
	at := b.login("/console")
	kept := map[string]string{}
	maps.Copy(kept, b.cookies)
	code := h.grant(at, nil)
	if resp := b.back(at, code); resp.StatusCode != http.StatusSeeOther {
		t.Fatalf("signing in: %d", resp.StatusCode)
	}
	if resp := b.back(at, code); resp.StatusCode != http.StatusSeeOther || resp.Header.Get("Location") != "/console" || h.town.open() != 1 {
		t.Errorf("back in the history of a browser that is signed in leads to the console, got %d, %d sign-ins", resp.StatusCode, h.town.open())
	}
	again := h.browser()
	again.cookies = kept // a copy from before: the code is used all the same
	wantPage(t, "a code that was used", again.back(at, code), http.StatusUnauthorized, "begin again")
	late := h.browser()
	at = late.login("/console")
	h.wait(11 * time.Minute)
	wantPage(t, "after 11 minutes", late.back(at, h.grant(at, nil)), http.StatusUnauthorized, "10 minutes")
	if late.signedIn() || again.signedIn() {
		t.Error("nobody came in")
	}
}

func TestSeveralTabsSignInAtOnce(t *testing.T) {
	h := newHouse(t)
	b := h.browser()
	var tabs []begun
	for range 3 {
		tabs = append(tabs, b.login("/console"))
	}
	for i, at := range tabs {
		if resp := b.back(at, h.grant(at, nil)); resp.StatusCode != http.StatusSeeOther {
			t.Errorf("tab %d: %d %s", i, resp.StatusCode, text(resp))
		}
	}
	if h.town.open() != 1 {
		t.Errorf("%d sign-ins of one browser: those that a new one replaced end", h.town.open())
	}
	for range 20 {
		b.login("/console")
	}
	if n := len(b.cookies); n > 6 {
		t.Errorf("a browser that begins and never ends has %d cookies", n)
	}
	last := b.login("/console")
	if resp := b.back(last, h.grant(last, nil)); resp.StatusCode != http.StatusSeeOther {
		t.Errorf("the newest attempt is kept: %d %s", resp.StatusCode, text(resp))
	}
}

func TestNoFixation(t *testing.T) {
	h := newHouse(t)
	mallory := h.browser()
	mallory.enter()
	planted := mallory.cookies["__Host-adit"]
	victim := h.browser()
	victim.cookies["__Host-adit"] = planted // however it came there
	victim.enter()
	if victim.cookies["__Host-adit"] == planted {
		t.Error("the secret of before is the secret of after")
	}
	if mallory.signedIn() {
		t.Error("what the attacker had planted is still good")
	}
}

func TestReturnToStaysHere(t *testing.T) {
	h := newHouse(t)
	for asked, want := range map[string]string{
		"/console": "/console", "/console?x=1#agents": "/console?x=1#agents", "/terminal/0123": "/terminal/0123", "/desktop/pair": "/desktop/pair", "": "/console",
		"https://evil.example.com": "/console", "//evil.example.com": "/console", "/\\evil.example.com": "/console", "\\/\\/evil": "/console", "/console@evil.example.com": "/console",
		"/console/../tunnel/x": "/console", "/terminal/../../x": "/console", "/terminal//evil.example.com": "/console", "/%2f/evil": "/console", "javascript:alert(1)": "/console",
		"/console\r\nSet-Cookie: a=b": "/console", " /console": "/console", "/tunnel/x": "/console", "/auth/login": "/console", "/consolex": "/console",
		"/console?" + strings.Repeat("a", 300): "/console", "http:/console": "/console", "/terminal/%2e%2e/x": "/console",
	} {
		b := h.browser()
		b.remote = "198.51.100." + string(rune('0'+len(asked)%10)) // addresses have limits
		h.wait(time.Second)
		at := b.login(asked)
		if got := b.back(at, h.grant(at, nil)).Header.Get("Location"); got != want {
			t.Errorf("return_to %q leads to %q, want %q", asked, got, want)
		}
	}
}

// Wherever a browser is told to go, by whatever address it came: to one of our pages.
func FuzzReturnTo(f *testing.F) {
	for _, seed := range []string{"/console", "//evil.example.com", "/\\evil", "/terminal/x#y", "/desktop/pair?user_code=AB7K-PNQ3", "/console?x=//y", "/terminal/%2e%2e/x", "/console;x"} {
		f.Add(seed)
	}
	home, err := url.Parse(origin + "/auth/callback")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, asked string) {
		got := signin.ReturnTo(asked)
		at, err := home.Parse(got)
		if err != nil || at.Scheme+"://"+at.Host != origin || strings.ContainsAny(got, "\\\r\n\t ") {
			t.Fatalf("%q leads to %q, which is %v, %v", asked, got, at, err)
		}
		if p := at.Path; p != "/console" && p != "/desktop/pair" && !strings.HasPrefix(p, "/terminal/") {
			t.Errorf("%q leads to %q", asked, got)
		}
	})
}

func TestWhatTheIssuerRefuses(t *testing.T) {
	h := newHouse(t)
	b := h.browser()
	for _, c := range []struct {
		code   string
		status int
		says   string
	}{
		{"access_denied", 401, "did not let you in"}, {"login_required", 401, "login_required"}, {"server_error", 503, "does not answer"},
		{"temporarily_unavailable", 503, "does not answer"}, {"<script>alert(1)</script>", 401, "an error"},
	} {
		at := b.login("/terminal/77")
		resp := b.get("/auth/callback?" + url.Values{"error": {c.code}, "error_description": {"<b>call 555-1234</b>"}, "state": {at.query.Get("state")}}.Encode())
		body := text(resp)
		if resp.StatusCode != c.status || !strings.Contains(body, c.says) || strings.Contains(body, "555") || !strings.Contains(body, "/auth/login?return_to=%2Fterminal%2F77") {
			t.Errorf("%s: got %d %s", c.code, resp.StatusCode, body)
		}
		if again := b.back(at, h.grant(at, nil)); again.StatusCode == http.StatusSeeOther {
			t.Errorf("%s: the attempt works after it was refused", c.code)
		}
	}
	at := b.login("/console")
	wantPage(t, "an answer of another issuer", b.get("/auth/callback?"+url.Values{"iss": {"https://evil.example.com"}, "code": {h.grant(at, nil)}, "state": {at.query.Get("state")}}.Encode()), 401, "begin again")
	at = b.login("/console")
	wantPage(t, "an issuer that breaks while it answers", b.back(at, h.grant(at, nil, func(g *issuer.Grant) { g.Status = 502 })), 503, "does not answer")
	if b.signedIn() {
		t.Error("nobody came in")
	}
}

func TestTheIssuerIsAway(t *testing.T) {
	h := newHouse(t)
	h.issuer.SetDown(true)
	b := h.browser()
	for range 3 {
		wantPage(t, "the issuer is down", b.get("/auth/login"), http.StatusServiceUnavailable, "try again")
	}
	if strings.Contains(h.log.String(), "level=ERROR") {
		t.Errorf("the log: %s", h.log.String())
	}
	h.issuer.SetDown(false)
	h.wait(3 * time.Second)
	b.login("/console")
	h.issuer.SetDown(true)
	h.wait(2 * time.Hour) // what is known of it is old, and better than nothing
	b = h.browser()
	again := b.login("/console")
	h.issuer.SetDown(false)
	h.issuer.Rotate(false)
	if resp := b.back(again, h.grant(again, issuer.Claims{"exp": h.now().Add(time.Hour).Unix()})); resp.StatusCode != http.StatusSeeOther {
		t.Errorf("it is back, with new keys: %d %s", resp.StatusCode, text(resp))
	}
}

func TestTheClientsSecret(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("first\n")
	h := newHouse(t, func(c *signin.Config) { c.Issuer.SecretFile = file })
	with := func(secret string) int {
		b := h.browser()
		at := b.login("/console")
		return b.back(at, h.grant(at, nil, func(g *issuer.Grant) { g.Secret = secret })).StatusCode
	}
	if got := with("first"); got != http.StatusSeeOther {
		t.Errorf("with the client's secret: %d", got)
	}
	if got := with("other"); got != http.StatusUnauthorized {
		t.Errorf("the issuer has another secret: %d", got)
	}
	write("second")
	if got := with("second"); got != http.StatusSeeOther {
		t.Errorf("a new secret needs no restart: %d", got)
	}
	if _, err := signin.New(signin.Config{Origin: origin, Now: time.Now, Issuer: signin.Issuer{URL: "https://id.example.com", ClientID: "adit", SecretFile: file + "x"}}); err == nil || !strings.Contains(err.Error(), "client_secret_file") {
		t.Errorf("a file that is not there is named at the start: %v", err)
	}
}

func TestAnotherNameLeadsHome(t *testing.T) {
	h := newHouse(t)
	b := h.browser()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://192.0.2.1:8080/auth/login?return_to=/terminal/7", nil)
	if resp := b.do(r); resp.Header.Get("Location") != origin+"/auth/login?return_to=%2Fterminal%2F7" || len(b.cookies) != 0 {
		t.Errorf("got %d %v", resp.StatusCode, resp.Header)
	}
	alone := newHouse(t, func(c *signin.Config) { c.Alone = true })
	if resp := alone.browser().do(r.Clone(t.Context())); resp.StatusCode != http.StatusNotFound {
		t.Errorf("where the console has a host to itself, this path of another host is an app's: %d", resp.StatusCode)
	}
	alone.browser().enter()
}

func TestSignInIsOff(t *testing.T) {
	h := newHouse(t, func(c *signin.Config) { c.Off = "set wildcard_domain or console_url" })
	b := h.browser()
	wantProblem(t, "options", b.get("/auth/options"), api.CodeSignInOff)
	wantProblem(t, "token", b.post("/auth/token", struct{}{}), api.CodeSignInOff)
	if resp := b.get("/auth/login"); resp.StatusCode != http.StatusNotFound {
		t.Errorf("login: %d", resp.StatusCode)
	}
	without := newHouse(t, func(c *signin.Config) { c.Issuer = signin.Issuer{} })
	b = without.browser()
	wantPage(t, "no issuer", b.get("/auth/login"), http.StatusNotFound, "invitation")
	var o signin.Options
	if err := json.Unmarshal([]byte(text(b.get("/auth/options"))), &o); err != nil || o != (signin.Options{Passkeys: true, Invites: true}) {
		t.Errorf("options without an issuer: %+v %v", o, err)
	}
	address := newHouse(t, func(c *signin.Config) { c.Origin = "http://127.0.0.1:8080" })
	if err := json.Unmarshal([]byte(text(address.browser().get("/auth/options"))), &o); err != nil || o.Passkeys || !o.Issuer || o.IssuerName == "" {
		t.Errorf("options at an address: %+v %v", o, err)
	}
}

func TestSealsAreOfOnePoolAndPurpose(t *testing.T) {
	h := newHouse(t)
	b := h.browser()
	at := b.login("/console")
	other := newHouse(t, func(c *signin.Config) { c.Key = ident.ClusterKey{2} })
	elsewhere := other.browser()
	elsewhere.cookies = b.cookies
	wantPage(t, "sealed by another pool", elsewhere.back(at, other.grant(at, nil)), http.StatusUnauthorized, "another browser")
	same := newHouse(t, func(c *signin.Config) { c.Issuer.URL = h.issuer.URL() })
	same.issuer = h.issuer
	elsewhere = same.browser()
	elsewhere.cookies = map[string]string{}
	at = b.login("/console")
	maps.Copy(elsewhere.cookies, b.cookies)
	if resp := elsewhere.back(at, h.grant(at, nil)); resp.StatusCode != http.StatusSeeOther {
		t.Errorf("another relay of the pool goes on: %d %s", resp.StatusCode, text(resp))
	}
}

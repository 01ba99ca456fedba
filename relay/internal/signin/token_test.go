package signin_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/adit-tunnel/adit/relay/internal/signin"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// posts are the addresses that change something.
var posts = []string{
	"/auth/token", "/auth/logout", "/auth/invite", "/auth/passkey/begin", "/auth/passkey/finish", "/auth/passkey/register/begin", "/auth/passkey/register/finish",
}

func TestOnlyTheRelaysOwnPagesAreAnswered(t *testing.T) {
	for _, path := range posts {
		h := newHouse(t)
		b := h.browser()
		b.enter()
		before := h.town.open()
		for _, c := range []struct {
			name   string
			header []string
			code   api.Code
		}{
			{"another site", []string{"Origin", "https://evil.example.com"}, api.CodeCrossOrigin},
			{"a sibling, a tunnel's app for one", []string{"Origin", "https://app.relay.example.com"}, api.CodeCrossOrigin},
			{"the same host without TLS", []string{"Origin", "http://relay.example.com"}, api.CodeCrossOrigin},
			{"another port", []string{"Origin", "https://relay.example.com:8443"}, api.CodeCrossOrigin},
			{"a frame without an origin", []string{"Origin", "null"}, api.CodeCrossOrigin},
			{"no origin", []string{"Origin", ""}, api.CodeCrossOrigin},
			{"a browser that says it is a sibling", []string{"Sec-Fetch-Site", "same-site"}, api.CodeCrossOrigin},
			{"a browser that says it is another site", []string{"Sec-Fetch-Site", "cross-site"}, api.CodeCrossOrigin},
			{"typed into the address bar", []string{"Sec-Fetch-Site", "none"}, api.CodeCrossOrigin},
			{"a form", []string{"Content-Type", "application/x-www-form-urlencoded"}, api.CodeUnsupportedMediaType},
			{"a form that looks like JSON", []string{"Content-Type", "text/plain"}, api.CodeUnsupportedMediaType},
			{"no media type", []string{"Content-Type", ""}, api.CodeUnsupportedMediaType},
		} {
			wantProblem(t, path+" from "+c.name, b.post(path, struct{}{}, c.header...), c.code)
			h.wait(6e9) // addresses have limits
		}
		if h.town.open() != before {
			t.Errorf("%s: a request from elsewhere changed something", path)
		}
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, origin+path, strings.NewReader("{}"))
		r.Header["Origin"] = []string{origin, origin}
		r.Header.Set("Content-Type", "application/json")
		wantProblem(t, path+" with two origins", b.do(r), api.CodeCrossOrigin)
		if resp := b.get(path); resp.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("GET %s answers %d", path, resp.StatusCode)
		}
	}
}

// A page elsewhere makes the browsers of an office ask as often as it likes. That uses up
// nothing of what the office may.
func TestPagesElsewhereUseNothingUp(t *testing.T) {
	h := newHouse(t)
	b := h.browser()
	for _, path := range posts {
		for range 250 {
			wantProblem(t, path, b.post(path, struct{}{}, "Origin", "https://evil.example.com", "Sec-Fetch-Site", "cross-site"), api.CodeCrossOrigin)
		}
	}
	for range 130 {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, origin+"/auth/login", nil)
		r.Header.Set("Sec-Fetch-Dest", "image")
		wantProblem(t, "a picture", b.do(r), api.CodeCrossOrigin)
	}
	b.enter()
	if !b.signedIn() {
		t.Error("the office's people cannot sign in")
	}
	if resp := b.post("/auth/passkey/begin", struct{}{}); resp.StatusCode != http.StatusOK {
		t.Errorf("a passkey: %d", resp.StatusCode)
	}
}

func TestOlderBrowsersAndPortsAreWelcome(t *testing.T) {
	h := newHouse(t)
	b := h.browser()
	b.enter()
	for _, header := range [][]string{{"Sec-Fetch-Site", ""}, {"Origin", "https://relay.example.com:443"}, {"Content-Type", "application/json; charset=utf-8"}} {
		if resp := b.post("/auth/token", struct{}{}, header...); resp.StatusCode != http.StatusOK {
			t.Errorf("%v: %d %s", header, resp.StatusCode, text(resp))
		}
	}
}

func TestCookiesThatAreNone(t *testing.T) {
	h := newHouse(t)
	b := h.browser()
	b.enter()
	good := b.cookies["__Host-adit"]
	for name, cookies := range map[string][]http.Cookie{
		"a sibling tossed one":     {{Name: "__Host-adit", Value: good}, {Name: "__Host-adit", Value: ident.NewSecret(ident.PrefixSignIn).Reveal()}},
		"the same twice":           {{Name: "__Host-adit", Value: good}, {Name: "__Host-adit", Value: good}},
		"the name of plain http":   {{Name: "adit-sign-in", Value: good}},
		"without the prefix":       {{Name: "adit", Value: good}},
		"another kind of secret":   {{Name: "__Host-adit", Value: ident.NewSecret(ident.PrefixDevice).Reveal()}},
		"cut":                      {{Name: "__Host-adit", Value: good[:len(good)-1]}},
		"a guess":                  {{Name: "__Host-adit", Value: ident.NewSecret(ident.PrefixSignIn).Reveal()}},
		"nothing":                  {{Name: "__Host-adit", Value: ""}},
		"the hash that is at rest": {{Name: "__Host-adit", Value: ident.Secret(good).Hash()}},
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, origin+"/auth/token", strings.NewReader("{}"))
		r.Header.Set("Origin", origin)
		r.Header.Set("Content-Type", "application/json")
		for _, c := range cookies {
			r.AddCookie(&c)
		}
		wantProblem(t, name, h.browser().do(r), api.CodeNotSignedIn)
	}
	if !b.signedIn() {
		t.Error("the good one is still good")
	}
}

func TestPlainHTTPOnLoopback(t *testing.T) {
	h := newHouse(t, func(c *signin.Config) { c.Origin = "http://localhost:8080" })
	h.redirect = "http://localhost:8080/auth/callback"
	h.town.invites[ident.Secret("inv-x").Hash()] = "alice"
	b := h.browser()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "http://localhost:8080/auth/invite", strings.NewReader(`{"invite":"inv-x"}`))
	r.Header.Set("Origin", "http://localhost:8080")
	r.Header.Set("Content-Type", "application/json")
	if resp := b.do(r); resp.StatusCode != http.StatusOK {
		t.Fatalf("%d %s", resp.StatusCode, text(resp))
	}
	for _, c := range b.seen {
		if c.Name != "adit-sign-in" || c.Secure || !c.HttpOnly || c.SameSite != http.SameSiteLaxMode {
			t.Errorf("the cookie is %v", c)
		}
	}
	if len(b.seen) != 1 {
		t.Errorf("%d cookies", len(b.seen))
	}
}

func TestSignOut(t *testing.T) {
	h := newHouse(t)
	here, there, other := h.browser(), h.browser(), h.browser()
	here.enter()
	there.enter()
	other.enter()
	stolen := other.cookies["__Host-adit"]
	if resp := other.post("/auth/logout", map[string]bool{"everywhere": false}); resp.StatusCode != http.StatusNoContent || len(other.cookies) != 0 {
		t.Errorf("signing out: %d, cookies %v", resp.StatusCode, other.cookies)
	}
	other.cookies["__Host-adit"] = stolen
	if other.signedIn() || !here.signedIn() {
		t.Error("one browser is signed out, and no other")
	}
	if resp := here.post("/auth/logout", map[string]bool{"everywhere": true}); resp.StatusCode != http.StatusNoContent {
		t.Errorf("signing out everywhere: %d", resp.StatusCode)
	}
	if here.signedIn() || there.signedIn() {
		t.Error("everywhere is not everywhere")
	}
	if resp := here.post("/auth/logout", struct{}{}); resp.StatusCode != http.StatusNoContent {
		t.Errorf("signing out twice is no error: %d", resp.StatusCode)
	}
	wantProblem(t, "everywhere, of nobody", here.post("/auth/logout", map[string]bool{"everywhere": true}), api.CodeNotSignedIn)
}

func TestInvitations(t *testing.T) {
	h := newHouse(t)
	invite := func(name string) map[string]string {
		secret := ident.NewSecret(ident.PrefixInvite)
		h.town.invites[secret.Hash()] = name
		return map[string]string{"invite": secret.Reveal()}
	}
	b, first := h.browser(), invite("alice")
	resp := b.post("/auth/invite", first)
	var joined signin.Joined
	if err := json.Unmarshal([]byte(text(resp)), &joined); err != nil || joined != (signin.Joined{TeamID: teamA, TeamName: "vision", Role: api.RoleAdmin, UserName: "alice"}) {
		t.Errorf("joined: %d %+v %v", resp.StatusCode, joined, err)
	}
	if !b.signedIn() || h.town.open() != 1 {
		t.Errorf("the person is signed in, once: %d", h.town.open())
	}
	wantProblem(t, "twice", h.browser().post("/auth/invite", first), api.CodeInviteRefused)
	if resp := b.post("/auth/invite", invite("second")); resp.StatusCode != http.StatusOK || h.town.open() != 1 {
		t.Errorf("who is signed in keeps their sign-in: %d, %d sign-ins", resp.StatusCode, h.town.open())
	}
	if _, made := h.town.users["adit:second"]; made {
		t.Error("who is signed in becomes nobody else")
	}
	guesser := h.browser()
	guesser.remote = "198.51.100.9"
	for range 10 {
		wantProblem(t, "a guess", guesser.post("/auth/invite", map[string]string{"invite": "inv-guess"}), api.CodeInviteRefused)
	}
	wantProblem(t, "one guess more", guesser.post("/auth/invite", map[string]string{"invite": "inv-guess"}), api.CodeTooManyTries)
	if resp := h.browser().post("/auth/invite", invite("carol")); resp.StatusCode != http.StatusOK {
		t.Errorf("another address is not held up: %d", resp.StatusCode)
	}
	wantProblem(t, "no JSON", b.post("/auth/invite", "text"), api.CodeInvalidBody)
	wantProblem(t, "a large body", b.post("/auth/invite", map[string]string{"invite": strings.Repeat("x", 70000)}), api.CodeBodyTooLarge)
	if strings.Contains(h.log.String(), first["invite"]) {
		t.Error("an invitation is in the log")
	}
}

func TestTheStoreIsAway(t *testing.T) {
	h := newHouse(t)
	b := h.browser()
	b.enter()
	h.town.down = store.ErrUnavailable
	wantProblem(t, "no quorum", b.post("/auth/token", struct{}{}), api.CodeStoreUnavailable)
	h.town.down = errors.New("something else")
	wantProblem(t, "something else", b.post("/auth/token", struct{}{}), api.CodeInternal)
	h.town.down = nil
	if !b.signedIn() {
		t.Error("the browser lost its sign-in meanwhile")
	}
}

func TestAnswersAreForOnePage(t *testing.T) {
	h := newHouse(t)
	b := h.browser()
	b.enter()
	for what, resp := range map[string]*reply{"token": b.post("/auth/token", struct{}{}), "options": b.get("/auth/options"), "refused": h.browser().post("/auth/token", struct{}{})} {
		for name, want := range map[string]string{"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Content-Security-Policy": api.StrictPolicy, "Access-Control-Allow-Origin": ""} {
			if got := resp.Header.Get(name); got != want {
				t.Errorf("%s: %s is %q, want %q", what, name, got, want)
			}
		}
	}
	if secret := b.cookies["__Host-adit"]; secret == "" || strings.Contains(h.log.String(), secret) || bytes.Contains([]byte(text(b.post("/auth/token", struct{}{}))), []byte(secret)) {
		t.Error("the cookie's secret is in an answer or a log")
	}
	families, err := h.metrics.Gather()
	if err != nil || len(families) != 1 || families[0].GetName() != "adit_relay_sign_ins_total" || len(families[0].GetMetric()) != 15 {
		t.Errorf("metrics: %v %v", families, err)
	}
}

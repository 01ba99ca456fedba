package signin_test

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/adit-tunnel/adit/relay/internal/signin"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/testkit/issuer"
)

// tunnel is one that is for alice, and for a group.
type tunnel struct{ h *house }

func (tunnel) Begun(ask string) *api.Problem {
	if ask != "a-way" {
		return api.NewProblem(api.CodeAccessRequired, "open the tunnel's address again")
	}
	return nil
}

func (tunnel) Expects(ask string, user ident.UserID, email string, groups []string) bool {
	return ask == "a-way" && (email == "guest@example.com" || slices.Contains(groups, "vision"))
}

func (u tunnel) Grant(_ context.Context, ask, signIn, _ string) (string, error) {
	u.h.town.mu.Lock()
	defer u.h.town.mu.Unlock()
	if r, ok := u.h.town.signIns[signIn]; !ok || ask != "a-way" || r.User == "mallory" {
		return "", api.NewProblem(api.CodeAccessDenied, "you are mallory, and the tunnel is for others")
	}
	return "https://seg.tunnels.example.com/_adit/pass?code=px-1", nil
}

func newTunnel(t *testing.T) *house {
	t.Helper()
	u := &tunnel{}
	u.h = newHouse(t, func(c *signin.Config) { c.Passes, c.Issuer.Groups = u, "groups" })
	return u.h
}

const way = "/auth/pass?t=a-way"

func TestTheWayToATunnel(t *testing.T) {
	h := newTunnel(t)
	b := h.browser()
	resp := b.get(way)
	if to := resp.Header.Get("Location"); resp.StatusCode != http.StatusSeeOther || to != origin+"/console?return_to="+url.QueryEscape(way) {
		t.Errorf("who is not signed in: %d, to %q", resp.StatusCode, to)
	}
	at := b.login(way)
	if to := b.back(at, h.grant(at, nil)).Header.Get("Location"); to != way {
		t.Errorf("signing in leads to %q", to)
	}
	resp = b.get(way)
	if to := resp.Header.Get("Location"); resp.StatusCode != http.StatusSeeOther || to != "https://seg.tunnels.example.com/_adit/pass?code=px-1" || resp.Header.Get("Referrer-Policy") != "no-referrer" || resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("who is signed in: %d, to %q, %v", resp.StatusCode, to, resp.Header)
	}
	for name, path := range map[string]string{
		"another way": "/auth/pass?t=another", "none": "/auth/pass", "what is none": "/auth/pass?t=" + url.QueryEscape("//evil.example.com"), "one that is too long": "/auth/pass?t=" + strings.Repeat("a", 3000),
	} {
		wantPage(t, name, b.get(path), http.StatusUnauthorized, "tunnel&#39;s address again")
	}
	m := h.browser()
	at = m.login("/console")
	m.back(at, h.grant(at, issuer.Claims{"sub": "mallory"}))
	wantPage(t, "who may not", m.get(way), http.StatusForbidden, "You are mallory")
	for asked, want := range map[string]string{
		"/auth/pass?t=a%2Fb": "/console", "/auth/pass?t=a&x=1": "/console", "/auth/pass": "/console", "/auth/pass?t=": "/console", "/auth/pass?t=" + strings.Repeat("a", 2400): "/auth/pass?t=" + strings.Repeat("a", 2400),
		"/auth/pass?t=" + strings.Repeat("a", 2401): "/console",
	} {
		b := h.browser()
		at := b.login(asked)
		if got := b.back(at, h.grant(at, nil)).Header.Get("Location"); got != want {
			t.Errorf("return_to %.40q leads to %.40q", asked, got)
		}
	}
}

// Somebody of no team signs in on their way to a tunnel that they are named for, and
// otherwise not.
func TestAGuestSignsIn(t *testing.T) {
	h := newTunnel(t)
	for name, c := range map[string]struct {
		back   string
		claims issuer.Claims
		in     bool
	}{
		"named by an address":         {way, issuer.Claims{"teams": nil, "email": "guest@example.com", "email_verified": true}, true},
		"whom nobody vouches for":     {way, issuer.Claims{"teams": nil, "email": "guest@example.com"}, false},
		"by a group":                  {way, issuer.Claims{"teams": nil, "groups": []string{"audio", "vision"}}, true},
		"by a group alone":            {way, issuer.Claims{"teams": nil, "groups": "vision"}, true},
		"by another group":            {way, issuer.Claims{"teams": nil, "groups": []string{"audio"}}, false},
		"by groups that are no texts": {way, issuer.Claims{"teams": nil, "groups": []any{7, []string{"vision"}}}, false},
		"on the way to the console":   {"/console", issuer.Claims{"teams": nil, "groups": []string{"vision"}}, false},
		"on a way that is over":       {"/auth/pass?t=another", issuer.Claims{"teams": nil, "groups": []string{"vision"}}, false},
	} {
		c.claims["sub"] = name
		b := h.browser()
		at := b.login(c.back)
		resp := b.back(at, h.grant(at, c.claims, func(g *issuer.Grant) { g.UserInfo = issuer.Claims{"sub": name} }))
		if in := b.signedIn(); in != c.in {
			t.Errorf("%s: signed in: %v: %s", name, in, text(resp))
		}
		if _, known := h.town.users[ident.UserID(name)]; known != c.in {
			t.Errorf("%s: kept: %v", name, known)
		}
	}
	for _, r := range h.town.signIns {
		if r.User == "by a group" && !slices.Equal(r.Groups, []string{"audio", "vision"}) {
			t.Errorf("the groups are %v", r.Groups)
		}
	}
}

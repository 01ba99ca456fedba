package edge_test

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/access"
	"github.com/adit-tunnel/adit/relay/internal/edge"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// porter knows a PIN, and lets in whoever says that they are Alice.
type porter struct{ access *access.Access }

func (p *porter) pass(req access.Request, how access.How) (ident.Secret, time.Time, error) {
	secret, ends := p.access.Seal(access.Viewer{How: how}, req.Browser, req.Tunnel, req.Link, time.Time{})
	return secret, ends, nil
}

func (p *porter) PIN(_ context.Context, req access.Request, pin string) (ident.Secret, time.Time, error) {
	switch pin {
	case "right":
		return p.pass(req, access.ByPIN)
	case "last":
		return "", time.Time{}, api.NewProblem(api.CodePINLocked, "no more")
	}
	return "", time.Time{}, api.NewProblem(api.CodePINRequired, "this is not the PIN")
}

func (p *porter) Knock(_ context.Context, _ access.Request, name string) (ident.Secret, error) {
	return ident.Secret("knock-of-" + name), nil
}

func (p *porter) Waited(_ context.Context, req access.Request, knock ident.Secret) (ident.Secret, time.Time, error) {
	switch knock.Reveal() {
	case "knock-of-Alice":
		return p.pass(req, access.ByKnock)
	case "knock-of-Bob":
		return "", time.Time{}, access.ErrWaiting
	}
	return "", time.Time{}, access.ErrNoKnock
}

// visitor is a browser at one tunnel's address in path form, with its cookies.
type visitor struct {
	t       *testing.T
	w       *world
	segment string
	cookies map[string]string
}

func (v *visitor) ask(method, path string, form url.Values) *http.Response {
	v.t.Helper()
	req := browser(v.w.request(method, v.segment, "/"+path, strings.NewReader(form.Encode())))
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for name, value := range v.cookies {
		req.AddCookie(&http.Cookie{Name: name, Value: value})
	}
	resp := v.w.do(req)
	for _, c := range resp.Cookies() {
		if v.cookies[c.Name] = c.Value; c.MaxAge < 0 {
			delete(v.cookies, c.Name)
		}
		if c.Path != "/tunnel/"+v.segment || !c.HttpOnly {
			v.t.Errorf("the cookie %v reaches further than the tunnel", c)
		}
	}
	return resp
}

func newPorter(t *testing.T, rule store.AccessRule, protocol api.Protocol) *visitor {
	t.Helper()
	p := &porter{}
	w, _, a := newGuests(t, func(c *edge.Config) { c.Doors = p })
	p.access = a
	port := w.appFunc(func(rw http.ResponseWriter, r *http.Request) {
		_, _ = rw.Write([]byte("the app: " + r.Method + " " + r.RequestURI + r.Header.Get("Cookie")))
	})
	_, segment := w.tunnel(port, func(r *store.TunnelRecord) { r.Access, r.Protocol = &rule, protocol })
	return &visitor{t, w, segment, map[string]string{}}
}

func TestAFormAsksForThePIN(t *testing.T) {
	v := newPorter(t, store.AccessRule{Mode: api.AccessPIN, Version: 3}, api.ProtocolHTTP)
	want := func(what string, resp *http.Response, status int, has ...string) {
		t.Helper()
		body := text(t, resp.Body)
		for _, h := range has {
			if !strings.Contains(body, h) {
				t.Errorf("%s: no %q in %s", what, h, body)
			}
		}
		if resp.StatusCode != status {
			t.Errorf("%s: %d %s, want %d", what, resp.StatusCode, body, status)
		}
	}
	prefix := "/tunnel/" + v.segment
	form := `<form method="post" action="` + prefix + `/_adit/pin"><input type="hidden" name="to" value="` + prefix
	resp := v.ask("GET", "a/b?c=%22d%22", nil)
	if p := resp.Header.Get("Content-Security-Policy"); !strings.Contains(p, "form-action 'self'") || resp.Header.Get("Referrer-Policy") != "same-origin" {
		t.Errorf("the form cannot be sent: %q, %q", p, resp.Header.Get("Referrer-Policy"))
	}
	want("a page", resp, 401, form+`/a/b?c=%22d%22">`, "Sign in, if you are of the team", consoleOrigin+"/auth/pass?t=")
	want("the form's own address", v.ask("GET", "_adit/pin", nil), 401, form+`/">`)
	want("a form of the app", v.ask("POST", "x", url.Values{"a": {"b"}}), 401, "send it again", `href="`+v.w.public.String()+prefix+`/"`)
	want("a wrong PIN", v.ask("POST", "_adit/pin", url.Values{"pin": {"wrong"}, "to": {prefix + "/a"}}), 401, "not the PIN", form+`/a">`)
	resp = v.ask("POST", "_adit/pin", url.Values{"pin": {"last"}})
	if body := text(t, resp.Body); resp.StatusCode != 429 || strings.Contains(body, "<form") {
		t.Errorf("a locked PIN is asked for: %d %s", resp.StatusCode, body)
	}
	want("a form that does not end", v.ask("POST", "_adit/pin", url.Values{"pin": {strings.Repeat("x", 1<<14)}}), 422, "8192 bytes")
	resp = v.ask("POST", "_adit/pin", url.Values{"pin": {"right"}, "to": {prefix + "/a?b"}})
	if to := resp.Header.Get("Location"); resp.StatusCode != 303 || to != v.w.public.String()+prefix+"/a?b" {
		t.Errorf("the right PIN: %d to %q", resp.StatusCode, to)
	}
	want("with the pass", v.ask("GET", "a?b", nil), 200, "the app: GET /a?b")
	resp = v.ask("GET", "_adit/pin", nil)
	if to := resp.Header.Get("Location"); resp.StatusCode != 303 || to != v.w.public.String()+prefix+"/" {
		t.Errorf("the form's address with the pass: %d to %q", resp.StatusCode, to)
	}
	want("the app's own path of that sort", v.ask("GET", "_adit/pins", nil), 200, "the app: GET /_adit/pins")
}

// The way back to a page whose path begins with two slashes stays at the tunnel.
func TestTheWayBackStaysAtTheTunnel(t *testing.T) {
	v := newPorter(t, store.AccessRule{Mode: api.AccessPIN, Version: 3}, api.ProtocolHTTP)
	req := browser(v.w.request("POST", v.segment, "", strings.NewReader("a=b")))
	req.URL.Path, req.Host = "/x", v.segment+".localhost:"+v.w.public.Port()
	origin := v.w.public.Scheme + "://" + req.Host
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Referer", origin+"//other.example/page")
	if body := text(t, v.w.do(req).Body); !strings.Contains(body, `href="`+origin+`//other.example/page"`) {
		t.Errorf("it leads elsewhere: %s", body)
	}
}

func TestAFormAsksWhoKnocks(t *testing.T) {
	v := newPorter(t, store.AccessRule{Mode: api.AccessKnock, Version: 3}, api.ProtocolHTTP)
	prefix := "/tunnel/" + v.segment
	if body := text(t, v.ask("GET", "a", nil).Body); !strings.Contains(body, `action="`+prefix+`/_adit/knock"`) || strings.Contains(body, "http-equiv") {
		t.Errorf("who is there is not asked: %s", body)
	}
	v.ask("POST", "_adit/knock", url.Values{"name": {"Bob"}})
	resp := v.ask("GET", "a", nil)
	if body := text(t, resp.Body); resp.StatusCode != 401 || !strings.Contains(body, `http-equiv="refresh"`) || strings.Contains(body, "<form") {
		t.Errorf("who waits does not wait: %d %s", resp.StatusCode, body)
	}
	v.ask("POST", "_adit/knock", url.Values{"name": {"Alice"}})
	resp = v.ask("GET", "a", nil)
	if to := resp.Header.Get("Location"); resp.StatusCode != 303 || to != v.w.public.String()+prefix+"/a" || v.cookies["adit-knock"] != "" {
		t.Errorf("who is let in: %d to %q, with %v", resp.StatusCode, to, v.cookies)
	}
	if body := text(t, v.ask("GET", "a", nil).Body); body != "the app: GET /a" {
		t.Errorf("with the pass: %s", body)
	}
}

// Where only programs come nobody is asked for anything, and without doors neither.
func TestNoFormForPrograms(t *testing.T) {
	v := newPorter(t, store.AccessRule{Mode: api.AccessPIN, Version: 3}, api.ProtocolTCP)
	if resp := v.ask("GET", "", nil); resp.StatusCode != 401 || strings.Contains(text(t, resp.Body), "<form") {
		t.Errorf("a tunnel of protocol tcp shows a form: %d", resp.StatusCode)
	}
	v = newPorter(t, store.AccessRule{Mode: api.AccessPIN, Version: 3}, api.ProtocolHTTP)
	req := v.w.request("GET", v.segment, "/", nil)
	if resp := v.w.do(req); resp.StatusCode != 401 || resp.Header.Get("Content-Type") != api.ProblemContentType {
		t.Errorf("a program gets %d %s", resp.StatusCode, resp.Header.Get("Content-Type"))
	}
	req = browser(v.w.request("GET", v.segment, "/", nil))
	req.Header.Set("Adit-Authorization", "Bearer right")
	if resp := v.w.do(req); resp.StatusCode != 200 {
		t.Errorf("who is of the team and says so: %d", resp.StatusCode)
	}
}

package edge_test

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/adit-tunnel/adit/relay/internal/edge"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
)

func TestOriginMatrix(t *testing.T) {
	w := newWorld(t, nil)
	var hits atomic.Int64
	port := w.appFunc(func(http.ResponseWriter, *http.Request) { hits.Add(1) })
	_, seg := w.tunnel(port, func(r *store.TunnelRecord) { r.AllowOrigins = []string{"https://front.example:443"} })
	_, sibling := w.tunnel(port, nil)
	pub := w.public.Port()
	sub := seg + ".localhost:" + pub
	for _, c := range []struct {
		name, host, path, origin string
		allowed                  bool
	}{
		{"no origin", w.public.Host, "/tunnel/" + seg + "/", "", true},
		{"own, path form", w.public.Host, "/tunnel/" + seg + "/", "http://localhost:" + pub, true},
		{"own, other case", w.public.Host, "/tunnel/" + seg + "/", "HTTP://LocalHost:" + pub, true},
		{"own, subdomain form", sub, "/", "http://" + sub, true},
		{"allowed", sub, "/", "https://FRONT.example", true},
		{"allowed but http", sub, "/", "http://front.example", false},
		{"null", sub, "/", "null", false},
		{"empty", sub, "/", "-", false},
		{"sibling", sub, "/", "http://" + sibling + ".localhost:" + pub, false},
		{"parent", sub, "/", "http://localhost:" + pub, false},
		{"other port", sub, "/", "http://" + seg + ".localhost:1", false},
		{"other scheme", sub, "/", "https://" + sub, false},
		{"suffix trick", w.public.Host, "/tunnel/" + seg + "/", "http://localhost:" + pub + ".evil.example", false},
		{"prefix trick", w.public.Host, "/tunnel/" + seg + "/", "http://localhost:" + pub + "@evil.example", false},
		{"evil", w.public.Host, "/tunnel/" + seg + "/", "https://evil.example", false},
	} {
		for _, method := range []string{"POST", "DELETE", "WEBSOCKET", "GET"} {
			before := hits.Load()
			r, _ := http.NewRequestWithContext(t.Context(), strings.Replace(method, "WEBSOCKET", "GET", 1), "http://"+w.addr()+c.path, nil)
			r.Host = c.host
			if c.origin == "-" {
				r.Header["Origin"] = []string{""}
			} else if c.origin != "" {
				r.Header.Set("Origin", c.origin)
			}
			if method == "WEBSOCKET" {
				r.Header.Set("Connection", "Upgrade")
				r.Header.Set("Upgrade", "websocket")
				r.Header.Set("Sec-WebSocket-Version", "13")
				r.Header.Set("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
			}
			resp := w.do(r)
			body := text(t, resp.Body)
			reached := hits.Load() > before
			if want := c.allowed || method == "GET"; reached != want {
				t.Errorf("%s with Origin %s (%q): reached the app: %v, want %v", method, c.name, c.origin, reached, want)
			} else if !want && (resp.StatusCode != 403 || !strings.Contains(body, `"hop":"relay"`) || strings.Contains(body, seg)) {
				t.Errorf("%s with Origin %s: %d %s", method, c.name, resp.StatusCode, body)
			}
		}
	}
}

func TestLocationAndCookies(t *testing.T) {
	w := newWorld(t, nil)
	var set http.Header
	port := w.appFunc(func(rw http.ResponseWriter, r *http.Request) {
		maps.Copy(rw.Header(), set)
		rw.WriteHeader(302)
	})
	_, seg := w.tunnel(port, nil)
	pub, prefix := "http://"+w.public.Host, "/tunnel/"+seg
	subHost := seg + ".localhost:" + w.public.Port()
	app := fmt.Sprint(port)
	for _, c := range []struct{ field, value, path, sub string }{
		{"Location", "/login?next=%2F", prefix + "/login?next=%2F", "/login?next=%2F"},
		{"Location", "login", "login", "login"},
		{"Location", "?a", "?a", "?a"},
		{"Location", prefix + "/x", prefix + "/x", prefix + "/x"},
		{"Location", "http://127.0.0.1:" + app + "/x?y#z", pub + prefix + "/x?y#z", "http://" + subHost + "/x?y#z"},
		{"Location", "http://localhost:" + app, pub + prefix + "/", "http://" + subHost + "/"},
		{"Location", "https://elsewhere.example/x", "https://elsewhere.example/x", "https://elsewhere.example/x"},
		{"Location", "//elsewhere.example/x", "//elsewhere.example/x", "//elsewhere.example/x"},
		{"Location", "http://127.0.0.1:1/x", "http://127.0.0.1:1/x", "http://127.0.0.1:1/x"},
		{"Location", "http://127.0.0.1:" + app + "@evil.example/", "http://127.0.0.1:" + app + "@evil.example/", "http://127.0.0.1:" + app + "@evil.example/"},
		{"Content-Location", "/doc", prefix + "/doc", "/doc"},
		{"Refresh", "5; url=/next", "5; url=" + prefix + "/next", "5; url=/next"},
		{"Refresh", "0;URL='http://127.0.0.1:" + app + "/n'", "0;URL='" + pub + prefix + "/n'", "0;URL='http://" + subHost + "/n'"},
		{"Refresh", "30", "30", "30"},
		{"Set-Cookie", `a="b c"=,é; Path=/; HttpOnly; SameSite=lax`, `a="b c"=,é; Path=` + prefix + `/; HttpOnly; SameSite=lax`, `a="b c"=,é; Path=/; HttpOnly; SameSite=lax`},
		{"Set-Cookie", "a=b;domain=.localhost ;path=/app;Secure", "a=b; Path=" + prefix + "/app;Secure", "a=b;path=/app;Secure"},
		{"Set-Cookie", "a=b", "a=b", "a=b"},
		{"Set-Cookie", "a=b; Path=" + prefix + "/x; Partitioned", "a=b; Path=" + prefix + "/x; Partitioned", "a=b; Path=" + prefix + "/x; Partitioned"},
		{"Service-Worker-Allowed", "/", "", "/"},
		{"Cross-Origin-Opener-Policy", "same-origin", "", "same-origin"},
		{"Referrer-Policy", "no-referrer", "no-referrer", "no-referrer"},
	} {
		set = http.Header{c.field: {c.value}}
		if got := w.get(seg, "/").Header.Get(c.field); got != c.path {
			t.Errorf("path form, %s: %q became %q, want %q", c.field, c.value, got, c.path)
		}
		set = http.Header{c.field: {c.value}}
		r, _ := http.NewRequestWithContext(t.Context(), "GET", "http://"+w.addr()+"/", nil)
		r.Host = subHost
		if got := w.do(r).Header.Get(c.field); got != c.sub {
			t.Errorf("subdomain form, %s: %q became %q, want %q", c.field, c.value, got, c.sub)
		}
	}
	// The app's own idea of its host: what the browser sent.
	set = http.Header{"Location": {"https://" + w.public.Host + "/x"}}
	if got := w.get(seg, "/").Header.Get("Location"); got != pub+prefix+"/x" {
		t.Errorf("a redirect to the public host became %q", got)
	}
}

func TestRefererFallback(t *testing.T) {
	w := newWorld(t, func(c *edge.Config) {
		c.Own = func(r *http.Request) http.Handler {
			if !strings.HasPrefix(r.URL.Path, "/api/") {
				return nil
			}
			return http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, "relay") })
		}
	})
	rec, seg := w.tunnel(1, nil)
	for _, c := range []struct{ name, method, path, referer, want string }{
		{"absolute path", "GET", "/static/a.js?v=1", "http://" + w.public.Host + "/tunnel/" + seg + "/lab", "/tunnel/" + seg + "/static/a.js?v=1"},
		{"HEAD", "HEAD", "/x", "http://" + w.public.Host + "/tunnel/" + seg + "/", "/tunnel/" + seg + "/x"},
		{"double slash", "GET", "//evil.example/x", "http://" + w.public.Host + "/tunnel/" + seg + "/", "/tunnel/" + seg + "//evil.example/x"},
		{"relay's own route", "GET", "/api/v1/agents", "http://" + w.public.Host + "/tunnel/" + seg + "/", ""},
		{"POST", "POST", "/x", "http://" + w.public.Host + "/tunnel/" + seg + "/", ""},
		{"other origin", "GET", "/x", "http://evil.example/tunnel/" + seg + "/", ""},
		{"other scheme", "GET", "/x", "gopher://" + w.public.Host + "/tunnel/" + seg + "/", ""},
		{"no segment", "GET", "/x", "http://" + w.public.Host + "/tunnel/x/", ""},
		{"wrong token", "GET", "/x", "http://" + w.public.Host + "/tunnel/" + seg[:33] + strings.Repeat("a", 26) + "/", ""},
		{"no referer", "GET", "/x", "", ""},
	} {
		r, _ := http.NewRequestWithContext(t.Context(), c.method, "http://"+w.addr()+c.path, nil)
		r.Host = w.public.Host
		if c.referer != "" {
			r.Header.Set("Referer", c.referer)
		}
		resp := w.do(r)
		if got := resp.Header.Get("Location"); got != c.want || (c.want != "") != (resp.StatusCode == 307) {
			t.Errorf("%s: %d to %q, want %q", c.name, resp.StatusCode, got, c.want)
		}
	}
	w.close(rec.Session)
}

func TestCookieFallback(t *testing.T) {
	w := newWorld(t, func(c *edge.Config) { c.PathFallback = edge.FallbackCookie })
	port := w.appFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Set-Cookie", "_xsrf=1; Path=/")
		fmt.Fprintf(rw, "%s|%s|%s", r.RequestURI, r.Header.Get("Cookie"), r.Header.Get("X-Forwarded-Prefix"))
	})
	_, seg := w.tunnel(port, nil)
	r := w.request("GET", seg, "/lab", nil)
	r.Header.Set("Accept", "text/html")
	resp := w.do(r)
	cookies := resp.Header["Set-Cookie"]
	if len(cookies) != 2 || cookies[0] != "_xsrf=1; Path=/" || cookies[1] != "adit_tunnel="+seg+"; Path=/; HttpOnly; SameSite=Lax" {
		t.Fatalf("cookies %q", cookies)
	}
	r, _ = http.NewRequestWithContext(t.Context(), "POST", "http://"+w.addr()+"/api/kernels?x", nil)
	r.Host = w.public.Host
	r.Header.Set("Cookie", `_xsrf="1 2"; adit_tunnel=`+seg+"; z=3")
	resp = w.do(r)
	if got := text(t, resp.Body); got != `/api/kernels?x|_xsrf="1 2"; z=3|` {
		t.Errorf("the app saw %s", got)
	}
	r.Header.Set("Origin", "https://evil.example")
	if resp := w.do(r); resp.StatusCode != 403 {
		t.Errorf("another site's POST was answered %d", resp.StatusCode)
	}
}

func TestTrustedProxies(t *testing.T) {
	w := newWorld(t, func(c *edge.Config) {
		c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8")}
	})
	port := w.appFunc(func(rw http.ResponseWriter, r *http.Request) {
		h := r.Header
		fmt.Fprintf(rw, "%s|%s|%s|%s|%s", h.Get("X-Forwarded-For"), h.Get("X-Forwarded-Host"), h.Get("X-Forwarded-Proto"), h.Get("X-Real-Ip"), h.Get("X-Request-Id"))
	})
	rec, seg := w.tunnel(port, nil)
	r := w.request("GET", seg, "/", nil)
	for k, v := range map[string]string{"X-Forwarded-For": "6.6.6.6, 203.0.113.9, 10.1.1.1", "X-Forwarded-Host": "pub.example", "X-Forwarded-Proto": "https",
		"X-Real-IP": "203.0.113.9", "X-Request-ID": "from-front.1", "Connection": "X-Forwarded-For"} {
		r.Header.Set(k, v)
	}
	if got, want := text(t, w.do(r).Body), "6.6.6.6, 203.0.113.9, 10.1.1.1, 127.0.0.1|pub.example|https||from-front.1"; got != want {
		t.Errorf("the app saw %s, want %s", got, want)
	}
	viewers := w.meter.Viewers(rec.Session)
	if len(viewers) != 1 || viewers[0].RemoteAddr != "203.0.113.9" {
		t.Errorf("the viewer is %v, want the address that a trusted proxy saw", viewers)
	}
}

// TestNobodySpeaksForTheProxy sends what apps believe of proxies, in every spelling, as
// a field and as a trailer: from nobody does any of it reach the app but, from a
// trusted proxy, who it says the user is.
func TestNobodySpeaksForTheProxy(t *testing.T) {
	own := []string{
		"Forwarded", "X-Real-IP", "X-Forwarded-User", "X-Forwarded-Email", "X-Forwarded-Groups", "X-Forwarded-Preferred-Username", "X-Forwarded-Access-Token",
		"X-Forwarded-Port", "X-Forwarded-Ssl", "X-Forwarded-Scheme", "X-Forwarded-Client-Cert", "X-Forwarded-Uri", "X-Forwarded-Server", "X-Adit-User", "Proxy-Authorization",
	}
	proxies := []string{
		"X-Auth-Request-User", "X-Auth-Request-Email", "X-Auth-Request-Groups", "X-WEBAUTH-USER", "X-WEBAUTH-ROLE", "Remote-User", "Remote-Groups", "X-Remote-User",
		"X-Authenticated-User", "X-Authentik-Username", "X-Goog-IAP-JWT-Assertion", "X-Original-URL", "X-Original-URI", "X-Rewrite-URL", "X-Client-IP", "X-SSL-Client-Cert",
		"X-Cluster-Client-IP", "True-Client-IP", "CF-Connecting-IP", "Cf-Access-Jwt-Assertion", "Client-Cert", "Front-End-Https", "X-Scheme",
	}
	const value = "believe-me"
	for _, trusted := range []bool{false, true} {
		t.Run(fmt.Sprintf("trusted=%t", trusted), func(t *testing.T) {
			w := newWorld(t, func(c *edge.Config) {
				if trusted {
					c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
				}
			})
			seen := make(chan http.Header, 1)
			port := w.appFunc(func(_ http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				h := r.Header.Clone()
				for name, values := range r.Trailer {
					h["trailer "+name] = values
				}
				seen <- h
			})
			_, seg := w.tunnel(port, nil)
			ask := func(line string, trailer bool) []string {
				conn, br := w.dial()
				defer conn.Close()
				head := line + "\r\n"
				body := "0\r\n\r\n"
				if trailer {
					name, _, _ := strings.Cut(line, ":")
					head, body = "Trailer: "+name+"\r\n", "0\r\n"+line+"\r\n\r\n"
				}
				fmt.Fprintf(conn, "POST /tunnel/%s/ HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n%s\r\n%s", seg, w.public.Host, head, body)
				if resp, err := http.ReadResponse(br, nil); err != nil || resp.StatusCode != 200 {
					t.Fatalf("%s: %v %v", line, resp, err)
				}
				var got []string
				for name, values := range <-seen {
					if strings.Contains(strings.Join(values, " "), value) {
						got = append(got, name)
					}
				}
				return got
			}
			for i, name := range append(slices.Clone(own), proxies...) {
				for _, spelt := range []string{name, strings.ToLower(name), strings.ToUpper(name), strings.ReplaceAll(name, "-", "_"), strings.Replace(name, "-", "_", 1)} {
					passes := trusted && i >= len(own) && !strings.Contains(spelt, "_")
					for _, trailer := range []bool{false, true} {
						if got := ask(spelt+": "+value, trailer); len(got) > 0 != passes {
							t.Errorf("%s (trailer: %t) reaches the app as %q; it should: %t", spelt, trailer, got, passes)
						}
					}
				}
			}
			for _, name := range []string{"X-Auth-Token", "X-User-Agent", "X-Client-Info", "X-Forward", "Remote", "X_Custom"} {
				if got := ask(name+": "+value, false); len(got) != 1 {
					t.Errorf("%s is the app's own and must reach it", name)
				}
			}
		})
	}
}

type prober struct {
	asked atomic.Int64
	mode  api.HostHeader
}

func (p *prober) ProbeHost(context.Context, store.TunnelRecord, string) (api.HostHeader, error) {
	p.asked.Add(1)
	return p.mode, nil
}

func TestUndecidedHostModeIsProbed(t *testing.T) {
	p := &prober{mode: api.HostLocal}
	w := newWorld(t, func(c *edge.Config) { c.Prober = p })
	port := w.appFunc(func(rw http.ResponseWriter, r *http.Request) { fmt.Fprint(rw, r.Host) })
	_, seg := w.tunnel(port, func(r *store.TunnelRecord) { r.AskedHost = api.HostAuto })
	for range 3 {
		if got, want := text(t, w.get(seg, "/").Body), fmt.Sprintf("127.0.0.1:%d", port); got != want {
			t.Errorf("the app saw Host %s, want %s", got, want)
		}
	}
	if p.asked.Load() != 1 {
		t.Errorf("probed %d times", p.asked.Load())
	}
	p.mode = ""
	_, seg = w.tunnel(port, func(r *store.TunnelRecord) { r.AskedHost = api.HostAuto })
	for range 3 {
		if got := text(t, w.get(seg, "/").Body); got != w.public.Host {
			t.Errorf("undecided: the app saw Host %s", got)
		}
	}
	if p.asked.Load() != 2 {
		t.Errorf("an app that does not answer is probed at every request: %d", p.asked.Load())
	}
}

func TestMetricsAndNames(t *testing.T) {
	reg := prometheus.NewRegistry()
	w := newWorld(t, func(c *edge.Config) { c.Registerer = reg })
	port := w.appFunc(func(http.ResponseWriter, *http.Request) {})
	_, seg := w.tunnel(port, nil)
	w.get(seg, "/")
	w.get("x", "/")
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("metric names: %v %v", problems, err)
	}
	eventually(t, "the requests are counted", func() bool {
		err := testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP adit_relay_edge_problems_total Requests that the relay answered itself with an error, by the hop that failed.
# TYPE adit_relay_edge_problems_total counter
adit_relay_edge_problems_total{hop="agent"} 0
adit_relay_edge_problems_total{hop="app"} 0
adit_relay_edge_problems_total{hop="link"} 0
adit_relay_edge_problems_total{hop="relay"} 1
`), "adit_relay_edge_problems_total")
		return err == nil
	})
}

func FuzzRewriteCookie(f *testing.F) {
	for _, s := range []string{"a=b", `a="b; c"; Path=/; Domain=x; Secure`, "=;;;", "a=b; path = /x ;HttpOnly", "a;PATH=/;path=/y;Max-Age=0", "a=\x00\xff; Path"} {
		f.Add(s, true)
	}
	f.Fuzz(func(t *testing.T, v string, secure bool) {
		got := edge.RewriteCookie(v, "/tunnel/s", secure)
		pair, _, _ := strings.Cut(v, ";")
		gotPair, attributes, _ := strings.Cut(got, ";")
		if gotPair != pair {
			t.Errorf("name and value changed: %q from %q", gotPair, pair)
		}
		for a := range strings.SplitSeq(attributes, ";") {
			name, value, _ := strings.Cut(a, "=")
			name, value = strings.ToLower(strings.Trim(name, " \t")), strings.Trim(value, " \t")
			if name == "domain" || name == "path" && strings.HasPrefix(value, "/") && !strings.HasPrefix(value, "/tunnel/s") {
				t.Errorf("%q keeps %q", got, a)
			}
		}
		if again := edge.RewriteCookie(got, "/tunnel/s", secure); again != got {
			t.Errorf("rewriting twice: %q, then %q", got, again)
		}
	})
}

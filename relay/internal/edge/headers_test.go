package edge_test

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/adit-tunnel/adit/relay/internal/edge"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/relay/internal/tunnels"
	"github.com/adit-tunnel/adit/shared/api"
)

// powerful are fields of an app's answer that reach beyond it: whether they pass in
// subdomain form, where the origin is the app's own.
var powerful = map[string]struct {
	value string
	host  bool
}{
	"Accept-CH": {"Sec-CH-UA-Model", true}, "Critical-CH": {"Sec-CH-UA-Model", true}, "Activate-Storage-Access": {"load", true},
	"Alt-Svc": {`h3="evil.example:443"`, false}, "Attribution-Reporting-Register-Source": {"{}", true},
	"Cross-Origin-Opener-Policy": {"same-origin", true}, "Expect-CT": {`report-uri="https://evil.example/"`, true},
	"NEL": {`{"report_to":"x","max_age":99}`, false}, "No-Vary-Search": {"params", true}, "Observe-Browsing-Topics": {"?1", true},
	"Origin-Agent-Cluster": {"?0", true}, "Origin-Trial": {"x", true}, "Public-Key-Pins": {"x", true}, "Public-Key-Pins-Report-Only": {"x", true},
	"Report-To": {`{"max_age":99,"endpoints":[{"url":"https://evil.example/"}]}`, false}, "Reporting-Endpoints": {`x="https://evil.example/"`, false},
	"Sec-Session-Registration": {"x", false}, "Secure-Session-Registration": {"x", false}, "Service-Worker-Allowed": {"/", true}, "Set-Login": {"logged-in", true},
	"Speculation-Rules": {`"/rules.json"`, true}, "Strict-Transport-Security": {"max-age=99", true}, "Supports-Loading-Mode": {"credentialed-prerender", true},
	"Use-As-Dictionary": {`match="/*"`, true}, "A-Field-Of-The-Future": {"?1", true}, "Clear-Site-Data": {`"cache"`, true},
	"X-Accel-Redirect": {"/console", false}, "X-Sendfile": {"/etc/passwd", false}, "X-Envoy-Immediate-Health-Check-Fail": {"1", false},
}

// harmless are fields of one answer; they pass in both forms.
var harmless = map[string]string{
	"Cache-Control": "no-store", "Content-Security-Policy": "default-src 'self'", "Etag": `"x"`, "Access-Control-Allow-Origin": "https://front.example",
	"Www-Authenticate": "Basic", "X-Anything": "1", "X-Accel-Buffering": "no", "Mcp-Session-Id": "1", "Retry-After": "3", "Content-Language": "en",
	"Hx-Redirect": "next", "Connect-Content-Encoding": "gzip", "Trailer-Sum": "1",
}

func answerFields() http.Header {
	h := http.Header{}
	for name, p := range powerful {
		h.Set(name, p.value)
	}
	for name, v := range harmless {
		h.Set(name, v)
	}
	return h
}

// compareFields says what of an answer should or should not have passed.
func compareFields(t *testing.T, what string, got http.Header, pathForm bool) {
	t.Helper()
	for name, p := range powerful {
		want := ""
		if p.host && !pathForm {
			want = p.value
		}
		if v := got.Get(name); v != want {
			t.Errorf("%s: %s is %q, want %q", what, name, v, want)
		}
	}
	for name, want := range harmless {
		if v := got.Get(name); v != want {
			t.Errorf("%s: %s is %q, want %q", what, name, v, want)
		}
	}
}

// An app's answer has power over nothing but itself: in path form, where others share
// its origin, only known fields pass; in subdomain form none that reaches beyond the
// host. The same goes for what comes before the answer, and after it.
func TestAnAnswerHasNoPowerBeyondTheApp(t *testing.T) {
	w := newWorld(t, nil)
	port := w.appFunc(func(rw http.ResponseWriter, _ *http.Request) {
		h := rw.Header()
		maps.Copy(h, answerFields())
		h.Set("Link", "</a.css>; rel=preload; as=style")
		rw.WriteHeader(http.StatusEarlyHints)
		for name := range powerful {
			h.Add("Trailer", name)
		}
		h.Add("Trailer", "X-Sum")
		_, _ = io.WriteString(rw, "body")
		rw.(http.Flusher).Flush()
		h.Set("X-Sum", "1")
		h.Set(http.TrailerPrefix+"Nel", "late")
	})
	_, seg := w.tunnel(port, nil)
	for form, get := range map[string]func(string, string) *http.Response{"path form": w.get, "subdomain form": w.getHost} {
		resp := get(seg, "/")
		compareFields(t, form, resp.Header, form == "path form")
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
		for name, p := range powerful {
			_, came := resp.Trailer[http.CanonicalHeaderKey(name)]
			if want := p.host && form != "path form"; came != want {
				t.Errorf("%s: the trailer brings %s: %v, want %v", form, name, came, want)
			}
		}
		if resp.Trailer.Get("X-Sum") != "1" {
			t.Errorf("%s: the trailer is %v", form, resp.Trailer)
		}
	}
	if v := w.get(seg, "/").Header["Vary"]; !slices.Contains(v, "Service-Worker") {
		t.Errorf("in path form an answer is kept for a worker's script too: Vary %q", v)
	}
}

func TestEarlyHintsBringLinksOnly(t *testing.T) {
	w := newWorld(t, nil)
	fields := answerFields()
	fields["Link"] = []string{"</a.css>; rel=preload; as=style", "<https://evil.example/a.js>; rel=preload; as=script; ReferrerPolicy=unsafe-url"}
	fields["Referrer-Policy"] = []string{"unsafe-url"}
	fields["Set-Cookie"] = []string{"a=b"}
	port := w.rawApp(func(c net.Conn) {
		br := bufio.NewReader(c)
		for {
			if _, err := http.ReadRequest(br); err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 103 Early Hints\r\nNEL: {}\r\n\r\nHTTP/1.1 103 Early Hints\r\n")
			_ = fields.Write(c)
			_, _ = io.WriteString(c, "\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	_, seg := w.tunnel(port, nil)
	for form, host := range map[string]string{"path form": w.public.Host, "subdomain form": seg + ".localhost:" + w.public.Port()} {
		r := w.request("GET", seg, "/", nil)
		if r.Host = host; form == "subdomain form" {
			r.URL.Path = "/"
		}
		var hints []http.Header
		resp := w.do(r.WithContext(httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(_ int, h textproto.MIMEHeader) error {
			hints = append(hints, http.Header(h).Clone())
			return nil
		}})))
		if got := fmt.Sprint(hints); got != "[map[Link:[</a.css>; rel=preload; as=style] Referrer-Policy:[same-origin]]]" {
			t.Errorf("%s: the hints are %s", form, got)
		}
		if text(t, resp.Body) != "ok" || resp.Header.Get("Link") != "" {
			t.Errorf("%s: the answer has the hints' fields: %v", form, resp.Header)
		}
	}
}

// The switch to a WebSocket is an answer like any other.
func TestAWebSocketsAnswerIsFiltered(t *testing.T) {
	w := newWorld(t, nil)
	fields := answerFields()
	fields["Referrer-Policy"] = []string{"origin"}
	port := w.rawApp(func(c net.Conn) {
		br := bufio.NewReader(c)
		if _, err := http.ReadRequest(br); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n")
		_ = fields.Write(c)
		_, _ = io.WriteString(c, "\r\n")
		_, _ = br.ReadByte()
	})
	_, seg := w.tunnel(port, nil)
	for form, target := range map[string][2]string{"path form": {w.public.Host, "/tunnel/" + seg + "/"}, "subdomain form": {seg + ".localhost:" + w.public.Port(), "/"}} {
		conn, br := w.dial()
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", target[1], target[0])
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != 101 {
			t.Fatalf("%s: %v %v", form, resp, err)
		}
		compareFields(t, form, resp.Header, form == "path form")
		if got := resp.Header["Referrer-Policy"]; len(got) != 1 || got[0] != "same-origin" {
			t.Errorf("%s: Referrer-Policy %q", form, got)
		}
		conn.Close()
	}
}

// The host name is the key: whatever policy an app has, browsers show it to nobody.
func TestNoReferrerPolicyShowsTheAddress(t *testing.T) {
	w := newWorld(t, nil)
	var set []string
	port := w.appFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header()["Referrer-Policy"] = set
		if r.URL.Path == "/away" {
			rw.Header().Set("Location", "https://elsewhere.example/")
			rw.WriteHeader(http.StatusFound)
		}
	})
	_, seg := w.tunnel(port, nil)
	for _, c := range []struct {
		lines []string
		want  string
	}{
		{nil, "same-origin"}, {[]string{""}, "same-origin"}, {[]string{"no-referrer"}, "no-referrer"}, {[]string{"same-origin"}, "same-origin"},
		{[]string{"origin"}, "same-origin"}, {[]string{"strict-origin"}, "same-origin"}, {[]string{"origin-when-cross-origin"}, "same-origin"},
		{[]string{"strict-origin-when-cross-origin"}, "same-origin"}, {[]string{"unsafe-url"}, "same-origin"}, {[]string{"no-referrer-when-downgrade"}, "same-origin"},
		{[]string{"No-Referrer"}, "no-referrer"}, {[]string{"unheard-of"}, "same-origin"},
		{[]string{"no-referrer, strict-origin-when-cross-origin"}, "same-origin"},
		{[]string{"unsafe-url,\tno-referrer "}, "no-referrer"}, {[]string{"no-referrer, unheard-of"}, "no-referrer"},
		{[]string{"no-referrer", "unsafe-url"}, "same-origin"}, {[]string{"unsafe-url", "no-referrer"}, "no-referrer"}, {[]string{"no-referrer", ""}, "no-referrer"},
	} {
		set = c.lines
		for form, get := range map[string]func(string, string) *http.Response{"path form": w.get, "subdomain form": w.getHost} {
			for _, path := range []string{"/", "/away"} {
				if got := get(seg, path).Header["Referrer-Policy"]; len(got) != 1 || got[0] != c.want {
					t.Errorf("%s, %s: %q became %q, want %q", form, path, c.lines, got, c.want)
				}
			}
		}
	}
}

// A report of a policy's violation names the page's address.
func TestReportsGoToTheAppOnly(t *testing.T) {
	w := newWorld(t, nil)
	var set []string
	port := w.appFunc(func(rw http.ResponseWriter, _ *http.Request) { rw.Header()["Content-Security-Policy"] = set })
	_, seg := w.tunnel(port, nil)
	for asked, want := range map[string]string{
		"default-src 'self'": "default-src 'self'",
		"frame-ancestors 'self'; report-uri /api/csp-report":    "frame-ancestors 'self'; report-uri /api/csp-report",
		"img-src 'none'; Report-URI https://evil.example/r;a b": "img-src 'none';a b",
		"a; report-uri /own https://evil.example/":              "a",
		"a; report-uri //evil.example/":                         "a",
		`a; report-uri /\evil.example/`:                         "a",
		"report-uri https://evil.example/":                      "",
		"a; report-uri /own, b; report-uri https://evil":        "a; report-uri /own, b",
	} {
		set = []string{asked}
		for form, get := range map[string]func(string, string) *http.Response{"path form": w.get, "subdomain form": w.getHost} {
			if got := strings.Join(get(seg, "/").Header["Content-Security-Policy"], "|"); got != want {
				t.Errorf("%s: %s became %s, want %s", form, asked, got, want)
			}
		}
	}
}

func TestClearSiteDataStaysWithTheApp(t *testing.T) {
	w := newWorld(t, nil)
	var set string
	port := w.appFunc(func(rw http.ResponseWriter, _ *http.Request) { rw.Header().Set("Clear-Site-Data", set) })
	_, seg := w.tunnel(port, nil)
	for asked, want := range map[string]string{`"cache", "storage"`: `"cache", "storage"`, `"cookies"`: "", `"cache","cookies" , "storage"`: `"cache", "storage"`, `"*"`: `"cache", "storage"`} {
		set = asked
		if got := strings.Join(w.getHost(seg, "/").Header["Clear-Site-Data"], "|"); got != want {
			t.Errorf("%s became %s, want %s", asked, got, want)
		}
	}
}

// Where the path form is off, no app answers there: its address leads to the tunnel's
// own host, and nothing else does.
func TestPathFormOffLeadsToTheTunnelsHost(t *testing.T) {
	w := newWorldAt(t, func(c *edge.Config) { c.PathFallback = edge.FallbackCookie }, func(c *tunnels.Config) { c.PathForm = false })
	var asked atomic.Int64
	port := w.appFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) })
	rec, seg := w.tunnel(port, nil)
	host := "http://" + seg + ".localhost:" + w.public.Port()
	for _, c := range []struct{ method, rest, want string }{
		{"GET", "/", host + "/"}, {"GET", "", host + "/"}, {"GET", "?a=1", host + "/?a=1"}, {"POST", "/a%2fb//../c?x=%20", host + "/a%2fb//../c?x=%20"},
		{"GET", "//evil.example/x", host + "//evil.example/x"},
	} {
		conn, br := w.dial()
		fmt.Fprintf(conn, "%s /tunnel/%s%s HTTP/1.1\r\nHost: %s\r\nContent-Length: 0\r\n\r\n", c.method, seg, c.rest, w.public.Host)
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != http.StatusPermanentRedirect || resp.Header.Get("Location") != c.want || resp.Header.Get("Cache-Control") != "no-store" || resp.Header.Get("Referrer-Policy") != "same-origin" {
			t.Errorf("%s %s: %d %v, want %s", c.method, c.rest, resp.StatusCode, resp.Header, c.want)
		}
	}
	wrong := seg[:33] + strings.Repeat("a", 26)
	for name, s := range map[string]string{"wrong": wrong, "malformed": "x"} {
		if resp := w.get(s, "/"); resp.StatusCode != 404 || !strings.Contains(text(t, resp.Body), `"tunnel_not_found"`) {
			t.Errorf("%s: %d", name, resp.StatusCode)
		}
	}
	// Nor does a page's Referer or a cookie choose a tunnel.
	for name, value := range map[string]string{"Referer": w.public.String() + "/tunnel/" + seg + "/", "Cookie": "adit_tunnel=" + seg} {
		r := w.request("GET", seg, "", nil)
		r.URL.Path = "/static/a.js"
		r.Header.Set(name, value)
		if resp := w.do(r); resp.StatusCode != 404 || !strings.Contains(text(t, resp.Body), `"not_found"`) {
			t.Errorf("an absolute path with a %s: %d %v", name, resp.StatusCode, resp.Header)
		}
	}
	if asked.Load() != 0 {
		t.Errorf("the app was asked %d times", asked.Load())
	}
	if resp := w.getHost(seg, "/"); resp.StatusCode != 200 || asked.Load() != 1 {
		t.Errorf("the tunnel's own host: %d", resp.StatusCode)
	}
	w.close(rec.Session)
	if resp := w.get(seg, "/"); resp.StatusCode != 404 {
		t.Errorf("closed: %d", resp.StatusCode)
	}
	// TCP shows no page: it keeps both forms.
	echo := w.rawApp(func(c net.Conn) { _, _ = io.Copy(c, c) })
	_, tcp := w.tunnel(echo, func(r *store.TunnelRecord) { r.Protocol = api.ProtocolTCP })
	if resp := w.get(tcp, "/"); resp.StatusCode != http.StatusUpgradeRequired {
		t.Errorf("tcp: %d", resp.StatusCode)
	}
}

// A worker would see and serve pages of other apps, so none begins in path form.
func TestNoServiceWorkerInPathForm(t *testing.T) {
	w := newWorld(t, func(c *edge.Config) { c.PathFallback = edge.FallbackCookie })
	port := w.appFunc(func(rw http.ResponseWriter, _ *http.Request) { rw.Header().Set("Content-Type", "text/javascript") })
	_, seg := w.tunnel(port, nil)
	path := w.request("GET", seg, "/sw.js", nil)
	absolute := w.request("GET", seg, "", nil)
	absolute.URL.Path = "/sw.js"
	absolute.Header.Set("Cookie", "adit_tunnel="+seg)
	host := w.request("GET", seg, "", nil)
	host.URL.Path, host.Host = "/sw.js", seg+".localhost:"+w.public.Port()
	for name, c := range map[string]struct {
		r    *http.Request
		want int
	}{"path form": {path, 403}, "chosen by the cookie": {absolute, 403}, "subdomain form": {host, 200}} {
		if resp := w.do(c.r); resp.StatusCode != 200 {
			t.Errorf("%s: the script as such: %d", name, resp.StatusCode)
		}
		c.r.Header.Set("Service-Worker", "script")
		resp := w.do(c.r)
		if body := text(t, resp.Body); resp.StatusCode != c.want || c.want == 403 && (!strings.Contains(body, `"service_worker_refused"`) || !strings.Contains(body, `"hop":"relay"`)) {
			t.Errorf("%s: a worker's script: %d %s", name, resp.StatusCode, body)
		}
	}
}

// The host of the relay's own pages is nobody else's.
func TestNoTunnelAtTheConsolesHost(t *testing.T) {
	w := newWorldAt(t, func(c *edge.Config) { c.PathFallback = edge.FallbackCookie }, func(c *tunnels.Config) {
		c.WildcardDomain = ""
		c.ConsoleURL = &url.URL{Scheme: "http", Host: "console.example.com:" + c.PublicURL.Port()}
	})
	port := w.appFunc(func(rw http.ResponseWriter, r *http.Request) {
		t.Errorf("the app was asked for %s at %s", r.RequestURI, r.Host)
	})
	_, seg := w.tunnel(port, nil)
	for _, host := range []string{"console.example.com", "CONSOLE.example.com.:1"} {
		for _, path := range []string{"/tunnel/" + seg + "/", "/tunnel/" + seg, "/x"} {
			r := w.request("GET", seg, "", nil)
			r.URL.Path, r.Host = path, host
			r.Header.Set("Cookie", "adit_tunnel="+seg)
			r.Header.Set("Referer", w.public.String()+"/tunnel/"+seg+"/")
			if resp := w.do(r); resp.StatusCode != 404 || !strings.Contains(text(t, resp.Body), `"not_found"`) {
				t.Errorf("%s at %s: %d", path, host, resp.StatusCode)
			}
		}
	}
}

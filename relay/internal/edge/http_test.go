package edge_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/edge"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
)

func TestPathAndSubdomainForms(t *testing.T) {
	w := newWorld(t, nil)
	port := w.appFunc(func(rw http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(rw, "%s %s prefix=%q", r.Method, r.RequestURI, r.Header.Get("X-Forwarded-Prefix"))
	})
	_, seg := w.tunnel(port, nil)
	for _, c := range []struct{ rest, want string }{
		{"/", "GET / prefix=" + strconv.Quote("/tunnel/"+seg)},
		{"/a%2fb//c/../d;x?q=%20+&&=", "GET /a%2fb//c/../d;x?q=%20+&&= prefix=" + strconv.Quote("/tunnel/"+seg)},
		{"/?", "GET /? prefix=" + strconv.Quote("/tunnel/"+seg)},
		{"//evil.example/x", "GET //evil.example/x prefix=" + strconv.Quote("/tunnel/"+seg)},
	} {
		conn, br := w.dial()
		fmt.Fprintf(conn, "GET /tunnel/%s%s HTTP/1.1\r\nHost: %s\r\n\r\n", seg, c.rest, w.public.Host)
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := text(t, resp.Body); got != c.want {
			t.Errorf("path form %s: the app saw %s, want %s", c.rest, got, c.want)
		}
	}
	conn, br := w.dial()
	fmt.Fprintf(conn, "GET //x/../y?z HTTP/1.1\r\nHost: %s.LOCALHOST:%s\r\n\r\n", seg, w.public.Port())
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := text(t, resp.Body), `GET //x/../y?z prefix=""`; got != want {
		t.Errorf("subdomain form: the app saw %s, want %s", got, want)
	}
	resp = w.get(seg, "?a=1")
	if resp.StatusCode != 308 || resp.Header.Get("Location") != "/tunnel/"+seg+"/?a=1" {
		t.Errorf("without the slash: %d %q", resp.StatusCode, resp.Header.Get("Location"))
	}
}

func TestUnknownTunnelsLookAlike(t *testing.T) {
	w := newWorld(t, nil)
	port := w.appFunc(func(http.ResponseWriter, *http.Request) { t.Error("a request reached the app") })
	rec, seg := w.tunnel(port, nil)
	_, expired := w.tunnel(port, func(r *store.TunnelRecord) { r.ExpiresAt = time.Now().Add(-time.Second) })
	wrong := seg[:33] + strings.Map(func(c rune) rune {
		if c == 'a' {
			return 'b'
		}
		return 'a'
	}, seg[33:])
	w.close(rec.Session)
	var first string
	for name, s := range map[string]string{"closed": seg, "expired": expired, "wrong token": wrong, "malformed": "x"} {
		resp := w.get(s, "/")
		id := resp.Header.Get("X-Request-Id")
		body := text(t, resp.Body)
		if resp.StatusCode != 404 || !strings.Contains(body, `"tunnel_not_found"`) || id != "" {
			t.Errorf("%s: %d %s", name, resp.StatusCode, body)
		}
		if i := strings.Index(body, `"request_id"`); i > 0 {
			body = body[:i]
		}
		if first == "" {
			first = body
		}
		if body != first {
			t.Errorf("%s answers differently: %s", name, body)
		}
	}
}

func TestHeaderFidelity(t *testing.T) {
	w := newWorld(t, nil)
	seen := make(chan http.Header, 1)
	port := w.appFunc(func(rw http.ResponseWriter, r *http.Request) {
		h := r.Header.Clone()
		h.Set("Host", r.Host)
		seen <- h
		rw.Header()["X-Two"] = []string{"a", "b"}
		rw.Header().Set("ETag", `W/"x"`)
	})
	_, seg := w.tunnel(port, nil)
	conn, br := w.dial()
	fmt.Fprintf(conn, "GET /tunnel/%s/ HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer app's own\r\n"+
		"Cookie: a=\"q u o\"; b=é,{}; c=1==\r\nX-Dup: 1\r\nX-Dup: 2\r\n"+
		"X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Proto: gopher\r\nX-Forwarded-Prefix: /evil\r\nX-Forwarded-Port: 1\r\n"+
		"X_Forwarded_For: 7.7.7.7\r\nForwarded: for=1.1.1.1\r\nX-Real-IP: 1.1.1.1\r\nProxy-Authorization: Basic x\r\nX-Adit-Hop: 1\r\n"+
		"Connection: keep-alive, X-Forwarded-For, X-Forwarded-Prefix, X-Request-Id, X-Secret\r\nX-Secret: 1\r\nTE: trailers\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n", seg, w.public.Host)
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	text(t, resp.Body)
	h := <-seen
	for name, want := range map[string][]string{
		"Host": {w.public.Host}, "Authorization": {"Bearer app's own"}, "Cookie": {`a="q u o"; b=é,{}; c=1==`}, "X-Dup": {"1", "2"},
		"X-Forwarded-For": {"127.0.0.1"}, "X-Forwarded-Host": {w.public.Host}, "X-Forwarded-Proto": {"http"},
		"X-Forwarded-Prefix": {"/tunnel/" + seg}, "X-Forwarded-Port": nil, "X_forwarded_for": nil, "Forwarded": nil, "X-Real-Ip": nil,
		"Proxy-Authorization": nil, "X-Adit-Hop": nil, "X-Secret": nil, "Te": {"trailers"}, "Upgrade": nil, "Http2-Settings": nil,
		"Connection": nil, "User-Agent": nil, "Accept-Encoding": nil,
	} {
		if got := h[name]; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("the app saw %s: %q, want %q", name, got, want)
		}
	}
	if len(h["X-Request-Id"]) != 1 {
		t.Error("the app got no X-Request-ID")
	}
	if got := resp.Header["X-Two"]; len(got) != 2 || resp.Header.Get("Etag") != `W/"x"` || resp.Header.Get("Referrer-Policy") != "same-origin" {
		t.Errorf("the user saw %v", resp.Header)
	}
	if _, ok := resp.Header["Content-Type"]; ok {
		t.Errorf("a content type was made up: %v", resp.Header)
	}
}

// TestSmuggling sends what proxies and servers have disagreed about. Whatever is
// answered, the app must not see more than one request, and none to /smuggled.
func TestSmuggling(t *testing.T) {
	for name, raw := range map[string]string{
		"CL.TE":              "POST %s/x HTTP/1.1\r\nHost: %s\r\nContent-Length: 48\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"TE.CL":              "POST %s/x HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n2e\r\nGET /smuggled HTTP/1.1\r\nHost: localhost\r\nX: y\r\n0\r\n\r\n",
		"TE obfuscated":      "POST %s/x HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: xchunked\r\nContent-Length: 46\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"TE with space":      "POST %s/x HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding : chunked\r\nContent-Length: 46\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"two TE":             "POST %s/x HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\nContent-Length: 46\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"two CL":             "POST %s/x HTTP/1.1\r\nHost: %s\r\nContent-Length: 0\r\nContent-Length: 41\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"CL with plus":       "POST %s/x HTTP/1.1\r\nHost: %s\r\nContent-Length: +41\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"bare LF":            "GET %s/x HTTP/1.1\nHost: %s\nX: a\n\nGET /smuggled HTTP/1.1\nHost: localhost\n\n",
		"bare CR in value":   "GET %s/x HTTP/1.1\r\nHost: %s\r\nX: a\rGET /smuggled HTTP/1.1\r\n\r\n",
		"LF in chunk size":   "POST %s/x HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n1\n\r\nGET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n0\r\n\r\n",
		"chunk extension":    "POST %s/x HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n1;\nGET /smuggled HTTP/1.1\r\n\r\n0\r\n\r\n",
		"double Host":        "GET %s/x HTTP/1.1\r\nHost: %s\r\nHost: evil\r\n\r\n",
		"folded header":      "GET %s/x HTTP/1.1\r\nHost: %s\r\nX: a\r\n Transfer-Encoding: chunked\r\n\r\n",
		"h2c upgrade":        "GET %s/x HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"upgrade list":       "GET %s/x HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket, h2c\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"upgrade by POST":    "POST %s/x HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nContent-Length: 0\r\n\r\n",
		"upgrade bad key":    "GET %s/x HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: c2hvcnQ=\r\n\r\n",
		"upgrade no key":     "GET %s/x HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n",
		"upgrade old":        "GET %s/x HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 8\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
		"strip our headers":  "GET %s/x HTTP/1.1\r\nHost: %s\r\nConnection: X-Forwarded-For, X-Forwarded-Host, Host, Content-Length\r\n\r\n",
		"absolute form":      "GET http://localhost%s/x HTTP/1.1\r\nHost: %s\r\n\r\n",
		"early end of chunk": "POST %s/x HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			var requests, smuggled, upgrades atomic.Int64
			port := w.rawApp(func(c net.Conn) {
				br := bufio.NewReader(c)
				for {
					r, err := http.ReadRequest(br)
					if err != nil {
						return
					}
					requests.Add(1)
					if strings.Contains(r.URL.Path, "smuggled") {
						smuggled.Add(1)
					}
					if r.Header.Get("Upgrade") != "" || r.Header.Get("Http2-Settings") != "" {
						upgrades.Add(1)
					}
					if r.Header.Get("X-Forwarded-For") != "127.0.0.1" || r.Header.Get("X-Forwarded-Host") == "" {
						t.Errorf("the relay's own headers were taken away: %v", r.Header)
					}
					io.Copy(io.Discard, r.Body)
					fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
				}
			})
			_, seg := w.tunnel(port, nil)
			conn, br := w.dial()
			fmt.Fprintf(conn, raw, "/tunnel/"+seg, w.public.Host)
			for range 2 {
				_ = conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
				resp, err := http.ReadResponse(br, nil)
				if err != nil {
					break
				}
				if resp.StatusCode == 101 {
					t.Error("the upgrade went through")
				}
				io.Copy(io.Discard, resp.Body)
			}
			if requests.Load() > 1 || smuggled.Load() > 0 || upgrades.Load() > 0 {
				t.Errorf("the app saw %d requests, %d smuggled, %d upgrades", requests.Load(), smuggled.Load(), upgrades.Load())
			}
		})
	}
}

// TestEarlyAnswerToUpload: an app may refuse an upload it has not read.
func TestHeadAndBodilessAndRange(t *testing.T) {
	w := newWorld(t, nil)
	content := strings.Repeat("0123456789", 100)
	port := w.appFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/204":
			rw.WriteHeader(204)
		case "/304":
			rw.Header().Set("ETag", `"e"`)
			rw.WriteHeader(304)
		default:
			rw.Header().Set("ETag", `"e"`)
			http.ServeContent(rw, r, "x.bin", time.Unix(1e9, 0), strings.NewReader(content))
		}
	})
	_, seg := w.tunnel(port, nil)
	for range 3 { // keep-alive stays in step
		resp := w.do(w.request("HEAD", seg, "/f", nil))
		if resp.ContentLength != 1000 || text(t, resp.Body) != "" {
			t.Errorf("HEAD: length %d", resp.ContentLength)
		}
		if resp := w.get(seg, "/204"); resp.StatusCode != 204 || text(t, resp.Body) != "" {
			t.Errorf("204 came as %d", resp.StatusCode)
		}
		if resp := w.get(seg, "/304"); resp.StatusCode != 304 || resp.Header.Get("Etag") != `"e"` {
			t.Errorf("304 came as %d", resp.StatusCode)
		}
		r := w.request("GET", seg, "/f", nil)
		r.Header.Set("Range", "bytes=5-14")
		resp = w.do(r)
		if resp.StatusCode != 206 || text(t, resp.Body) != "5678901234" || resp.Header.Get("Content-Range") != "bytes 5-14/1000" {
			t.Errorf("range: %d %v", resp.StatusCode, resp.Header)
		}
	}
	if n := w.machine.opened.Load(); n != 1 {
		t.Errorf("%d streams were opened for requests one after the other", n)
	}
}

func TestGzipPassesUntouched(t *testing.T) {
	w := newWorld(t, nil)
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	io.WriteString(z, "hello")
	z.Close()
	port := w.appFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Encoding", "gzip")
		rw.Write(zipped.Bytes())
	})
	_, seg := w.tunnel(port, nil)
	resp := w.get(seg, "/")
	if got := text(t, resp.Body); got != zipped.String() || resp.Header.Get("Content-Encoding") != "gzip" {
		t.Errorf("the body was touched: %q", got)
	}
}

// TestBothWaysAtOnce: an app may answer while the request still comes.
func TestStreamsAreNotSharedBetweenTunnels(t *testing.T) {
	w := newWorld(t, nil)
	var conns atomic.Int64
	port := w.rawApp(func(c net.Conn) {
		n := conns.Add(1)
		br := bufio.NewReader(c)
		for {
			if _, err := http.ReadRequest(br); err != nil {
				return
			}
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d", n)
		}
	})
	a, segA := w.tunnel(port, nil)
	_, segB := w.tunnel(port, nil)
	var got string
	for range 3 {
		got += text(t, w.get(segA, "/").Body) + text(t, w.get(segB, "/").Body)
	}
	if got != "121212" {
		t.Errorf("two tunnels to one port used connections %s", got)
	}
	// A closed tunnel leaves no connection behind.
	w.close(a.Session)
	_, segC := w.tunnel(port, nil)
	if got := text(t, w.get(segC, "/").Body); got != "3" {
		t.Errorf("a new tunnel got connection %s", got)
	}
}

// TestIdleStreamClosedByApp: uvicorn closes idle connections after 5 s; no request
// may be lost to that, a POST least of all.
func TestIdleStreamClosedByApp(t *testing.T) {
	w := newWorld(t, nil)
	closed := make(chan struct{}, 10)
	port := w.rawApp(func(c net.Conn) {
		if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			io.Copy(io.Discard, r.Body)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			c.Close()
			closed <- struct{}{}
		}
	})
	_, seg := w.tunnel(port, nil)
	for i := range 10 {
		resp := w.do(w.request([]string{"GET", "POST"}[i%2], seg, "/", nil))
		if resp.StatusCode != 200 {
			t.Errorf("request %d: %d %s", i, resp.StatusCode, text(t, resp.Body))
		}
		text(t, resp.Body)
		<-closed
		if i%2 == 0 { // the next is a POST: let the watcher see the end
			eventually(t, "the idle stream is noticed to be gone", func() bool { return w.edge.IdleStreams() == 0 })
		}
	}
}

func TestHostModes(t *testing.T) {
	w := newWorld(t, nil)
	port := w.appFunc(func(rw http.ResponseWriter, r *http.Request) {
		if o := r.Header.Get("Origin"); o != "" {
			rw.Header().Set("Access-Control-Allow-Origin", o)
		}
		fmt.Fprintf(rw, "%s|%s|%s|%s", r.Host, r.Header.Get("Origin"), r.Header.Get("Referer"), r.Header.Get("X-Forwarded-Host"))
	})
	public := w.public.String()
	local := fmt.Sprintf("127.0.0.1:%d", port)
	_, asIs := w.tunnel(port, nil)
	_, loc := w.tunnel(port, func(r *store.TunnelRecord) {
		r.AskedHost = api.HostLocal
		r.AllowOrigins = []string{"https://Front.example:443"}
	})
	_, auto := w.tunnel(port, func(r *store.TunnelRecord) { r.AskedHost, r.HostHeader = api.HostAuto, api.HostLocal })
	_, undecided := w.tunnel(port, func(r *store.TunnelRecord) { r.AskedHost = api.HostAuto })
	for _, c := range []struct{ name, seg, origin, referer, want string }{
		{"public", asIs, public, public + "/tunnel/" + asIs + "/p", w.public.Host + "|" + public + "|" + public + "/tunnel/" + asIs + "/p|" + w.public.Host},
		{"local", loc, public, public + "/tunnel/" + loc + "/p?q", local + "|http://" + local + "|http://" + local + "/p?q|" + w.public.Host},
		{"local, allowed origin", loc, "https://front.example", "https://front.example/x", local + "|http://" + local + "|http://" + local + "/x|" + w.public.Host},
		{"local, foreign origin of a GET", loc, "https://evil.example", "https://evil.example/x", local + "|https://evil.example|https://evil.example/x|" + w.public.Host},
		{"auto, found local", auto, "", "", local + "|||" + w.public.Host},
		{"auto, unknown", undecided, "", "", w.public.Host + "|||" + w.public.Host},
	} {
		r := w.request("GET", c.seg, "/", nil)
		if c.origin != "" {
			r.Header.Set("Origin", c.origin)
			r.Header.Set("Referer", c.referer)
		}
		resp := w.do(r)
		if got := text(t, resp.Body); got != c.want {
			t.Errorf("%s: the app saw %s, want %s", c.name, got, c.want)
		}
		if got := resp.Header.Get("Access-Control-Allow-Origin"); got != c.origin {
			t.Errorf("%s: the browser is told %q, want %q", c.name, got, c.origin)
		}
	}
}

func TestNavigationLosesSecFetch(t *testing.T) {
	w := newWorld(t, nil)
	port := w.appFunc(func(rw http.ResponseWriter, r *http.Request) { fmt.Fprint(rw, r.Header.Get("Sec-Fetch-Site")) })
	_, seg := w.tunnel(port, nil)
	for _, c := range []struct{ mode, dest, want string }{{"navigate", "document", ""}, {"navigate", "iframe", "cross-site"}, {"cors", "empty", "cross-site"}} {
		r := w.request("GET", seg, "/", nil)
		r.Header.Set("Sec-Fetch-Site", "cross-site")
		r.Header.Set("Sec-Fetch-Mode", c.mode)
		r.Header.Set("Sec-Fetch-Dest", c.dest)
		if got := text(t, w.do(r).Body); got != c.want {
			t.Errorf("%s/%s: the app saw Sec-Fetch-Site %q, want %q", c.mode, c.dest, got, c.want)
		}
	}
}

// Over HTTP/2 net/http takes "trailer: a,," for an announcement of a field without a
// name.
func TestATrailerWithoutANameIsNone(t *testing.T) {
	w := newWorld(t, nil)
	port := w.appFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(rw, "%s %v", body, r.Trailer)
	})
	_, seg := w.tunnel(port, nil)
	r := httptest.NewRequest("POST", "/tunnel/"+seg+"/", io.MultiReader(strings.NewReader("hi")))
	r.Host, r.ContentLength, r.Trailer = w.public.Host, -1, http.Header{"": nil, "X-Sum": {"1"}}
	answer := httptest.NewRecorder()
	w.edge.ServeHTTP(answer, r)
	if got := answer.Body.String(); answer.Code != http.StatusOK || got != "hi map[X-Sum:[1]]" {
		t.Errorf("it is answered %d %s", answer.Code, got)
	}
}

func TestHTTP2Front(t *testing.T) {
	w := newWorld(t, func(c *edge.Config) { c.PathFallback = "tls" })
	port := w.appFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Set-Cookie", "a=b; Path=/; Domain=x")
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(rw, "%s %s %s %s", r.Proto, r.Header.Get("X-Forwarded-Proto"), r.Header.Get("Cookie"), body)
	})
	_, seg := w.tunnel(port, nil)
	r := w.request("POST", seg, "/", strings.NewReader("hi"))
	r.Header["Cookie"] = []string{"a=1; b=2"}
	resp := w.do(r)
	if got := text(t, resp.Body); resp.ProtoMajor != 2 || got != "HTTP/1.1 https a=1; b=2 hi" {
		t.Errorf("%s: %s", resp.Proto, got)
	}
	if got, want := resp.Header.Get("Set-Cookie"), "a=b; Path=/tunnel/"+seg+"/; Secure"; got != want {
		t.Errorf("cookie %q, want %q", got, want)
	}
}

package web_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/adit-tunnel/adit/relay/internal/web"
	"github.com/adit-tunnel/adit/shared/api"
)

var public = &url.URL{Scheme: "https", Host: "relay.example.com:8443"}

func read(t *testing.T, files fstest.MapFS) *web.Assets {
	t.Helper()
	a, err := web.Read(files, public)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func ask(h http.Handler, path string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, path, nil)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestPagesAndFiles(t *testing.T) {
	a := read(t, fstest.MapFS{
		".keep": {Data: []byte("x")}, "terminal.html": {Data: []byte("<page>")}, "terminal.html.gz": {Data: []byte("zipped page")},
		"terminal-ABC.js": {Data: []byte("script")}, "terminal-ABC.js.gz": {Data: []byte("zipped")},
	})
	if !a.Built() {
		t.Error("the assets are there")
	}
	page := ask(a.Page("terminal"), "/terminal/x")
	if page.Code != 200 || page.Body.String() != "<page>" || page.Header().Get("Content-Type") != "text/html; charset=utf-8" {
		t.Errorf("the page: %d %s %v", page.Code, page.Body, page.Header())
	}
	if again := ask(a.Page("terminal"), "/terminal/x", "If-None-Match", page.Header().Get("ETag")); again.Code != http.StatusNotModified || again.Body.Len() != 0 {
		t.Errorf("an unchanged page is not sent again: %d", again.Code)
	}
	if got := page.Header().Get("Cache-Control"); got != "no-cache" {
		t.Errorf("a page is asked for each time, got %q", got)
	}
	file := ask(a.Files(), web.Path+"terminal-ABC.js", "Accept-Encoding", "br, gzip;q=0.8")
	if file.Body.String() != "zipped" || file.Header().Get("Content-Encoding") != "gzip" || !strings.Contains(file.Header().Get("Cache-Control"), "immutable") || file.Header().Get("Content-Type") != "text/javascript; charset=utf-8" {
		t.Errorf("a file: %s %v", file.Body, file.Header())
	}
	for _, accept := range []string{"", "br", "gzip;q=0", "x-gzip"} {
		if got := ask(a.Files(), web.Path+"terminal-ABC.js", "Accept-Encoding", accept).Body.String(); got != "script" {
			t.Errorf("Accept-Encoding %q gets %q, want it plain", accept, got)
		}
	}
	for _, name := range []string{"nothing.js", "terminal.html", ".keep", "terminal-ABC.js.gz", "", "../web.go", "%2e%2e/web.go"} {
		if got := ask(a.Files(), web.Path+name); got.Code != http.StatusNotFound || got.Header().Get("Content-Type") != api.ProblemContentType || got.Header().Get("Content-Security-Policy") != api.StrictPolicy {
			t.Errorf("%q is no file for pages: %d %v", name, got.Code, got.Header())
		}
	}
}

func TestEveryAnswerIsStrict(t *testing.T) {
	a := read(t, fstest.MapFS{"terminal.html": {Data: []byte("x")}, "a.js": {Data: []byte("x")}})
	for name, w := range map[string]*httptest.ResponseRecorder{
		"page": ask(a.Page("terminal"), "/"), "not built": ask(a.Page("missing"), "/"), "file": ask(a.Files(), web.Path+"a.js"),
	} {
		policy := w.Header().Get("Content-Security-Policy")
		for _, want := range []string{"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self' wss://relay.example.com:8443", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"} {
			if !strings.Contains(policy+";", want+";") {
				t.Errorf("%s: the policy has %s: %s", name, want, policy)
			}
		}
		if strings.Contains(policy, "unsafe") {
			t.Errorf("%s: the policy allows something unsafe: %s", name, policy)
		}
		for key, want := range map[string]string{"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cross-Origin-Opener-Policy": "same-origin", "X-Frame-Options": "DENY"} {
			if got := w.Header().Get(key); got != want {
				t.Errorf("%s: %s is %q, want %q", name, key, got, want)
			}
		}
	}
}

func TestWithoutAssetsThePageSaysSo(t *testing.T) {
	a := read(t, fstest.MapFS{".keep": {Data: []byte("x")}})
	if a.Built() {
		t.Error("nothing is there")
	}
	w := ask(a.Page("terminal"), "/")
	if w.Code != 200 || !strings.Contains(w.Body.String(), "built without its web pages") || !strings.Contains(w.Body.String(), "scripts/build") {
		t.Errorf("the page says what is missing and how to mend it: %d %s", w.Code, w.Body)
	}
}

// A page that was called by another name of the relay learns its own address, whatever
// the path holds, and nothing of what was asked for beside it.
func TestPagesSayWhereTheyBelong(t *testing.T) {
	a := read(t, fstest.MapFS{"terminal.html": {Data: []byte("<page>")}})
	for target, want := range map[string]string{
		"http://127.0.0.1:8080/terminal/ab?x=1": `<https://relay.example.com:8443/terminal/ab>; rel="canonical"`,
		"http://127.0.0.1:8080/terminal/a%3Eb":  `<https://relay.example.com:8443/terminal/a%3Eb>; rel="canonical"`,
	} {
		if got := ask(a.Page("terminal"), target).Header().Get("Link"); got != want {
			t.Errorf("%s: the page's address is %q, want %q", target, got, want)
		}
	}
}

// Where the pages have a host to themselves, each address of theirs leads there, and
// nowhere else.
func TestPagesAloneOnTheirHost(t *testing.T) {
	a := read(t, fstest.MapFS{"console.html": {Data: []byte("<page>")}, "x.js": {Data: []byte("script")}}).
		Alone(func(host string) bool { return host == public.Host })
	for target, want := range map[string]string{
		"https://" + public.Host + "/console":   "",
		"http://gateway.example.com/console":    "https://relay.example.com:8443/console",
		"http://evil.example/console?a=%2Fb&c":  "https://relay.example.com:8443/console?a=%2Fb&c",
		"http://gateway.example.com/a%2f..//b/": "https://relay.example.com:8443/a%2f..//b/",
	} {
		got := ask(a.Page("console"), target)
		if got.Header().Get("Location") != want || want == "" != (got.Code == 200) || want != "" && (got.Code != http.StatusTemporaryRedirect || got.Header().Get("Cache-Control") != "no-store") {
			t.Errorf("%s: %d to %q, want %q", target, got.Code, got.Header().Get("Location"), want)
		}
	}
	if got := ask(a.Files(), "http://gateway.example.com"+web.Path+"x.js"); got.Code != 200 {
		t.Errorf("a file: %d", got.Code)
	}
}

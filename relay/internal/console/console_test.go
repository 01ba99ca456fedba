package console_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/adit-tunnel/adit/relay/internal/console"
	"github.com/adit-tunnel/adit/relay/internal/web"
)

func serve(t *testing.T, dir fstest.MapFS) *http.ServeMux {
	t.Helper()
	pages, err := web.Read(dir, &url.URL{Scheme: "https", Host: "gw.example"})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	for pattern, h := range console.Routes(pages) {
		mux.Handle(pattern, h)
	}
	return mux
}

func get(mux *http.ServeMux, path string) *http.Response {
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Result()
}

func TestRoutes(t *testing.T) {
	mux := serve(t, fstest.MapFS{"console.html": {Data: []byte("<!doctype html><title>console</title>")}})
	r := get(mux, console.Path)
	if r.StatusCode != 200 || !strings.HasPrefix(r.Header.Get("Content-Type"), "text/html") {
		t.Errorf("the console: %d %v", r.StatusCode, r.Header)
	}
	for name, want := range map[string]string{
		"Content-Security-Policy": "script-src 'self'", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
		"Cross-Origin-Opener-Policy": "same-origin", "X-Frame-Options": "DENY",
	} {
		if got := r.Header.Get(name); !strings.Contains(got, want) || strings.Contains(got, "unsafe") {
			t.Errorf("%s: %q", name, got)
		}
	}
	if pair := get(mux, "/desktop/pair?user_code=AB7K-PNQ3"); pair.StatusCode != 200 || pair.Header.Get("Etag") != r.Header.Get("Etag") {
		t.Errorf("the page that pairs devices is the console's: %d %v", pair.StatusCode, pair.Header)
	}
	if r.Header.Get("Set-Cookie") != "" {
		t.Error("the console sets no cookie")
	}
	if r := get(mux, console.Path+"/"); r.StatusCode != http.StatusPermanentRedirect || r.Header.Get("Location") != console.Path {
		t.Errorf("with a slash: %d %s", r.StatusCode, r.Header.Get("Location"))
	}
	if r := get(mux, console.Path+"/x"); r.StatusCode != 404 {
		t.Errorf("nothing is below: %d", r.StatusCode)
	}
}

func TestWithoutAssetsItSaysSo(t *testing.T) {
	r := get(serve(t, fstest.MapFS{}), console.Path)
	body := make([]byte, 4096)
	n, _ := r.Body.Read(body)
	if r.StatusCode != 200 || !strings.Contains(string(body[:n]), "built without its web pages") {
		t.Errorf("a relay without assets: %d %s", r.StatusCode, body[:n])
	}
}

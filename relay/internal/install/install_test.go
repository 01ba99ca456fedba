package install_test

import (
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/adit-tunnel/adit/relay/internal/install"
)

func serve(dir, url string) (*install.Files, *http.ServeMux) {
	reg := prometheus.NewRegistry()
	f := install.New(install.Config{Dir: dir, URL: url, Logger: slog.New(slog.DiscardHandler), Registerer: reg})
	mux := http.NewServeMux()
	for pattern, h := range f.Routes() {
		mux.Handle(pattern, h)
	}
	return f, mux
}

func get(mux http.Handler, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestNothingToHandOut(t *testing.T) {
	for _, dir := range []string{"", t.TempDir(), "/nowhere/at/all"} {
		f, mux := serve(dir, "https://gw.example")
		if f.Offered() {
			t.Errorf("%q: nothing is offered", dir)
		}
		for _, path := range []string{"/install", "/install/SHA256SUMS", "/install/adit-agent_1.0.0-1_amd64.deb"} {
			if w := get(mux, path); w.Code != http.StatusNotFound || !strings.Contains(w.Body.String(), "release_dir") {
				t.Errorf("%q: %s says what is missing: %d %s", dir, path, w.Code, w.Body)
			}
		}
	}
}

func TestTheScriptKnowsItsRelay(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "install", "#!/bin/sh\necho hello\n")
	f, mux := serve(dir, "https://gw.example/it's")
	w := get(mux, "/install")
	if want := "#!/bin/sh\nADIT_SERVED_BY='https://gw.example/it'\\''s'\necho hello\n"; w.Code != http.StatusOK || w.Body.String() != want {
		t.Errorf("the script is %d %q, want %q", w.Code, w.Body, want)
	}
	if !f.Offered() || w.Header().Get("X-Content-Type-Options") != "nosniff" || w.Header().Get("Content-Security-Policy") == "" {
		t.Errorf("the script goes out as text that no browser runs: %v", w.Header())
	}
}

func TestPackagesAndTheirChecksums(t *testing.T) {
	dir := t.TempDir()
	const deb, tarball = "adit-agent_1.2.3-1_amd64.deb", "adit-agent_1.2.3_linux_arm64.tar.gz"
	write(t, dir, deb, "first")
	write(t, dir, tarball, "second")
	for _, other := range []string{"adit-relay_1.2.3-1_amd64.deb", "secret", "adit-agent_1.2.3-1_amd64.deb.bak"} {
		write(t, dir, other, "not for you")
	}
	if err := os.Mkdir(filepath.Join(dir, "adit-agent_1.2.4-1_amd64.deb.d"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, mux := serve(dir, "https://gw.example")
	sums := func() string { return get(mux, "/install/SHA256SUMS").Body.String() }
	line := func(text, name string) string { return fmt.Sprintf("%x  %s\n", sha256.Sum256([]byte(text)), name) }
	if got, want := sums(), line("first", deb)+line("second", tarball); got != want {
		t.Errorf("checksums:\n%swant:\n%s", got, want)
	}
	if w := get(mux, "/install/"+deb); w.Code != http.StatusOK || w.Body.String() != "first" || w.Header().Get("ETag") == "" {
		t.Errorf("the package: %d %q %v", w.Code, w.Body, w.Header())
	}
	for _, path := range []string{"adit-relay_1.2.3-1_amd64.deb", "secret", deb + ".bak", "..%2f" + deb, "adit-agent_..%2f..%2fetc_amd64.deb", "install"} {
		if w := get(mux, "/install/"+path); w.Code != http.StatusNotFound || strings.Contains(w.Body.String(), "not for you") {
			t.Errorf("%s: %d %q", path, w.Code, w.Body)
		}
	}
	write(t, dir, deb, "a newer one")
	if got := sums(); !strings.Contains(got, line("a newer one", deb)) {
		t.Errorf("a replaced package has its own checksum:\n%s", got)
	}
}

func TestMetricNames(t *testing.T) {
	reg := prometheus.NewRegistry()
	install.New(install.Config{Registerer: reg})
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("metrics: %v %v", problems, err)
	}
}

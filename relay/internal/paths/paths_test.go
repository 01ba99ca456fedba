package paths_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/adit-tunnel/adit/relay/internal/paths"
	"github.com/adit-tunnel/adit/shared/api"
)

func TestOwnPaths(t *testing.T) {
	answer := func(status int) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Seen", r.URL.Path+" "+r.PathValue("name"))
			w.WriteHeader(status)
		})
	}
	ready := true
	own := paths.New(paths.Config{
		API: answer(http.StatusTeapot), Link: answer(http.StatusAccepted), Enroll: answer(http.StatusCreated),
		Ready: func(context.Context) (string, *api.Problem) {
			if ready {
				return "the store is nearly full", nil
			}
			return "", api.NewProblem(api.CodeRelayDraining, "stopping")
		},
		More: map[string]http.Handler{"GET /page/{name}": answer(http.StatusFound)},
		Home: "https://console.example/console",
	})
	ask := func(method, path string) *httptest.ResponseRecorder {
		w, r := httptest.NewRecorder(), httptest.NewRequest(method, path, nil)
		w.Code = 0
		if h := own.Find(r); h != nil {
			h.ServeHTTP(w, r)
		}
		return w
	}
	const none = 0 // the path is not the relay's
	for _, c := range []struct {
		method, path string
		want         int
		seen         string
	}{
		{"GET", "/api/v1/agents", http.StatusTeapot, "/api/v1/agents "},
		{"GET", "/api//v1/../x", http.StatusTeapot, "/api//v1/../x "}, // as it came
		{"GET", "/agent/v1/link", http.StatusAccepted, "/agent/v1/link "},
		{"GET", "/page/a", http.StatusFound, "/page/a a"},
		{"GET", "//page/a", http.StatusTemporaryRedirect, ""},
		{"GET", "/healthz", http.StatusOK, ""},
		{"POST", "/healthz", none, ""},
		{"GET", "/readyz", http.StatusOK, ""},
		{"GET", "/", none, ""},
		{"GET", "/static/app.js", none, ""},
		{"GET", "/metrics", none, ""},
		{"GET", "/debug/pprof/", none, ""},
	} {
		if w := ask(c.method, c.path); w.Code != c.want || w.Header().Get("Seen") != c.seen {
			t.Errorf("%s %s answers %d and was seen as %q, want %d and %q", c.method, c.path, w.Code, w.Header().Get("Seen"), c.want, c.seen)
		}
	}
	if got := ask("GET", "/readyz").Body.String(); got != "ready; the store is nearly full\n" {
		t.Errorf("/readyz of a relay that is ready says %q", got)
	}
	ready = false
	if w := ask("GET", "/readyz"); w.Code != http.StatusServiceUnavailable {
		t.Errorf("a draining relay's /readyz answers %d, want 503", w.Code)
	}
}

// What is found nowhere is answered here, once nobody else wants it.
func TestElse(t *testing.T) {
	own := paths.New(paths.Config{
		API: http.NotFoundHandler(), Link: http.NotFoundHandler(), Enroll: http.NotFoundHandler(),
		Ready: func(context.Context) (string, *api.Problem) { return "", nil }, Home: "https://console.example/console",
	})
	for _, c := range []struct {
		method, path string
		status       int
		header, want string
	}{
		{"GET", "/", http.StatusSeeOther, "Location", "https://console.example/console"},
		{"HEAD", "/", http.StatusSeeOther, "Location", "https://console.example/console"},
		{"GET", "/?next=//evil.example", http.StatusSeeOther, "Location", "https://console.example/console"},
		{"POST", "/", http.StatusMethodNotAllowed, "Allow", "GET, HEAD"},
		{"POST", "/healthz", http.StatusMethodNotAllowed, "Allow", "GET, HEAD"},
		{"GET", api.EnrollPath, http.StatusMethodNotAllowed, "Allow", "POST"},
		{"GET", "/static/app.js", http.StatusNotFound, "Content-Type", api.ProblemContentType},
		{"DELETE", "/static/app.js", http.StatusNotFound, "Allow", ""},
	} {
		w, r := httptest.NewRecorder(), httptest.NewRequest(c.method, c.path, nil)
		if own.Find(r) != nil {
			t.Fatalf("%s %s is served already", c.method, c.path)
		}
		own.Else(w, r)
		if w.Code != c.status || w.Header().Get(c.header) != c.want {
			t.Errorf("%s %s answers %d with %s %q, want %d and %q", c.method, c.path, w.Code, c.header, w.Header().Get(c.header), c.status, c.want)
		}
	}
}

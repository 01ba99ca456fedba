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

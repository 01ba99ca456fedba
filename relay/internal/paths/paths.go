// Package paths owns the list of the relay's own paths, as against those of tunnels:
// the API, links, pages, health checks; where "/" leads, and what is said where nothing
// is. It never authenticates and never answers for a tunnel.
package paths

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"github.com/adit-tunnel/adit/relay/internal/problems"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

// Config says what serves which path.
type Config struct {
	API    http.Handler                                        // everything under /api/
	Link   http.Handler                                        // wire.LinkPath
	Enroll http.Handler                                        // api.EnrollPath
	Ready  func(context.Context) (note string, _ *api.Problem) // nil when the relay is ready, with a note if not all is well
	More   map[string]http.Handler                             // further patterns of http.ServeMux
	Home   string                                              // where "/" leads
}

// Paths finds what serves a path of the relay.
type Paths struct {
	mux  *http.ServeMux
	api  http.Handler
	home string
}

// New returns the paths.
func New(c Config) *Paths {
	mux := http.NewServeMux()
	mux.Handle("/api/", c.API)
	mux.Handle("GET "+wire.LinkPath, c.Link)
	mux.Handle("POST "+api.EnrollPath, c.Enroll)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { plain(w, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		note, p := c.Ready(r.Context())
		switch {
		case p != nil:
			problems.AnswerOwn(w, r, p, ident.NewRequestID())
		case note != "":
			plain(w, "ready; "+note+"\n")
		default:
			plain(w, "ready\n")
		}
	})
	for pattern, handler := range c.More {
		mux.Handle(pattern, handler)
	}
	return &Paths{mux: mux, api: c.API, home: c.Home}
}

// Find returns what serves a request; nil when its path is none of the relay's. What is
// under /api/ goes there as it came, without the mux: that would redirect "//" and ".."
// before anybody asked who is calling.
func (p *Paths) Find(r *http.Request) http.Handler {
	if strings.HasPrefix(r.URL.Path, "/api/") {
		return p.api
	}
	if _, pattern := p.mux.Handler(r); pattern != "" {
		return p.mux
	}
	return nil
}

// Else answers a request for which Find returned nothing, once it is known to be for no
// tunnel either: "/" leads to the console, all else is a problem.
func (p *Paths) Else(w http.ResponseWriter, r *http.Request) {
	allowed := p.allowed(r)
	switch {
	case r.URL.Path == "/" && slices.Contains(allowed, r.Method):
		w.Header().Set("Location", p.home)
		w.Header().Set("Cache-Control", "no-store") // console_url may be set tomorrow
		w.Header().Set("Referrer-Policy", "no-referrer")
		w.WriteHeader(http.StatusSeeOther)
	case len(allowed) > 0:
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		problems.AnswerOwn(w, r, api.Problemf(api.CodeMethodNotAllowed, "allowed here: %s", strings.Join(allowed, ", ")), ident.NewRequestID())
	default:
		problems.AnswerOwn(w, r, api.NewProblem(api.CodeNotFound, "there is neither a page nor a tunnel at this address; the API is under "+api.Base), ident.NewRequestID())
	}
}

// allowed lists the methods that a path takes.
func (p *Paths) allowed(r *http.Request) (methods []string) {
	if r.URL.Path == "/" {
		return []string{http.MethodGet, http.MethodHead}
	}
	for _, m := range []string{http.MethodGet, http.MethodHead, http.MethodPost} {
		if _, pattern := p.mux.Handler(&http.Request{Method: m, URL: r.URL, Host: r.Host}); pattern != "" {
			methods = append(methods, m)
		}
	}
	return methods
}

func plain(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Content-Security-Policy", api.StrictPolicy)
	_, _ = w.Write([]byte(text)) // the peer may be gone
}

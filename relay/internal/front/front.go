// Package front owns the relay's public listener, with its TLS and its limits by
// address, and the list of the relay's own paths. It never authenticates and never
// answers for a tunnel.
package front

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/carrier"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

// Routes are the relay's own paths, as against those of tunnels.
type Routes struct {
	API   http.Handler                                        // everything under /api/
	Link  http.Handler                                        // wire.LinkPath
	Enrol http.Handler                                        // api.EnrollPath
	Ready func(context.Context) (note string, _ *api.Problem) // nil when the relay is ready, with a note if not all is well
	More  map[string]http.Handler                             // further patterns of http.ServeMux
}

// Own is the handler of the relay's own paths.
type Own struct {
	mux *http.ServeMux
	api http.Handler
}

// NewOwn returns the handler for the routes.
func NewOwn(rt Routes) *Own {
	mux := http.NewServeMux()
	mux.Handle("/api/", rt.API)
	mux.Handle("GET "+wire.LinkPath, rt.Link)
	mux.Handle("POST "+api.EnrollPath, rt.Enrol)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { plain(w, http.StatusOK, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		note, p := rt.Ready(r.Context())
		switch {
		case p != nil:
			p.Write(w, ident.NewRequestID())
		case note != "":
			plain(w, http.StatusOK, "ready; "+note+"\n")
		default:
			plain(w, http.StatusOK, "ready\n")
		}
	})
	for pattern, handler := range rt.More {
		mux.Handle(pattern, handler)
	}
	return &Own{mux: mux, api: rt.API}
}

// Owns says whether a request is for a path of the relay.
func (o *Own) Owns(r *http.Request) bool {
	_, pattern := o.mux.Handler(r)
	return pattern != ""
}

// ServeHTTP serves the relay's own paths; others get a problem. What is under /api/
// goes there as it came: the mux would redirect "//" and ".." before anybody asked
// who is calling.
func (o *Own) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, "/api/") {
		o.api.ServeHTTP(w, r)
		return
	}
	if !o.Owns(r) {
		api.NewProblem(http.StatusNotFound, "not_found", api.HopRelay, "nothing is here; tunnels have addresses of their own, and the API is under "+api.Base).Write(w, ident.NewRequestID())
		return
	}
	o.mux.ServeHTTP(w, r)
}

func plain(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Content-Security-Policy", api.StrictPolicy)
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text)) // the peer may be gone
}

// Config is what a Server is made of.
type Config struct {
	Listen          string
	TLS             *tls.Config       // nil: plain HTTP
	ConnsPerAddress int               // 0: no limit
	Exempt          func(net.IP) bool // addresses without that limit: trusted proxies
	Handler         http.Handler      // required
	Logger          *slog.Logger      // required
	ConnState       func(net.Conn, http.ConnState)
}

// Server is the public listener.
type Server struct {
	cfg  Config
	http *http.Server
	ln   net.Listener
}

// New returns a Server that does not listen yet.
func New(cfg Config) *Server {
	return &Server{cfg: cfg, http: &http.Server{
		Handler: cfg.Handler,
		// No read or write deadline: tunnels carry uploads and streams of any length.
		ReadHeaderTimeout: 15 * time.Second,
		IdleTimeout:       3 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug),
		ConnState:         cfg.ConnState,
		TLSConfig:         cfg.TLS,
	}}
}

// Open starts to listen.
func (s *Server) Open(ctx context.Context) error {
	lc := net.ListenConfig{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 4}}
	ln, err := lc.Listen(ctx, "tcp", s.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", s.cfg.Listen, err)
	}
	s.ln = newLimited(frugal{ln}, s.cfg.ConnsPerAddress, s.cfg.Exempt)
	if s.http.TLSConfig != nil {
		s.ln = carrier.Listener(s.ln) // agents' links want their buffers beneath TLS
	}
	return nil
}

// frugal is a listener for connections on which the kernel queues little.
type frugal struct{ net.Listener }

// Accept implements net.Listener.
func (l frugal) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		queueLittle(c)
	}
	return c, err
}

// Addr is the address listened on, once Open returned.
func (s *Server) Addr() net.Addr { return s.ln.Addr() }

// Serve serves until Shutdown or Close. Open comes first.
func (s *Server) Serve() error {
	var err error
	if s.http.TLSConfig != nil {
		err = s.http.ServeTLS(s.ln, "", "")
	} else {
		err = s.http.Serve(s.ln)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve on %s: %w", s.cfg.Listen, err)
}

// Shutdown stops listening and waits for running requests until ctx ends. It does
// not know hijacked connections.
func (s *Server) Shutdown(ctx context.Context) error { return s.http.Shutdown(ctx) }

// Close ends every connection that is not hijacked.
func (s *Server) Close() error { return s.http.Close() }

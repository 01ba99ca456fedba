// Package local owns the agent's interface for programs on its own machine: status,
// task leases (passed on to the relay, which decides), declared state and the kill
// switch, over a unix socket and, if wanted, a loopback port; and the hooks that
// run when tunnels open and close. It grants no lease by itself, ever: without the
// relay it can only refuse.
package local

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/agent/internal/status"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/metric"
	"github.com/adit-tunnel/adit/shared/wire"
)

// Link is the way to the relay's gate.
type Link interface {
	// Wait waits until a link is up.
	Wait(ctx context.Context) error
	// OpenGate opens a stream on which the relay serves this agent's own routes.
	OpenGate(ctx context.Context, request ident.RequestID) (net.Conn, error)
}

// Tunnels is the agent's knowledge of what is open.
type Tunnels interface {
	List() []wire.TunnelNotice
	Count() int
	Known() <-chan struct{}
	Subscribe() (changed <-chan struct{}, cancel func())
}

// Config is what a Server needs.
type Config struct {
	Agent   ident.AgentID
	Link    Link
	Tunnels Tunnels
	Board   *status.Board
	Report  func() status.Report
	Pause   func(paused bool) error // throws the kill switch and ends streams
	Metrics http.Handler            // serves /metrics
	Diag    func(w io.Writer) error // writes a diagnostic bundle; over the socket only

	Hold       time.Duration // how long a task call waits for a lost link; default 2 s
	CallTime   time.Duration // limit of one call to the relay; default 15 s
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Server serves the local interface.
type Server struct {
	conf      Config
	transport *http.Transport
	refusals  *prometheus.CounterVec
}

const (
	maxBody    = 64 << 10 // of requests, as on the relay
	maxAnswer  = 1 << 20
	stopServer = 2 * time.Second // for requests that run when the agent stops
)

// New returns a Server. Nothing listens until Serve.
func New(conf Config) *Server {
	if conf.Hold == 0 {
		conf.Hold = 2 * time.Second
	}
	if conf.CallTime == 0 {
		conf.CallTime = 15 * time.Second
	}
	s := &Server{
		conf:     conf,
		refusals: metric.In(conf.Registerer).Counters("adit_agent_gate_refusals_total", "Task calls of programs on this machine that were refused, by code.", "code"),
	}
	s.transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return conf.Link.OpenGate(ctx, requestOf(ctx))
		},
		// A stream costs no round trip. A kept one could be of a link that died, and a
		// call that may not be repeated would fail on it.
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
	}
	return s
}

// Socket returns what serves the unix socket, whose permissions say who may call.
func (s *Server) Socket() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/diag", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/gzip")
		if err := s.conf.Diag(w); err != nil {
			s.conf.Logger.Warn("make a diagnostic bundle", "error", err)
			panic(http.ErrAbortHandler) // the command must not take a part for the whole
		}
	})
	mux.Handle("/", s.routes())
	return mux
}

// Loopback returns what serves a loopback port: the same, but refusing what a web
// page in a browser on this machine could have sent.
func (s *Server) Loopback() http.Handler { return localOnly(s.routes()) }

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, f func(w http.ResponseWriter, r *http.Request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := f(w, r); err != nil {
				s.problem(w, r, err)
			}
		})
	}
	handle("GET /v1/status", s.getStatus)
	handle("POST /v1/tasks", s.admitTask)
	handle("PUT /v1/tasks/{task_id}", s.passTask)
	handle("DELETE /v1/tasks/{task_id}", s.passTask)
	handle("POST /v1/state", s.postState)
	handle("POST /v1/pause", func(w http.ResponseWriter, r *http.Request) error { return s.pause(w, true) })
	handle("POST /v1/resume", func(w http.ResponseWriter, r *http.Request) error { return s.pause(w, false) })
	handle("GET /healthz", func(w http.ResponseWriter, _ *http.Request) error {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte("ok\n")) // the peer may be gone
		return nil
	})
	mux.Handle("GET /metrics", s.conf.Metrics)
	handle("/", func(http.ResponseWriter, *http.Request) error {
		return api.NewProblem(api.CodeNotFound, "the agent's local interface has no such route")
	})
	return mux
}

// problem is the one place that turns errors into answers.
func (s *Server) problem(w http.ResponseWriter, r *http.Request, err error) {
	var p *api.Problem
	if !errors.As(err, &p) {
		s.conf.Logger.Error("local call", "method", r.Method, "path", r.URL.Path, "error", err)
		p = api.NewProblem(api.CodeInternal, "the agent could not do this: its log says why")
	}
	answer(w, r, p)
}

// answer writes a problem of this interface. Most of its words are the relay's, which
// did not refuse here.
func answer(w http.ResponseWriter, r *http.Request, p *api.Problem) {
	if own := *p; own.Hop == api.HopRelay {
		own.Hop = api.HopAgent
		p = &own
	}
	p.Write(w, requestOf(r.Context()))
}

// Serve serves a listener until ctx ends, then gives running calls a moment.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	server := &http.Server{
		Handler:           withRequest(h),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopServer)
	defer cancel()
	if err := server.Shutdown(stopCtx); err != nil {
		_ = server.Close() // what still runs is cut
	}
	<-done
	return nil
}

type requestKey struct{}

// withRequest gives each request an id, its own or the caller's.
func withRequest(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, err := ident.ParseRequestID(r.Header.Get(api.HeaderRequestID))
		if err != nil {
			id = ident.NewRequestID()
		}
		w.Header().Set(api.HeaderRequestID, string(id))
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), requestKey{}, id)))
	})
}

func requestOf(ctx context.Context) ident.RequestID {
	id, _ := ctx.Value(requestKey{}).(ident.RequestID)
	return id
}

// Package admin owns the relay's local admin surface: HTTP on a unix socket whose
// file mode is the authentication, and the client that the commands use. It never
// listens on a network and never decides what it passes on.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/certs"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// CreateCredential asks for a credential.
type CreateCredential struct {
	Kind      api.CredentialKind `json:"kind"`
	Team      ident.TeamID       `json:"team"`
	User      ident.UserID       `json:"user,omitempty"`
	Agent     ident.AgentID      `json:"agent,omitempty"`
	Name      string             `json:"name"`
	ExpiresIn *api.Duration      `json:"expires_in,omitempty"`
	Role      api.Role           `json:"role,omitempty"` // default: admin
	Scopes    []api.Scope        `json:"scopes,omitempty"`
	Agents    []string           `json:"agents,omitempty"`
	Ports     string             `json:"ports,omitempty"`
}

// Status is what the relay says of itself.
type Status struct {
	Relay     ident.RelayID       `json:"relay_id"`
	Version   string              `json:"version"`
	PublicURL string              `json:"public_url"`
	StartedAt time.Time           `json:"started_at"`
	Draining  bool                `json:"draining"`
	Store     store.Status        `json:"store"`
	Agents    int                 `json:"agents"`
	Streams   int                 `json:"streams"`
	Tunnels   int                 `json:"tunnels"`
	Relays    []store.RelayRecord `json:"relays"`
	Peers     []ident.RelayID     `json:"peers,omitempty"` // those to which a link is up
	Warnings  []string            `json:"warnings,omitempty"`
	// Certificates are those of the public listener.
	Certificates []certs.Status `json:"certificates,omitempty"`
}

// Credentials is what the surface needs of creds.
type Credentials interface {
	CreateCredential(ctx context.Context, req CreateCredential) (api.CreatedCredential, error)
	ListCredentials(ctx context.Context, team ident.TeamID) ([]api.Credential, error)
}

// Config is what a Server is made of. All fields but Audit are required.
type Config struct {
	Socket      string
	Credentials Credentials
	Rights      Rights
	People      People
	Enrollments Enrollments
	Status      func(context.Context) Status
	Drain       func()
	Backup      func(ctx context.Context, w io.Writer) error
	Diag        func(ctx context.Context, w io.Writer) error
	Audit       string // directory of the audit files
	Logger      *slog.Logger
}

// Server serves the admin surface.
type Server struct{ cfg Config }

// New returns a Server that does not listen yet.
func New(cfg Config) *Server { return &Server{cfg: cfg} }

// Run listens on the socket until ctx ends. A socket file that nobody listens on
// is replaced; one that somebody does is an error.
func (s *Server) Run(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(s.cfg.Socket), 0o700); err != nil {
		return fmt.Errorf("make directory of the admin socket: %w", err)
	}
	var d net.Dialer
	if c, err := d.DialContext(ctx, "unix", s.cfg.Socket); err == nil {
		_ = c.Close()
		return fmt.Errorf("the admin socket %s is in use: another relay runs with this data_dir", s.cfg.Socket)
	}
	if err := os.Remove(s.cfg.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove stale admin socket: %w", err)
	}
	ln, err := listenPrivate(ctx, s.cfg.Socket)
	if err != nil {
		return fmt.Errorf("listen on the admin socket: %w", err)
	}
	srv := &http.Server{Handler: s.routes(), ReadHeaderTimeout: 5 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the admin socket: %w", err)
	}
	return nil
}

// listenPrivate makes the socket under a private name first, so that it is never
// open to others for a moment.
func listenPrivate(ctx context.Context, path string) (net.Listener, error) {
	var lc net.ListenConfig
	temp := fmt.Sprintf("%s.%d", path, os.Getpid())
	_ = os.Remove(temp) // of a process with our id that died here
	ln, err := lc.Listen(ctx, "unix", temp)
	if err != nil {
		return nil, err
	}
	if u, ok := ln.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	if err := os.Chmod(temp, 0o600); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	if err := os.Rename(temp, path); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return ln, nil
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/credentials", s.answer(func(r *http.Request) (any, error) {
		var req CreateCredential
		if err := decode(r, &req); err != nil {
			return nil, err
		}
		return s.cfg.Credentials.CreateCredential(r.Context(), req)
	}))
	mux.HandleFunc("GET /v1/credentials", s.answer(inTeam(func(r *http.Request, team ident.TeamID) (any, error) {
		list, err := s.cfg.Credentials.ListCredentials(r.Context(), team)
		return api.CredentialList{Credentials: list}, err
	})))
	s.routeRights(mux)
	s.routePeople(mux)
	mux.HandleFunc("POST /v1/enrolments", s.answer(s.enroll))
	mux.HandleFunc("GET /v1/status", s.answer(func(r *http.Request) (any, error) { return s.cfg.Status(r.Context()), nil }))
	mux.HandleFunc("POST /v1/drain", s.answer(func(*http.Request) (any, error) {
		s.cfg.Drain()
		return struct{}{}, nil
	}))
	mux.HandleFunc("GET /v1/store/backup", s.backup)
	mux.HandleFunc("GET /v1/diag", s.diag)
	mux.HandleFunc("GET /v1/audit", s.audit)
	return mux
}

// answer turns a result into JSON and an error into a problem.
func (s *Server) answer(do func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		out, err := do(r)
		if err != nil {
			var p *api.Problem
			if !errors.As(err, &p) {
				p = api.NewProblem(api.CodeInternal, err.Error())
			}
			s.cfg.Logger.Debug("admin request refused", "path", r.URL.Path, "error", err)
			p.Write(w, ident.NewRequestID())
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(out) // the command may be gone
	}
}

func (s *Server) backup(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/octet-stream")
	if err := s.cfg.Backup(r.Context(), w); err != nil {
		s.cfg.Logger.Warn("back up the store", "error", err)
		panic(http.ErrAbortHandler) // the command must not take a part for the whole
	}
}

func (s *Server) diag(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/gzip")
	if err := s.cfg.Diag(r.Context(), w); err != nil {
		s.cfg.Logger.Warn("make a diagnostic bundle", "error", err)
		panic(http.ErrAbortHandler) // the command must not take a part for the whole
	}
}

func (s *Server) audit(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	filter := audit.Filter{
		Team: ident.TeamID(q.Get("team")), Agent: ident.AgentID(q.Get("agent")),
		Session: ident.SessionID(q.Get("session")), Event: audit.Event(q.Get("event")),
	}
	if v := q.Get("since"); v != "" {
		t, err := time.Parse(time.RFC3339, v)
		if err != nil {
			api.Problemf(api.CodeInvalidParameter, "since: %v", err).Write(w, ident.NewRequestID())
			return
		}
		filter.Since = t
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc := json.NewEncoder(w)
	for rec, err := range audit.Read(s.cfg.Audit, filter) {
		if _, torn := errors.AsType[*audit.LineError](err); torn { // one bad line hides no other
			s.cfg.Logger.Warn("read the audit files", "error", err)
			continue
		}
		if err != nil {
			s.cfg.Logger.Warn("read the audit files", "error", err)
			panic(http.ErrAbortHandler)
		}
		if enc.Encode(rec) != nil {
			return // the command is gone
		}
	}
}

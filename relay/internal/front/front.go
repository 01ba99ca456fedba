// Package front owns the relay's public listener, with its TLS and its limits by
// address. It never looks at a request.
package front

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/adit-tunnel/adit/shared/carrier"
)

// Config is what a Server is made of.
type Config struct {
	Listen          string
	TLS             *tls.Config       // nil: plain HTTP
	ConnsPerAddress int               // 0: no limit
	Exempt          func(net.IP) bool // addresses without that limit: trusted proxies
	Handler         http.Handler      // required
	Logger          *slog.Logger      // required
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

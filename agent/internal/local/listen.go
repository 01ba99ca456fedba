package local

import (
	"errors"
	"fmt"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/adit-tunnel/adit/shared/api"
)

// socketMode lets the agent's user and group call. Who may ask for a lease is
// decided by who is in that group.
const socketMode = 0o660

// ListenSocket listens on a unix socket. A socket that a crash left behind is
// replaced; one that somebody serves is not.
func ListenSocket(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("make directory of the local socket: %w", err)
	}
	c, err := net.DialTimeout("unix", path, time.Second) //nolint:noctx // a local socket takes or refuses at once
	switch {
	case err == nil:
		_ = c.Close()
		return nil, fmt.Errorf("listen on %s: another agent serves it", path)
	case errors.Is(err, syscall.ECONNREFUSED) && isSocket(path): // a plain file refuses, too
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove stale socket: %w", err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on the local socket: %w", err)
	}
	if err := os.Chmod(path, socketMode); err != nil {
		return nil, errors.Join(fmt.Errorf("set mode of the local socket: %w", err), l.Close())
	}
	return l, nil
}

func isSocket(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode().Type() == os.ModeSocket
}

// localOnly refuses what a web page could make a browser on this machine send:
// requests under a name that was made to point here (DNS rebinding), and those
// that another page's script or form sends.
func localOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p := foreign(r); p != nil {
			answer(w, r, p)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func foreign(r *http.Request) *api.Problem {
	if !loopbackHost(r.Host) {
		return api.NewProblem(api.CodeHostNotLocal, "the local interface answers under 127.0.0.1, [::1] and localhost only")
	}
	elsewhere := r.Header.Get("Sec-Fetch-Site") == "cross-site"
	if origins := r.Header.Values("Origin"); len(origins) > 0 {
		u, err := url.Parse(origins[0])
		elsewhere = elsewhere || len(origins) > 1 || err != nil || !loopbackHost(u.Host)
	}
	if elsewhere {
		return api.NewProblem(api.CodeCrossOrigin, "requests of web pages from elsewhere are refused")
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		return nil
	}
	if typ, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || typ != "application/json" {
		return api.NewProblem(api.CodeUnsupportedMediaType, "send Content-Type: application/json")
	}
	return nil
}

func loopbackHost(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

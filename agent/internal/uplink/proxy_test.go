package uplink_test

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
)

// proxyServer is a small HTTP proxy that knows CONNECT.
type proxyServer struct {
	url *url.URL
	n   atomic.Int32
}

func (p *proxyServer) find(*http.Request) (*url.URL, error) { return p.url, nil }
func (p *proxyServer) count() int                           { return int(p.n.Load()) }

func connectProxy(t *testing.T) *proxyServer {
	t.Helper()
	p := &proxyServer{}
	var wg sync.WaitGroup
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect {
			http.Error(w, "CONNECT only", http.StatusMethodNotAllowed)
			return
		}
		p.n.Add(1)
		// Before the connection is taken from the server, which waits for it no longer then.
		wg.Add(1)
		defer wg.Done()
		far, err := net.Dial("tcp", r.Host)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		near, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			_ = far.Close()
			return
		}
		_, _ = io.WriteString(near, "HTTP/1.1 200 OK\r\n\r\n")
		wg.Go(func() { _, _ = io.Copy(far, near); _ = far.Close(); _ = near.Close() })
		wg.Go(func() { _, _ = io.Copy(near, far); _ = far.Close(); _ = near.Close() })
	}))
	t.Cleanup(func() { s.Close(); wg.Wait() })
	p.url, _ = url.Parse(s.URL)
	return p
}

package client_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/api/client"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/testkit"
)

func TestMain(m *testing.M) { testkit.LeakCheck(m) }

const secret = ident.Secret("sk-" + "abcdefghijklmnopqrstuvwxyz234567abcdefgh")

func serve(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv
}

func newClient(t *testing.T, base string, change func(*client.Config)) *client.Client {
	t.Helper()
	tr, err := client.NewTransport(client.TransportConfig{})
	if err != nil {
		t.Fatal(err)
	}
	cfg := client.Config{BaseURL: base, Token: secret, Transport: tr}
	if change != nil {
		change(&cfg)
	}
	c, err := client.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func TestOpenTunnelSendsWhatTheInterfaceSays(t *testing.T) {
	var got *http.Request
	var body string
	srv := serve(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got, body = r, string(b)
		answer(w, http.StatusCreated, api.Tunnel{SessionID: "00112233445566778899aabbccddeeff", TunnelURL: "https://x/"})
	})
	c := newClient(t, srv.URL+"/prefix/", func(c *client.Config) { c.Team = "0b1e6f2c-3a44-4f6e-9d7a-2b1c3d4e5f60" })
	port, idle := 8888, api.Duration(30*time.Minute)
	tun, err := c.OpenTunnel(t.Context(), "gpu-7", api.OpenTunnelRequest{TargetPort: &port, IdleTimeout: &idle}, "")
	if err != nil {
		t.Fatal(err)
	}
	if tun.SessionID != "00112233445566778899aabbccddeeff" || tun.TunnelURL != "https://x/" {
		t.Errorf("the answer's fields did not arrive: %+v", tun)
	}
	if got.Method != "POST" || got.URL.Path != "/prefix/api/v1/agents/gpu-7/tunnel" {
		t.Errorf("called %s %s", got.Method, got.URL.Path)
	}
	if got.Header.Get("Authorization") != "Bearer "+secret.Reveal() {
		t.Errorf("the secret is not in the Authorization header")
	}
	if got.Header.Get("X-Team-ID") != "0b1e6f2c-3a44-4f6e-9d7a-2b1c3d4e5f60" {
		t.Errorf("X-Team-ID is %q", got.Header.Get("X-Team-ID"))
	}
	if len(got.Header.Get("Idempotency-Key")) != 32 {
		t.Errorf("no idempotency key was made: %q", got.Header.Get("Idempotency-Key"))
	}
	if body != `{"target_port":8888,"idle_timeout":"30m0s"}` {
		t.Errorf("body is %s", body)
	}
}

func TestRefusalsAreProblems(t *testing.T) {
	for _, tc := range []struct {
		name       string
		write      func(http.ResponseWriter)
		code       api.Code
		status     int
		retry      time.Duration
		request    ident.RequestID
		temporary  bool
		detailHas  string
		descriptor string
	}{
		{
			name: "problem with all fields",
			write: func(w http.ResponseWriter) {
				api.NewProblem(api.CodeAgentOffline, "agent gpu-7 is away").WithStatus(http.StatusConflict).WithRetry(7*time.Second).Write(w, "req-1")
			},
			code: "agent_offline", status: 409, retry: 7 * time.Second, request: "req-1", temporary: true,
			descriptor: "show agent gpu-7: agent_offline: agent gpu-7 is away (hop: link, request: req-1)",
		},
		{
			name: "request id in the header only",
			write: func(w http.ResponseWriter) {
				w.Header().Set("X-Request-ID", "req-2")
				api.NewProblem(api.CodeAgentNotFound, "no such agent").Write(w, "")
			},
			code: "agent_not_found", status: 404, request: "req-2",
		},
		{
			name: "no quorum",
			write: func(w http.ResponseWriter) {
				api.NewProblem(api.CodeStoreUnavailable, "no quorum").WithRetry(2*time.Second).Write(w, "r")
			},
			code: "store_unavailable", status: 503, retry: 2 * time.Second, request: "r", temporary: true,
		},
		{
			name: "an app that is not there does not come by waiting",
			write: func(w http.ResponseWriter) {
				api.NewProblem(api.CodeAppRefused, "nothing listens on 8188").Write(w, "r")
			},
			code: "app_refused", status: 502, request: "r",
		},
		{
			name: "a proxy's page",
			write: func(w http.ResponseWriter) {
				w.Header().Set("Content-Type", "text/html; charset=utf-8")
				w.WriteHeader(502)
				_, _ = io.WriteString(w, "<h1>bad gateway</h1>")
			},
			code: api.CodeNotARelay, status: 502, temporary: true, detailHas: "502 Bad Gateway (text/html)",
		},
		{
			name: "a redirect is not followed",
			write: func(w http.ResponseWriter) {
				w.Header().Set("Location", "https://elsewhere.example/")
				w.WriteHeader(301)
			},
			code: api.CodeNotARelay, status: 301, detailHas: "redirects",
		},
		{
			name:  "success that is no document",
			write: func(w http.ResponseWriter) { _, _ = io.WriteString(w, "<html>login here</html>") },
			code:  api.CodeNotARelay, status: 200, detailHas: "not the expected document",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv := serve(t, func(w http.ResponseWriter, _ *http.Request) { tc.write(w) })
			_, err := newClient(t, srv.URL, nil).Agent(t.Context(), "gpu-7")
			var p *api.Problem
			if !errors.As(err, &p) {
				t.Fatalf("the error is no problem: %v", err)
			}
			if p.Code != tc.code || p.Status != tc.status || p.RetryAfter.D() != tc.retry || p.RequestID != tc.request {
				t.Errorf("problem is %+v", p)
			}
			if client.Temporary(err) != tc.temporary {
				t.Errorf("Temporary = %v, expected %v", !tc.temporary, tc.temporary)
			}
			if !strings.Contains(p.Detail, tc.detailHas) {
				t.Errorf("detail %q does not say %q", p.Detail, tc.detailHas)
			}
			if tc.descriptor != "" && client.Describe(err) != tc.descriptor {
				t.Errorf("described as %q, expected %q", client.Describe(err), tc.descriptor)
			}
		})
	}
}

func TestALostConnectionIsTriedAgainWithTheSameKey(t *testing.T) {
	var calls atomic.Int32
	keys := make(chan string, 8)
	srv := serve(t, func(w http.ResponseWriter, r *http.Request) {
		keys <- r.Header.Get("Idempotency-Key")
		if calls.Add(1) == 1 {
			panic(http.ErrAbortHandler)
		}
		answer(w, 201, api.Tunnel{SessionID: "s"})
	})
	if _, err := newClient(t, srv.URL, nil).OpenTunnel(t.Context(), "a", api.OpenTunnelRequest{}, ""); err != nil {
		t.Fatalf("a second try should have opened the tunnel: %v", err)
	}
	if a, b := <-keys, <-keys; a != b || a == "" {
		t.Errorf("the repetition has another idempotency key: %q and %q", a, b)
	}
}

func TestMakingALinkIsNeverRepeated(t *testing.T) {
	var calls atomic.Int32
	srv := serve(t, func(http.ResponseWriter, *http.Request) {
		calls.Add(1)
		panic(http.ErrAbortHandler)
	})
	_, err := newClient(t, srv.URL, nil).CreateLink(t.Context(), "s", api.CreateLinkRequest{Name: "ci"})
	if err == nil || calls.Load() != 1 {
		t.Errorf("error %v after %d calls; expected an error after one", err, calls.Load())
	}
}

func TestErrorsOfTheConnection(t *testing.T) {
	t.Run("nobody listens", func(t *testing.T) {
		srv := httptest.NewServer(nil)
		srv.Close()
		_, err := newClient(t, srv.URL, nil).Agents(t.Context(), 1, 20)
		if !client.Temporary(err) {
			t.Errorf("a refused connection may be tried again: %v", err)
		}
		if !strings.Contains(fmt.Sprint(err), "connection refused") || strings.Contains(fmt.Sprint(err), "/api/v1") {
			t.Errorf("the error should name host and reason only: %v", err)
		}
	})
	t.Run("no answer in time", func(t *testing.T) {
		done := make(chan struct{})
		srv := serve(t, func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-done:
			case <-r.Context().Done():
			}
		})
		defer close(done)
		_, err := newClient(t, srv.URL, func(c *client.Config) { c.Timeout = 50 * time.Millisecond }).Agents(t.Context(), 1, 20)
		if !errors.Is(err, client.ErrTimeout) || !client.Temporary(err) {
			t.Errorf("expected ErrTimeout, temporary; got %v", err)
		}
	})
	t.Run("authority unknown, then trusted", func(t *testing.T) {
		srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w, 200, api.AgentList{}) }))
		t.Cleanup(srv.Close)
		srv.Config.ErrorLog = nil
		_, err := newClient(t, srv.URL, nil).Agents(t.Context(), 1, 20)
		if !client.UnknownAuthority(err) || client.Temporary(err) {
			t.Errorf("expected an unknown authority, not temporary; got %v", err)
		}
		ca := filepath.Join(t.TempDir(), "ca.pem")
		if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
			t.Fatal(err)
		}
		tr, err := client.NewTransport(client.TransportConfig{CAFile: ca})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := newClient(t, srv.URL, func(c *client.Config) { c.Transport = tr }).Agents(t.Context(), 1, 20); err != nil {
			t.Errorf("with its CA file the relay should be trusted: %v", err)
		}
	})
	t.Run("a CA file without certificates is refused", func(t *testing.T) {
		ca := filepath.Join(t.TempDir(), "ca.pem")
		_ = os.WriteFile(ca, []byte("nothing"), 0o600)
		if _, err := client.NewTransport(client.TransportConfig{CAFile: ca}); err == nil {
			t.Error("expected an error")
		}
	})
}

func TestCallsGoThroughTheProxyButLocalhostDoesNot(t *testing.T) {
	var proxied atomic.Int32
	proxy := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Host == "relay.example" {
			proxied.Add(1)
		}
		answer(w, 200, api.AgentList{})
	})
	at, _ := url.Parse(proxy.URL)
	tr, err := client.NewTransport(client.TransportConfig{Proxy: func(*http.Request) (*url.URL, error) { return at, nil }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newClient(t, "http://relay.example", func(c *client.Config) { c.Transport = tr }).Agents(t.Context(), 1, 20); err != nil {
		t.Fatal(err)
	}
	if proxied.Load() != 1 {
		t.Error("the call did not go through the proxy")
	}
	direct := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.Host, "some-tunnel.localhost:") {
			t.Errorf("host is %q", r.Host)
		}
		answer(w, 200, api.AgentList{})
	})
	u, _ := url.Parse(direct.URL)
	c := newClient(t, "http://some-tunnel.localhost:"+u.Port(), func(c *client.Config) { c.Transport = tr })
	if _, err := c.Agents(t.Context(), 1, 20); err != nil {
		t.Errorf("names under localhost are loopback without any resolver or proxy: %v", err)
	}
}

func TestAllAgentsReadsEveryPage(t *testing.T) {
	srv := serve(t, func(w http.ResponseWriter, r *http.Request) {
		l := api.AgentList{PageMeta: api.PageMeta{TotalCount: 150}}
		from, to := 0, 100
		if r.URL.Query().Get("page") == "2" {
			from, to = 99, 150 // one agent moved from page 1 to 2
		}
		for i := from; i < to; i++ {
			l.AgentList = append(l.AgentList, api.Agent{AgentID: ident.AgentID(fmt.Sprintf("gpu-%d", i))})
		}
		answer(w, 200, l)
	})
	l, err := newClient(t, srv.URL, nil).AllAgents(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(l.AgentList) != 150 || l.PageMeta.TotalCount != 150 {
		t.Errorf("got %d agents, total %d; expected 150 each once", len(l.AgentList), l.PageMeta.TotalCount)
	}
}

func TestBaseURL(t *testing.T) {
	for in, want := range map[string]string{
		"https://gw.example.com/":  "https://gw.example.com",
		"gw.example.com":           "https://gw.example.com",
		"localhost:8080":           "http://localhost:8080",
		"127.0.0.1:8080":           "http://127.0.0.1:8080",
		"[::1]:8080":               "http://[::1]:8080",
		"https://gw.example.com/a": "https://gw.example.com/a",
		"ftp://x":                  "",
		"https://":                 "",
		"":                         "",
		"https://u:p@x":            "",
		"https://x/?q=1":           "",
	} {
		u, err := client.ParseBaseURL(in)
		switch {
		case want == "" && err == nil:
			t.Errorf("%q was accepted as %s", in, u)
		case want != "" && (err != nil || u.String() != want):
			t.Errorf("%q became %v, %v; expected %s", in, u, err, want)
		}
	}
}

func TestTheOtherRoutes(t *testing.T) {
	var got string
	srv := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got = r.Method + " " + r.URL.RequestURI()
		answer(w, 200, struct{}{})
	})
	c, ctx := newClient(t, srv.URL, nil), t.Context()
	for want, do := range map[string]func() error{
		"GET /api/v1/agents/a/tunnel":                 func() error { _, err := c.TunnelStatus(ctx, "a"); return err },
		"DELETE /api/v1/agents/a/tunnel":              func() error { _, err := c.CloseTunnel(ctx, "a", ""); return err },
		"DELETE /api/v1/agents/a/tunnel?session_id=s": func() error { _, err := c.CloseTunnel(ctx, "a", "s"); return err },
		"POST /api/v1/tunnels/s/extend":               func() error { _, err := c.Extend(ctx, "s", api.ExtendRequest{}); return err },
		"GET /api/v1/tunnels/s/access":                func() error { _, err := c.Access(ctx, "s"); return err },
		"PUT /api/v1/tunnels/s/access":                func() error { _, err := c.SetAccess(ctx, "s", api.AccessRequest{}); return err },
		"PUT /api/v1/tunnels/s/links/l/access":        func() error { _, err := c.SetLinkAccess(ctx, "s", "l", api.AccessRequest{}); return err },
		"GET /api/v1/tunnels/s/viewers":               func() error { _, err := c.Viewers(ctx, "s"); return err },
		"DELETE /api/v1/tunnels/s/viewers/v":          func() error { return c.KickViewer(ctx, "s", "v") },
	} {
		if err := do(); err != nil || got != want {
			t.Errorf("called %q (error %v), expected %q", got, err, want)
		}
	}
}

func TestACancelledCallSaysSo(t *testing.T) {
	srv := serve(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	why := errors.New("interrupted")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	_, err := newClient(t, srv.URL, nil).Agents(ctx, 1, 20)
	if !errors.Is(err, why) {
		t.Errorf("expected the cause of the cancellation, got %v", err)
	}
}

package front_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/adit-tunnel/adit/relay/internal/front"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/carrier"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestOwnPaths(t *testing.T) {
	ready := true
	own := front.NewOwn(front.Routes{
		API:   http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }),
		Link:  http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) }),
		Enrol: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusCreated) }),
		Ready: func(context.Context) (string, *api.Problem) {
			if ready {
				return "the store is nearly full", nil
			}
			return "", api.NewProblem(http.StatusServiceUnavailable, "relay_draining", api.HopRelay, "stopping")
		},
	})
	status := func(method, path string) int {
		w := httptest.NewRecorder()
		own.ServeHTTP(w, httptest.NewRequest(method, path, nil))
		return w.Code
	}
	for path, want := range map[string]int{
		"/api/v1/agents": http.StatusTeapot, "/agent/v1/link": http.StatusAccepted, "/healthz": http.StatusOK,
		"/readyz": http.StatusOK, "/": http.StatusNotFound, "/metrics": http.StatusNotFound, "/debug/pprof/": http.StatusNotFound,
	} {
		if got := status(http.MethodGet, path); got != want {
			t.Errorf("GET %s answers %d, want %d", path, got, want)
		}
	}
	w := httptest.NewRecorder()
	own.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/readyz", nil))
	if got := w.Body.String(); got != "ready; the store is nearly full\n" {
		t.Errorf("/readyz of a relay that is ready says %q", got)
	}
	ready = false
	if got := status(http.MethodGet, "/readyz"); got != http.StatusServiceUnavailable {
		t.Errorf("a draining relay's /readyz answers %d, want 503", got)
	}
	if own.Owns(httptest.NewRequest(http.MethodGet, "/static/app.js", nil)) {
		t.Error("an app's absolute path is none of the relay's")
	}
}

func TestConnectionsOfOneAddressAreBounded(t *testing.T) {
	s := front.New(front.Config{
		Listen: "127.0.0.1:0", ConnsPerAddress: 2, Logger: slog.New(slog.DiscardHandler),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }),
	})
	if err := s.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve() }()
	defer func() {
		_ = s.Close()
		if err := <-done; err != nil {
			t.Errorf("serve ended with %v", err)
		}
	}()
	dial := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(testkit.Patience))
		return c
	}
	answers := func(c net.Conn) bool {
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		_, err := c.Read(make([]byte, 1))
		return err == nil
	}
	a, b := dial(), dial()
	defer a.Close()
	if !answers(a) || !answers(b) {
		t.Fatal("two connections are within the limit")
	}
	c := dial()
	if answers(c) {
		t.Error("a third connection is over the limit of two")
	}
	_ = c.Close()
	_ = b.Close()
	testkit.Eventually(t, "a closed connection frees its place", func() bool {
		d := dial()
		defer d.Close()
		return answers(d)
	})
}

// A link chooses the congestion control of its socket, which it has to find beneath
// what counts connections.
func TestLinksFindTheirSocket(t *testing.T) {
	found := make(chan string, 1)
	s := front.New(front.Config{
		Listen: "127.0.0.1:0", ConnsPerAddress: 2, Logger: slog.New(slog.DiscardHandler),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			l, err := link.Accept(w, r, link.Config{})
			if err != nil {
				t.Error(err)
				return
			}
			found <- l.Congestion()
			_ = l.Close(nil)
		}),
	})
	if err := s.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve() }()
	defer func() {
		_ = s.Close()
		if err := <-done; err != nil {
			t.Errorf("serve ended with %v", err)
		}
	}()
	l, err := link.Dial(t.Context(), carrier.DialOptions{URL: "http://" + s.Addr().String()}, link.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close(nil) }()
	if got := <-found; got != l.Congestion() {
		t.Errorf("the relay's end of a link should have the congestion control of the agent's, %q; it has %q", l.Congestion(), got)
	}
}

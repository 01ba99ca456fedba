package front_test

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/adit-tunnel/adit/relay/internal/front"
	"github.com/adit-tunnel/adit/shared/carrier"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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

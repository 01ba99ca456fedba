package hub

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/wire"
)

// An agent that calls, is silent for long and calls again is served each time, and
// between nobody waits for it.
func TestNobodyWaitsForCalls(t *testing.T) {
	// yamux keeps timers for reuse, which must not get into the bubble or out of it.
	empty := func() { runtime.GC(); runtime.GC() }
	empty()
	defer empty()
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		agent, err := link.NewClient(a, link.Config{})
		if err != nil {
			t.Fatal(err)
		}
		relay, err := link.NewServer(b, link.Config{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "gate "+r.URL.Path) })
		calls := &gateCalls{link: relay, serve: func() *http.Server { return &http.Server{Handler: handler, IdleTimeout: time.Minute} }}
		relay.OnIncoming(func() { calls.came(ctx) })
		for range 3 {
			call(t, agent)
			time.Sleep(time.Hour)
			synctest.Wait()
			if s := stacks(); strings.Contains(s, "gateCalls).accept") || strings.Contains(s, "greet") {
				t.Fatalf("after an hour of silence somebody waits:\n%s", s)
			}
		}
		cancel()
		why := errors.New("the test is over")
		_ = relay.Close(why)
		calls.end()
		_ = agent.Close(why)
	})
}

func call(t *testing.T, agent *link.Link) {
	t.Helper()
	st, err := link.OpenHello(t.Context(), agent, wire.Hello{Kind: wire.KindGate})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if _, err := io.WriteString(st, "GET /x HTTP/1.1\r\nHost: gate\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(st)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if body, _ := io.ReadAll(resp.Body); string(body) != "gate /x" {
		t.Errorf("the gate answered %q", body)
	}
}

func stacks() string {
	b := make([]byte, 1<<20)
	return string(b[:runtime.Stack(b, true)])
}

package load_test

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/e2e/bench/load"
	"github.com/adit-tunnel/adit/shared/testkit"
)

func TestMain(m *testing.M) { testkit.LeakCheck(m) }

// TestEveryKind puts each load on an origin and wants something to come of it. How
// much is nobody's business here.
func TestEveryKind(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	web, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "c")
	counter, err := load.ListenCounter(ctx, socket)
	if err != nil {
		t.Fatal(err)
	}
	var origin load.Origin
	ended := make(chan error, 1)
	go func() { ended <- origin.Serve(ctx, web, counter) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	at := load.Endpoint{Addr: web.Addr().String(), Host: "app.test"}
	for _, kind := range []string{load.Requests, load.NewConns, load.Download, load.Upload, load.WebSockets, load.UnderBulk, load.Wait} {
		t.Run(kind, func(t *testing.T) {
			// A starved machine may need more than one second for anything to come through.
			for d := time.Second; ; d *= 4 {
				r, err := load.Run(t.Context(), load.Spec{Endpoint: at, Kind: kind, Conns: 2, Warm: d / 10, For: d, Counter: socket})
				if err != nil {
					t.Fatal(err)
				}
				if good := r.Errors == 0 && r.Rate > 0 && (kind != load.UnderBulk || r.Bulk > 0 && r.P99 > 0); good {
					return
				}
				if d > 10*time.Second {
					t.Fatalf("something should come through without an error: %+v", r)
				}
			}
		})
	}
}

// TestErrorsAreSaid wants a load that gets nowhere to say why.
func TestErrorsAreSaid(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := load.Endpoint{Addr: l.Addr().String(), Host: "app.test"}
	_ = l.Close()
	r, err := load.Run(t.Context(), load.Spec{Endpoint: closed, Kind: load.Requests, Conns: 1, For: 100 * time.Millisecond})
	if err != nil || r.Errors == 0 || r.Problem == "" || r.Rate != 0 {
		t.Errorf("requests to a closed port should be errors that say why; got %+v, %v", r, err)
	}
	if _, err := load.Run(t.Context(), load.Spec{Endpoint: closed, Kind: load.Wait, For: 50 * time.Millisecond}); err == nil {
		t.Error("waiting for a closed port should end with an error")
	}
	if _, err := load.Run(t.Context(), load.Spec{Kind: "no such", Conns: 1, For: time.Second}); err == nil {
		t.Error("an unknown load should be refused")
	}
}

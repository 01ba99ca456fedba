package uplink_test

import (
	"context"
	"errors"
	"net"
	"net/http/httptrace"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/adit-tunnel/adit/agent/internal/uplink"
	"github.com/adit-tunnel/adit/shared/carrier"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/wire"
)

func TestMain(m *testing.M) { testkit.LeakCheck(m) }

func TestWaitsBetweenTries(t *testing.T) {
	refused := errors.New("connection refused")
	testkit.Bubble(t, func(t *testing.T) {
		c := uplink.NewCourse("https://a")
		if w := c.After(uplink.End{Lost: true, Err: refused, Generation: 1, Lived: time.Hour}, 1); w > 200*time.Millisecond {
			t.Errorf("after a lost link the first try comes after %s", w)
		}
		start := time.Now()
		for time.Since(start) < 55*time.Second {
			w := c.After(uplink.End{Err: refused}, 1)
			if w > time.Second {
				t.Fatalf("%s into the outage a wait is %s, more than a second", time.Since(start), w)
			}
			time.Sleep(w)
		}
		for time.Since(start) < 10*time.Minute {
			w := c.After(uplink.End{Err: refused}, 1)
			if w > 30*time.Second {
				t.Fatalf("a wait is %s, more than 30 s", w)
			}
			time.Sleep(w)
		}
		if w := c.After(uplink.End{Err: refused}, 1); w < 10*time.Second {
			t.Errorf("after ten minutes the wait is still only %s", w)
		}
		if w := c.After(uplink.End{Lost: true, Err: refused, Generation: 2, Lived: time.Minute}, 2); w > 200*time.Millisecond {
			t.Errorf("after a link that lived, the first wait is %s", w)
		}
	})
}

func TestWaitsByReason(t *testing.T) {
	bye := func(reason wire.GoodbyeReason) *wire.Goodbye { return &wire.Goodbye{Reason: reason, Detail: "x"} }
	tests := []struct {
		name     string
		end      uplink.End
		seen     uint64
		min, max time.Duration
	}{
		{"a draining relay is followed at once", uplink.End{Goodbye: bye(wire.GoodbyeDrain), Generation: 1, Lived: time.Minute}, 1, 0, 0},
		{"but not in a tight loop", uplink.End{Goodbye: bye(wire.GoodbyeDrain), Generation: 1, Lived: time.Millisecond}, 1, 50 * time.Millisecond, time.Second},
		{"superseded stays away", uplink.End{Goodbye: bye(wire.GoodbyeSuperseded), Generation: 7, Lived: time.Minute}, 7, 30 * time.Second, 30 * time.Second},
		{"refused as superseded stays away", uplink.End{Goodbye: bye(wire.GoodbyeSuperseded)}, 7, 30 * time.Second, 30 * time.Second},
		{"superseded by our own next link does not", uplink.End{Goodbye: bye(wire.GoodbyeSuperseded), Generation: 7, Lived: time.Minute}, 8, 0, time.Second},
		{"revoked tries slowly", uplink.End{Goodbye: bye(wire.GoodbyeRevoked), Generation: 1, Lived: time.Minute}, 1, 30 * time.Second, 33 * time.Second},
		{"401 tries slowly", uplink.End{Err: &carrier.RefusedError{Status: 401}}, 0, 30 * time.Second, 33 * time.Second},
		{"429 waits as told", uplink.End{Err: &carrier.RefusedError{Status: 429, RetryAfter: 17 * time.Second}}, 0, 17 * time.Second, 17 * time.Second},
		{"429 is believed within reason", uplink.End{Err: &carrier.RefusedError{Status: 429, RetryAfter: time.Hour}}, 0, time.Minute, time.Minute},
		{"503 is tried again soon", uplink.End{Err: &carrier.RefusedError{Status: 503, RetryAfter: 17 * time.Second}}, 0, 0, time.Second},
		{"a fenced relay is tried again soon", uplink.End{Goodbye: bye(wire.GoodbyeFenced), Generation: 1, Lived: time.Minute}, 1, 0, time.Second},
		{"an unknown reason counts as error", uplink.End{Goodbye: bye("whim"), Generation: 1, Lived: time.Minute}, 1, 0, time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if w := uplink.NewCourse("https://a").After(tt.end, tt.seen); w < tt.min || w > tt.max {
				t.Errorf("waits %s, expected %s to %s", w, tt.min, tt.max)
			}
		})
	}
}

func TestTargets(t *testing.T) {
	c := uplink.NewCourse("https://a/", "https://b")
	if got := c.Targets(); !slices.Equal(got, []string{"https://a", "https://b"}) {
		t.Errorf("first tries %v", got)
	}
	c.Welcomed("https://b", []string{"https://a", "https://c", "http://plain", "https://user:pw@d", "ftp://e", "::"})
	if got := c.Targets(); !slices.Equal(got, []string{"https://b", "https://a", "https://c"}) {
		t.Errorf("with a last relay and learned ones tries %v", got)
	}
	c.After(uplink.End{Goodbye: &wire.Goodbye{Reason: wire.GoodbyeDrain, MoveTo: []string{"https://b", "https://c", "http://plain"}}, Generation: 1, Lived: time.Minute}, 1)
	if got := c.Targets(); !slices.Equal(got, []string{"https://c", "https://a", "https://b"}) {
		t.Errorf("told to move to c, tries %v", got)
	}
}

// silent is a dial that gets no answer until its context ends.
func silent(ctx context.Context) (*link.Link, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func pipeLink(t *testing.T) (*link.Link, error) {
	near, far := net.Pipe()
	go func() {
		l, err := link.NewServer(far, link.Config{})
		if err == nil {
			<-l.Done()
			_ = l.Close(nil)
		}
	}()
	return link.NewClient(near, link.Config{})
}

func TestCutPathIsTriedEachSecond(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		const outage = 5300 * time.Millisecond
		start := time.Now()
		var attempts atomic.Int32
		dial := func(ctx context.Context, _ string) (*link.Link, error) {
			attempts.Add(1)
			if time.Since(start) < outage {
				return silent(ctx) // its SYN is lost
			}
			return pipeLink(t)
		}
		l, _, err := uplink.Reach(t.Context(), dial, []string{"https://a"}, true)
		if err != nil {
			t.Fatal(err)
		}
		if late := time.Since(start) - outage; late > time.Second {
			t.Errorf("linked %s after the path was back", late)
		}
		if n := attempts.Load(); n > 7 {
			t.Errorf("made %d attempts", n)
		}
		_ = l.Close(nil)
		synctest.Wait()
	})
}

func TestSlowRelayIsNotHedged(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		var attempts atomic.Int32
		dial := func(ctx context.Context, _ string) (*link.Link, error) {
			attempts.Add(1)
			httptrace.ContextClientTrace(ctx).ConnectDone("tcp", "a:443", nil)
			time.Sleep(6 * time.Second) // a handshake on a loaded relay
			return pipeLink(t)
		}
		l, _, err := uplink.Reach(t.Context(), dial, []string{"https://a", "https://b"}, true)
		if err != nil {
			t.Fatal(err)
		}
		if n := attempts.Load(); n != 1 {
			t.Errorf("a slow relay got %d attempts at once, not 1", n)
		}
		_ = l.Close(nil)
	})
}

func TestDeadRelayIsPassedOver(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		start := time.Now()
		dial := func(ctx context.Context, url string) (*link.Link, error) {
			switch url {
			case "https://hangs":
				return silent(ctx)
			case "https://refuses":
				return nil, syscall.ECONNREFUSED
			}
			return pipeLink(t)
		}
		l, url, err := uplink.Reach(t.Context(), dial, []string{"https://refuses", "https://hangs", "https://works"}, false)
		if err != nil || url != "https://works" {
			t.Fatalf("linked to %q, %v", url, err)
		}
		if d := time.Since(start); d > 1100*time.Millisecond {
			t.Errorf("it took %s to pass over a relay that hangs", d)
		}
		_ = l.Close(nil)
	})
}

func TestRefusalEndsWaitingForTheSilent(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		var n atomic.Int32
		dial := func(ctx context.Context, _ string) (*link.Link, error) {
			if n.Add(1) == 1 {
				return silent(ctx)
			}
			return nil, syscall.ECONNREFUSED // the machine is back, the relay not yet
		}
		start := time.Now()
		_, _, err := uplink.Reach(t.Context(), dial, []string{"https://a"}, true)
		if !errors.Is(err, syscall.ECONNREFUSED) || time.Since(start) > 1100*time.Millisecond {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
	})
}

func TestStopEndsDialling(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		cause := errors.New("stop")
		time.AfterFunc(1500*time.Millisecond, func() { cancel(cause) })
		_, _, err := uplink.Reach(ctx, func(ctx context.Context, _ string) (*link.Link, error) { return silent(ctx) }, []string{"https://a"}, true)
		if !errors.Is(err, cause) {
			t.Errorf("stopped dialling with %v", err)
		}
	})
}

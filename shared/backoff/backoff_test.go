package backoff_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/adit-tunnel/adit/shared/backoff"
)

func TestNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 50 {
			var b backoff.Backoff
			start := time.Now()
			if d := b.Next(); d < 100*time.Millisecond || d > 200*time.Millisecond {
				t.Fatalf("the first wait should be 0.2 s, jittered; got %s", d)
			}
			for time.Since(start) < time.Minute {
				d := b.Next()
				if d <= 0 || d > time.Second {
					t.Fatalf("after %s tries should be at most 1 s apart; got %s", time.Since(start), d)
				}
				time.Sleep(d)
			}
			longest := time.Duration(0)
			for range 30 {
				d := b.Next()
				if d > 30*time.Second {
					t.Fatalf("a wait should never exceed 30 s; got %s", d)
				}
				longest = max(longest, d)
				time.Sleep(d)
			}
			if longest < 15*time.Second {
				t.Fatalf("waits should grow to 30 s; the longest is %s", longest)
			}
			b.Reset()
			if d := b.Next(); d > 200*time.Millisecond {
				t.Fatalf("after a reset it should begin anew; got %s", d)
			}
		}
	})
}

// TestOutages measures what the delays promise: how long after the end of an
// outage the next try comes, on average and at worst.
func TestOutages(t *testing.T) {
	for _, c := range []struct {
		outage, mean, worst time.Duration
	}{
		{time.Second, 300 * time.Millisecond, 720 * time.Millisecond},
		{10 * time.Second, 600 * time.Millisecond, time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			const rounds = 2000
			var sum, worst time.Duration
			for range rounds {
				var b backoff.Backoff
				end := time.Now().Add(c.outage)
				for time.Now().Before(end) {
					time.Sleep(b.Next())
				}
				sum += time.Since(end)
				worst = max(worst, time.Since(end))
			}
			t.Logf("outage of %s: next try after %s on average, %s at worst", c.outage, sum/rounds, worst)
			if sum/rounds > c.mean || worst > c.worst {
				t.Errorf("after %s the next try should come within %s on average, %s at worst; got %s, %s", c.outage, c.mean, c.worst, sum/rounds, worst)
			}
		})
	}
}

// TestSpread shows that a herd does not come back at once.
func TestSpread(t *testing.T) {
	seen := map[time.Duration]bool{}
	for range 100 {
		var b backoff.Backoff
		seen[b.Next().Round(time.Millisecond)] = true
	}
	if len(seen) < 20 {
		t.Errorf("a hundred agents should try at many times, not %d", len(seen))
	}
}

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b backoff.Backoff
		start := time.Now()
		if err := b.Wait(t.Context()); err != nil || time.Since(start) < 100*time.Millisecond {
			t.Errorf("it should wait; %v after %s", err, time.Since(start))
		}
		why := errors.New("stopping")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(why)
		if err := b.Wait(ctx); err != why {
			t.Errorf("it should return the context's cause; got %v", err)
		}
	})
}

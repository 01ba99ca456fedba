// Package testkit owns what tests of several packages share: the check for leaked
// goroutines, bubbles of fake time, waiting for a condition, ports and
// connections of this machine, loggers and buffers. Its sub-packages are an identity provider and a network link. It is
// imported by tests only and knows neither half of Adit.
package testkit

import (
	"log/slog"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

// LeakCheck runs a package's tests and fails when goroutines are left:
//
//	func TestMain(m *testing.M) { testkit.LeakCheck(m) }
func LeakCheck(m *testing.M, options ...goleak.Option) {
	goleak.VerifyTestMain(m, options...)
}

// Bubble runs f in a bubble of fake time (testing/synctest). It first empties the
// package pools, by collecting garbage twice: a timer that yamux pooled outside of
// the bubble must not be used inside it.
func Bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	runtime.GC()
	runtime.GC()
	synctest.Test(t, f)
}

// Patience is how long Eventually waits: far longer than anything takes on a busy
// machine, so that only a real fault runs into it.
const Patience = time.Minute

// Eventually waits until cond holds and fails the test, saying what was expected,
// when it does not within Patience. cond runs on the test's goroutine.
func Eventually(tb testing.TB, what string, cond func() bool) {
	tb.Helper()
	EventuallyWithin(tb, Patience, what, cond)
}

// EventuallyWithin is Eventually with a limit of its own, for promises about time.
func EventuallyWithin(tb testing.TB, limit time.Duration, what string, cond func() bool) {
	tb.Helper()
	start := time.Now()
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		if cond() {
			return
		}
		if time.Since(start) > limit {
			tb.Fatalf("expected within %s: %s", limit, what)
		}
		time.Sleep(pause)
	}
}

// Logger returns a logger of all levels that writes to the test's own output.
func Logger(tb testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(tb.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

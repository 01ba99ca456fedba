// Package testkit owns what tests of several packages share: the check for leaked
// goroutines, bubbles of fake time, waiting for a condition, ports and
// connections of this machine, loggers and buffers. Its sub-packages are an identity provider and a network link. It is
// imported by tests only and knows neither half of Adit.
package testkit

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
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
const Patience = 2 * time.Minute

// Long says whether this is the long form of the tests (scripts/test --long), which has
// the machine for itself and judges how long things take. All other runs only wait for
// what they expect.
func Long() bool { return os.Getenv("ADIT_TEST_LONG") != "" }

// Limit is how long a test waits for something that is promised within the limit: for
// the limit itself in the long form, and with Patience elsewhere.
func Limit(limit time.Duration) time.Duration {
	if Long() {
		return limit
	}
	return max(limit, Patience)
}

// Took fails the long form when something took longer than promised, and says
// elsewhere only how long it took.
func Took(tb testing.TB, what string, took, limit time.Duration) {
	tb.Helper()
	switch {
	case took <= limit:
	case Long():
		tb.Errorf("%s: it took %s, expected within %s", what, took, limit)
	default:
		tb.Logf("%s: it took %s; the long form wants it within %s", what, took, limit)
	}
}

// Figure logs a figure that is of interest also where the test passes: scripts/test
// prints it with its summary, from the file that ADIT_TEST_FIGURES names.
func Figure(tb testing.TB, format string, args ...any) {
	tb.Helper()
	tb.Logf(format, args...)
	name := os.Getenv("ADIT_TEST_FIGURES")
	if name == "" {
		return
	}
	f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		// One write: tests of several processes share the file.
		_, err = fmt.Fprintf(f, "%s: %s\n", tb.Name(), fmt.Sprintf(format, args...))
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		tb.Errorf("note a figure: %v", err)
	}
}

// Eventually waits until cond holds and fails the test, saying what was expected,
// when it does not within Patience. cond runs on the test's goroutine.
func Eventually(tb testing.TB, what string, cond func() bool) {
	tb.Helper()
	EventuallyWithin(tb, Patience, what, cond)
}

// EventuallyWithin is Eventually with a limit of its own. For a promise about time that
// is Limit's.
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

package testkit_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/shared/testkit"
)

func TestMain(m *testing.M) { testkit.LeakCheck(m) }

func TestBubble(t *testing.T) {
	start := time.Now()
	testkit.Bubble(t, func(*testing.T) { time.Sleep(24 * time.Hour) })
	if took := time.Since(start); took > time.Minute {
		t.Errorf("a day in a bubble should take no time; took %s", took)
	}
}

// TestBubbleAfterPooledTimers is the trap that Bubble is for: a timer made outside
// of the bubble lies in a pool that code inside it uses.
func TestBubbleAfterPooledTimers(t *testing.T) {
	pool := sync.Pool{New: func() any { return time.NewTimer(time.Hour) }}
	pool.Put(time.NewTimer(time.Hour))
	testkit.Bubble(t, func(*testing.T) {
		timer := pool.Get().(*time.Timer)
		timer.Reset(time.Second) // panics for a timer from outside
		<-timer.C
	})
}

func TestEventually(t *testing.T) {
	n := 0
	testkit.Eventually(t, "three calls", func() bool { n++; return n == 3 })
	if n != 3 {
		t.Errorf("it should stop when the condition holds; %d calls", n)
	}
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() { // Fatalf ends its goroutine
		defer close(done)
		testkit.EventuallyWithin(r, 5*time.Millisecond, "the sun to rise", func() bool { return false })
	}()
	<-done
	if !strings.Contains(r.text, "the sun to rise") {
		t.Errorf("a failure should say what was expected; got %q", r.text)
	}
}

// A port is free, and nobody else's until the test ends.
func TestFreePort(t *testing.T) {
	given := map[int]bool{}
	for range 300 {
		port := testkit.FreePort(t)
		if given[port] {
			t.Fatalf("port %d was given out twice", port)
		}
		given[port] = true
	}
	for port := range given {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatalf("the port should be free: %v", err)
		}
		_ = l.Close()
	}
}

func TestServeTCPAndBuffer(t *testing.T) {
	var got testkit.Buffer
	t.Run("served", func(t *testing.T) {
		port := testkit.ServeTCP(t, func(c net.Conn) { _, _ = io.Copy(&got, c) })
		for _, word := range []string{"one", "two"} {
			c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(c, word); err != nil {
				t.Fatal(err)
			}
			_ = c.Close()
		}
		testkit.Eventually(t, "both connections are served", func() bool { return len(got.String()) == 6 })
	})
	if s := got.String(); s != "onetwo" && s != "twoone" {
		t.Errorf("the connections brought %q", s)
	}
}

func TestTCP(t *testing.T) {
	client, server := testkit.TCP(t)
	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(server); err != nil || string(b) != "x" {
		t.Errorf("the other end read %q, %v", b, err)
	}
}

func TestLogger(t *testing.T) {
	r := &recorder{TB: t}
	testkit.Logger(r).Debug("hello", "n", 1)
	if !strings.Contains(r.text, "msg=hello n=1") {
		t.Errorf("a log line should reach the test's output; got %q", r.text)
	}
}

// recorder is a testing.TB that remembers instead of failing.
type recorder struct {
	testing.TB
	text string
}

func (r *recorder) Helper() {}

func (r *recorder) Fatalf(format string, args ...any) {
	r.text += fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func (r *recorder) Errorf(format string, args ...any) { r.text += fmt.Sprintf(format, args...) }

func (r *recorder) Logf(string, ...any) {}

func (r *recorder) Output() io.Writer { return r }

func (r *recorder) Write(p []byte) (int, error) {
	r.text += string(p)
	return len(p), nil
}

func TestFigure(t *testing.T) {
	file := filepath.Join(t.TempDir(), "figures")
	t.Setenv("ADIT_TEST_FIGURES", file)
	testkit.Figure(t, "%d of %d whole", 10, 10)
	if b, err := os.ReadFile(file); err != nil || string(b) != "TestFigure: 10 of 10 whole\n" {
		t.Errorf("the figure is noted for the summary: %q %v", b, err)
	}
}

// Only the long form judges time.
func TestTimeIsJudgedInTheLongFormOnly(t *testing.T) {
	for long, fails := range map[string]bool{"": false, "1": true} {
		t.Setenv("ADIT_TEST_LONG", long)
		r := &recorder{TB: t}
		testkit.Took(r, "a blink", time.Hour, time.Second)
		if got := r.text != ""; got != fails {
			t.Errorf("with %q something late fails: %v, want %v", long, got, fails)
		}
		if got := testkit.Limit(time.Second) == time.Second; got != fails {
			t.Errorf("with %q a limit is kept: %v, want %v", long, got, fails)
		}
	}
}

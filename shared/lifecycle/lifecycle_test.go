//go:build unix

package lifecycle_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/shared/lifecycle"
	"github.com/adit-tunnel/adit/shared/testkit"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = testkit.Patience

// The tests of signals send real ones to this process, so they are not parallel.

func TestSignals(t *testing.T) {
	drain, kill, reload, stop := lifecycle.Signals(t.Context())
	defer stop()

	send(t, syscall.SIGHUP)
	select {
	case <-reload:
	case <-time.After(patience):
		t.Fatal("SIGHUP should ask for a reload")
	}
	if drain.Err() != nil {
		t.Fatal("SIGHUP should stop nothing")
	}

	send(t, syscall.SIGTERM)
	waitDone(t, drain, "the first SIGTERM should begin the drain")
	if kill.Err() != nil {
		t.Fatal("the first SIGTERM should kill nothing")
	}
	if err := context.Cause(drain); !errors.Is(err, lifecycle.ErrSignal) || err.Error() != "received signal: terminated" {
		t.Errorf("the drain's cause should name the signal; got %v", err)
	}

	send(t, syscall.SIGINT)
	waitDone(t, kill, "the second signal should stop at once")
	if err := context.Cause(kill); !errors.Is(err, lifecycle.ErrSignal) {
		t.Errorf("the kill's cause should name the signal; got %v", err)
	}
}

func TestSignalsEndWithTheirContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	drain, kill, _, stop := lifecycle.Signals(ctx)
	defer stop()
	why := errors.New("the test says so")
	cancel(why)
	waitDone(t, drain, "the drain should end with its context")
	waitDone(t, kill, "the kill should end with its context")
	if context.Cause(drain) != why {
		t.Errorf("the cause should pass through; got %v", context.Cause(drain))
	}
	stop()
	stop() // twice is harmless
}

func TestStopEndsBoth(t *testing.T) {
	drain, kill, _, stop := lifecycle.Signals(t.Context())
	stop()
	waitDone(t, drain, "stop should end the drain")
	waitDone(t, kill, "stop should end the kill")
}

func TestNotify(t *testing.T) {
	read := systemd(t)
	for _, c := range []struct {
		call func() error
		want string
	}{
		{lifecycle.Ready, `^READY=1$`},
		{lifecycle.Stopping, `^STOPPING=1$`},
		{lifecycle.Reloading, `^RELOADING=1\nMONOTONIC_USEC=[1-9][0-9]*$`},
		{func() error { return lifecycle.Status("3 agents\nonline") }, `^STATUS=3 agents online$`},
	} {
		if err := c.call(); err != nil {
			t.Fatal(err)
		}
		if got := read(); !regexp.MustCompile(c.want).MatchString(got) {
			t.Errorf("systemd should get %s, got %q", c.want, got)
		}
	}
}

func TestNotifyWithoutSystemd(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := lifecycle.Ready(); err != nil {
		t.Errorf("without systemd a notice should do nothing; got %v", err)
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "none"))
	if err := lifecycle.Ready(); err == nil {
		t.Error("a socket that is not there should be an error")
	}
}

func TestWatchdog(t *testing.T) {
	read := systemd(t)
	t.Setenv("WATCHDOG_USEC", "20000") // pings each 10 ms
	var alive atomic.Bool
	alive.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- lifecycle.Watchdog(ctx, alive.Load) }()
	for range 3 {
		if got := read(); got != "WATCHDOG=1" {
			t.Errorf("systemd should get WATCHDOG=1, got %q", got)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("the watchdog should end with its context; got %v", err)
	}
	t.Setenv("WATCHDOG_USEC", "")
	if err := lifecycle.Watchdog(t.Context(), alive.Load); err != nil {
		t.Errorf("without a watchdog it should return at once; got %v", err)
	}
}

func TestWatchdogIsSilentWhenHung(t *testing.T) {
	read := systemd(t)
	t.Setenv("WATCHDOG_USEC", "2000")
	ctx, cancel := context.WithCancel(t.Context())
	var asked atomic.Int32
	err := lifecycle.Watchdog(ctx, func() bool {
		if asked.Add(1) == 5 {
			cancel()
		}
		return false
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := lifecycle.Ready(); err != nil {
		t.Fatal(err)
	}
	if got := read(); got != "READY=1" {
		t.Errorf("a hung daemon should send no watchdog notice; got %q", got)
	}
}

func TestVersion(t *testing.T) {
	info := func(version, revision, modified string) *debug.BuildInfo {
		return &debug.BuildInfo{Main: debug.Module{Version: version}, Settings: []debug.BuildSetting{
			{Key: "vcs.revision", Value: revision}, {Key: "vcs.modified", Value: modified},
		}}
	}
	for _, c := range []struct {
		set  string
		info *debug.BuildInfo
		want string
	}{
		{"v1.2.3", info("", "0123456789abcdef", "false"), "v1.2.3"},
		{"", info("(devel)", "0123456789abcdef", "false"), "0123456789ab"},
		{"", info("v0.0.0-2026", "0123456789abcdef", "true"), "0123456789ab-dirty"},
		{"", info("v1.4.0", "", ""), "v1.4.0"},
		{"", info("(devel)", "", ""), "dev"},
		{"", nil, "dev"},
	} {
		if got := lifecycle.VersionOf(c.set, c.info); got != c.want {
			t.Errorf("version of %q, %v: got %q, want %q", c.set, c.info, got, c.want)
		}
	}
	if lifecycle.Version() == "" {
		t.Error("a binary always has a version")
	}
}

// systemd listens as systemd does, and returns how to read the next notice.
func systemd(t *testing.T) func() string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return func() string {
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		b := make([]byte, 256)
		n, err := conn.Read(b)
		if err != nil {
			t.Fatalf("systemd got no notice: %v", err)
		}
		return string(b[:n])
	}
}

func send(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(syscall.Getpid(), s); err != nil {
		t.Fatal(err)
	}
}

func waitDone(t *testing.T, ctx context.Context, what string) {
	t.Helper()
	select {
	case <-ctx.Done():
	case <-time.After(patience):
		t.Fatal(what)
	}
}

// Debian 12 has systemd 252, which does not know notify-reload and then takes a unit
// for one that is ready at once.
func TestUnitsSuitOldSystemd(t *testing.T) {
	units, err := filepath.Glob("../../configs/systemd/*.service")
	if err != nil || len(units) == 0 {
		t.Fatalf("units: %v, %v", units, err)
	}
	for _, name := range units {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range []string{"\nType=notify\n", "\nExecReload=/bin/sh -c 'kill -HUP ${MAINPID}'\n"} {
			if !strings.Contains(string(b), line) {
				t.Errorf("%s has no line %s", name, strings.TrimSpace(line))
			}
		}
	}
}

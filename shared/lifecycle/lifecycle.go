// Package lifecycle owns how a daemon is told to stop and reload, and how it tells
// systemd what it is doing; and the version that a binary reports. It stops
// nothing itself, and where no systemd listens its notices do nothing.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"syscall"
)

// version is set by scripts/build:
// -ldflags "-X github.com/adit-tunnel/adit/shared/lifecycle.version=v1.2.3".
var version string

// Version is what the binary was built from: the version that scripts/build set,
// else the commit that the Go tool recorded, else "dev".
func Version() string {
	info, _ := debug.ReadBuildInfo()
	return versionOf(version, info)
}

func versionOf(set string, info *debug.BuildInfo) string {
	if set != "" || info == nil {
		return orDev(set)
	}
	var revision, modified string
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			revision = s.Value
		case "vcs.modified":
			modified = s.Value
		}
	}
	if len(revision) > 12 {
		revision = revision[:12]
	}
	if revision != "" && modified == "true" {
		revision += "-dirty"
	}
	if v := info.Main.Version; revision == "" && v != "" && v != "(devel)" {
		return v // built by `go install module@version`
	}
	return orDev(revision)
}

func orDev(v string) string {
	if v == "" {
		return "dev"
	}
	return v
}

// ErrSignal is wrapped by the causes of the contexts that Signals returns when a
// signal ended them.
var ErrSignal = errors.New("received signal")

// Signals listens to the process's signals. The first SIGTERM or SIGINT ends drain:
// finish what runs, take nothing new. The second ends kill: stop now. SIGHUP puts
// one value into reload; several before it is read count as one. When ctx ends,
// both contexts do. stop ends the listening, after which the signals have their
// default effect again, and both contexts, and returns when no goroutine is left.
func Signals(ctx context.Context) (drain, kill context.Context, reload <-chan struct{}, stop func()) {
	killCtx, cancelKill := context.WithCancelCause(ctx)
	drainCtx, cancelDrain := context.WithCancelCause(killCtx)
	hup := make(chan struct{}, 1)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)

	var wg sync.WaitGroup
	quit := make(chan struct{})
	wg.Go(func() {
		draining := false
		for {
			select {
			case <-quit:
				return
			case s := <-signals:
				switch {
				case s == syscall.SIGHUP:
					select {
					case hup <- struct{}{}:
					default: // one waits already
					}
				case !draining:
					draining = true
					cancelDrain(fmt.Errorf("%w: %s", ErrSignal, s))
				default:
					cancelKill(fmt.Errorf("%w again: %s", ErrSignal, s))
				}
			}
		}
	})
	return drainCtx, killCtx, hup, sync.OnceFunc(func() {
		signal.Stop(signals)
		close(quit)
		wg.Wait()
		cancelDrain(context.Canceled)
		cancelKill(context.Canceled)
	})
}

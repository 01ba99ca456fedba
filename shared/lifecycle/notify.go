package lifecycle

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Ready tells systemd that the daemon serves: after its start, and after a reload.
func Ready() error { return notify(daemon.SdNotifyReady) }

// Stopping tells systemd that the daemon is draining.
func Stopping() error { return notify(daemon.SdNotifyStopping) }

// Reloading tells systemd that the daemon reads its configuration again; Ready ends
// it. The time is what a unit of Type=notify-reload needs to tell this reload from an older one.
func Reloading() error {
	state := daemon.SdNotifyReloading
	if usec := monotonicMicros(); usec > 0 {
		state = fmt.Sprintf("%s\nMONOTONIC_USEC=%d", state, usec)
	}
	return notify(state)
}

// Status shows a line of text in `systemctl status`.
func Status(text string) error {
	return notify("STATUS=" + strings.ReplaceAll(text, "\n", " "))
}

// Watchdog tells systemd that the daemon lives, twice per WatchdogSec and only
// while alive says so, until ctx ends: a daemon that hangs is started again. It
// returns at once where the unit has no watchdog.
func Watchdog(ctx context.Context, alive func() bool) error {
	limit, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return fmt.Errorf("read watchdog interval: %w", err)
	}
	if limit <= 0 {
		return nil
	}
	tick := time.NewTicker(limit / 2)
	defer tick.Stop()
	for {
		if alive() {
			if err := notify(daemon.SdNotifyWatchdog); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func notify(state string) error {
	if _, err := daemon.SdNotify(false, state); err != nil {
		name, _, _ := strings.Cut(state, "=")
		return fmt.Errorf("notify systemd of %s: %w", strings.ToLower(name), err)
	}
	return nil
}

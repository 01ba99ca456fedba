//go:build !linux

package store

import "golang.org/x/sys/unix"

// On macOS, where people try the demo, this clock goes on while the machine sleeps.
const bootClock = unix.CLOCK_MONOTONIC

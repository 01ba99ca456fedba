package lifecycle

import (
	"time"

	"golang.org/x/sys/unix"
)

// monotonicMicros reads CLOCK_MONOTONIC, which Go's time package has but hides.
func monotonicMicros() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return ts.Nano() / int64(time.Microsecond)
}

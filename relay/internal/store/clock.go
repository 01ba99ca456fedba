package store

import (
	"time"

	"golang.org/x/sys/unix"
)

// clock is the time since the machine started, its sleep included. Go's monotonic
// clock stands still while a machine sleeps; a relay that woke from it would
// believe in a lease that has run out meanwhile.
func clock() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(bootClock, &ts); err != nil {
		panic("store: no clock that counts sleep: " + err.Error()) // Linux has it since 2.6.39
	}
	return time.Duration(ts.Nano())
}

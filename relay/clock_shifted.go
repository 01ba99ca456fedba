//go:build adit_testclock

package relay

import (
	"os"
	"time"
)

// now is a clock that is wrong by ADIT_TEST_CLOCK_OFFSET (such as -2s), for tests of
// pools whose relays disagree about the time. No release has this file in it.
func now() time.Time {
	offset, err := time.ParseDuration(os.Getenv("ADIT_TEST_CLOCK_OFFSET"))
	if err != nil {
		offset = 0
	}
	return time.Now().Add(offset)
}

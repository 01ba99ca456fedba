//go:build !adit_testclock

package relay

import "time"

// now is the wall clock that decisions are made by.
func now() time.Time { return time.Now() }

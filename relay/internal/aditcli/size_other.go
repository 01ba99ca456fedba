//go:build !unix

package aditcli

import "time"

// sizePoll is how often the size is looked at.
const sizePoll = 500 * time.Millisecond

// sizeChanges gets a value now and then: the system has no signal for it.
func sizeChanges() (changes <-chan time.Time, stop func()) {
	t := time.NewTicker(sizePoll)
	return t.C, t.Stop
}

//go:build unix

package aditcli

import (
	"os"
	"os/signal"
	"syscall"
)

// sizeChanges gets a value when the terminal's size may have changed.
func sizeChanges() (changes <-chan os.Signal, stop func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGWINCH)
	return c, func() { signal.Stop(c) }
}

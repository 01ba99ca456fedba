//go:build !linux

package front

import "syscall"

// queueLittle does nothing here: relays run on Linux.
func queueLittle(string, string, syscall.RawConn) error { return nil }

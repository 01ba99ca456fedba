//go:build !linux

package front

import "net"

// queueLittle does nothing here: relays run on Linux.
func queueLittle(net.Conn) {}

//go:build !linux

package link

import "net"

// tune does nothing here: only Linux lets a program choose the congestion control.
func tune(net.Conn) string { return "" }

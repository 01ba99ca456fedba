package front

import (
	"net"

	"golang.org/x/sys/unix"
)

// notSent is how much the kernel queues for a user beyond what is on its way
// (TCP_NOTSENT_LOWAT). By itself it queues megabytes for each who takes nothing, from
// memory that all connections of the machine share: when that is short, all are slow.
const notSent = 256 << 10

// queueLittle bounds what the kernel queues on a connection.
func queueLittle(c net.Conn) {
	tc, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	if rc, err := tc.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSent) // older kernels go without
		})
	}
}

package front

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// notSent is how much the kernel queues for a user beyond what is on its way
// (TCP_NOTSENT_LOWAT). By itself it would queue megabytes for each who takes nothing,
// from memory that all connections of the machine share: when that is short, all are
// slow.
const notSent = 128 << 10

// queueLittle is for a listening socket: its connections inherit it.
func queueLittle(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSent) // older kernels go without
	})
}

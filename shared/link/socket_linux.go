package link

import (
	"crypto/tls"
	"net"

	"golang.org/x/sys/unix"
)

// notSent is how much unsent data the kernel queues for a link (TCP_NOTSENT_LOWAT):
// enough to keep the wire busy, little enough that a small frame does not wait
// behind megabytes of bulk.
const notSent = 256 << 10

// tune asks for BBR, without which one lost packet in a hundred collapses a link,
// where the kernel offers it, and says which congestion control is in use.
func tune(c net.Conn) string {
	t := tcpConn(c)
	if t == nil {
		return ""
	}
	rc, err := t.SyscallConn()
	if err != nil {
		return ""
	}
	var name string
	_ = rc.Control(func(fd uintptr) {
		_ = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "bbr")
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSent)
		if s, err := unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION); err == nil {
			name = s
		}
	})
	return name
}

// tcpConn finds the TCP connection beneath wrappers that say what they wrap.
func tcpConn(c net.Conn) *net.TCPConn {
	for {
		switch t := c.(type) {
		case *net.TCPConn:
			return t
		case *tls.Conn:
			c = t.NetConn()
		case interface{ NetConn() net.Conn }:
			c = t.NetConn()
		default:
			return nil
		}
	}
}

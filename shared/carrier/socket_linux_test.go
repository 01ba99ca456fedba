package carrier

import (
	"io"
	"math"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/adit-tunnel/adit/shared/testkit"
)

// The real thing: a socket under BBR tells, restarts and takes a limit.
func TestSocketUnderBBR(t *testing.T) {
	a, b := testkit.TCP(t)
	name, watched := Tune(New(a))
	if name != bbr {
		t.Skipf("this kernel gives sockets %s, not bbr (modprobe tcp_bbr)", name)
	}
	l := watched.(bbrLine)
	go func() { _, _ = io.Copy(io.Discard, b) }()
	for range 64 {
		if _, err := a.Write(make([]byte, 64<<10)); err != nil {
			t.Fatal(err)
		}
	}
	v, ok := l.Sample()
	if !ok || v.Sent == 0 || v.Bandwidth == 0 || v.RTT <= 0 {
		t.Errorf("of a socket that sent 4 MiB, the kernel tells %+v (%t)", v, ok)
	}
	for _, c := range []struct {
		limit uint64
		want  uint32
	}{{1 << 20, 1 << 20}, {3 << 30, math.MaxUint32}, {0, math.MaxUint32}} {
		l.Limit(c.limit)
		l.Restart()
		_ = l.raw.Control(func(fd uintptr) {
			got, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE)
			if err != nil || uint32(got) != c.want {
				t.Errorf("a limit of %d is %d at the socket, want %d (%v)", c.limit, uint32(got), c.want, err)
			}
			if name, err := unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION); err != nil || name != bbr {
				t.Errorf("after a restart the socket is under %q (%v)", name, err)
			}
		})
	}
}

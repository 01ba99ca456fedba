package link_test

import (
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/testkit/wan"
)

// wanPair is a pair of links on a line with so much delay each way. longest is the
// longest round trip that either end measured: a machine with other work makes it longer.
func wanPair(t *testing.T, delay time.Duration) (client, server *link.Link, longest *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	line := wan.Start(t, l.Addr().String(), wan.Options{Delay: delay})
	a, err := net.Dial("tcp", line.Addr())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	longest = new(atomic.Int64)
	client, server = connPair(t, a, b, link.Config{Hooks: link.Hooks{Measured: func(rtt time.Duration) {
		for {
			if was := longest.Load(); int64(rtt) <= was || longest.CompareAndSwap(was, int64(rtt)) {
				return
			}
		}
	}}})
	eventually(t, "both ends know the round trip", func() bool { return client.RTT() > 0 && server.RTT() > 0 })
	return client, server, longest
}

// A stream's window follows the line: what cannot be used is not granted, and what a
// long line needs is, to a reader who takes what comes.
func TestWindowFollowsTheRoundTrip(t *testing.T) {
	for _, c := range []struct {
		name        string
		delay       time.Duration
		taken       int64
		least, most uint64
	}{
		{"no delay", 0, 16 << 20, 128 << 10, 4 << 20}, // less where the machine has time for it
		{"20 ms each way", 20 * time.Millisecond, 16 << 20, 6 << 20, 9 << 20},
		{"a reader who takes nothing", 20 * time.Millisecond, 0, 256 << 10, 300 << 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			client, server, longest := wanPair(t, c.delay)
			near, far := streams(t, client, server)
			done := make(chan struct{})
			go func() { // more than any window
				defer close(done)
				_, _ = near.Write(make([]byte, 64<<20))
			}()
			if _, err := io.CopyN(io.Discard, far, c.taken); err != nil {
				t.Fatal(err)
			}
			stalled(t, server)
			// What a busy machine makes of the line is its round trip, too, within the bound of
			// all windows.
			rtt, most := time.Duration(longest.Load()), c.most
			if c.taken > 0 {
				most = max(most, min(uint64(1250<<20*rtt.Seconds())+yamuxWindow, 9<<20))
			}
			if n := server.Stats().BytesOut - uint64(c.taken); n < c.least || n > most {
				t.Errorf("%d bytes are on their way or unread; want %d to %d (longest round trip %s)", n, c.least, most, rtt)
			}
			_ = near.Close()
			<-done
		})
	}
}

const yamuxWindow = 256 << 10 // what a stream has at its begin

// A frame takes only so much of the line's time: small frames of others wait for it.
func TestFramesFollowTheLine(t *testing.T) {
	for _, c := range []struct {
		name        string
		delay       time.Duration // of each write
		least, most int64         // bytes of the largest writes, in the end
	}{
		{"a fast line", 0, 128 << 10, 512 << 10},
		{"a slow line", 8 * time.Millisecond, 16 << 10, 64 << 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := testkit.TCP(t)
			var largest, writes atomic.Int64
			hooks := link.Hooks{Sent: func(w link.Written) {
				if writes.Add(1) > 20 {
					largest.Store(max(largest.Load(), int64(w.Bytes)))
				}
			}}
			client, server := connPair(t, a, &slowConn{Conn: b, delay: c.delay}, link.Config{Hooks: hooks})
			near, far := streams(t, client, server)
			go func() {
				for {
					if _, err := near.Write(make([]byte, 256<<10)); err != nil {
						return
					}
				}
			}()
			go func() { _, _ = io.Copy(io.Discard, far) }()
			eventually(t, "many writes", func() bool { return writes.Load() > 200 })
			if n := largest.Load(); n < c.least || n > c.most {
				t.Errorf("the largest write has %d bytes; want %d to %d", n, c.least, c.most)
			}
			_ = near.Close()
		})
	}
}

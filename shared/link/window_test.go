package link_test

import (
	"io"
	"sync/atomic"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/testkit"
)

// A stream's window follows the line: what cannot be used is not granted, and what a
// long line needs is.
func TestWindowFollowsTheRoundTrip(t *testing.T) {
	for _, c := range []struct {
		name        string
		delay       time.Duration // of each write
		least, most uint64
	}{
		{"no delay", 0, 512 << 10, 4 << 20}, // less where the machine has time for it
		{"10 ms each way", 10 * time.Millisecond, 8 << 20, 9 << 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := testkit.TCP(t)
			client, server := connPair(t, &slowConn{Conn: a, delay: c.delay}, &slowConn{Conn: b, delay: c.delay}, link.Config{})
			eventually(t, "both ends know the round trip", func() bool { return client.RTT() > 0 && server.RTT() > 0 })
			near, _ := streams(t, client, server)
			done := make(chan struct{})
			go func() { // more than any window, and nobody reads
				defer close(done)
				_, _ = near.Write(make([]byte, 32<<20))
			}()
			stalled(t, server)
			if n := server.Stats().BytesOut; n < c.least || n > c.most {
				t.Errorf("%d bytes are on their way or unread; want %d to %d", n, c.least, c.most)
			}
			_ = near.Close()
			<-done
		})
	}
}

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

package link_test

import (
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
		{"10 ms each way", 10 * time.Millisecond, 4 << 20, 5 << 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := testkit.TCP(t)
			client, server := connPair(t, &slowConn{Conn: a, delay: c.delay}, &slowConn{Conn: b, delay: c.delay}, link.Config{})
			eventually(t, "both ends know the round trip", func() bool { return client.RTT() > 0 && server.RTT() > 0 })
			near, _ := streams(t, client, server)
			done := make(chan struct{})
			go func() { // more than any window, and nobody reads
				defer close(done)
				_, _ = near.Write(make([]byte, 16<<20))
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

package link_test

import (
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/testkit"
)

// Streams that all have bulk to send share the line.
func TestBulkSharesTheLine(t *testing.T) {
	a, b := testkit.TCP(t)
	client, server := connPair(t, a, &slowConn{Conn: b, delay: 200 * time.Microsecond}, link.Config{})
	var counts [8]atomic.Int64
	var wg sync.WaitGroup
	var stop atomic.Bool
	for i := range counts {
		near, far := streams(t, client, server)
		wg.Go(func() {
			buf := make([]byte, 256<<10)
			for !stop.Load() {
				n, err := near.Write(buf)
				if err != nil {
					return
				}
				counts[i].Add(int64(n))
			}
			_ = near.Close()
		})
		go func() { _, _ = io.Copy(io.Discard, far); _ = far.Close() }()
	}
	sums := func() (out []int64) {
		for i := range counts {
			out = append(out, counts[i].Load())
		}
		return out
	}
	eventually(t, "everybody has sent something", func() bool { return slices.Min(sums()) >= 2<<20 })
	stop.Store(true)
	wg.Wait()
	if s := sums(); slices.Max(s) > 8*slices.Min(s) {
		t.Errorf("streams that all have bulk to send sent %v bytes", s)
	}
}

package link_test

import (
	"runtime"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/shared/link"
)

// BenchmarkIdle is what an idle pair of links costs in memory, both ends in this
// process, connections and goroutines included.
func BenchmarkIdle(b *testing.B) {
	for name, pair := range carriers {
		b.Run(name, func(b *testing.B) {
			const n = 200
			memory := func() (uint64, int) {
				var m runtime.MemStats
				runtime.GC()
				runtime.GC()
				runtime.ReadMemStats(&m)
				return m.HeapAlloc + m.StackInuse, runtime.NumGoroutine()
			}
			for b.Loop() {
				before, goroutines := memory()
				var links []*link.Link
				for range n {
					client, server := pair(b, link.Config{KeepAlive: 100 * time.Millisecond, DeadAfter: time.Minute})
					links = append(links, client, server)
				}
				for _, l := range links {
					eventually(b, "every link is warm", func() bool { return l.RTT() > 0 })
				}
				after, now := memory()
				b.ReportMetric(float64(after-before)/n/2048, "KiB/link")
				b.ReportMetric(float64(now-goroutines)/n/2, "goroutines/link")
				for _, l := range links {
					_ = l.Close(errTest)
				}
			}
		})
	}
}

package store_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"runtime"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
)

// crowd fills a mirror with tunnels, ten per agent, without any etcd.
func crowd(b *testing.B, tunnels int) (*store.Store, []ident.SessionID, []string) {
	b.Helper()
	s, err := store.New(store.Config{DataDir: b.TempDir(), QuotaBytes: 2 << 30, Relay: store.RelayRecord{ID: "relay-1"}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	ids := make([]ident.SessionID, tunnels)
	values := make([]string, tunnels)
	for i := range ids {
		key := ident.AgentKey{Team: teamA, Agent: ident.AgentID(fmt.Sprintf("gpu-%d", i/10))}
		tu := tunnelOf(key, time.Now())
		v, err := json.Marshal(tu)
		if err != nil {
			b.Fatal(err)
		}
		ids[i], values[i] = tu.Session, string(v)
	}
	for i, id := range ids {
		s.MirrorPut(store.TunnelKey(id), values[i], int64(i+1))
	}
	return s, ids, values
}

// BenchmarkMirrorRead is what each request does, beside a watch that brings about
// a thousand changes a second.
func BenchmarkMirrorRead(b *testing.B) {
	s, ids, values := crowd(b, 100_000)
	for _, busy := range []bool{false, true} {
		b.Run(fmt.Sprintf("busy=%v", busy), func(b *testing.B) {
			stop, done := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(done)
				if !busy {
					return
				}
				tick := time.NewTicker(10 * time.Millisecond)
				defer tick.Stop()
				for n := int64(1_000_000); ; {
					select {
					case <-stop:
						return
					case <-tick.C:
						for range 10 {
							i := int(n) % len(ids)
							s.MirrorPut(store.TunnelKey(ids[i]), values[i], n)
							n++
						}
					}
				}
			}()
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for i := 0; pb.Next(); i += 7919 {
					if _, ok := s.Tunnel(ids[i%len(ids)]); !ok {
						b.Error("a tunnel is missing")
					}
				}
			})
			close(stop)
			<-done
		})
	}
}

// BenchmarkMirrorApply is the cost of one event of the watch.
func BenchmarkMirrorApply(b *testing.B) {
	s, ids, values := crowd(b, 100_000)
	b.ReportAllocs()
	n := int64(1_000_000)
	for i := 0; b.Loop(); i++ {
		n++
		s.MirrorPut(store.TunnelKey(ids[i%len(ids)]), values[i%len(ids)], n)
	}
}

// BenchmarkMirrorMemory reports what a tunnel costs in memory.
func BenchmarkMirrorMemory(b *testing.B) {
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	const tunnels = 100_000
	for b.Loop() {
		before := heap()
		s, _, _ := crowd(b, tunnels)
		b.ReportMetric(float64(heap()-before)/tunnels, "B/tunnel")
		runtime.KeepAlive(s)
	}
}

// BenchmarkUpdateAgent is opening a tunnel in an embedded store, synced to disk.
func BenchmarkUpdateAgent(b *testing.B) {
	s, err := store.New(store.Config{DataDir: b.TempDir(), QuotaBytes: 2 << 30, Relay: store.RelayRecord{ID: "relay-1"}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	run(b, s)
	tu := tunnelOf(gpu1, time.Now())
	for b.Loop() {
		if _, err := s.UpdateAgent(b.Context(), gpu1, open(tu)); err != nil {
			b.Fatal(err)
		}
	}
}

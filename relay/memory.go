package relay

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// memoryEvery is how often the memory limit follows what the relay needs.
const memoryEvery = 10 * time.Second

// boundMemory has the collector run before the process outgrows the budget for data
// that waits by more than a quarter. By itself it would let the heap become twice what
// is in use, and most of a busy relay's is that data. An operator who sets GOMEMLIMIT
// knows better.
func (r *Relay) boundMemory(ctx context.Context) error {
	if os.Getenv("GOMEMLIMIT") == "" {
		defer debug.SetMemoryLimit(debug.SetMemoryLimit(-1))
		tick := time.NewTicker(memoryEvery)
		defer tick.Stop()
		for ctx.Err() == nil {
			debug.SetMemoryLimit(memoryLimit(int64(r.cfg.Limits.MemoryBytes), inUse()-r.p.budget.Used()))
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	}
	<-ctx.Done()
	return nil
}

// memoryLimit leaves what else is in use the room to double: a relay with many agents
// must not collect all the time.
func memoryLimit(budget, rest int64) int64 {
	return max(budget/8*9, budget+2*rest)
}

// inUse is what the last collection found in use.
func inUse() int64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}}
	metrics.Read(s)
	return int64(s[0].Value.Uint64() + s[1].Value.Uint64())
}

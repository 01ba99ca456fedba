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
		for rest := int64(0); ctx.Err() == nil; {
			rest = restOf(rest, inUse()-r.p.budget.Used())
			debug.SetMemoryLimit(memoryLimit(int64(r.cfg.Limits.MemoryBytes), rest))
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
// must not collect all the time. At seven eighths the budget gives streams up.
func memoryLimit(budget, rest int64) int64 {
	return max(budget/8*9, budget/8*7+2*rest)
}

// leastRest is what a relay without agents needs.
const leastRest = 32 << 20

// restOf is what else is believed to be in use, when it seemed to be before and seems
// to be now. What looks like a sudden growth are buffers that nobody needs any more and
// that no collection has found yet.
func restOf(before, now int64) int64 {
	return max(min(now, before+before/8), leastRest)
}

// inUse is what the last collection found in use.
func inUse() int64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}}
	metrics.Read(s)
	return int64(s[0].Value.Uint64() + s[1].Value.Uint64())
}

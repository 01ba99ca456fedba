package lifecycle

import (
	"context"
	"runtime/debug"
	"time"
)

// settleAfter is when a daemon has started for good.
const settleAfter = 2 * time.Second

// Settle waits until the daemon has started, and gives the system back what only
// starting needed: free heap, and the process's share of the program file's pages.
// Most of those are never used again, and the others come back from the page cache.
func Settle(ctx context.Context) {
	t := time.NewTimer(settleAfter)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return
	case <-t.C:
	}
	debug.FreeOSMemory()
	leaveProgram()
}

package hub

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/wire"
)

// busyStore writes presences when it is let.
type busyStore struct {
	Store
	writing atomic.Int32
	let     chan struct{}
}

func (b *busyStore) PutPresence(context.Context, store.Presence) error {
	b.writing.Add(1)
	defer b.writing.Add(-1)
	<-b.let
	return nil
}

func (b *busyStore) Room() bool { return true }

// Heartbeats that say nothing new leave a busy store to others; what changed is written
// at once, and what is old gets places of its own.
func TestHeartbeatsMakeWay(t *testing.T) {
	busy := &busyStore{let: make(chan struct{})}
	h := &Hub{
		cfg: Config{Store: busy}, metrics: newMetrics(prometheus.NewRegistry(), link.NewBudget(1)),
		refreshes: make(chan struct{}, maxRefreshes), overdue: make(chan struct{}, maxOverdue),
	}
	var wg sync.WaitGroup
	say := func(n int, age time.Duration, facts wire.Facts) {
		for range n {
			s := &session{hub: h, said: &declaration{}, news: rate.NewLimiter(sessionNewsRate, sessionNews)}
			s.first.Store(true)
			s.presence.Epoch, s.written.Epoch = 1, 1
			s.written.Heartbeat = time.Now().Add(-age)
			wg.Go(func() {
				if err := s.heard(t.Context(), &facts, nil); err != nil {
					t.Error(err)
				}
			})
		}
	}
	writing := func(what string, n int32) {
		t.Helper()
		testkit.Eventually(t, what, func() bool { return busy.writing.Load() == n })
	}
	say(100, storeInterval/2, wire.Facts{})
	say(100, storeInterval+time.Second, wire.Facts{})
	writing("eight are written, the others are put off", maxRefreshes)
	say(100, 3*storeInterval+time.Second, wire.Facts{})
	writing("of the overdue ones some are", maxRefreshes+maxOverdue)
	say(100, 0, wire.Facts{Tool: "comfyui"})
	writing("changes do not wait", maxRefreshes+maxOverdue+100)
	close(busy.let)
	wg.Wait()
	if len(h.refreshes)+len(h.overdue) != 0 {
		t.Error("places are not given back")
	}
}

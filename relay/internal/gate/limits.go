package gate

import (
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/adit-tunnel/adit/shared/api"
)

// throttle is one token bucket per caller.
type throttle struct {
	rate  rate.Limit
	burst int

	mu      sync.Mutex
	buckets map[string]*rate.Limiter
}

// maxBuckets bounds the throttle's memory: beyond it the full buckets, which say
// nothing, are dropped.
const maxBuckets = 10000

func newThrottle(perSecond float64, burst int) *throttle {
	return &throttle{rate: rate.Limit(perSecond), burst: burst, buckets: make(map[string]*rate.Limiter)}
}

// take refuses with 429 when a caller's bucket is empty.
func (t *throttle) take(caller string) error {
	now := time.Now()
	t.mu.Lock()
	b := t.buckets[caller]
	if b == nil {
		if len(t.buckets) >= maxBuckets {
			t.drop(now)
		}
		b = rate.NewLimiter(t.rate, t.burst)
		t.buckets[caller] = b
	}
	t.mu.Unlock()
	if b.AllowN(now, 1) {
		return nil
	}
	lack := 1 - b.TokensAt(now)
	wait := time.Duration(lack / float64(t.rate) * float64(time.Second))
	return api.NewProblem(api.CodeTooManyOpens, "this credential opens tunnels too fast").WithRetry(max(time.Second, wait.Round(time.Second)))
}

func (t *throttle) drop(now time.Time) {
	for k, b := range t.buckets {
		if b.TokensAt(now) >= float64(t.burst) {
			delete(t.buckets, k)
		}
	}
}

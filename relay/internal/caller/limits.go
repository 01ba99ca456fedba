package caller

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limits bounds how often each address may do something. It is safe for concurrent
// use, and its memory is bounded: who comes from more addresses than it keeps needs
// another limit over all.
type Limits struct {
	every time.Duration
	burst int
	most  int

	mu sync.Mutex
	of map[string]*rate.Limiter
}

// NewLimits returns Limits that allow an address burst at once, then one each every,
// and keep most addresses in mind.
func NewLimits(every time.Duration, burst, most int) *Limits {
	return &Limits{every: every, burst: burst, most: most, of: map[string]*rate.Limiter{}}
}

// Take uses one of an address's tries. It reports false when none is left.
func (l *Limits) Take(addr string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.limiter(addr, now).AllowN(now, 1)
}

// limiter needs mu.
func (l *Limits) limiter(addr string, now time.Time) *rate.Limiter {
	key := Key(addr)
	lim := l.of[key]
	if lim == nil {
		l.makeRoom(now)
		lim = rate.NewLimiter(rate.Every(l.every), l.burst)
		l.of[key] = lim
	}
	return lim
}

// Reserve is Take for a try that may turn out to be none: undo gives it back.
func (l *Limits) Reserve(addr string, now time.Time) (undo func(), ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	try := l.limiter(addr, now).ReserveN(now, 1)
	if !try.OK() || try.DelayFrom(now) > 0 {
		try.CancelAt(now)
		return nil, false
	}
	return func() { try.CancelAt(now) }, true
}

// Wait says how long until an address may try again; 0: it may. It uses nothing.
func (l *Limits) Wait(addr string, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	lim := l.of[Key(addr)]
	if lim == nil {
		return 0
	}
	if left := lim.TokensAt(now); left < 1 {
		return time.Duration((1 - left) * float64(l.every))
	}
	return 0
}

// makeRoom forgets addresses that are as good as new, else any.
func (l *Limits) makeRoom(now time.Time) {
	if len(l.of) < l.most {
		return
	}
	for key, lim := range l.of {
		if lim.TokensAt(now) >= float64(l.burst) {
			delete(l.of, key)
		}
	}
	for key := range l.of {
		if len(l.of) < l.most {
			return
		}
		delete(l.of, key)
	}
}

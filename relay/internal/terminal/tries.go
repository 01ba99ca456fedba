package terminal

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// What one address may get wrong: ten tries, then one every six seconds.
const (
	triesBurst = 10
	triesEvery = 6 * time.Second
	// maxAddresses bounds the memory of it. Who comes from more addresses at once
	// still guesses at 200 random bits.
	maxAddresses = 8192
)

// tries counts wrong tokens by address.
type tries struct {
	mu sync.Mutex
	of map[string]*rate.Limiter
}

func newTries() *tries { return &tries{of: map[string]*rate.Limiter{}} }

// group counts an IPv6 network of 64 bits as one address: one host has all of it.
func group(remote string) string {
	a, err := netip.ParseAddr(remote)
	if err != nil {
		return remote
	}
	if a = a.Unmap(); a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.String()
		}
	}
	return a.String()
}

// may says whether an address may try, or when again.
func (t *tries) may(remote string, now time.Time) (wait time.Duration, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.of[group(remote)]
	if l == nil {
		return 0, true
	}
	if left := l.TokensAt(now); left < 1 {
		return time.Duration((1 - left) * float64(triesEvery)), false
	}
	return 0, true
}

// wrong notes a wrong token.
func (t *tries) wrong(remote string, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := group(remote)
	l := t.of[key]
	if l == nil {
		if len(t.of) >= maxAddresses {
			t.forget(now)
		}
		l = rate.NewLimiter(rate.Every(triesEvery), triesBurst)
		t.of[key] = l
	}
	l.AllowN(now, 1)
}

// forget makes room: addresses that did nothing wrong lately, else any.
func (t *tries) forget(now time.Time) {
	for key, l := range t.of {
		if l.TokensAt(now) >= triesBurst {
			delete(t.of, key)
		}
	}
	for key := range t.of {
		if len(t.of) < maxAddresses {
			return
		}
		delete(t.of, key)
	}
}

package enrol

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limits of tries. A fleet behind one address enrolls a few machines at once;
// guessing 200 random bits is hopeless at any rate, but each try reads the store.
const (
	perAddress      = rate.Limit(0.5)
	perAddressBurst = 20
	overall         = rate.Limit(20)
	overallBurst    = 100
	maxAddresses    = 4096
)

// tries bounds how often tokens are tried, per address and over all.
type tries struct {
	now     func() time.Time
	mu      sync.Mutex
	all     *rate.Limiter
	address map[string]*rate.Limiter
}

func newTries(now func() time.Time) *tries {
	return &tries{now: now, all: rate.NewLimiter(overall, overallBurst), address: map[string]*rate.Limiter{}}
}

// wait returns 0 when a try may go on, else how long to wait.
func (t *tries) wait(remote string) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	key := network(remote)
	l := t.address[key]
	if l == nil {
		if len(t.address) >= maxAddresses {
			t.forget(now)
		}
		l = rate.NewLimiter(perAddress, perAddressBurst)
		t.address[key] = l
	}
	if !l.AllowN(now, 1) { // before the common one, so that one address cannot use that up
		return time.Duration(float64(time.Second) / float64(perAddress))
	}
	if !t.all.AllowN(now, 1) {
		return time.Second
	}
	return 0
}

// forget drops addresses that are as good as new; all of them when none is: the
// common limit holds in any case.
func (t *tries) forget(now time.Time) {
	for key, l := range t.address {
		if l.TokensAt(now) >= perAddressBurst {
			delete(t.address, key)
		}
	}
	if len(t.address) >= maxAddresses {
		clear(t.address)
	}
}

// network counts an IPv6 network of 64 bits as one address: one host has all of it.
func network(remote string) string {
	a, err := netip.ParseAddr(remote)
	if err != nil {
		return remote
	}
	a = a.Unmap()
	if a.Is6() {
		if p, err := a.WithZone("").Prefix(64); err == nil {
			return p.String()
		}
	}
	return a.String()
}

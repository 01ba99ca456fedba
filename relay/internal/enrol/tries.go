package enrol

import (
	"time"

	"golang.org/x/time/rate"

	"github.com/adit-tunnel/adit/relay/internal/caller"
)

// Limits of tries. A fleet behind one address enrolls a few machines at once;
// guessing 200 random bits is hopeless at any rate, but each try reads the store.
const (
	addressEvery = 2 * time.Second
	addressBurst = 20
	overall      = rate.Limit(20)
	overallBurst = 100
	maxAddresses = 4096
)

// tries bounds how often tokens are tried, per address and over all.
type tries struct {
	now     func() time.Time
	all     *rate.Limiter
	address *caller.Limits
}

func newTries(now func() time.Time) *tries {
	return &tries{now: now, all: rate.NewLimiter(overall, overallBurst), address: caller.NewLimits(addressEvery, addressBurst, maxAddresses)}
}

// wait returns 0 when a try may go on, else how long to wait.
func (t *tries) wait(remote string) time.Duration {
	now := t.now()
	if !t.address.Take(remote, now) { // before the common one, so that one address cannot use that up
		return addressEvery
	}
	if !t.all.AllowN(now, 1) {
		return time.Second
	}
	return 0
}

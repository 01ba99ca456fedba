package enroll

import (
	"time"

	"golang.org/x/time/rate"

	"github.com/adit-tunnel/adit/relay/internal/caller"
)

// Limits of tries. A fleet behind one address enrolls a few machines at once;
// guessing is hopeless at any rate, but a guess reads the store.
const (
	addressEvery = 2 * time.Second
	addressBurst = 20
	overall      = rate.Limit(20)
	overallBurst = 100
	maxAddresses = 4096
)

// tries bounds how often tokens are tried: any, of one address, and such as this
// pool did not seal, over all. Those are guesses, or tokens that an older relay made.
type tries struct {
	now       func() time.Time
	guesses   *rate.Limiter
	addresses *caller.Limits
}

func newTries(now func() time.Time) *tries {
	return &tries{now: now, guesses: rate.NewLimiter(overall, overallBurst), addresses: caller.NewLimits(addressEvery, addressBurst, maxAddresses)}
}

func (t *tries) address(remote string) bool { return t.addresses.Take(remote, t.now()) }

func (t *tries) guess() bool { return t.guesses.AllowN(t.now(), 1) }

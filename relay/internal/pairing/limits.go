package pairing

import (
	"context"
	"net/netip"
	"time"

	"golang.org/x/time/rate"

	"github.com/adit-tunnel/adit/relay/internal/caller"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
)

// Bounds of what strangers can make a relay do.
const (
	startsAtOnce  = 10 // of an address, then one each
	startsEvery   = 6 * time.Second
	sitesAtOnce   = 60 // of all addresses of a site
	sitesEvery    = time.Second
	startsOverall = rate.Limit(50) // each is a write to the store
	startsBurst   = 200
	guessesAtOnce = 5 // wrong codes of an address, and of a person
	guessesEvery  = 12 * time.Second
	missesAtOnce  = 20 // device codes that this relay does not know, of an address
	missesEvery   = time.Second
	missesOverall = rate.Limit(10)
	missesBurst   = 50
	maxKept       = 4096 // addresses, or persons
	// maxWaiting is how many programs may wait at once, at all relays.
	maxWaiting = 1000
)

type limits struct {
	starts, sites, guesses, persons, misses *caller.Limits
	allStarts, allMisses                    *rate.Limiter
}

func newLimits() limits {
	return limits{
		starts:    caller.NewLimits(startsEvery, startsAtOnce, maxKept),
		sites:     caller.NewLimits(sitesEvery, sitesAtOnce, maxKept),
		allStarts: rate.NewLimiter(startsOverall, startsBurst),
		guesses:   caller.NewLimits(guessesEvery, guessesAtOnce, maxKept),
		persons:   caller.NewLimits(guessesEvery, guessesAtOnce, maxKept),
		misses:    caller.NewLimits(missesEvery, missesAtOnce, maxKept),
		allMisses: rate.NewLimiter(missesOverall, missesBurst),
	}
}

// tooMany refuses what was tried too often; wait is until it may be tried again.
func tooMany(what string, wait time.Duration) *api.Problem {
	return api.NewProblem(api.CodeTooManyTries, what+": try again later").WithRetry(max(time.Second, wait))
}

// makeRoom finds a place among those who wait. When all are taken, the oldest of the
// site that has most of them makes room, if it has more than the newcomer's: who asks from
// many addresses keeps nobody out who asks once.
func (p *Pairing) makeRoom(ctx context.Context, newcomer store.PairingRecord) error {
	all := p.cfg.Store.Pairings()
	if len(all) < maxWaiting {
		return nil
	}
	oldest, held := map[string]store.PairingRecord{}, map[string]int{}
	for _, rec := range all {
		if rec.Approved() {
			continue
		}
		from := site(rec.RemoteAddr)
		held[from]++
		if first, ok := oldest[from]; !ok || rec.CreatedAt.Before(first.CreatedAt) {
			oldest[from] = rec
		}
	}
	own := site(newcomer.RemoteAddr)
	heaviest := own
	for from, n := range held {
		if n > held[heaviest]+1 || heaviest != own && n > held[heaviest] {
			heaviest = from
		}
	}
	if heaviest == own {
		return tooMany("as many programs as may wait to be paired do wait", 10*time.Second)
	}
	if err := p.cfg.Store.DeletePairing(ctx, oldest[heaviest].Hash); err != nil {
		return storeProblem(err)
	}
	return nil
}

// site is what is limited and makes room as one: of IPv6 a network of 48 bits, as one customer gets it with
// its thousands of networks of 64.
func site(addr string) string {
	a, err := netip.ParseAddr(addr)
	if err != nil || !a.Is6() {
		return addr
	}
	p, err := a.Prefix(48)
	if err != nil {
		return addr
	}
	return p.String()
}

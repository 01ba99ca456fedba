package pairing

import (
	"context"
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
	starts, guesses, persons, misses *caller.Limits
	allMisses                        *rate.Limiter
}

func newLimits() limits {
	return limits{
		starts:    caller.NewLimits(startsEvery, startsAtOnce, maxKept),
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
// address that has most of them makes room, if it has more than the newcomer's address:
// who asks from many addresses keeps nobody out who asks once.
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
		from := rec.RemoteAddr
		held[from]++
		if first, ok := oldest[from]; !ok || rec.CreatedAt.Before(first.CreatedAt) {
			oldest[from] = rec
		}
	}
	heaviest := newcomer.RemoteAddr
	for from, n := range held {
		if n > held[heaviest]+1 || heaviest != newcomer.RemoteAddr && n > held[heaviest] {
			heaviest = from
		}
	}
	if heaviest == newcomer.RemoteAddr {
		return tooMany("as many programs as may wait to be paired do wait", 10*time.Second)
	}
	if err := p.cfg.Store.DeletePairing(ctx, oldest[heaviest].Hash); err != nil {
		return storeProblem(err)
	}
	return nil
}

package relay

import (
	"testing"

	"github.com/adit-tunnel/adit/shared/testkit"
)

func TestMain(m *testing.M) { testkit.LeakCheck(m) }

// The process stays within a quarter over the budget, and one that needs much for all
// else is not made to collect all the time.
func TestMemoryLimitFollowsWhatIsNeeded(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct{ budget, rest, least, most int64 }{
		{1 << 30, 60 * mib, 1 << 30, 5 << 28},
		{256 * mib, leastRest, 256 * mib, 320 * mib},
		{1 << 30, 1200 * mib, 2400 * mib, 4 << 30}, // 20,000 agents
	} {
		if got := memoryLimit(c.budget, c.rest); got < c.least || got > c.most {
			t.Errorf("a budget of %d MiB and %d MiB for all else: the limit is %d MiB, want %d to %d", c.budget/mib, c.rest/mib, got/mib, c.least/mib, c.most/mib)
		}
	}
	// A flood's buffers look like a need until the next collection.
	if got := restOf(100*mib, 900*mib); got > 120*mib {
		t.Errorf("from 100 MiB to %d at once", got/mib)
	}
	rest := int64(0)
	for range 60 { // ten minutes
		rest = restOf(rest, 1200*mib)
	}
	if rest != 1200*mib {
		t.Errorf("a relay that grew to 1200 MiB is believed to need %d after ten minutes", rest/mib)
	}
	if got := restOf(1200*mib, -1); got != leastRest {
		t.Errorf("what seems to be needed by nobody counts as %d MiB", got/mib)
	}
}

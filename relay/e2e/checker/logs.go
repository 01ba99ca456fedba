package checker

import (
	"cmp"
	"slices"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/shared/ident"
)

// inFlight is how long before a relay's death a change may have landed whose record
// it did not write any more. A change takes 5 s at most (store.UpdateAgent); if its
// answer was lost in a change of etcd's leader it is looked for after that, each
// half second and 2 s for each look; and the gate waits 5 s for the audit. A relay
// that lived for longer than all of these has written its record.
const inFlight = 15 * time.Second

// crash is a relay's run that ended without a stop.
type crash struct {
	relay  ident.RelayID
	first  uint64 // Seq of the run's first record
	last   uint64 // and of its last
	after  time.Time
	before time.Time // when the next run began
}

type logs struct {
	runs    int
	crashes []crash
}

// readLogs finds the runs of each relay, and gaps in its count of records.
func readLogs(r *Report, records []audit.Record) logs {
	perRelay := map[ident.RelayID][]audit.Record{}
	for _, rec := range records {
		perRelay[rec.Relay] = append(perRelay[rec.Relay], rec)
	}
	var l logs
	for relay, recs := range perRelay {
		slices.SortFunc(recs, func(a, b audit.Record) int { return cmp.Compare(a.Seq, b.Seq) })
		stopped, first := true, uint64(0)
		for i, rec := range recs {
			if i > 0 && rec.Seq != recs[i-1].Seq+1 {
				r.violate("seq", ident.AgentKey{}, "relay %s: record %d is followed by %d: records were taken away or doubled", relay, recs[i-1].Seq, rec.Seq)
			}
			switch rec.Event {
			case audit.RelayStarted:
				if !stopped {
					l.crashes = append(l.crashes, crash{relay: relay, first: first, last: recs[i-1].Seq, after: recs[i-1].Time, before: rec.Time})
				}
				l.runs, stopped, first = l.runs+1, false, rec.Seq
			case audit.RelayStopped:
				stopped = true
			}
		}
	}
	return l
}

// mayLack returns a function that says whether a record of a change behind revision
// a and before b may be missing. Without a crash none is. A change leaves one
// record or more under a revision of its own, but connections and declarations of
// agents use revisions too and leave none there: an unused revision is a possibility.
func (l logs) mayLack(events []event) func(a, b uint64) bool {
	if len(l.crashes) == 0 {
		return func(uint64, uint64) bool { return false }
	}
	type spot struct {
		rev     uint64
		time    time.Time
		partial bool // the rest of the change's records may be missing
	}
	spots := []spot{{}} // before everything
	for _, e := range events {
		if n := len(spots); n > 0 && spots[n-1].rev == e.rev {
			spots[n-1].partial = l.diedAfter(e)
			continue
		}
		spots = append(spots, spot{e.rev, e.time, l.diedAfter(e)})
	}
	return func(a, b uint64) bool {
		i, _ := slices.BinarySearchFunc(spots, a, func(s spot, rev uint64) int { return cmp.Compare(s.rev, rev) })
		for ; i < len(spots) && spots[i].rev < b; i++ {
			if spots[i].partial {
				return true
			}
			if i+1 < len(spots) && spots[i+1].rev > spots[i].rev+1 && l.diedBetween(spots[i].time, spots[i+1].time) {
				return true
			}
		}
		return false
	}
}

// diedAfter says whether an event's relay was killed so soon after it that another
// record of the same change may be missing.
func (l logs) diedAfter(e event) bool {
	return slices.ContainsFunc(l.crashes, func(c crash) bool {
		return c.relay == e.relay && e.seq >= c.first && e.seq <= c.last && c.after.Sub(e.time) <= inFlight
	})
}

// diedBetween says whether a relay may have been killed between two records, or
// soon after the second one, so that a change between them went without its record.
func (l logs) diedBetween(a, b time.Time) bool {
	return slices.ContainsFunc(l.crashes, func(c crash) bool {
		return c.before.After(a.Add(-inFlight)) && c.after.Before(b.Add(inFlight))
	})
}

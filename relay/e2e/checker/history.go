package checker

import (
	"fmt"
	"reflect"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
)

// history is what the store's versions tell.
type history struct {
	events map[ident.AgentKey][]event
	at     map[ident.AgentKey]map[uint64]versions // by revision
	final  map[ident.AgentKey]store.AgentRecord
}

// versions are an agent's record before and after one change.
type versions struct{ before, after store.AgentRecord }

// deriveHistory finds out what each change did, and checks what only the records
// themselves can show.
func deriveHistory(r *Report, all []Version) *history {
	h := &history{
		events: map[ident.AgentKey][]event{}, at: map[ident.AgentKey]map[uint64]versions{},
		final: map[ident.AgentKey]store.AgentRecord{},
	}
	nonces := map[string]bool{}
	for _, v := range all {
		prev := h.final[v.Key].Clone()
		if v.Deleted {
			r.violate("history", v.Key, "the record was deleted at n %d: its tokens and epochs would begin anew", prev.N)
			continue
		}
		next := v.Record.Clone()
		if next.N != prev.N+1 {
			r.violate("history", v.Key, "n goes from %d to %d", prev.N, next.N)
		}
		if nonces[next.Nonce] {
			r.violate("history", v.Key, "the change to n %d was made twice", next.N)
		}
		nonces[next.Nonce] = true
		if next.Epoch < prev.Epoch {
			r.violate("epoch", v.Key, "epoch goes from %d to %d at n %d", prev.Epoch, next.Epoch, next.N)
		}
		// Further links of a process join its epoch; another process never does.
		if next.Epoch == prev.Epoch && next.Instance != prev.Instance {
			r.violate("epoch", v.Key, "epoch %d was given to another process at n %d", next.Epoch, next.N)
		}
		h.events[v.Key] = append(h.events[v.Key], h.diff(r, v.Key, prev, next)...)
		if h.at[v.Key] == nil {
			h.at[v.Key] = map[uint64]versions{}
		}
		h.at[v.Key][next.N] = versions{prev, next}
		h.final[v.Key] = next
	}
	r.add("changes in the store's history", len(all))
	return h
}

// diff is what one change did: ends first, as the gate does it.
func (h *history) diff(r *Report, key ident.AgentKey, prev, next store.AgentRecord) []event {
	var ends, rest []event
	ev := func(k kind, id ident.SessionID, task ident.TaskID, fencing uint64) event {
		return event{kind: k, name: kindNames[k], rev: next.N, session: id, task: task, fencing: fencing, epoch: next.Epoch}
	}
	for id := range prev.Tunnels {
		if _, ok := next.Tunnels[id]; !ok {
			ends = append(ends, ev(tunnelEnds, id, "", 0))
		}
	}
	for task, l := range prev.Leases {
		if now, ok := next.Leases[task]; !ok || now.Fencing != l.Fencing {
			ends = append(ends, ev(leaseEnds, "", task, l.Fencing))
		}
	}
	for id, t := range next.Tunnels {
		old, had := prev.Tunnels[id]
		switch {
		case !had && t.State == store.TunnelWaiting:
			rest = append(rest, ev(tunnelWaits, id, "", 0))
		case t.State == store.TunnelOpen && (!had || old.State == store.TunnelWaiting):
			rest = append(rest, ev(tunnelOpens, id, "", 0))
		case !had || old.State != t.State && t.State != store.TunnelClosing:
			r.violate("history", key, "session %s goes from %q to %q at n %d", id, old.State, t.State, next.N)
		case changed(t, old):
			rest = append(rest, ev(tunnelLives, id, "", 0))
			if t.Expires.Before(old.Expires) {
				r.violate("history", key, "session %s was shortened at n %d", id, next.N)
			}
		}
	}
	begun := 0
	for task, l := range next.Leases {
		old, had := prev.Leases[task]
		switch {
		case !had || old.Fencing != l.Fencing:
			rest = append(rest, ev(leaseBegins, "", task, l.Fencing))
			begun++
			if l.Fencing != next.Fencing {
				r.violate("fencing", key, "task %s was admitted with token %d at n %d, where the newest is %d", task, l.Fencing, next.N, next.Fencing)
			}
			if len(next.Tunnels) > 0 {
				r.violate("admission", key, "the change to n %d admits task %s into a record with %d tunnels", next.N, task, len(next.Tunnels))
			}
		case l != old:
			rest = append(rest, ev(leaseLives, "", task, l.Fencing))
		}
	}
	if next.Fencing != prev.Fencing+uint64(begun) {
		r.violate("fencing", key, "the token goes from %d to %d at n %d, where %d tasks were admitted", prev.Fencing, next.Fencing, next.N, begun)
	}
	return append(ends, rest...)
}

// changed says whether a tunnel's entry is another one. Which relays have cut a
// closing tunnel is between them.
func changed(a, b store.TunnelState) bool {
	a.Cut, b.Cut = nil, nil
	return !reflect.DeepEqual(a, b)
}

var kindNames = map[kind]audit.Event{
	tunnelWaits: "tunnel_waiting", tunnelOpens: "tunnel_opened", tunnelLives: "tunnel_closing", tunnelEnds: "tunnel_closed",
	leaseBegins: "task_admitted", leaseLives: "task_renewed", leaseEnds: "task_released",
}

// same is what makes an event of the audit and one of the history the same. That a
// tunnel or a lease lives on is no change of its own.
type same struct {
	rev     uint64
	kind    kind
	session ident.SessionID
	fencing uint64
}

func (e event) same() same {
	s := same{rev: e.rev, kind: e.kind, session: e.session}
	if e.session == "" {
		s.fencing = e.fencing
	}
	return s
}

// compare holds the audit against the history: no record of what never happened,
// no change without a record but where a relay was killed, and nothing taken out
// of a record before its time.
func compare(r *Report, told map[ident.AgentKey][]event, h *history, l logs) {
	missing, found := 0, 0
	for _, key := range sortedKeys(told) {
		real := map[same]bool{}
		for _, e := range h.events[key] {
			real[e.same()] = true
		}
		for _, e := range told[key] {
			found++
			if !h.happened(key, e, real) {
				r.violate("audit", key, "%s of %s%s at revision %d: the store knows of no such change", e.name, e.session, e.task, e.rev)
			}
			h.inTime(r, key, e)
		}
	}
	for _, key := range sortedKeys(h.events) {
		recorded := map[same]bool{}
		times := map[uint64]time.Time{}
		for _, e := range told[key] {
			recorded[e.same()] = true
			times[e.rev] = e.time
		}
		for _, e := range h.events[key] {
			if recorded[e.same()] {
				continue
			}
			missing++
			if !l.excuses(e.rev, times) {
				r.violate("audit", key, "%s of %s%s at revision %d left no record, and no relay was killed then", e.name, e.session, e.task, e.rev)
			}
		}
	}
	r.add("audit records found in the history", found)
	r.add("changes without a record, by a killed relay", missing)
}

func (h *history) happened(key ident.AgentKey, e event, real map[same]bool) bool {
	v, ok := h.at[key][e.rev]
	if !ok {
		return false
	}
	switch e.kind {
	case tunnelLives: // an extension to the same end changes nothing
		_, ok = v.after.Tunnels[e.session]
		return ok
	case leaseLives: // so does a renewal within the same millisecond
		l, ok := v.after.Leases[e.task]
		return ok && l.Fencing == e.fencing
	}
	return real[e.same()]
}

// inTime wants what was never asked to end to be taken out only when the promise
// to its holder was over.
func (h *history) inTime(r *Report, key ident.AgentKey, e event) {
	v := h.at[key][e.rev]
	var expires time.Time
	what := ""
	switch {
	case e.kind == tunnelEnds && v.before.Tunnels[e.session].State == store.TunnelOpen:
		expires, what = v.before.Tunnels[e.session].Expires, "session "+string(e.session)
	case e.name == "task_expired":
		expires, what = v.before.Leases[e.task].Expires, fmt.Sprintf("task %s (token %d)", e.task, e.fencing)
	default:
		return
	}
	if e.time.Before(expires) {
		r.violate("lost", key, "%s was dropped at revision %d, %s before its end", what, e.rev, expires.Sub(e.time))
	}
}

// excuses says whether the record of a change may be missing because a relay was
// killed before it wrote it.
func (l logs) excuses(rev uint64, times map[uint64]time.Time) bool {
	if t, ok := times[rev]; ok { // some records of the change are there
		return l.diedBetween(t, t)
	}
	var before, after time.Time
	var lower, upper uint64
	for n, t := range times {
		if n < rev && n >= lower {
			lower, before = n, t
		}
		if n > rev && (upper == 0 || n < upper) {
			upper, after = n, t
		}
	}
	if upper == 0 {
		after = before.Add(24 * time.Hour)
	}
	return l.diedBetween(before, after)
}

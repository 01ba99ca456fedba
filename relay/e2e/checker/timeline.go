package checker

import (
	"cmp"
	"slices"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/shared/ident"
)

// kind is what an event says of a tunnel or a lease.
type kind int

const (
	tunnelWaits kind = iota + 1
	tunnelOpens
	tunnelLives // closing, extended
	tunnelEnds
	leaseBegins
	leaseLives // renewed
	leaseEnds
)

var kinds = map[audit.Event]kind{
	audit.TunnelWaiting: tunnelWaits, audit.TunnelOpened: tunnelOpens,
	audit.TunnelClosing: tunnelLives, audit.TunnelExtended: tunnelLives,
	audit.TunnelClosed: tunnelEnds, audit.TunnelExpired: tunnelEnds,
	audit.TaskAdmitted: leaseBegins, audit.TaskRenewed: leaseLives,
	audit.TaskReleased: leaseEnds, audit.TaskExpired: leaseEnds,
}

// event is one thing that a change of an agent's record did.
type event struct {
	kind    kind
	name    audit.Event
	rev     uint64
	seq     uint64
	relay   ident.RelayID
	time    time.Time
	session ident.SessionID
	task    ident.TaskID
	fencing uint64
	epoch   uint64
	detail  string
}

// auditEvents sorts the gate's records by agent, and those of one agent by the
// order of the changes, which no clock has a part in.
func auditEvents(records []audit.Record) map[ident.AgentKey][]event {
	out := map[ident.AgentKey][]event{}
	for _, r := range records {
		k, ok := kinds[r.Event]
		if !ok {
			continue
		}
		key := ident.AgentKey{Team: r.Team, Agent: r.Agent}
		out[key] = append(out[key], event{
			kind: k, name: r.Event, rev: r.Revision, seq: r.Seq, relay: r.Relay, time: r.Time,
			session: r.Session, task: r.Task, fencing: r.Fencing, epoch: r.Epoch, detail: r.Detail,
		})
	}
	for _, events := range out {
		slices.SortStableFunc(events, func(a, b event) int {
			return cmp.Or(cmp.Compare(a.rev, b.rev), cmp.Compare(a.relay, b.relay), cmp.Compare(a.seq, b.seq))
		})
	}
	return out
}

// life is the part of a timeline in which a tunnel or a lease is proven to be in
// the agent's record: from its first sign to its last.
type life struct {
	first, last int // indexes of events
	end         int // -1: no record of it
	began       int // of the event that began it, -1: none
	waited      bool
	opened      int // -1: not
}

// covers says whether an event lies inside for certain.
func (l *life) covers(i int) bool { return l.first < i && i < l.last }

// timeline is what happened to one agent.
type timeline struct {
	report   *Report
	key      ident.AgentKey
	events   []event
	capacity int
	// lost says whether a record of a change behind revision a and before b may be
	// missing; nil: never.
	lost func(a, b uint64) bool

	tunnels map[ident.SessionID]*life
	leases  map[uint64]*life // by fencing token
	admits  []int
}

func (t *timeline) mayLack(a, b uint64) bool { return t.lost != nil && t.lost(a, b) }

func (t *timeline) check() {
	t.tunnels, t.leases = map[ident.SessionID]*life{}, map[uint64]*life{}
	t.checkOrder()
	for i, e := range t.events {
		switch e.kind {
		case tunnelWaits, tunnelOpens, tunnelLives, tunnelEnds:
			t.tunnel(i, e)
		case leaseBegins, leaseLives, leaseEnds:
			t.lease(i, e)
		}
	}
	t.checkAdmissions()
	t.checkPromotions()
	t.checkFencing()
}

// checkOrder wants one relay behind each change, and epochs that never go back.
func (t *timeline) checkOrder() {
	epoch := uint64(0)
	for i, e := range t.events {
		if e.rev == 0 {
			t.report.violate("revision", t.key, "%s of %s%s has no revision", e.name, e.session, e.task)
		}
		if i > 0 && e.rev == t.events[i-1].rev && e.relay != t.events[i-1].relay {
			t.report.violate("revision", t.key, "revision %d was made by relays %s and %s", e.rev, t.events[i-1].relay, e.relay)
		}
		if e.epoch < epoch {
			t.report.violate("epoch", t.key, "epoch %d at revision %d comes after epoch %d", e.epoch, e.rev, epoch)
		}
		epoch = max(epoch, e.epoch)
	}
}

func (t *timeline) tunnel(i int, e event) {
	l := t.tunnels[e.session]
	if l == nil {
		l = &life{first: i, end: -1, began: -1, opened: -1}
		t.tunnels[e.session] = l
	}
	if l.end >= 0 {
		t.report.violate("tunnel", t.key, "%s of session %s at revision %d, behind its end at %d", e.name, e.session, e.rev, t.events[l.end].rev)
	}
	switch e.kind {
	case tunnelWaits:
		if l.began >= 0 {
			t.report.violate("tunnel", t.key, "session %s waits at revision %d but began before", e.session, e.rev)
		}
		l.began, l.waited = i, true
	case tunnelOpens:
		if l.opened >= 0 {
			t.report.violate("tunnel", t.key, "session %s was opened twice, at revisions %d and %d", e.session, t.events[l.opened].rev, e.rev)
		}
		if l.began < 0 {
			l.began = i
		}
		l.opened = i
	case tunnelEnds:
		l.end = i
	}
	l.last = i
}

func (t *timeline) lease(i int, e event) {
	l := t.leases[e.fencing]
	if l == nil {
		l = &life{first: i, end: -1, began: -1, opened: -1}
		t.leases[e.fencing] = l
	}
	if l.end >= 0 {
		t.report.violate("lease", t.key, "%s of task %s, token %d, at revision %d, behind its end at %d", e.name, e.task, e.fencing, e.rev, t.events[l.end].rev)
	}
	if first := t.events[l.first]; first.task != e.task {
		t.report.violate("fencing", t.key, "token %d is of task %s at revision %d and of task %s at %d", e.fencing, first.task, first.rev, e.task, e.rev)
	}
	switch e.kind {
	case leaseBegins:
		t.admits = append(t.admits, i)
		if l.began < 0 {
			l.began = i
		}
	case leaseEnds:
		l.end = i
	}
	l.last = i
}

// checkAdmissions is the rule itself: no task is admitted within a tunnel's life,
// nor beyond the agent's capacity.
func (t *timeline) checkAdmissions() {
	for _, i := range t.admits {
		e := t.events[i]
		for id, l := range t.tunnels {
			switch {
			case l.covers(i):
				t.report.violate("admission", t.key, "task %s (token %d) was admitted at revision %d within the life of session %s, revisions %d to %d at least",
					e.task, e.fencing, e.rev, id, t.events[l.first].rev, t.events[l.last].rev)
			case l.end < 0 && l.last < i && t.mayLack(t.events[l.last].rev, e.rev):
				t.report.Unproven = append(t.report.Unproven, "that session "+string(id)+" had ended when task "+string(e.task)+" was admitted")
			case l.end < 0 && l.last < i:
				t.report.violate("admission", t.key, "task %s (token %d) was admitted at revision %d, but session %s, last seen at %d, has not ended",
					e.task, e.fencing, e.rev, id, t.events[l.last].rev)
			}
		}
		if t.capacity == 0 {
			continue
		}
		beside := 0
		for token, l := range t.leases {
			if token != e.fencing && l.covers(i) {
				beside++
			}
		}
		if beside >= t.capacity {
			t.report.violate("capacity", t.key, "task %s was admitted at revision %d beside %d others; the agent takes %d", e.task, e.rev, beside, t.capacity)
		}
	}
}

// checkPromotions wants a tunnel that waited to open only when no task ran.
func (t *timeline) checkPromotions() {
	for id, l := range t.tunnels {
		if !l.waited || l.opened < 0 {
			continue
		}
		for token, lease := range t.leases {
			if lease.covers(l.opened) {
				t.report.violate("waiting", t.key, "session %s waited for the tasks and opened at revision %d while token %d was held", id, t.events[l.opened].rev, token)
			}
		}
	}
}

// checkFencing wants tokens to grow by one with each lease.
func (t *timeline) checkFencing() {
	seen := map[uint64]uint64{} // token -> revision
	prev, prevRev := uint64(0), uint64(0)
	for _, i := range t.admits {
		e := t.events[i]
		if rev, ok := seen[e.fencing]; ok {
			t.report.violate("fencing", t.key, "token %d was given out at revision %d and again at %d", e.fencing, rev, e.rev)
		} else if e.fencing <= prev {
			t.report.violate("fencing", t.key, "token %d at revision %d comes after token %d", e.fencing, e.rev, prev)
		} else if e.fencing != prev+1 {
			if t.mayLack(prevRev, e.rev) {
				t.report.Unproven = append(t.report.Unproven, "who was given the tokens before "+string(e.task)+"'s")
			} else {
				t.report.violate("fencing", t.key, "token %d at revision %d follows token %d: no record is missing, yet one between was given to nobody", e.fencing, e.rev, prev)
			}
		}
		seen[e.fencing] = e.rev
		prev, prevRev = max(prev, e.fencing), e.rev
	}
}

func (t *timeline) countInto(r *Report) {
	r.add("agents", 1)
	waited, ended, held := 0, 0, 0
	for _, l := range t.tunnels {
		if l.waited {
			waited++
		}
		if l.end >= 0 {
			ended++
		}
	}
	for _, l := range t.leases {
		if l.end >= 0 {
			held++
		}
	}
	r.add("tunnels", len(t.tunnels))
	r.add("tunnels that waited for tasks", waited)
	r.add("tunnels whose end is recorded", ended)
	r.add("tasks admitted", len(t.admits))
	r.add("leases whose end is recorded", held)
}

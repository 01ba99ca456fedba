package checker

import (
	"slices"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Op is what a caller asked for.
type Op string

// The calls that a journal holds.
const (
	OpOpen    Op = "open"
	OpClose   Op = "close" // without Session: all of the agent
	OpExtend  Op = "extend"
	OpAdmit   Op = "admit"
	OpRenew   Op = "renew"
	OpRelease Op = "release"
)

// Call is one call and its answer.
type Call struct {
	Op      Op
	Key     ident.AgentKey
	Session ident.SessionID
	Task    ident.TaskID
	Fencing uint64
	Expires time.Time // as the answer says
	Sent    time.Time
	Got     time.Time // when the answer was there, or was given up
	Status  int       // 0: no answer came, and nobody knows what became of it
	Code    string    // of a refusal
}

// OK says that the call was acknowledged.
func (c Call) OK() bool { return c.Status >= 200 && c.Status < 300 }

// agentJournal is what callers know of one agent.
type agentJournal struct {
	r     *Report
	key   ident.AgentKey
	skew  time.Duration
	calls []Call
	told  []event
	final *store.AgentRecord // nil: not known
	// changed are the changes in the store's history, when it is known. A repeated
	// call may acknowledge a change whose record was lost with a killed relay;
	// whether a record may be missing is compare's to judge.
	changed []event

	closes   []Call // asked for, whatever the answer
	releases map[uint64]Call
	until    map[ident.SessionID]time.Time // the end that was acknowledged last
}

// checkJournal holds what was acknowledged against what is left.
func checkJournal(r *Report, in Input, told map[ident.AgentKey][]event, h *history) {
	per := map[ident.AgentKey][]Call{}
	unanswered := 0
	for _, c := range in.Journal {
		per[c.Key] = append(per[c.Key], c)
		if c.Status == 0 {
			unanswered++
		}
	}
	r.add("calls of the journal", len(in.Journal))
	r.add("calls without an answer", unanswered)
	for _, key := range sortedKeys(per) {
		j := &agentJournal{r: r, key: key, skew: in.Skew, calls: per[key], told: told[key], releases: map[uint64]Call{}, until: map[ident.SessionID]time.Time{}}
		if h != nil {
			rec := h.final[key]
			j.final, j.changed = &rec, h.events[key]
		}
		j.check()
	}
}

func (j *agentJournal) check() {
	slices.SortStableFunc(j.calls, func(a, b Call) int { return a.Sent.Compare(b.Sent) })
	for _, c := range j.calls {
		switch {
		case c.Op == OpClose:
			j.closes = append(j.closes, c)
		case c.Op == OpRelease:
			if _, ok := j.releases[c.Fencing]; !ok {
				j.releases[c.Fencing] = c
			}
		case c.OK() && (c.Op == OpOpen || c.Op == OpExtend) && c.Expires.After(j.until[c.Session]):
			j.until[c.Session] = c.Expires
		}
	}
	j.tunnels()
	j.leases()
	j.exclusion()
}

// late is how long a relay may go on with a call whose caller has given up.
const late = 10 * time.Second

// closeAsked returns the first close that may have ended a tunnel.
func (j *agentJournal) closeAsked(id ident.SessionID, opened time.Time) (time.Time, bool) {
	for _, c := range j.closes {
		end := c.Got
		if !c.OK() {
			end = end.Add(late)
		}
		if (c.Session == id || c.Session == "") && !end.Before(opened) {
			return c.Sent, true
		}
	}
	return time.Time{}, false
}

// tunnels wants each acknowledged tunnel to be open, or its end to be explained;
// and each acknowledged close to have closed.
func (j *agentJournal) tunnels() {
	ends := map[ident.SessionID]event{}
	opened := map[ident.SessionID]bool{}
	for _, e := range j.told {
		switch e.kind {
		case tunnelOpens:
			opened[e.session] = true
		case tunnelEnds:
			ends[e.session] = e
		}
	}
	for _, e := range j.changed {
		if e.kind == tunnelOpens {
			opened[e.session] = true
		}
	}
	acked, still, asked, expired := 0, 0, 0, 0
	for _, c := range j.calls {
		if c.Op != OpOpen || !c.OK() {
			continue
		}
		acked++
		if !opened[c.Session] {
			j.r.violate("lost", j.key, "session %s was acknowledged but its opening is in no audit", c.Session)
		}
		if j.final != nil {
			if t, ok := j.final.Tunnels[c.Session]; ok && t.State == store.TunnelOpen {
				still++
				if t.Expires.Before(j.until[c.Session].Add(-time.Millisecond)) {
					j.r.violate("lost", j.key, "session %s is to end at %s, but %s was acknowledged", c.Session, t.Expires, j.until[c.Session])
				}
				continue
			}
		}
		end, has := ends[c.Session]
		at, byCaller := j.closeAsked(c.Session, c.Sent)
		if has && at.After(end.time.Add(j.skew)) {
			byCaller = false // that was later
		}
		switch {
		case byCaller:
			asked++
		case has && !end.time.Before(j.until[c.Session].Add(-j.skew)):
			expired++
		case has:
			j.r.violate("lost", j.key, "session %s ended (%s, %s) at %s though nobody asked and its time was until %s", c.Session, end.name, end.detail, end.time, j.until[c.Session])
		case j.final != nil && time.Now().After(j.until[c.Session]) && !j.until[c.Session].IsZero():
			expired++ // its record was lost in a kill; the history has the change
		case j.final != nil:
			j.r.violate("lost", j.key, "session %s was acknowledged, is not open, and nothing says why", c.Session)
		default:
			still++ // the audit alone: no end, so it counts as open
		}
	}
	closes := 0
	for _, c := range j.closes {
		if !c.OK() || c.Session == "" {
			continue
		}
		closes++
		if j.final != nil {
			if t, ok := j.final.Tunnels[c.Session]; ok {
				j.r.violate("lost", j.key, "the close of session %s was acknowledged, but it is %s", c.Session, t.State)
			}
		}
	}
	j.r.add("acknowledged: tunnels opened", acked)
	j.r.add("  of them open at the end", still)
	j.r.add("  closed because a caller asked", asked)
	j.r.add("  ended by their own time", expired)
	j.r.add("acknowledged: tunnels closed", closes)
}

// leases wants each acknowledged lease to have been kept for as long as its holder
// was told, and tokens to grow in real time.
func (j *agentJournal) leases() {
	type held struct {
		task    ident.TaskID
		token   uint64
		expires time.Time
		sent    time.Time
		got     time.Time
	}
	recorded := map[uint64]bool{}
	for _, e := range j.told {
		if e.kind == leaseBegins {
			recorded[e.fencing] = true
		}
	}
	for _, e := range j.changed {
		if e.kind == leaseBegins {
			recorded[e.fencing] = true
		}
	}
	byToken := map[uint64]*held{}
	var admitted []*held
	acked := map[Op]int{}
	for _, c := range j.calls {
		switch c.Op {
		case OpAdmit:
			if !c.OK() {
				continue
			}
			if other := byToken[c.Fencing]; other != nil {
				j.r.violate("fencing", j.key, "tasks %s and %s both hold token %d", other.task, c.Task, c.Fencing)
			}
			if !recorded[c.Fencing] {
				j.r.violate("lost", j.key, "the lease of task %s, token %d, was acknowledged but is in no audit", c.Task, c.Fencing)
			}
			byToken[c.Fencing] = &held{c.Task, c.Fencing, c.Expires, c.Sent, c.Got}
			admitted = append(admitted, byToken[c.Fencing])
		case OpRenew, OpRelease:
			h := byToken[c.Fencing]
			if h == nil {
				continue
			}
			first, released := j.releases[c.Fencing]
			mine := c.Op == OpRelease && first.Sent.Equal(c.Sent)
			gone := c.Status == 410 || c.Status == 404
			if gone && (!released || first.Sent.After(c.Got) || mine) && c.Got.Before(h.expires.Add(-j.skew)) {
				j.r.violate("lost", j.key, "the lease of task %s, token %d, was acknowledged until %s, but was gone at %s", c.Task, c.Fencing, h.expires, c.Got)
			}
			if c.OK() && c.Op == OpRenew && c.Expires.After(h.expires) {
				h.expires = c.Expires
			}
		default:
			continue
		}
		if c.OK() {
			acked[c.Op]++
		}
	}
	// Whoever asked after another had his answer has the higher token.
	slices.SortFunc(admitted, func(a, b *held) int { return a.got.Compare(b.got) })
	for i, a := range admitted {
		for _, b := range admitted[i+1:] {
			if b.sent.After(a.got) && b.token <= a.token {
				j.r.violate("fencing", j.key, "task %s was given token %d after task %s had %d", b.task, b.token, a.task, a.token)
			}
		}
	}
	if j.final != nil {
		for _, l := range j.final.Leases {
			if c, ok := j.releases[l.Fencing]; ok && c.OK() {
				j.r.violate("lost", j.key, "the release of task %s, token %d, was acknowledged, but it is held", c.Task, l.Fencing)
			}
		}
	}
	j.r.add("acknowledged: tasks admitted", acked[OpAdmit])
	j.r.add("acknowledged: leases renewed", acked[OpRenew])
	j.r.add("acknowledged: leases released", acked[OpRelease])
}

// exclusion is the rule as callers see it, by their own clock: whoever asks for a
// lease while a tunnel is open, by what its opener was told, is refused.
func (j *agentJournal) exclusion() {
	type span struct {
		id       ident.SessionID
		from, to time.Time
	}
	var open []span
	for _, c := range j.calls {
		if c.Op != OpOpen || !c.OK() {
			continue
		}
		to := c.Expires.Add(-j.skew)
		if asked, ok := j.closeAsked(c.Session, c.Sent); ok && asked.Before(to) {
			to = asked
		}
		open = append(open, span{c.Session, c.Got, to})
	}
	beside, refused := 0, 0
	for _, c := range j.calls {
		if c.Op != OpAdmit {
			continue
		}
		if c.Code == "agent_in_tunnel" {
			refused++
		}
		for _, s := range open {
			if c.Sent.After(s.from) && c.Got.Before(s.to) {
				beside++
				if c.OK() {
					j.r.violate("exclusion", j.key, "task %s was admitted while session %s was open for its opener", c.Task, s.id)
				}
				break
			}
		}
	}
	j.r.add("admissions asked wholly within an open tunnel", beside)
	j.r.add("admissions refused as agent_in_tunnel", refused)
}

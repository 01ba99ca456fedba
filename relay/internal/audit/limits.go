package audit

import (
	"time"

	"golang.org/x/time/rate"

	"github.com/adit-tunnel/adit/relay/internal/caller"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Bounds of what repeats itself: of one event and caller so many records at once,
// then one each while. What is beyond is counted, and the count stands in the next
// record that is written, or in one of its own when none follows for summaryAfter.
const (
	repeatBurst  = 20
	repeatEvery  = 30 * time.Second
	summaryAfter = time.Minute
	// maxCallers bounds the memory for that.
	maxCallers = 8192
	// What no team answers for is limited over all callers too: addresses are cheap.
	strangersPerSecond = 5
	strangersBurst     = 100
)

// repeats decides which records are written of events that are limited. Log.mu
// guards it.
type repeats struct {
	of      map[string]*repeat
	every   map[Event]*rate.Limiter // over all callers without a team
	cleared time.Time               // when callers were last forgotten
}

// repeat is one event of one caller.
type repeat struct {
	who     Record // what a summary says
	rate    *rate.Limiter
	leftOut uint64
	since   time.Time // of the last record, or when the first was left out
}

func newRepeats() *repeats {
	return &repeats{of: make(map[string]*repeat), every: make(map[Event]*rate.Limiter)}
}

// admit says whether a record is written. If it is, it tells how many like it were not.
func (l *repeats) admit(r *Record, now time.Time, room bool) bool {
	e := l.entry(*r, now)
	if !room || !e.rate.AllowN(now, 1) {
		e.count(1, now)
		return false
	}
	if r.Team == "" && !l.ceiling(r.Event).AllowN(now, 1) {
		l.common(r.Event).count(1, now)
		return false
	}
	r.LeftOut, e.leftOut, e.since = e.leftOut, 0, now
	return true
}

func (e *repeat) count(n uint64, now time.Time) {
	if e.leftOut == 0 {
		e.since = now
	}
	e.leftOut += n
}

func (l *repeats) entry(r Record, now time.Time) *repeat {
	key := string(r.Event) + "\n" + rules[r.Event].per(r)
	e := l.of[key]
	switch {
	case e != nil:
		return e
	case len(l.of) >= maxCallers && !l.forget(now):
		return l.common(r.Event)
	}
	e = &repeat{
		who:  Record{Event: r.Event, Actor: r.Actor, Team: r.Team, Agent: r.Agent, Session: r.Session, Detail: r.Detail, RemoteAddr: r.RemoteAddr},
		rate: rate.NewLimiter(rate.Every(repeatEvery), repeatBurst),
	}
	l.of[key] = e
	return e
}

// common is for callers beyond those that can be kept apart.
func (l *repeats) common(event Event) *repeat {
	e := l.of[string(event)]
	if e == nil {
		e = &repeat{who: Record{Event: event, Actor: "relay", Detail: "of several callers"}, rate: rate.NewLimiter(strangersPerSecond, strangersBurst)}
		l.of[string(event)] = e
	}
	return e
}

func (l *repeats) ceiling(event Event) *rate.Limiter {
	if l.every[event] == nil {
		l.every[event] = rate.NewLimiter(strangersPerSecond, strangersBurst)
	}
	return l.every[event]
}

// forget makes room by dropping callers that are as good as new.
func (l *repeats) forget(now time.Time) bool {
	if now.Sub(l.cleared) < time.Second { // it looks at all of them
		return false
	}
	l.cleared = now
	for key, e := range l.of {
		if e.leftOut == 0 && e.rate.TokensAt(now) >= repeatBurst {
			delete(l.of, key)
		}
	}
	return len(l.of) < maxCallers
}

// summaries are the records of what was left out and not told since, or of all of it.
func (l *repeats) summaries(now time.Time, all bool) []Record {
	var out []Record
	due := func(e *repeat) bool { return e.leftOut > 0 && (all || now.Sub(e.since) >= summaryAfter) }
	tell := func(e *repeat) {
		r := e.who
		r.LeftOut, e.leftOut = e.leftOut, 0
		out = append(out, r)
	}
	for _, e := range l.of {
		switch {
		case !due(e) || e.who.Actor == "relay":
		case e.who.Team == "" && !l.ceiling(e.who.Event).AllowN(now, 1):
			l.common(e.who.Event).count(e.leftOut, now)
			e.leftOut = 0
		default:
			tell(e)
		}
	}
	for event := range rules {
		if e := l.of[string(event)]; e != nil && due(e) {
			tell(e)
		}
	}
	return out
}

// by names who caused a record: the principal, or the address of who is none.
func by(r Record) string {
	switch r.Actor {
	case "", "anonymous", "viewer":
		return caller.Key(r.RemoteAddr)
	}
	return string(r.Team) + " " + r.Actor
}

// What of an event repeats itself, for rules.
var (
	perAgent   = func(r Record) string { return string(r.Team) + "/" + string(r.Agent) }
	perSession = func(r Record) string { return string(r.Session) + " " + by(r) }
	perDetail  = func(r Record) string { return by(r) + " " + r.Detail }
)

// Each team has a share of the history: one file's worth at once, and one each day.
// What it writes beyond goes to files of their own, which are the first to be
// removed, so that no team's flood takes the others' history away.
const shareDay = 24 * time.Hour

// shares says which records are beyond their team's share. Log.mu guards it.
type shares struct {
	bytes int64 // of one share
	of    map[ident.TeamID]*rate.Limiter
}

func newShares(bytes int64) *shares {
	return &shares{bytes: bytes, of: make(map[ident.TeamID]*rate.Limiter)}
}

func (s *shares) lane(r Record, size int, now time.Time) lane {
	if r.Team == "" && rules[r.Event].durable {
		return main // the relay's own
	}
	b := s.of[r.Team]
	if b == nil {
		if len(s.of) >= maxCallers {
			s.forget(now)
		}
		b = rate.NewLimiter(rate.Limit(float64(s.bytes)/shareDay.Seconds()), int(s.bytes))
		s.of[r.Team] = b
	}
	if b.AllowN(now, size) {
		return main
	}
	return beyond
}

func (s *shares) forget(now time.Time) {
	for team, b := range s.of {
		if b.TokensAt(now) >= float64(s.bytes) {
			delete(s.of, team)
		}
	}
}

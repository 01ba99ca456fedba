package gate

import (
	"sync"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// maxEnded bounds the tunnels that ended and are remembered.
const maxEnded = 8192

// book is what this relay noted of the tunnels it knows. It follows the store's
// watch and so may be behind by what other relays opened just now.
type book struct {
	mu     sync.Mutex
	of     map[ident.SessionID]*note
	counts map[ident.TeamID]int
	ended  map[ident.SessionID]Ended
	order  []ident.SessionID // of ended, oldest first
}

// note is what was noted of one tunnel.
type note struct {
	key      ident.AgentKey
	protocol api.Protocol
	idle     api.Duration
	access   uint64       // version of who may use it
	told     bool         // its agent was told, or need not be
	warned   time.Time    // the end that users were warned of
	reason   store.Reason // why it closes
}

func (n note) ended(reason store.Reason) Ended {
	return Ended{Key: n.key, Protocol: n.protocol, Reason: reason, idle: n.idle}
}

func newBook() *book {
	return &book{of: make(map[ident.SessionID]*note), counts: make(map[ident.TeamID]int), ended: make(map[ident.SessionID]Ended)}
}

// add notes a tunnel that is not known yet.
func (b *book) add(t store.TunnelRecord) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.of[t.Session] == nil {
		b.of[t.Session] = &note{key: t.Key(), protocol: t.Protocol, idle: t.IdleTimeout, access: t.AccessVersion()}
		b.counts[t.Team]++
	}
}

// admits notes who may use a tunnel, and says whether that was changed.
func (b *book) admits(t store.TunnelRecord) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.of[t.Session]
	if n == nil || n.access == t.AccessVersion() {
		return false
	}
	n.access = t.AccessVersion()
	return true
}

// introduce says, once per tunnel, that its agent is to be told.
func (b *book) introduce(id ident.SessionID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.of[id]
	if n == nil || n.told {
		return false
	}
	n.told = true
	return true
}

// warn says, once per end, that users are to be warned.
func (b *book) warn(id ident.SessionID, end time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.of[id]
	if n == nil || n.warned.Equal(end) {
		return false
	}
	n.warned = end
	return true
}

// because notes why a tunnel closes.
func (b *book) because(id ident.SessionID, reason store.Reason) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := b.of[id]; n != nil {
		n.reason = reason
	}
}

// find returns what is noted of a tunnel.
func (b *book) find(id ident.SessionID) (note, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := b.of[id]; n != nil {
		return *n, true
	}
	return note{}, false
}

// remove takes out a tunnel that is over, remembers why, and returns what was noted
// of it.
func (b *book) remove(id ident.SessionID, reason store.Reason, now time.Time) (note, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.of[id]
	if n == nil {
		return note{}, false
	}
	delete(b.of, id)
	b.remember(id, n.ended(reason), now)
	if b.counts[n.key.Team]--; b.counts[n.key.Team] <= 0 {
		delete(b.counts, n.key.Team)
	}
	return *n, true
}

// over remembers why a tunnel ended that was not known here while it was open, or
// gives one that is known its reason.
func (b *book) over(id ident.SessionID, key ident.AgentKey, e store.TunnelEnd) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := b.of[id]; n != nil {
		n.reason = e.Reason
		return
	}
	b.remember(id, Ended{Key: key, Reason: e.Reason}, e.At)
}

// remember needs b.mu. The first reason stands.
func (b *book) remember(id ident.SessionID, e Ended, at time.Time) {
	if _, ok := b.ended[id]; ok {
		return
	}
	e.at = at
	old := func() bool { return len(b.order) >= maxEnded || at.Sub(b.ended[b.order[0]].at) >= endedFor }
	for len(b.order) > 0 && old() {
		delete(b.ended, b.order[0])
		b.order = b.order[1:]
	}
	b.ended[id], b.order = e, append(b.order, id)
}

// why returns why a tunnel ended that was here once.
func (b *book) why(id ident.SessionID, now time.Time) (Ended, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e, ok := b.ended[id]
	return e, ok && now.Sub(e.at) < endedFor
}

// team returns the number of a team's tunnels.
func (b *book) team(t ident.TeamID) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.counts[t]
}

func (b *book) size() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.of)
}

// ids returns the tunnels noted, to compare with what is there.
func (b *book) ids() map[ident.SessionID]bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make(map[ident.SessionID]bool, len(b.of))
	for id := range b.of {
		out[id] = true
	}
	return out
}

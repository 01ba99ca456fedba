package gate

import (
	"sync"
	"time"

	"github.com/adit-tunnel/adit/shared/ident"
)

// book is what this relay noted of the tunnels it knows. It follows the store's
// watch and so may be behind by what other relays opened just now.
type book struct {
	mu     sync.Mutex
	of     map[ident.SessionID]*note
	counts map[ident.TeamID]int
}

// note is what was noted of one tunnel.
type note struct {
	key    ident.AgentKey
	told   bool      // its agent was told, or need not be
	warned time.Time // the end that users were warned of
	reason string    // why it closes
}

func newBook() *book {
	return &book{of: make(map[ident.SessionID]*note), counts: make(map[ident.TeamID]int)}
}

// add notes a tunnel that is not known yet.
func (b *book) add(id ident.SessionID, key ident.AgentKey) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.of[id] == nil {
		b.of[id] = &note{key: key}
		b.counts[key.Team]++
	}
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
func (b *book) because(id ident.SessionID, reason string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := b.of[id]; n != nil {
		n.reason = reason
	}
}

// remove forgets a tunnel and returns what was noted of it.
func (b *book) remove(id ident.SessionID) (note, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.of[id]
	if n == nil {
		return note{}, false
	}
	delete(b.of, id)
	if b.counts[n.key.Team]--; b.counts[n.key.Team] <= 0 {
		delete(b.counts, n.key.Team)
	}
	return *n, true
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

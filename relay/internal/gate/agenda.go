package gate

import (
	"container/heap"
	"time"

	"github.com/adit-tunnel/adit/shared/ident"
)

// agenda says when to look at which agent next. It is for one goroutine.
type agenda struct {
	entries entries
	of      map[ident.AgentKey]*entry
}

type entry struct {
	key   ident.AgentKey
	at    time.Time
	index int
}

func newAgenda() *agenda { return &agenda{of: make(map[ident.AgentKey]*entry)} }

// put notes to look at an agent at a time, unless that is to happen sooner anyway.
// The zero time notes nothing.
func (a *agenda) put(key ident.AgentKey, at time.Time) {
	if at.IsZero() {
		return
	}
	if e := a.of[key]; e != nil {
		if at.Before(e.at) {
			e.at = at
			heap.Fix(&a.entries, e.index)
		}
		return
	}
	e := &entry{key: key, at: at}
	a.of[key] = e
	heap.Push(&a.entries, e)
}

// due takes an agent whose time has come.
func (a *agenda) due(now time.Time) (ident.AgentKey, bool) {
	if len(a.entries) == 0 || a.entries[0].at.After(now) {
		return ident.AgentKey{}, false
	}
	e := heap.Pop(&a.entries).(*entry)
	delete(a.of, e.key)
	return e.key, true
}

// wait is how long nothing is due: an hour without entries.
func (a *agenda) wait(now time.Time) time.Duration {
	if len(a.entries) == 0 {
		return time.Hour
	}
	return max(0, a.entries[0].at.Sub(now))
}

type entries []*entry

func (e entries) Len() int           { return len(e) }
func (e entries) Less(i, j int) bool { return e[i].at.Before(e[j].at) }
func (e entries) Swap(i, j int) {
	e[i], e[j] = e[j], e[i]
	e[i].index, e[j].index = i, j
}

func (e *entries) Push(x any) {
	n := x.(*entry)
	n.index = len(*e)
	*e = append(*e, n)
}

func (e *entries) Pop() any {
	old := *e
	n := old[len(old)-1]
	old[len(old)-1] = nil
	*e = old[:len(old)-1]
	return n
}

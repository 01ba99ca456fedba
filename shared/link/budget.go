package link

import (
	"errors"
	"sync/atomic"
)

// ErrMemory is wrapped by the errors of a stream that was given up because its
// reader was the slowest when received data took up the whole Budget.
var ErrMemory = errors.New("memory for unread data is used up")

// Budget bounds how much received data may wait for its readers, over all links
// that share it. Windows alone bound each stream; thousands of readers that do not
// read would still be too much. When it is exceeded, the link that receives more
// gives up its stream with the most unread data.
type Budget struct {
	limit int64
	used  atomic.Int64
}

// NewBudget returns a budget of so many bytes.
func NewBudget(limit int64) *Budget { return &Budget{limit: limit} }

// Used is how many bytes wait for their readers.
func (b *Budget) Used() int64 { return b.used.Load() }

// relieve gives up the stream with the most unread data.
func (m *mux) relieve() {
	m.smu.Lock()
	var worst *flow
	for _, f := range m.flows {
		if worst == nil || f.weighs() > worst.weighs() {
			worst = f
		}
	}
	m.smu.Unlock()
	if worst == nil {
		return
	}
	worst.settle(m.budget)
	if s := worst.stream.Load(); s != nil {
		s.abort(ErrMemory)
	} else {
		m.reset(worst.id) // nobody has accepted it yet
	}
}

// weighs is what the flow has in the budget.
func (f *flow) weighs() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.settled {
		return 0
	}
	return f.unread.Load()
}

// settleAll takes the link, which has ended, out of the budget, and frees whoever
// waits at its streams.
func (m *mux) settleAll() {
	m.smu.Lock()
	defer m.smu.Unlock()
	m.over = true
	for _, f := range m.flows {
		f.died(m.budget)
	}
}

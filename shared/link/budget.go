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

// received counts a frame's body for its stream, and makes room when there is none.
func (m *mux) received(id uint32, n int) {
	m.smu.Lock()
	k := m.streams[id]
	if k == nil || k.settled {
		m.smu.Unlock()
		return // yamux discards it
	}
	k.unread += int64(n)
	k.room -= int64(n)
	k.tell(true)
	over := m.budget.used.Add(int64(n)) > m.budget.limit
	var worst *mark
	var worstID uint32
	if over {
		for id, k := range m.streams {
			if !k.settled && (worst == nil || k.unread > worst.unread) {
				worst, worstID = k, id
			}
		}
		m.settle(worst)
	}
	m.smu.Unlock()
	if !over {
		return
	}
	if s := worst.stream.Load(); s != nil {
		s.abort(ErrMemory)
	} else {
		m.reset(worstID) // nobody has accepted it yet
	}
}

// settle takes a stream out of the budget. The lock is held.
func (m *mux) settle(k *mark) {
	if !k.settled {
		k.settled = true
		m.budget.used.Add(-k.unread)
	}
}

// settleAll takes the link out of the budget.
func (m *mux) settleAll() {
	m.smu.Lock()
	defer m.smu.Unlock()
	for _, k := range m.streams {
		m.settle(k)
		k.speak()
	}
}

// How recently a stream was read, for shrink.
const (
	readNever = iota // or not since it was shrunk
	readLately
	readBefore // but not since the last look
)

// shrink frees the buffers of streams from which nothing was read for an interval.
func (m *mux) shrink() {
	m.smu.Lock()
	defer m.smu.Unlock()
	for _, k := range m.streams {
		s := k.stream.Load()
		if s == nil {
			continue
		}
		switch s.used.Load() {
		case readLately:
			s.used.CompareAndSwap(readLately, readBefore)
		case readBefore:
			if s.used.CompareAndSwap(readBefore, readNever) {
				s.ys.Shrink()
			}
		}
	}
}

package hub

import (
	"time"

	"github.com/adit-tunnel/adit/shared/link"
)

// Several links of an agent to this relay are for placing streams: what moves much
// data fills a link's queues, and whoever asks little waits behind it. A stream
// cannot change its link, and says only by what it does whether it is bulk; so a new
// one goes where least moves now.

const (
	// placeSilence is how long a link may be silent before others are preferred: a
	// peer that lives answers a ping every 4 s.
	placeSilence = 6 * time.Second
	// busyLoad is from how many bytes a second on a link is worth going around.
	busyLoad = 256 << 10
	// busyRatio is how much more than on the calmest link moves on a crowded one.
	busyRatio = 8
)

// place returns the link for a new stream: none that fell silent while another
// speaks, then one that is not crowded, then the one with the fewest streams. hub.mu
// is held.
func (s *session) place() *member {
	if len(s.members) == 1 {
		return s.members[0]
	}
	calm := s.calmest()
	var best *member
	var bestKey [3]int
	for _, m := range s.members {
		key := [3]int{0, 0, m.link.NumStreams()}
		if m.link.Silence() > placeSilence {
			key[0] = 1
		}
		if crowded(m.load(), calm) {
			key[1] = 1
		}
		if best == nil || less(key, bestKey) {
			best, bestKey = m, key
		}
	}
	return best
}

func less(a, b [3]int) bool {
	for i := range a {
		if a[i] != b[i] {
			return a[i] < b[i]
		}
	}
	return false
}

// calmest is the load of the link with the least. hub.mu is held.
func (s *session) calmest() int64 {
	least := s.members[0].load()
	for _, m := range s.members[1:] {
		least = min(least, m.load())
	}
	return least
}

// load is what moves on the link and may go on: what moved for streams that are gone is
// no reason to avoid it.
func (m *member) load() int64 {
	if m.link.NumStreams() <= 1 { // its control stream
		return 0
	}
	return m.link.Load()
}

func crowded(load, calm int64) bool { return load > busyLoad && load/busyRatio > calm }

// Lane is the link that carries the stream: those of one lane share its queues.
func (st *Stream) Lane() *link.Link { return st.Link() }

// Outnumbered says that another one of the agent's links has at least two streams less
// than the inUse of this stream's: one more is better off there.
func (st *Stream) Outnumbered(inUse int) bool {
	st.session.hub.mu.Lock()
	defer st.session.hub.mu.Unlock()
	if len(st.session.members) < 2 {
		return false
	}
	calm := st.session.calmest()
	for _, m := range st.session.members {
		if l := m.link; l != st.Link() && l.NumStreams()+2 <= inUse && l.Silence() <= placeSilence && !crowded(m.load(), calm) {
			return true
		}
	}
	return false
}

// Stale says that the stream's link is dead: nothing will be had of it any more.
func (st *Stream) Stale() bool { return st.Link().Err() != nil }

// Crowded says that much moves on the stream's link, and little on another one of the
// agent: what begins anew is better off with a new stream.
func (st *Stream) Crowded() bool {
	st.session.hub.mu.Lock()
	defer st.session.hub.mu.Unlock()
	if len(st.session.members) < 2 {
		return false
	}
	return crowded(st.Link().Load(), st.session.calmest())
}

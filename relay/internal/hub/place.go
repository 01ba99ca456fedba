package hub

import "time"

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

// Outnumbered implements fleet.Lane.
func (m *member) Outnumbered(inUse int) bool {
	m.session.hub.mu.Lock()
	defer m.session.hub.mu.Unlock()
	if len(m.session.members) < 2 {
		return false
	}
	calm := m.session.calmest()
	for _, o := range m.session.members {
		if o != m && o.link.NumStreams()+2 <= inUse && o.link.Silence() <= placeSilence && !crowded(o.load(), calm) {
			return true
		}
	}
	return false
}

// Crowded implements fleet.Lane.
func (m *member) Crowded() bool {
	m.session.hub.mu.Lock()
	defer m.session.hub.mu.Unlock()
	if len(m.session.members) < 2 {
		return false
	}
	return crowded(m.link.Load(), m.session.calmest())
}

// Stale implements fleet.Lane: nothing will be had of a dead link any more.
func (m *member) Stale() bool { return m.link.Err() != nil }

// Leaving implements fleet.Lane: agents move by themselves.
func (m *member) Leaving() bool { return false }

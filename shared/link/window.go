package link

import "time"

// How much of a stream may be on its way or unread follows the line's round trip, the
// reader and the Budget. A window that is larger than the line can use does not make it
// faster; it fills socket buffers, behind which small frames of other streams wait, and
// it moves data out of the processor's caches before it is read. A window that is larger
// than its reader can use is memory that a reader who stops would fill.

const (
	// yamuxWindow is what a stream's peer may send before any window update.
	yamuxWindow = 256 << 10
	// leastWindow keeps a line without delay busy while readers take their turns.
	leastWindow = 512 << 10
	// lineRate is the rate, in bytes a second, up to which one stream may fill a line.
	lineRate = 1250 << 20
	// rttAging is by what part the least round trip grows with each measurement, so
	// that a line whose way became longer is noticed.
	rttAging = 16
	// startWindow is what a stream of somebody's begins with where memory is plentiful,
	// so that what is not large comes in one round trip.
	startWindow = 1 << 20
	// A reader that uses up a good part of its window within soon, or within a few round
	// trips, could use more; one that needs longer than seldom does with less.
	soon       = 5 * time.Millisecond
	roundTrips = 4
	seldom     = 2 * time.Second
	// step is by how much a window grows or shrinks at once.
	step = 4
)

// handleRTT takes a round trip. Queues make them longer, so the least one counts.
// It is for the reading side.
func (m *mux) handleRTT(rtt time.Duration) {
	m.rtt.Store(int64(rtt))
	if m.hooks.Measured != nil {
		m.hooks.Measured(rtt)
	}
	if m.leastRTT == 0 || rtt < m.leastRTT {
		m.leastRTT = rtt
	} else {
		m.leastRTT += m.leastRTT / rttAging
	}
	fits := int64(float64(lineRate) * m.leastRTT.Seconds())
	m.window.Store(min(max(fits, leastWindow), m.maxWindow))
}

// openWindow gives a flow more window at its begin than every stream has, and returns the
// credit for the peer.
func (f *flow) openWindow(m *mux) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.owner == nil {
		return 0
	}
	f.promised = m.budget.promise(f.owner, 0, 0, min(m.window.Load(), startWindow)-yamuxWindow, sparing)
	f.window += f.promised
	f.recvCredit += f.promised
	return f.promised
}

// windowUpdate returns the credit that the peer gets now, and notes it. A small part of a
// window is not worth a frame; a large part would have the peer wait for it. The lock
// is held.
func (f *flow) windowUpdate(m *mux) int64 {
	open := f.recvCredit + f.unread.Load()
	if f.window-open < max(f.window/4, min(f.window/2, leastWindow/2)) {
		return 0
	}
	if f.owner != nil {
		f.autoTune(m, open)
	}
	n := max(f.window-open, 0)
	f.recvCredit += n
	return n
}

// autoTune gives the flow the window that its reader can use, or what the Budget has of
// that. Credit that the peer has cannot be taken back. The lock is held.
func (f *flow) autoTune(m *mux, open int64) {
	now := m.now()
	wanted := f.window
	switch since := now - f.creditedAt; {
	case since < max(soon, roundTrips*time.Duration(m.rtt.Load())):
		wanted *= step
	case since > seldom:
		wanted /= step
	}
	f.creditedAt = now
	wanted = min(wanted, m.window.Load())
	f.promised = m.budget.promise(f.owner, f.promised, max(open-yamuxWindow, 0), max(wanted-yamuxWindow, 0), 1)
	f.window = yamuxWindow + f.promised
}

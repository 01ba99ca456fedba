package link

import (
	"encoding/binary"
	"time"
)

// How much of a stream may be on its way or unread is decided here, not by yamux:
// what it lets the peer send is held back and passed on as the line's round trip
// asks for. A window that is larger than the line can use does not make it faster;
// it fills socket buffers, behind which small frames of other streams wait, and it
// moves data out of the processor's caches before it is read.

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
)

// measured takes a round trip. Queues make them longer, so the least one counts.
// It is for the reading side.
func (m *mux) measured(rtt time.Duration) {
	m.rtt.Store(int64(rtt))
	if m.leastRTT == 0 || rtt < m.leastRTT {
		m.leastRTT = rtt
	} else {
		m.leastRTT += m.leastRTT / rttAging
	}
	fits := int64(float64(lineRate) * m.leastRTT.Seconds())
	m.window.Store(min(max(fits, leastWindow), m.maxWindow))
}

// grant says how much more a stream's peer may send now, and notes it. Less than
// half a window is not worth a frame, unless one is sent anyway. The lock of marks is
// held.
func (m *mux) grant(k *mark, anyway bool) int64 {
	window := m.window.Load()
	n := min(window-k.room-max(k.unread, 0), k.held)
	if n <= 0 || !anyway && n < window/2 {
		return 0
	}
	k.held -= n
	k.room += n
	return n
}

// allow takes a window update of yamux's and changes it into what is granted. It
// returns false when there is nothing to say.
func (m *mux) allow(h *header, flags uint16) bool {
	m.smu.Lock()
	defer m.smu.Unlock()
	k := m.streams[binary.BigEndian.Uint32(h[4:])]
	if k == nil {
		return true // forgotten here, and soon by yamux
	}
	k.held += int64(binary.BigEndian.Uint32(h[8:]))
	n := m.grant(k, flags != 0)
	binary.BigEndian.PutUint32(h[8:], uint32(n))
	return n > 0 || flags != 0
}

// consumed counts what a reader took, and lets the peer send more.
func (m *mux) consumed(id uint32, k *mark, n int) {
	m.smu.Lock()
	var more int64
	if !k.settled {
		k.unread -= int64(n)
		m.budget.used.Add(-int64(n))
		more = m.grant(k, false)
	}
	m.smu.Unlock()
	if more > 0 {
		m.post(makeHeader(typeWindow, 0, id, uint32(more)))
	}
}

package link

import "time"

// How much of a stream may be on its way or unread follows the line's round trip. A
// window that is larger than the line can use does not make it faster; it fills socket
// buffers, behind which small frames of other streams wait, and it moves data out of
// the processor's caches before it is read.

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

package link

import (
	"sync/atomic"
	"time"
)

// loadSpan is the time that one count of a load covers.
const loadSpan = 128 * time.Millisecond

// load counts what moves on a link, in both directions, so that who places streams
// can tell a link that is busy now from one that was. Counts of a span that has
// just begun may go to the one before: an estimate is all that is asked for.
type load struct {
	span          atomic.Int64 // the present one's number
	present, past atomic.Int64 // bytes of it, and of the one before
}

// add counts n bytes that moved at now.
func (l *load) add(now time.Duration, n int) {
	if span := int64(now / loadSpan); span != l.span.Load() {
		l.turn(span)
	}
	l.present.Add(int64(n))
}

// turn begins a span.
func (l *load) turn(span int64) {
	switch l.span.Swap(span) {
	case span: // somebody else was faster
	case span - 1:
		l.past.Store(l.present.Swap(0))
	default: // nothing moved in the span before
		l.past.Store(0)
		l.present.Store(0)
	}
}

// rate is how many bytes moved in a second, as far as the last two spans show.
func (l *load) rate(now time.Duration) int64 {
	span := int64(now / loadSpan)
	moved, covered := int64(0), loadSpan+now%loadSpan
	switch span - l.span.Load() {
	case 0:
		moved = l.past.Load() + l.present.Load()
	case 1:
		moved = l.present.Load()
	}
	return moved * int64(time.Second) / int64(covered)
}

// Load is how many bytes a second move on the link now, both directions together.
func (l *Link) Load() int64 { return l.mux.load.rate(l.mux.now()) }

package link

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/adit-tunnel/adit/shared/carrier"
)

// yamux owns a stream's life: its number, its opening and accepting, its ends. Its
// data goes past yamux, by flows, in the frames that yamux would use: yamux hands
// each frame to another goroutine and copies it on both sides, which costs more than
// all else that a link does.

// flow is a stream's data, from its first frame to its last: what was received and
// not read, and how much may be sent each way.
type flow struct {
	id      uint32
	stream  atomic.Pointer[Stream] // nil until it is accepted
	gone    chan struct{}          // closed when the peer reset the stream
	fin     atomic.Bool            // the peer ended its direction
	rst     atomic.Bool            // the peer reset the stream
	unread  atomic.Int64           // bytes announced by the peer and not read
	sending sync.Mutex             // held while a frame of it is written

	mu       sync.Mutex
	readable sync.Cond // data or an end came
	writable sync.Cond // credit or an end came
	readBy   deadline
	writeBy  deadline
	queue    queue
	room     int64         // bytes the peer may send
	credit   int64         // bytes that may be sent
	hand     int64         // buffer of a reader that has not come back for more
	out      int64         // buffer of a writer that waits for credit
	window   int64         // what the peer may send and what is unread, together: see window.go
	promised int64         // of the Budget, for what the window has beyond the first one
	granted  time.Duration // when the peer was last told to send more
	owner    *account      // nil: nobody's
	moves    uint64        // how often a reader came for more, or something could be sent
	seen     uint64        // of moves, by who looks for streams that are stuck
	still    time.Duration // when moves last was found changed; 0: not looked at
	closed   bool          // given up on this side
	ended    bool          // nothing more is to be sent from this side
	dead     bool          // the link is
	settled  bool          // it counts no more in the budget, and takes nothing more
	left     chan bool     // of a stream that was closed here: see leave
	spoken   func()        // called when the peer says something: see Stream.Watch
}

func newFlow(id uint32, now time.Duration) *flow {
	f := &flow{id: id, gone: make(chan struct{}), room: yamuxWindow, credit: yamuxWindow, window: yamuxWindow, granted: now}
	f.readable.L = &f.mu
	f.writable.L = &f.mu
	return f
}

// Why a read or write ends where more is not to be had; the stream finds better
// words.
var (
	errFlowClosed = errors.New("the stream was closed")
	errFlowDead   = errors.New("the link is dead")
)

// read waits for data. It returns what it has before any end.
func (f *flow) read(m *mux, p []byte) (int, error) {
	f.mu.Lock()
	back := f.hand // the reader is done with what it had
	f.hand = 0
	f.moves++
	for f.queue.empty() || f.closed {
		if back > 0 {
			m.budget.used.Add(-back)
			back = 0
		}
		var err error
		switch {
		case f.closed:
			err = errFlowClosed
		case f.fin.Load():
			err = io.EOF // all was received, whatever came after
		case f.rst.Load():
			err = ErrReset
		case f.dead:
			err = errFlowDead
		case !f.readBy.wait(&f.readable):
			err = os.ErrDeadlineExceeded
		}
		if err != nil {
			f.mu.Unlock()
			return 0, err
		}
	}
	n := f.queue.read(p)
	f.unread.Add(-int64(n))
	more := int64(0)
	if !f.settled {
		f.hand = buffer(p)
		m.budget.used.Add(f.hand - back - int64(n))
		more = f.grant(m)
	}
	f.mu.Unlock()
	if more > 0 {
		m.post(makeHeader(typeWindow, 0, f.id, uint32(more)))
	}
	return n, nil
}

// buffer is how much memory a reader or writer holds for p: all that p is a part of,
// as far as that can be seen.
func buffer(p []byte) int64 { return min(int64(cap(p)), carrier.BigBuffer) }

// take waits for credit and returns how much of p may be sent.
func (f *flow) take(m *mux, p []byte) (int, error) {
	wanted := min(len(p), int(m.frame.Load()))
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.sent(m)
	for {
		switch {
		case f.closed:
			return 0, errFlowClosed
		case f.rst.Load():
			return 0, ErrReset
		case f.dead:
			return 0, errFlowDead
		case f.ended:
			return 0, net.ErrClosed
		case f.credit > 0:
			n := min(int64(wanted), f.credit)
			f.credit -= n
			f.moves++
			return int(n), nil
		case f.out == 0 && !f.settled:
			f.out = buffer(p)
			f.mu.Unlock()
			m.budget.waits(f.out)
			f.mu.Lock()
		case !f.writeBy.wait(&f.writable):
			return 0, os.ErrDeadlineExceeded
		}
	}
}

// sent says that the writer waits no more. The lock is held.
func (f *flow) sent(m *mux) {
	if f.out > 0 {
		m.budget.used.Add(-f.out)
		f.out = 0
	}
}

// credited adds to what may be sent.
func (f *flow) credited(n uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.credit += int64(n)
	f.writable.Broadcast()
}

// endWrites lets nothing more be sent, and waits for a frame that is.
func (f *flow) endWrites() {
	f.mu.Lock()
	f.ended = true
	f.writable.Broadcast()
	f.mu.Unlock()
	f.sending.Lock()
	f.sending.Unlock() //nolint:staticcheck // it was free: that is all
}

// close frees blocked calls.
func (f *flow) close(b *Budget) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	f.idle(b)
	f.wake()
}

// wake frees whoever waits, to look again. The lock is held.
func (f *flow) wake() {
	f.readable.Broadcast()
	f.writable.Broadcast()
}

// announce counts a frame's body before it arrives; false: the peer was not
// allowed it. keep is false for data that nobody will read.
func (f *flow) announce(n int) (allowed, keep bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.settled || f.fin.Load() || f.rst.Load() {
		return true, false
	}
	if f.room -= int64(n); f.room < 0 {
		return false, false
	}
	f.unread.Add(int64(n))
	f.tell(true)
	return true, true
}

// space returns where the next bytes of a frame of which n are to come belong; nil
// when nobody will read them. Whoever filled some of it says so with arrived.
func (f *flow) space(n int) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.settled {
		return nil
	}
	return f.queue.space(n)
}

func (f *flow) arrived(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.queue.arrived(n)
	if f.settled {
		f.queue.clear()
	}
	f.readable.Signal()
}

// reset notes that the peer reset the stream.
func (f *flow) reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.rst.Swap(true) {
		close(f.gone)
	}
	f.tell(false)
	f.wake()
}

// finished notes that the peer ended its direction.
func (f *flow) finished() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fin.Store(true)
	f.tell(false)
	f.readable.Broadcast()
}

// died notes that the link did. What was received can still be read.
func (f *flow) died(b *Budget) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dead = true
	f.settleLocked(b)
	f.speak()
	f.wake()
}

// leave says what becomes of a stream that was closed here: true when the peer
// sends more or had sent what was not read, false when it ends too.
func (f *flow) leave() <-chan bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left = make(chan bool, 1)
	switch {
	case f.fin.Load() || f.rst.Load():
		f.left <- false
	case f.unread.Load() > 0:
		f.left <- true
	}
	return f.left
}

// talk answers leave from aside, if it was called and has no answer yet.
func (f *flow) talk() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tell(true)
}

// tell answers leave and who watches. The lock is held.
func (f *flow) tell(talks bool) {
	f.speak()
	if f.left != nil {
		select {
		case f.left <- talks:
		default:
		}
	}
}

// speak calls who watches. The lock is held.
func (f *flow) speak() {
	if f.spoken != nil {
		f.spoken()
		f.spoken = nil
	}
}

// settle takes the flow out of the budget.
func (f *flow) settle(b *Budget) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.settleLocked(b)
}

func (f *flow) settleLocked(b *Budget) {
	if f.settled {
		return
	}
	f.settled = true
	b.used.Add(-f.unread.Load() - f.hand - f.out)
	f.hand, f.out = 0, 0
	if f.owner != nil {
		f.promised = b.promise(f.owner, f.promised, 0, 0, 1)
		b.leave(f.owner)
		f.owner = nil
	}
}

// bill has the flow count as the account's, which it enters.
func (f *flow) bill(b *Budget, a *account) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.settled || f.owner != nil {
		b.leave(a)
		return
	}
	f.owner = a
}

// holds says what the flow has in the budget.
func (f *flow) holds(now time.Duration) holding {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.settled {
		return holding{}
	}
	if f.still == 0 || f.moves != f.seen {
		f.still, f.seen = now, f.moves
	}
	return holding{flow: f, owner: f.owner, held: f.unread.Load() + f.hand + f.out, stuck: now-f.still >= stuck}
}

// idle says that nobody reads for now. The lock is held.
func (f *flow) idle(b *Budget) {
	if !f.settled {
		b.used.Add(-f.hand)
	}
	f.hand = 0
}

// forget frees what is held for a reader; there will be none.
func (f *flow) forget(b *Budget) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.settleLocked(b)
	f.queue.clear()
}

// setDeadline sets one of the flow's deadlines.
func (f *flow) setDeadline(d *deadline, c *sync.Cond, at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d.at = at
	c.Broadcast()
}

// deadline bounds the waiting for a condition. Its lock is that of the condition.
type deadline struct {
	at      time.Time // zero: none
	timer   *time.Timer
	waiters int
}

// wait returns false when the deadline is over, and otherwise waits for the
// condition or the deadline.
func (d *deadline) wait(c *sync.Cond) bool {
	if d.at.IsZero() {
		c.Wait()
		return true
	}
	left := time.Until(d.at)
	if left <= 0 {
		return false
	}
	if d.timer == nil {
		d.timer = time.AfterFunc(left, func() {
			c.L.Lock()
			defer c.L.Unlock()
			c.Broadcast()
		})
	} else {
		d.timer.Reset(left)
	}
	d.waiters++
	c.Wait()
	if d.waiters--; d.waiters == 0 {
		d.timer.Stop()
	}
	return true
}

// flowError puts a flow's end into the words of a stream's error.
func (s *Stream) flowError(err error) error {
	switch {
	case errors.Is(err, errFlowClosed):
		return s.closeCause()
	case errors.Is(err, errFlowDead):
		return s.link.dead()
	}
	return err
}

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

// flow is a stream's data, which goes past yamux: what was received and not read, and the
// credit in each direction. It lives from the stream's first frame to its last.
type flow struct {
	id      uint32
	stream  atomic.Pointer[Stream] // nil until it is accepted
	sending sync.Mutex             // held while data is sent

	// Written with mu held, and read without it where an older value does no harm.
	resetCh     chan struct{} // closed when the peer reset the stream
	rstReceived atomic.Bool
	finReceived atomic.Bool
	unread      atomic.Int64 // bytes that came, or whose frame's header did, and were not read

	mu       sync.Mutex
	linkDead bool
	closed   bool      // by Stream.Close: nobody reads or writes any more
	watcher  func()    // called once when the peer sends anything: see Stream.Watch
	lingers  chan bool // of a stream that was closed here: see linger

	// The receiving half.
	readable   sync.Cond // data or an end came
	readBy     deadline
	queue      queue
	window     int64         // what the peer may send and what is unread, together: see window.go
	recvCredit int64         // bytes that the peer may send
	creditedAt time.Duration // when the peer last got credit

	// The sending half.
	writable    sync.Cond // credit or an end came
	writeBy     deadline
	sendCredit  int64 // bytes that may be sent
	writeClosed bool  // nothing more is to be sent

	// What counts in the Budget, beside unread.
	owner        *account      // nil: nobody's
	promised     int64         // for what the window has beyond the first one
	readerBuf    int64         // the buffer of a reader who has not come back for more
	writerBuf    int64         // the buffer of a writer who waits for credit
	released     bool          // nothing counts any more: what comes is not kept
	progress     uint64        // how often a reader came for more, or something could be sent
	progressSeen uint64        // by the last survey
	stalledSince time.Duration // when a survey last found progress; 0: there was none yet
}

func newFlow(id uint32, now time.Duration) *flow {
	f := &flow{
		id: id, resetCh: make(chan struct{}), creditedAt: now,
		window: yamuxWindow, recvCredit: yamuxWindow, sendCredit: yamuxWindow,
	}
	f.readable.L = &f.mu
	f.writable.L = &f.mu
	return f
}

// Why a read or write ends; flowError has what the stream's caller gets.
var (
	errFlowClosed = errors.New("the stream was closed")
	errFlowDead   = errors.New("the link is dead")
)

// read waits for data. It returns what it has before any end.
func (f *flow) read(m *mux, p []byte) (int, error) {
	f.mu.Lock()
	before := f.readerBuf // the reader is done with what it had
	f.readerBuf = 0
	f.progress++
	for f.queue.empty() || f.closed {
		if before > 0 {
			m.budget.used.Add(-before)
			before = 0
		}
		var err error
		switch {
		case f.closed:
			err = errFlowClosed
		case f.finReceived.Load():
			err = io.EOF // all was received, whatever came after
		case f.rstReceived.Load():
			err = ErrReset
		case f.linkDead:
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
	credit := int64(0)
	if !f.released {
		f.readerBuf = bufferSize(p)
		m.budget.used.Add(f.readerBuf - before - int64(n))
		credit = f.windowUpdate(m)
	}
	f.mu.Unlock()
	if credit > 0 {
		m.sendControl(makeHeader(typeWindow, 0, f.id, uint32(credit)))
	}
	return n, nil
}

// bufferSize is how much memory a reader or writer holds for p: all that p is a part of,
// as far as that can be seen.
func bufferSize(p []byte) int64 { return min(int64(cap(p)), carrier.BigBuffer) }

// takeCredit waits for credit and returns how much of p may be sent.
func (f *flow) takeCredit(m *mux, p []byte) (int, error) {
	wanted := min(len(p), int(m.frameSize.Load()))
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.writerDone(m)
	for {
		switch {
		case f.closed:
			return 0, errFlowClosed
		case f.rstReceived.Load():
			return 0, ErrReset
		case f.linkDead:
			return 0, errFlowDead
		case f.writeClosed:
			return 0, net.ErrClosed
		case f.sendCredit > 0:
			n := min(int64(wanted), f.sendCredit)
			f.sendCredit -= n
			f.progress++
			return int(n), nil
		case f.writerBuf == 0 && !f.released:
			f.writerBuf = bufferSize(p)
			f.mu.Unlock()
			m.budget.add(f.writerBuf)
			f.mu.Lock()
		case !f.writeBy.wait(&f.writable):
			return 0, os.ErrDeadlineExceeded
		}
	}
}

// writerDone notes that the writer waits no more. The lock is held.
func (f *flow) writerDone(m *mux) {
	if f.writerBuf > 0 {
		m.budget.used.Add(-f.writerBuf)
		f.writerBuf = 0
	}
}

// addCredit adds to what may be sent.
func (f *flow) addCredit(n uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sendCredit += int64(n)
	f.writable.Broadcast()
}

// closeWrite lets nothing more be sent, and waits for a frame that is being sent.
func (f *flow) closeWrite() {
	f.mu.Lock()
	f.writeClosed = true
	f.writable.Broadcast()
	f.mu.Unlock()
	f.sending.Lock()
	f.sending.Unlock() //nolint:staticcheck // it was free: that is all
}

// close frees blocked calls: there will be no reader or writer any more.
func (f *flow) close(b *Budget) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	f.readerPaused(b)
	f.wakeAll()
}

// wakeAll frees whoever waits, to look again. The lock is held.
func (f *flow) wakeAll() {
	f.readable.Broadcast()
	f.writable.Broadcast()
}

// spendCredit counts a frame's body before it arrives; false: the peer had no credit for
// it. keep is false for data that nobody will read.
func (f *flow) spendCredit(n int) (allowed, keep bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.released || f.finReceived.Load() || f.rstReceived.Load() {
		return true, false
	}
	if f.recvCredit -= int64(n); f.recvCredit < 0 {
		return false, false
	}
	f.unread.Add(int64(n))
	f.peerActive(true)
	return true, true
}

// reserve returns where the next bytes of a frame of which n are to come belong; nil
// when nobody will read them. Whoever filled some of it says so with commit.
func (f *flow) reserve(n int) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.released {
		return nil
	}
	return f.queue.reserve(n)
}

// commit notes that n bytes were put where reserve said.
func (f *flow) commit(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.queue.commit(n)
	if f.released {
		f.queue.clear()
	}
	f.readable.Signal()
}

// handleReset notes that the peer reset the stream.
func (f *flow) handleReset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.rstReceived.Swap(true) {
		close(f.resetCh)
	}
	f.peerActive(false)
	f.wakeAll()
}

// handleFIN notes that the peer ended its direction.
func (f *flow) handleFIN() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.finReceived.Store(true)
	f.peerActive(false)
	f.readable.Broadcast()
}

// linkClosed notes that the link is dead. What was received can still be read.
func (f *flow) linkClosed(b *Budget) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.linkDead = true
	f.releaseLocked(b)
	f.wakeWatcher()
	f.wakeAll()
}

// linger says what the peer does with a stream that was closed here: true when it sends
// more or had sent what was not read, so that it has to be reset; false when it ends too.
func (f *flow) linger() <-chan bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lingers = make(chan bool, 1)
	switch {
	case f.finReceived.Load() || f.rstReceived.Load():
		f.lingers <- false
	case f.unread.Load() > 0:
		f.lingers <- true
	}
	return f.lingers
}

// endLinger has linger answer that the stream is to be reset.
func (f *flow) endLinger() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.peerActive(true)
}

// peerActive answers linger and calls the watcher. sends is false for an end. The lock is
// held.
func (f *flow) peerActive(sends bool) {
	f.wakeWatcher()
	if f.lingers != nil {
		select {
		case f.lingers <- sends:
		default:
		}
	}
}

// wakeWatcher calls the watcher, if there is one. The lock is held.
func (f *flow) wakeWatcher() {
	if f.watcher != nil {
		f.watcher()
		f.watcher = nil
	}
}

// release takes the flow out of the budget.
func (f *flow) release(b *Budget) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.releaseLocked(b)
}

func (f *flow) releaseLocked(b *Budget) {
	if f.released {
		return
	}
	f.released = true
	b.used.Add(-f.unread.Load() - f.readerBuf - f.writerBuf)
	f.readerBuf, f.writerBuf = 0, 0
	if f.owner != nil {
		f.promised = b.promise(f.owner, f.promised, 0, 0, 1)
		b.removeStream(f.owner)
		f.owner = nil
	}
}

// bill has the flow count as the account's, which it enters.
func (f *flow) bill(b *Budget, a *account) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.released || f.owner != nil {
		b.removeStream(a)
		return
	}
	f.owner = a
}

// holding says what the flow has in the budget.
func (f *flow) holding(now time.Duration) holding {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.released {
		return holding{}
	}
	if f.stalledSince == 0 || f.progress != f.progressSeen {
		f.stalledSince, f.progressSeen = now, f.progress
	}
	return holding{flow: f, owner: f.owner, held: f.unread.Load() + f.readerBuf + f.writerBuf, stalled: now-f.stalledSince >= stallTime}
}

// readerPaused notes that no Read waits with a buffer of its own. The lock is held.
func (f *flow) readerPaused(b *Budget) {
	if !f.released {
		b.used.Add(-f.readerBuf)
	}
	f.readerBuf = 0
}

// drop frees what is held for a reader; there will be none.
func (f *flow) drop(b *Budget) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.releaseLocked(b)
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

// flowError returns a flow's error as a stream's.
func (s *Stream) flowError(err error) error {
	switch {
	case errors.Is(err, errFlowClosed):
		return s.closeCause()
	case errors.Is(err, errFlowDead):
		return s.link.dead()
	}
	return err
}

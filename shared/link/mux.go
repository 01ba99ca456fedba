package link

import (
	"encoding/binary"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/adit-tunnel/adit/shared/carrier"
)

// The parts of yamux's frame header that this package reads and writes:
//
//	version(1) type(1) flags(2) stream(4) length(4)
const (
	headerSize = 12

	typeData   = 0
	typeWindow = 1
	typePing   = 2

	flagSYN = 1
	flagACK = 2
	flagFIN = 4
	flagRST = 8
)

const (
	// maxPending is how much may wait to be written; beyond it the writer waits.
	maxPending = 64 << 10
	// directMin is the size from which a body is written from where it is, without
	// being copied behind the frames that wait.
	directMin = 16 << 10
	// firstFrame, leastFrame and mostFrame are how long a stream's frame is: large ones
	// cost less, but whatever else has to be sent waits for them. One that took longer
	// than slowFrame to be written has the next ones be shorter, one that took less than
	// fastFrame longer.
	firstFrame = 64 << 10
	leastFrame = 16 << 10
	mostFrame  = 256 << 10
	slowFrame  = 4 * time.Millisecond
	fastFrame  = time.Millisecond
	// busy is how soon after a batch the next one waits for others to join it.
	busy = 100 * time.Microsecond
	// lastWords is how long the carrier is still read when it takes no more: what a
	// peer said before it hung up, and why, is there to be heard.
	lastWords = time.Second
)

// errNoHeader would be a yamux that sends data.
var errNoHeader = errors.New("a write of yamux is no frame's header")

type header = [headerSize]byte

func makeHeader(typ byte, flags uint16, stream, length uint32) (h header) {
	h[1] = typ
	binary.BigEndian.PutUint16(h[2:], flags)
	binary.BigEndian.PutUint32(h[4:], stream)
	binary.BigEndian.PutUint32(h[8:], length)
	return h
}

// mux carries frames between the streams, yamux and the carrier. Towards the carrier
// it combines frames into batches: a header with its body, and whatever else is ready
// while the socket is busy; nothing waits for a timer. From the carrier it takes what
// is a stream's data, and leaves yamux what concerns a stream's life. It adds the
// reset that yamux lacks, and answers pings.
type mux struct {
	c     carrier.Conn
	hooks Hooks
	base  time.Time // all times are kept as distances from it

	bytesIn, bytesOut, framesOut, batches atomic.Uint64
	queued, lastIn, rtt                   atomic.Int64
	load                                  load
	frame                                 atomic.Int64  // how long a frame of bulk may be
	pingSent                              atomic.Int64  // 0: answered
	pingID                                atomic.Uint32 // of the last ping

	mu      sync.Mutex
	room    sync.Cond
	pending *[]byte
	since   time.Duration // when the oldest pending frame came
	lastOut time.Duration // when the last batch was written
	frames  int           // in pending
	writing bool          // somebody writes to the carrier
	bulk    sync.Mutex    // held by who has bulk to send; never taken with mu held
	line    carrier.Line  // nil where nothing is known of it
	pace    *pacer        // with line, from the first bulk on; for who holds bulk
	// bulkWaits says that somebody with bulk writes next.
	bulkWaits bool
	closed    bool
	ended     func() // called when closed
	expired   bool   // drain waited long enough
	err       error
	deaf      *time.Timer // the carrier takes no more, and is closed when this fires
	flush     func()      // flusher as a value, so that starting it allocates nothing
	wg        sync.WaitGroup

	smu    sync.Mutex // of the flows there are; never taken with a flow's lock held
	flows  map[uint32]*flow
	over   bool // the link has ended
	budget *Budget

	maxWindow int64
	window    atomic.Int64 // of each stream now: see window.go

	// The reading side belongs to yamux's one reader.
	head       header
	have, give int  // bytes of head that were read; that yamux still has to get
	came       bool // the peer opened a stream, which yamux has been given
	opened     bool // it has opened one at some time
	leastRTT   time.Duration
	injected   []header
	hasInject  atomic.Bool
	onIncoming atomic.Pointer[func()]
	greeting   atomic.Bool // the peer may open one stream and no more
}

func newMux(c carrier.Conn, hooks Hooks, budget *Budget, window uint32) *mux {
	m := &mux{c: c, hooks: hooks, base: time.Now(), flows: make(map[uint32]*flow), budget: budget, maxWindow: int64(window)}
	m.frame.Store(firstFrame)
	m.window.Store(m.maxWindow) // until the line is known
	m.room.L = &m.mu
	m.flush = m.flusher
	return m
}

func (m *mux) now() time.Duration { return time.Since(m.base) }

// Write takes yamux's frames, which are a header each.
func (m *mux) Write(p []byte) (int, error) {
	if len(p) != headerSize {
		return 0, errNoHeader
	}
	h := header(p)
	flush := m.outgoing(&h)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.makeRoom(); err != nil {
		return m.discard(p)
	}
	m.add(h[:])
	m.frames++
	if flush {
		m.kick()
	}
	return len(p), nil
}

// outgoing looks at a header that yamux sends. It returns false for one that needs
// no flush of its own.
func (m *mux) outgoing(h *header) bool {
	flags, id := binary.BigEndian.Uint16(h[2:]), binary.BigEndian.Uint32(h[4:])
	switch {
	case h[1] != typeWindow:
		return true
	case flags&flagRST != 0:
		m.forget(id) // yamux refused a stream that nobody accepted
		return true
	case flags&(flagSYN|flagACK) == 0:
		return true
	}
	if flags&flagSYN != 0 {
		m.track(id)
	}
	binary.BigEndian.PutUint32(h[8:], 0) // yamux knows nothing of windows: see window.go
	// Whoever opens or accepts a stream flushes when it has added what belongs
	// to it, so that a hello travels with its SYN.
	return false
}

// send sends one frame of a stream's data. It returns when the data was written, or
// waits for its turn in a copy.
func (m *mux) send(id uint32, body []byte) error {
	h := makeHeader(typeData, 0, id, uint32(len(body)))
	if len(body) >= directMin {
		return m.sendBulk(h, body)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.makeRoom(); err != nil {
		_, err := m.discard(body)
		return err
	}
	m.add(h[:])
	m.add(body)
	m.frames++
	m.kick()
	return nil
}

// sendBulk is send for a body that is not worth a copy. What is small goes first, and
// bulk takes turns.
func (m *mux) sendBulk(h header, body []byte) error {
	m.bulk.Lock()
	defer m.bulk.Unlock()
	if m.line != nil {
		if m.pace == nil {
			m.pace = &pacer{line: m.line, slowed: m.hooks.Slowed}
		}
		m.pace.bulk(m.now())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bulkWaits = true
	for m.writing && m.err == nil {
		m.room.Wait()
	}
	m.bulkWaits = false
	if m.err == nil {
		m.add(h[:])
		m.frames++
		m.writeOnce(body)
		if m.pace != nil {
			m.pace.sent(m.now())
		}
	}
	if m.err != nil {
		_, err := m.discard(body)
		return err
	}
	m.kick()
	return nil
}

// rest lets go of what bulk needed, if there is none any more.
func (m *mux) rest() {
	if !m.bulk.TryLock() {
		return // there is
	}
	defer m.bulk.Unlock()
	if m.pace != nil {
		m.pace.rest(m.now())
	}
}

// breathe waits until not too much is pending, so that a peer that makes this side
// talk and does not listen cannot go on.
func (m *mux) breathe() {
	m.mu.Lock()
	defer m.mu.Unlock()
	_ = m.makeRoom()
}

// makeRoom waits until not too much is pending. The lock is held.
func (m *mux) makeRoom() error {
	for m.err == nil && len(m.waiting()) > maxPending {
		if m.writing {
			m.room.Wait()
		} else {
			m.writeOut()
		}
	}
	return m.err
}

func (m *mux) waiting() []byte {
	if m.pending == nil {
		return nil
	}
	return *m.pending
}

func (m *mux) add(p []byte) {
	if m.pending == nil {
		m.since = m.now()
	}
	m.pending = carrier.AppendBuffer(m.pending, p)
}

// kick sees to it that what is pending gets written. The lock is held.
func (m *mux) kick() {
	if m.writing || m.bulkWaits || m.err != nil || len(m.waiting()) == 0 {
		return // whoever is writing, or about to, looks again when it is done
	}
	if m.since-m.lastOut < busy && len(m.waiting()) < directMin {
		// Others are about to send something, too: let them go first, and join.
		m.writing = true
		m.mu.Unlock()
		runtime.Gosched()
		m.mu.Lock()
	}
	m.writeOut()
}

// kickLater has another goroutine write, once the present one paused.
func (m *mux) kickLater() {
	if m.writing || m.bulkWaits || m.closed || m.err != nil || len(m.waiting()) == 0 {
		return
	}
	m.writing = true
	m.wg.Add(1)
	go m.flush()
}

// flusher writes until nothing is pending.
func (m *mux) flusher() {
	defer m.wg.Done()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writeOut()
}

// nudge writes what was deferred.
func (m *mux) nudge(later bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if later {
		m.kickLater()
	} else {
		m.kick()
	}
}

// writeOut writes until nothing is pending. The lock is held, but not while writing.
func (m *mux) writeOut() {
	for m.err == nil && len(m.waiting()) > 0 {
		m.writeOnce(nil)
		if m.bulkWaits {
			break // it takes along what is pending
		}
	}
	m.writing = false
	m.room.Broadcast()
}

// fit has the next frames be as long as the line can take in time.
func (m *mux) fit(n int, took time.Duration) {
	switch frame := m.frame.Load(); {
	case n < int(frame):
	case took > slowFrame && frame > leastFrame:
		m.frame.Store(frame / 2)
	case took < fastFrame && frame < mostFrame:
		m.frame.Store(frame * 2)
	}
}

// writeOnce writes what is pending, and body behind it.
func (m *mux) writeOnce(body []byte) {
	batch, frames, since := m.pending, m.frames, m.since
	began := m.now()
	m.lastOut = began
	m.pending, m.frames = nil, 0
	m.writing = true
	m.mu.Unlock()
	var first []byte
	if batch != nil {
		first = *batch
	}
	n := len(first) + len(body)
	err := m.c.Writev(first, body)
	if err == nil {
		now := m.now()
		queued := now - since
		m.fit(len(body), now-began)
		m.bytesOut.Add(uint64(n))
		m.load.add(now, n)
		m.framesOut.Add(uint64(frames))
		m.batches.Add(1)
		m.queued.Add(int64(queued))
		if m.hooks.Sent != nil {
			m.hooks.Sent(Written{Bytes: n, Frames: frames, Queued: queued, Stalled: now - began})
		}
	}
	if batch != nil {
		carrier.PutBuffer(batch)
	}
	m.mu.Lock()
	m.writing = false
	if err != nil {
		m.fail(err)
		if m.deaf == nil && !m.closed {
			m.deaf = time.AfterFunc(lastWords, func() { _ = m.c.Close() }) // then yamux's reader learns of it
		}
	}
	m.room.Broadcast()
}

// post sends a frame of this package's own.
func (m *mux) post(h header) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.postLocked(h)
}

func (m *mux) postLocked(h header) {
	if m.err == nil {
		m.add(h[:])
		m.frames++
		m.kickLater()
	}
}

// enqueue adds a frame to those that somebody is about to flush.
func (m *mux) enqueue(h header) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil {
		m.add(h[:])
		m.frames++
	}
}

// reply is post for what the peer asked for: one that asks and does not listen gets
// no answer.
func (m *mux) reply(h header) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.waiting()) <= 2*maxPending {
		m.postLocked(h)
	}
}

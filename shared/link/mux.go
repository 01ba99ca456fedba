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
	// coalesce is how soon after a batch the next one lets others run first, to join it.
	coalesce = 100 * time.Microsecond
	// lingerTime is how long the connection is still read when it takes no more: what a
	// peer sent before it closed, and why it did, may lie in it unread.
	lingerTime = time.Second
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

// mux carries frames between the streams, yamux and the connection. It is the connection
// that yamux knows: see the package's comment for what of each frame passes where. Towards
// the connection it combines frames into batches: a header with its body, and whatever
// else is ready while the socket is busy; nothing waits for a timer.
type mux struct {
	conn   carrier.Conn
	hooks  Hooks
	budget *Budget
	base   time.Time // all times are kept as distances from it

	bytesIn, bytesOut, framesOut, batches atomic.Uint64
	queued, lastRead, rtt                 atomic.Int64
	load                                  load
	pingSent                              atomic.Int64  // 0: answered
	pingID                                atomic.Uint32 // of the last ping
	frameSize                             atomic.Int64  // how long a frame of bulk may be

	// Bulk takes turns.
	bulk sync.Mutex
	line carrier.Line // nil where nothing is known of it
	pace *pacer       // with line, from the first bulk on; guarded by bulk

	mu           sync.Mutex
	room         sync.Cond // something was written, or went wrong
	pending      *[]byte   // frames that wait to be written
	frames       int       // in pending
	pendingSince time.Duration
	lastWrite    time.Duration // when the last batch was written
	writing      bool          // somebody writes to the connection
	bulkWaits    bool          // somebody with bulk writes next
	drainExpired bool          // drain waited long enough
	closed       bool
	onClosed     func()
	err          error       // the first that went wrong with the connection
	lingering    *time.Timer // the connection takes no more, and is closed when this fires
	writer       func()      // writeLoop as a value, so that starting it allocates nothing
	wg           sync.WaitGroup

	flowsMu sync.Mutex
	flows   map[uint32]*flow
	dead    bool // the link has ended

	maxWindow int64
	window    atomic.Int64 // of each stream now: see window.go

	// The reading side belongs to yamux's one reader.
	head       header
	headRead   int  // bytes of head that were read
	headLeft   int  // bytes of head that yamux still has to get
	synPassed  bool // head had a stream begin, and yamux was given it
	synSeen    bool // the peer has opened a stream at some time
	leastRTT   time.Duration
	handshake  atomic.Bool // the peer may open one stream and no more
	onIncoming atomic.Pointer[func()]
	injected   []header // guarded by flowsMu
	hasInject  atomic.Bool
}

func newMux(c carrier.Conn, hooks Hooks, budget *Budget, window uint32) *mux {
	m := &mux{conn: c, hooks: hooks, base: time.Now(), flows: make(map[uint32]*flow), budget: budget, maxWindow: int64(window)}
	m.frameSize.Store(firstFrame)
	m.window.Store(m.maxWindow) // until the line is known
	m.room.L = &m.mu
	m.writer = m.writeLoop
	return m
}

func (m *mux) now() time.Duration { return time.Since(m.base) }

// Write takes yamux's frames, which are a header each.
func (m *mux) Write(p []byte) (int, error) {
	if len(p) != headerSize {
		return 0, errNoHeader
	}
	h := header(p)
	flush := m.handleOutgoing(&h)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.makeRoom(); err != nil {
		return m.discard(p)
	}
	m.add(h[:])
	m.frames++
	if flush {
		m.flush()
	}
	return len(p), nil
}

// handleOutgoing looks at a header that yamux sends. It returns false for one that needs
// no flush of its own.
func (m *mux) handleOutgoing(h *header) bool {
	flags, id := binary.BigEndian.Uint16(h[2:]), binary.BigEndian.Uint32(h[4:])
	switch {
	case h[1] != typeWindow:
		return true
	case flags&flagRST != 0:
		m.dropFlow(id) // yamux refused a stream that nobody accepted
		return true
	case flags&(flagSYN|flagACK) == 0:
		return true
	}
	if flags&flagSYN != 0 {
		m.openFlow(id)
	}
	binary.BigEndian.PutUint32(h[8:], 0) // yamux knows nothing of windows: see window.go
	// Whoever opens or accepts a stream flushes when it has added what belongs
	// to it, so that a hello travels with its SYN.
	return false
}

// sendData sends one frame of a stream's data. It returns when the data was written, or
// waits for its turn in a copy.
func (m *mux) sendData(id uint32, body []byte) error {
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
	m.flush()
	return nil
}

// sendBulk is sendData for a body that is not worth a copy. What is small goes first, and
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
	m.flush()
	return nil
}

// stopPacing lifts the bound of bulk, if there was none for a while.
func (m *mux) stopPacing() {
	if !m.bulk.TryLock() {
		return // there is some
	}
	defer m.bulk.Unlock()
	if m.pace != nil {
		m.pace.stop(m.now())
	}
}

// backpressure waits until not too much is pending, so that a peer that has this side send
// and does not read cannot go on.
func (m *mux) backpressure() {
	m.mu.Lock()
	defer m.mu.Unlock()
	_ = m.makeRoom()
}

// makeRoom waits until not too much is pending. The lock is held.
func (m *mux) makeRoom() error {
	for m.err == nil && len(m.pendingBytes()) > maxPending {
		if m.writing {
			m.room.Wait()
		} else {
			m.writeOut()
		}
	}
	return m.err
}

func (m *mux) pendingBytes() []byte {
	if m.pending == nil {
		return nil
	}
	return *m.pending
}

func (m *mux) add(p []byte) {
	if m.pending == nil {
		m.pendingSince = m.now()
	}
	m.pending = carrier.AppendBuffer(m.pending, p)
}

// flush sees to it that what is pending gets written. The lock is held.
func (m *mux) flush() {
	if m.writing || m.bulkWaits || m.err != nil || len(m.pendingBytes()) == 0 {
		return // whoever is writing, or about to, looks again when it is done
	}
	if m.pendingSince-m.lastWrite < coalesce && len(m.pendingBytes()) < directMin {
		// Others are about to send something, too: let them go first, and join.
		m.writing = true
		m.mu.Unlock()
		runtime.Gosched()
		m.mu.Lock()
	}
	m.writeOut()
}

// flushLater is flush by another goroutine, once the present one paused.
func (m *mux) flushLater() {
	if m.writing || m.bulkWaits || m.closed || m.err != nil || len(m.pendingBytes()) == 0 {
		return
	}
	m.writing = true
	m.wg.Add(1)
	go m.writer()
}

// writeLoop writes until nothing is pending.
func (m *mux) writeLoop() {
	defer m.wg.Done()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writeOut()
}

// flushDeferred writes what was queued to go with other frames.
func (m *mux) flushDeferred(later bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if later {
		m.flushLater()
	} else {
		m.flush()
	}
}

// writeOut writes until nothing is pending. The lock is held, but not while writing.
func (m *mux) writeOut() {
	for m.err == nil && len(m.pendingBytes()) > 0 {
		m.writeOnce(nil)
		if m.bulkWaits {
			break // it takes along what is pending
		}
	}
	m.writing = false
	m.room.Broadcast()
}

// adaptFrameSize has the next frames be as long as the line can take in time.
func (m *mux) adaptFrameSize(n int, took time.Duration) {
	switch size := m.frameSize.Load(); {
	case n < int(size):
	case took > slowFrame && size > leastFrame:
		m.frameSize.Store(size / 2)
	case took < fastFrame && size < mostFrame:
		m.frameSize.Store(size * 2)
	}
}

// writeOnce writes what is pending, and body behind it.
func (m *mux) writeOnce(body []byte) {
	batch, frames, since := m.pending, m.frames, m.pendingSince
	began := m.now()
	m.lastWrite = began
	m.pending, m.frames = nil, 0
	m.writing = true
	m.mu.Unlock()
	var first []byte
	if batch != nil {
		first = *batch
	}
	n := len(first) + len(body)
	err := m.conn.Writev(first, body)
	if err == nil {
		now := m.now()
		queued := now - since
		m.adaptFrameSize(len(body), now-began)
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
		if m.lingering == nil && !m.closed {
			m.lingering = time.AfterFunc(lingerTime, func() { _ = m.conn.Close() }) // then yamux's reader learns of it
		}
	}
	m.room.Broadcast()
}

// sendControl sends a frame of this package's own, without a body.
func (m *mux) sendControl(h header) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sendControlLocked(h)
}

func (m *mux) sendControlLocked(h header) {
	if m.err == nil {
		m.add(h[:])
		m.frames++
		m.flushLater()
	}
}

// queueControl is sendControl for a frame that goes with others: see flushDeferred.
func (m *mux) queueControl(h header) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil {
		m.add(h[:])
		m.frames++
	}
}

// sendReply is sendControl for what the peer asked for: one that asks and does not read
// gets no answer.
func (m *mux) sendReply(h header) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.pendingBytes()) <= 2*maxPending {
		m.sendControlLocked(h)
	}
}

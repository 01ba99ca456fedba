package link

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
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
	maxPending = 128 << 10
	// directMin is the size from which a body is written from where it is, without
	// being copied behind the frames that wait.
	directMin = 16 << 10
	// lastWords is how long the carrier is still read when it takes no more: what a
	// peer said before it hung up, and why, is there to be heard.
	lastWords = time.Second
)

type header = [headerSize]byte

func makeHeader(typ byte, flags uint16, stream, length uint32) (h header) {
	h[1] = typ
	binary.BigEndian.PutUint16(h[2:], flags)
	binary.BigEndian.PutUint32(h[4:], stream)
	binary.BigEndian.PutUint32(h[8:], length)
	return h
}

// mux sits between yamux and the carrier. Towards the carrier it combines frames
// into batches: a header with its body, and whatever else is ready while the
// socket is busy; nothing waits for a timer. Towards yamux it watches the headers
// pass: it notes which streams the peer finished (yamux itself cannot tell a
// finished stream from a dead session), adds the reset that yamux lacks, and
// answers its own pings.
type mux struct {
	c     carrier
	hooks Hooks
	base  time.Time // all times are kept as distances from it

	bytesIn, bytesOut, framesOut, batches atomic.Uint64
	queued, lastIn, rtt                   atomic.Int64
	load                                  load
	pingSent                              atomic.Int64  // 0: answered
	pingID                                atomic.Uint32 // of the last ping
	writers                               atomic.Int32  // streams that are about to write a frame

	mu      sync.Mutex
	room    sync.Cond
	pending *[]byte
	since   time.Duration // when the oldest pending frame came
	frames  int           // completed in pending
	need    int           // bytes of the present frame's body that are still to come
	defers  bool          // the present frame needs no flush of its own
	control []byte        // own frames that wait for the present one to be complete
	writing bool          // somebody writes to the carrier
	closed  bool
	expired bool // drain waited long enough
	err     error
	deaf    *time.Timer // the carrier takes no more, and is closed when this fires
	flush   func()      // flusher as a value, so that starting it allocates nothing
	wg      sync.WaitGroup

	smu     sync.Mutex // of what follows, and of the plain fields of marks
	streams map[uint32]*mark
	budget  *Budget

	maxWindow int64
	window    atomic.Int64 // of each stream now: see window.go

	// The reading side belongs to yamux's one reader.
	head       header
	have, give int // bytes of head that were read; that yamux still has to get
	body       int // bytes of the present frame's body still to be read
	leastRTT   time.Duration
	injected   []header
	hasInject  atomic.Bool
}

// mark is what is known of a stream from its headers, from its first to its last.
type mark struct {
	fin, rst atomic.Bool   // the peer ended its direction; reset the stream
	ended    bool          // yamux was shown an end; only the reader knows
	gone     chan struct{} // closed when the peer reset the stream
	stream   atomic.Pointer[Stream]
	unread   int64     // bytes received and not read, guarded by smu
	room     int64     // bytes the peer may send, guarded by smu
	held     int64     // that yamux would let it send in addition, guarded by smu
	settled  bool      // they count no more, guarded by smu
	left     chan bool // of a stream that was closed here: see leave; guarded by smu
	spoken   func()    // called when the peer says something: see Stream.Watch; guarded by smu
}

func newMux(c carrier, hooks Hooks, budget *Budget, window uint32) *mux {
	m := &mux{c: c, hooks: hooks, base: time.Now(), streams: make(map[uint32]*mark), budget: budget, maxWindow: int64(window)}
	m.window.Store(m.maxWindow) // until the line is known
	m.room.L = &m.mu
	m.flush = m.flusher
	return m
}

func (m *mux) now() time.Duration { return time.Since(m.base) }

// Write takes yamux's frames: a header in one call, its body in the next.
func (m *mux) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.err == nil && len(m.waiting()) > maxPending {
		if m.writing {
			m.room.Wait()
		} else {
			m.writeOut()
		}
	}
	if m.err != nil {
		return m.discard(p)
	}
	switch {
	case m.need == 0 && len(p) == headerSize:
		h := header(p)
		if m.outgoing(&h) {
			m.add(h[:])
			m.frames++
		}
	case len(p) == m.need && len(p) >= directMin && !m.writing:
		m.need = 0
		m.writeOnce(p)
		if m.err != nil {
			return m.discard(p)
		}
	default:
		m.add(p)
		m.need -= min(m.need, len(p))
	}
	if m.need > 0 {
		return len(p), nil
	}
	if len(m.control) > 0 {
		m.add(m.control)
		m.frames += len(m.control) / headerSize
		m.control = m.control[:0]
		m.defers = false
	}
	if !m.defers {
		m.kick()
	}
	m.defers = false
	return len(p), nil
}

// outgoing looks at a header that yamux sends, and changes a window update. It
// returns false for a frame that is not to be sent.
func (m *mux) outgoing(h *header) bool {
	flags := binary.BigEndian.Uint16(h[2:])
	if h[1] == typeData {
		m.need = int(binary.BigEndian.Uint32(h[8:]))
	}
	if flags&(flagSYN|flagRST) != 0 && h[1] <= typeWindow {
		id := binary.BigEndian.Uint32(h[4:])
		if flags&flagSYN != 0 {
			m.track(id)
		} else {
			m.forget(id) // yamux refused a stream that nobody accepted
		}
	}
	// Whoever opens or accepts a stream flushes when it has added what belongs
	// to it, so that a hello travels with its SYN.
	m.defers = h[1] == typeWindow && flags&(flagSYN|flagACK) != 0
	return h[1] != typeWindow || flags&flagRST != 0 || m.allow(h, flags)
}

func (m *mux) waiting() []byte {
	if m.pending == nil {
		return nil
	}
	return *m.pending
}

func (m *mux) add(p []byte) {
	if m.pending == nil {
		m.pending = getBuffer(len(p))
		m.since = m.now()
	}
	b := *m.pending
	if len(b)+len(p) > cap(b) && cap(b) < bigBuffer {
		grown := getBuffer(bigBuffer)
		*grown = append(*grown, b...)
		putBuffer(m.pending)
		m.pending = grown
	}
	*m.pending = append(*m.pending, p...)
}

// kick sees to it that what is pending gets written. The lock is held.
func (m *mux) kick() {
	if m.writing || m.err != nil || len(m.waiting()) == 0 {
		return // whoever is writing looks again when it is done
	}
	if m.writers.Load() > 1 {
		m.kickLater() // more is about to come: let it join
		return
	}
	m.writeOut()
}

// kickLater has another goroutine write, once the present one paused.
func (m *mux) kickLater() {
	if m.writing || m.closed || m.err != nil || len(m.waiting()) == 0 {
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
	} else if m.need == 0 {
		m.kick()
	}
}

// writeOut writes until nothing is pending. The lock is held, but not while writing.
func (m *mux) writeOut() {
	for m.err == nil && len(m.waiting()) > 0 {
		m.writeOnce(nil)
	}
	m.writing = false
	m.room.Broadcast()
}

// writeOnce writes what is pending, and body behind it.
func (m *mux) writeOnce(body []byte) {
	batch, frames, since := m.pending, m.frames, m.since
	m.pending, m.frames = nil, 0
	m.writing = true
	m.mu.Unlock()
	var first []byte
	if batch != nil {
		first = *batch
	}
	n := len(first) + len(body)
	began := m.now()
	err := m.c.write(first, body)
	if err == nil {
		now := m.now()
		queued := now - since
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
		putBuffer(batch)
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

// discard is Write when the carrier takes no more. An error would make yamux end
// the session, and lose what still lies unread in the carrier. The lock is held.
func (m *mux) discard(p []byte) (int, error) {
	if m.deaf == nil || m.closed {
		return 0, m.err
	}
	return len(p), nil
}

// hungUp records how reading the carrier ended. Where writing had failed before,
// that was a consequence, and this may be a reason.
func (m *mux) hungUp(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.deaf != nil && !m.closed && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
		m.err = err
	}
	m.fail(err)
}

// fail records the first thing that went wrong with the carrier. The lock is held.
func (m *mux) fail(err error) {
	if m.err == nil {
		if errors.Is(err, io.EOF) {
			err = errPeerClosed
		}
		m.err = err
		m.room.Broadcast()
	}
}

// reason is what went wrong with the carrier, nil when that was not the cause.
func (m *mux) reason() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if errors.Is(m.err, net.ErrClosed) {
		return nil
	}
	return m.err
}

// post sends a frame of this package's own.
func (m *mux) post(h header) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.err != nil:
	case m.need > 0:
		m.control = append(m.control, h[:]...)
	default:
		m.add(h[:])
		m.frames++
		m.kickLater()
	}
}

// drain waits until all is written, and says whether it is.
func (m *mux) drain(limit time.Duration) bool {
	timer := time.AfterFunc(limit, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.expired = true
		m.room.Broadcast()
	})
	defer timer.Stop()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.kickLater()
	for m.err == nil && !m.expired && (m.writing || len(m.waiting()) > 0) {
		m.room.Wait()
	}
	return m.err == nil && !m.expired
}

// Close ends the carrier. It never waits: yamux spins meanwhile.
func (m *mux) Close() error {
	m.mu.Lock()
	m.closed = true
	m.fail(net.ErrClosed)
	if m.deaf != nil {
		m.deaf.Stop()
	}
	m.mu.Unlock()
	return m.c.Close()
}

// ping asks the peer for a sign of life and starts measuring the round trip,
// unless an answer is outstanding.
func (m *mux) ping() {
	if m.pingSent.CompareAndSwap(0, int64(m.now())+1) {
		m.post(makeHeader(typePing, flagSYN, 0, m.pingID.Add(1)))
	} else {
		m.post(makeHeader(typePing, flagSYN, 0, 0)) // proves life, measures nothing
	}
}

// silence is how long nothing has come from the peer.
func (m *mux) silence() time.Duration { return m.now() - time.Duration(m.lastIn.Load()) }

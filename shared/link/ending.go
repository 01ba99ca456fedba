package link

import (
	"errors"
	"io"
	"net"
	"time"

	"github.com/adit-tunnel/adit/shared/carrier"
)

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
			err = carrier.ErrPeerClosed
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

// Close ends the carrier, for yamux ends its session. It never waits: yamux spins
// meanwhile.
func (m *mux) Close() error {
	m.mu.Lock()
	first := !m.closed
	m.closed = true
	m.fail(net.ErrClosed)
	if m.deaf != nil {
		m.deaf.Stop()
	}
	ended := m.ended
	m.mu.Unlock()
	if first && ended != nil {
		ended()
	}
	return m.c.Close()
}

// whenClosed has f called once, when the mux is closed or if it is already.
func (m *mux) whenClosed(f func()) {
	m.mu.Lock()
	closed := m.closed
	m.ended = f
	m.mu.Unlock()
	if closed {
		f()
	}
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

// forgetPing gives up the measurement of a ping whose answer is that late: a peer that
// had too much to answer leaves some out.
func (m *mux) forgetPing(late time.Duration) {
	if sent := m.pingSent.Load(); sent != 0 && m.now()+1-time.Duration(sent) > late {
		m.pingSent.CompareAndSwap(sent, 0)
	}
}

// silence is how long nothing has come from the peer.
func (m *mux) silence() time.Duration { return m.now() - time.Duration(m.lastIn.Load()) }

package link

import (
	"errors"
	"io"
	"net"
	"time"

	"github.com/adit-tunnel/adit/shared/carrier"
)

// discard is Write when the connection takes no more. An error would make yamux end
// the session, and lose what still lies unread in the connection. The lock is held.
func (m *mux) discard(p []byte) (int, error) {
	if m.lingering == nil || m.closed {
		return 0, m.err
	}
	return len(p), nil
}

// readFailed records how reading the connection ended. Where writing had failed before,
// that was a consequence, and this may be a reason.
func (m *mux) readFailed(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lingering != nil && !m.closed && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
		m.err = err
	}
	m.fail(err)
}

// fail records the first thing that went wrong with the connection. The lock is held.
func (m *mux) fail(err error) {
	if m.err == nil {
		if errors.Is(err, io.EOF) {
			err = carrier.ErrPeerClosed
		}
		m.err = err
		m.room.Broadcast()
	}
}

// reason is what went wrong with the connection, nil when that was not the cause.
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
		m.drainExpired = true
		m.room.Broadcast()
	})
	defer timer.Stop()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flushLater()
	for m.err == nil && !m.drainExpired && (m.writing || len(m.pendingBytes()) > 0) {
		m.room.Wait()
	}
	return m.err == nil && !m.drainExpired
}

// Close closes the connection, for yamux closes its session. It never waits: yamux spins
// meanwhile.
func (m *mux) Close() error {
	m.mu.Lock()
	first := !m.closed
	m.closed = true
	m.fail(net.ErrClosed)
	if m.lingering != nil {
		m.lingering.Stop()
	}
	onClosed := m.onClosed
	m.mu.Unlock()
	if first && onClosed != nil {
		onClosed()
	}
	return m.conn.Close()
}

// whenClosed has f called once, when the mux is closed or if it is already.
func (m *mux) whenClosed(f func()) {
	m.mu.Lock()
	closed := m.closed
	m.onClosed = f
	m.mu.Unlock()
	if closed {
		f()
	}
}

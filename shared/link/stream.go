package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/adit-tunnel/adit/shared/wire"
)

// finWaitTime is how long a stream that was closed here waits for the peer to finish too,
// as TCP does, before it is reset.
const finWaitTime = 60 * time.Second

// Stream is one byte pipe in a link. It is a net.Conn with the semantics of TCP:
// CloseWrite ends one direction; Close gives up both, and a peer that goes on
// sending is reset. When the link dies, reads and writes fail with an error that
// wraps ErrClosed, never with io.EOF. A write deadline bounds waiting for the
// peer's window, not for the link itself.
type Stream struct {
	link        *Link
	ys          *yamux.Stream
	flow        *flow
	opened      bool // by this side
	closed      atomic.Bool
	writeClosed atomic.Bool // CloseWrite was called
	resetting   atomic.Bool
	cause       atomic.Pointer[error]
	givenUp     atomic.Pointer[func(error)] // to be called when the link gives the stream up

	// Of a stream opened with a hello: the verdict is read before the first data.
	awaiting  atomic.Bool // the verdict
	verdictMu sync.Mutex  // held while reading it
	verdicts  wire.VerdictReader
	refusal   atomic.Pointer[wire.Verdict]
}

var _ interface {
	net.Conn
	CloseWrite() error
} = (*Stream)(nil)

// newStream wraps a stream of yamux and counts it.
func (l *Link) newStream(ys *yamux.Stream, opened bool) *Stream {
	s := &Stream{link: l, ys: ys, flow: l.mux.openFlow(ys.StreamID()), opened: opened}
	s.flow.stream.Store(s)
	return s
}

// Read implements net.Conn.
func (s *Stream) Read(p []byte) (int, error) {
	if s.closed.Load() {
		return 0, fmt.Errorf("read stream: %w", s.closeCause())
	}
	if s.awaiting.Load() {
		if err := s.verdict(); err != nil {
			return 0, err
		}
	}
	if v, ok := s.refused(); ok {
		return 0, v
	}
	if len(p) == 0 {
		return 0, nil
	}
	return s.read(p)
}

func (s *Stream) read(p []byte) (int, error) {
	n, err := s.flow.read(s.link.mux, p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("read stream: %w", s.flowError(err))
	}
	return n, err
}

// Write implements net.Conn. It returns when the data is on its way to the socket.
func (s *Stream) Write(p []byte) (int, error) {
	if v, ok := s.refused(); ok {
		return 0, v
	}
	s.flow.sending.Lock()
	defer s.flow.sending.Unlock()
	total := 0
	for len(p) > 0 {
		n, err := s.flow.takeCredit(s.link.mux, p)
		if err != nil {
			return total, s.writeError(err)
		}
		if err := s.link.mux.sendData(s.flow.id, p[:n]); err != nil {
			return total, s.writeError(errFlowDead)
		}
		total += n
		p = p[n:]
	}
	return total, nil
}

func (s *Stream) writeError(err error) error {
	// A peer that refuses may reset before its verdict was asked for; it has arrived
	// then, and says more.
	if errors.Is(err, ErrReset) && s.awaiting.Load() {
		if verr := s.verdict(); errors.As(verr, new(wire.Verdict)) {
			return verr
		}
	}
	if v, ok := s.refused(); ok {
		return v
	}
	return fmt.Errorf("write stream: %w", s.flowError(err))
}

// CloseWrite says that no more data will come from this side. Reading goes on.
func (s *Stream) CloseWrite() error {
	switch {
	case s.closed.Load():
		return s.writeError(errFlowClosed)
	case s.flow.rstReceived.Load():
		return s.writeError(ErrReset)
	case s.writeClosed.Swap(true):
		return nil
	}
	s.flow.closeWrite()
	if err := s.ys.Close(); err != nil {
		return s.writeError(err)
	}
	if s.link.session.IsClosed() {
		return s.writeError(errFlowDead)
	}
	return nil
}

// Close gives the stream up: blocked calls return at once. What was written still
// reaches the peer, followed by an end; if the peer sends more, or has not ended
// its direction within a minute, it is told that nobody listens.
func (s *Stream) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	s.flow.close(s.link.mux.budget)
	if !s.link.spawn(s.finWait) {
		s.release()
	}
	return nil
}

// Reset gives the stream up abruptly: the peer's reads end in ErrReset after what
// it received, and its writes fail.
func (s *Stream) Reset() error {
	s.resetting.Store(true)
	if s.closed.Load() {
		s.flow.endLinger() // Close waits for the peer's end: no longer
	}
	return s.Close()
}

// Bill has what waits on the stream count as somebody's: see Budget. A stream that is
// billed to nobody keeps its first window and is never given up.
func (s *Stream) Bill(o Owner) {
	if o != (Owner{}) {
		s.flow.bill(s.link.mux.budget, s.link.mux.budget.addStream(o))
	}
}

// OnGivenUp has f called once, in a goroutine that the link's Close waits for, when the
// link gives the stream up because of ErrMemory. Whoever copies from it may be blocked
// elsewhere, and would not learn of it.
func (s *Stream) OnGivenUp(f func(error)) {
	s.givenUp.Store(&f)
	if s.cause.Load() != nil {
		s.tellGivenUp()
	}
}

func (s *Stream) tellGivenUp() {
	if f := s.givenUp.Swap(nil); f != nil {
		s.link.spawn(func() { (*f)(s.closeCause()) })
	}
}

// abort is Reset by the link itself, for a reason that the owner gets to see.
func (s *Stream) abort(cause error) {
	s.cause.CompareAndSwap(nil, &cause)
	_ = s.Reset()
	s.tellGivenUp()
}

func (s *Stream) closeCause() error {
	if cause := s.cause.Load(); cause != nil {
		return *cause
	}
	return net.ErrClosed
}

// finWait is the life of a stream after Close: it waits for the peer to finish too, and
// resets the stream where it does not. There is at most one.
func (s *Stream) finWait() {
	defer s.release()
	if s.resetting.Load() {
		s.link.mux.resetStream(s.ys.StreamID())
		return
	}
	s.flow.closeWrite()
	_ = s.ys.Close()
	timer := time.NewTimer(finWaitTime)
	defer timer.Stop()
	lingers := s.flow.linger()
	reset := s.resetting.Load()
	if !reset {
		select {
		case reset = <-lingers:
		case <-timer.C:
			reset = true
		case <-s.link.done:
		}
	}
	if reset {
		s.link.mux.resetStream(s.ys.StreamID())
	}
}

// release frees what the link keeps for the stream.
func (s *Stream) release() {
	s.link.mux.dropFlow(s.ys.StreamID())
	if s.opened {
		s.link.out.Add(-1)
	} else {
		s.link.in.Add(-1)
	}
}

// Watch has f called once, in a goroutine that the link's Close waits for, when the
// peer says anything on the stream: data, an end, or nothing any more because the
// link died. Nobody may read meanwhile. It costs nothing while the peer is silent,
// unlike a reader that waits.
func (s *Stream) Watch(f func()) {
	w := s.flow
	w.mu.Lock()
	defer w.mu.Unlock()
	w.readerPaused(s.link.mux.budget)
	w.watcher = func() { s.link.spawn(f) }
	if w.unread.Load() > 0 || w.released || w.finReceived.Load() || w.rstReceived.Load() {
		w.wakeWatcher()
	}
}

// Unwatch takes Watch back and says whether the peer has been silent since.
func (s *Stream) Unwatch() bool {
	w := s.flow
	w.mu.Lock()
	defer w.mu.Unlock()
	silent := w.watcher != nil
	w.watcher = nil
	return silent
}

// Done is closed when the peer has reset the stream, and so takes no more data.
// It says nothing about an orderly end, nor about the link.
func (s *Stream) Done() <-chan struct{} { return s.flow.resetCh }

// SetDeadline implements net.Conn.
func (s *Stream) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (s *Stream) SetReadDeadline(t time.Time) error {
	if s.closed.Load() {
		return net.ErrClosed
	}
	s.flow.setDeadline(&s.flow.readBy, &s.flow.readable, t)
	return nil
}

// SetWriteDeadline implements net.Conn.
func (s *Stream) SetWriteDeadline(t time.Time) error {
	if s.closed.Load() {
		return net.ErrClosed
	}
	s.flow.setDeadline(&s.flow.writeBy, &s.flow.writable, t)
	return nil
}

// LocalAddr implements net.Conn: the link's own.
func (s *Stream) LocalAddr() net.Addr { return s.link.conn.NetConn().LocalAddr() }

// RemoteAddr implements net.Conn: the link's own.
func (s *Stream) RemoteAddr() net.Addr { return s.link.remote }

// Link returns the stream's link.
func (s *Stream) Link() *Link { return s.link }

// Verdict waits for the answer to the hello that the stream was opened with: nil,
// a wire.Verdict, or another error when there was none. Reading does the same by
// the way; this is for those who must know before.
func (s *Stream) Verdict(ctx context.Context) error {
	if !s.awaiting.Load() {
		return s.verdict()
	}
	result := make(chan error, 1)
	if !s.link.spawn(func() { result <- s.verdict() }) {
		return s.link.dead()
	}
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return fmt.Errorf("wait for verdict: %w", context.Cause(ctx))
	}
}

// AwaitVerdict has the stream read another verdict before any more data: on a stream that
// is passed on, whoever passes it on answers first, and then the one whom it is for. The
// verdict before must have been read.
func (s *Stream) AwaitVerdict() {
	s.verdictMu.Lock()
	defer s.verdictMu.Unlock()
	s.verdicts = wire.VerdictReader{}
	s.awaiting.Store(true)
}

// verdict reads the verdict, unless another call has. A call that a deadline
// interrupted leaves the rest to the next.
func (s *Stream) verdict() error {
	s.verdictMu.Lock()
	defer s.verdictMu.Unlock()
	if s.awaiting.Load() {
		v, err := s.verdicts.Read((*unjudged)(s))
		if err != nil {
			return err
		}
		if v.Code != wire.CodeOK {
			s.refusal.Store(&v)
		}
		s.awaiting.Store(false)
	}
	if v, ok := s.refused(); ok {
		return v
	}
	return nil
}

// unjudged reads a stream's bytes from the verdict on.
type unjudged Stream

// Read implements io.Reader.
func (s *unjudged) Read(p []byte) (int, error) { return (*Stream)(s).read(p) }

// refused says whether the peer refused the hello.
func (s *Stream) refused() (wire.Verdict, bool) {
	if v := s.refusal.Load(); v != nil {
		return *v, true
	}
	return wire.Verdict{}, false
}

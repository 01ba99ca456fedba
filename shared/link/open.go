package link

import (
	"context"
	"fmt"

	"github.com/adit-tunnel/adit/shared/wire"
)

// Open opens a stream. The error wraps ErrClosed when the link is dead and
// ErrTooManyStreams at the limit; ctx bounds the waiting, also where yamux would
// wait without one.
func (l *Link) Open(ctx context.Context) (*Stream, error) { return l.open(ctx, Owner{}, nil) }

// OpenHello opens a stream with a hello, which is sent at once, together with the
// stream's own first frame. The verdict is not waited for: the first Read takes it
// from the stream, and returns it (as a wire.Verdict) when it is a refusal.
func OpenHello(ctx context.Context, l *Link, h wire.Hello) (*Stream, error) {
	return OpenFor(ctx, l, Owner{}, h)
}

// OpenFor is OpenHello for a stream that is billed to somebody from its begin. The
// error wraps ErrMemory when the owner's tenant has used up the Budget.
func OpenFor(ctx context.Context, l *Link, o Owner, h wire.Hello) (*Stream, error) {
	b, err := wire.AppendHello(make([]byte, 0, 64+len(h.Payload)), h)
	if err != nil {
		return nil, fmt.Errorf("open stream: %w", err)
	}
	return l.open(ctx, o, b)
}

type opened struct {
	s   *Stream
	err error
}

func (l *Link) open(ctx context.Context, o Owner, hello []byte) (*Stream, error) {
	if o != (Owner{}) && !l.mux.budget.admits(o) {
		return nil, fmt.Errorf("open stream: %w by the streams of its tenant", ErrMemory)
	}
	if l.out.Add(1) > int32(l.cfg.MaxStreams) {
		l.out.Add(-1)
		return nil, fmt.Errorf("open stream: %w", ErrTooManyStreams)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, l.cfg.OpenTimeout, errOpenTimeout)
	defer cancel()
	s, err := l.openSlot(ctx, o, hello)
	if err != nil {
		return nil, fmt.Errorf("open stream: %w", err)
	}
	return s, nil
}

// openSlot has yamux open the stream in a goroutine: yamux waits without a
// context when the peer is slow to accept, or the socket to write.
func (l *Link) openSlot(ctx context.Context, o Owner, hello []byte) (*Stream, error) {
	select {
	case l.opening <- struct{}{}:
	case <-l.done:
		l.out.Add(-1)
		return nil, l.Err()
	case <-ctx.Done():
		l.out.Add(-1)
		return nil, context.Cause(ctx)
	}
	result := make(chan opened) // not buffered: who sends knows whether it was taken
	work := func() {
		defer func() { <-l.opening }()
		s, err := l.openNow(o, hello)
		select {
		case result <- opened{s, err}:
		case <-ctx.Done():
			if s != nil {
				_ = s.Reset()
			}
		}
	}
	if !l.spawn(work) {
		<-l.opening
		l.out.Add(-1)
		return nil, l.dead()
	}
	select {
	case r := <-result:
		return r.s, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (l *Link) openNow(o Owner, hello []byte) (*Stream, error) {
	ys, err := l.session.OpenStream()
	if err != nil {
		l.out.Add(-1)
		if l.session.IsClosed() {
			return nil, l.dead()
		}
		return nil, err
	}
	s := l.newStream(ys, true)
	s.Bill(o)
	if credit := s.flow.openWindow(l.mux); credit > 0 {
		l.mux.queueControl(makeHeader(typeWindow, 0, ys.StreamID(), uint32(credit)))
	}
	if hello == nil {
		l.mux.flushDeferred(false)
		return s, nil
	}
	s.awaiting.Store(true)
	if _, err := s.Write(hello); err != nil {
		_ = s.Reset()
		return nil, err
	}
	l.mux.flushDeferred(false)
	return s, nil
}

// Accept returns the next stream that the peer opened. Whoever calls it should do
// nothing else in the same goroutine: the peer can open no more streams while its
// backlog is full. Streams over the limit are reset.
func (l *Link) Accept(ctx context.Context) (*Stream, error) {
	for {
		ys, err := l.session.AcceptStreamWithContext(ctx)
		if err != nil {
			if l.session.IsClosed() {
				err = l.dead()
			} else if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return nil, fmt.Errorf("accept stream: %w", err)
		}
		n := l.in.Add(1)
		s := l.newStream(ys, false)
		l.mux.flushDeferred(true)
		if n > int32(l.cfg.MaxIncoming) {
			_ = s.Reset()
			l.mux.backpressure()
			continue
		}
		return s, nil
	}
}

// HandshakeDone lets the peer open more streams than its first: see Config.Handshake. It
// is called before the peer is told that it may.
func (l *Link) HandshakeDone() { l.mux.handshake.Store(false) }

// OnIncoming has f called whenever the peer has opened a stream, and now for those that
// came before. f must not block: the link's reader calls it. With it, who expects no
// streams need not wait for them in a goroutine.
func (l *Link) OnIncoming(f func()) {
	l.mux.onIncoming.Store(&f)
	f()
}

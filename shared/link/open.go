package link

import (
	"context"
	"fmt"

	"github.com/hashicorp/yamux"

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

func (l *Link) open(ctx context.Context, o Owner, hello []byte) (*Stream, error) {
	if o != (Owner{}) && !l.mux.budget.admits(o) {
		return nil, fmt.Errorf("open stream: %w by the streams of its tenant", ErrMemory)
	}
	if l.out.Add(1) > int32(l.cfg.MaxStreams) {
		l.out.Add(-1)
		return nil, fmt.Errorf("open stream: %w", ErrTooManyStreams)
	}
	ys, err := l.openYamux(ctx)
	if err != nil {
		l.out.Add(-1)
		return nil, fmt.Errorf("open stream: %w", err)
	}
	s := l.newStream(ys, true)
	s.Bill(o)
	s.awaiting.Store(hello != nil)
	l.mux.sendOpening(s.flow, hello)
	return s, nil
}

// openYamux has yamux open the stream, once it need not wait for the peer to accept others:
// it would do so without a context.
func (l *Link) openYamux(ctx context.Context) (*yamux.Stream, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, l.cfg.OpenTimeout, errOpenTimeout)
	defer cancel()
	select {
	case l.mux.opening <- struct{}{}:
	case <-l.done:
		return nil, l.Err()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	ys, err := l.session.OpenStream()
	switch {
	case err == nil:
		return ys, nil
	case l.session.IsClosed():
		return nil, l.dead()
	}
	<-l.mux.opening // no SYN was sent
	return nil, err
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
		l.mux.backpressure()
		if n > int32(l.cfg.MaxIncoming) {
			_ = s.Reset()
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

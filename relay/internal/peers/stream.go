package peers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/wire"
)

// Stream is a stream to an agent through another relay. That relay has said yes
// already; the agent's own verdict is what comes first on the stream.
type Stream struct {
	*link.Stream
	way   *way
	stale func() bool // the other relay stops or is gone
}

// Read returns the agent's refusal as a wire.Verdict, or its app's data.
func (s *Stream) Read(p []byte) (int, error) {
	n, err := s.Stream.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, link.ErrClosed) && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.As(err, new(wire.Verdict)) && s.stale() {
		err = fmt.Errorf("%w: the relay that held the agent stops: %w", link.ErrClosed, err)
	}
	return n, err
}

// Stale says that the other relay stops or is gone: what begins anew should take
// another way.
func (s *Stream) Stale() bool { return s.stale() }

// Leaving says that the other relay ends what still passes there: what can begin
// anew another way should do so now.
func (s *Stream) Leaving() bool { return s.way.leaving.Load() }

// agentEnd is the agent's end of a stream that is passed on: what it reads begins
// with the agent's verdict, which the other relay waits for. After a refusal it
// takes the rest of what the user sends and drops it, so that the refusal arrives
// in order and is not overtaken by a reset.
type agentEnd struct {
	Inner
	ctx     context.Context
	first   []byte // of the verdict, still to be read
	decided chan struct{}
	asked   bool // belongs to the reader
	refused bool // set before decided is closed
}

func newAgentEnd(ctx context.Context, inner Inner) *agentEnd {
	return &agentEnd{Inner: inner, ctx: ctx, decided: make(chan struct{})}
}

// Read implements io.Reader.
func (a *agentEnd) Read(p []byte) (int, error) {
	if !a.asked {
		a.asked = true
		err := a.Verdict(a.ctx)
		var v wire.Verdict
		switch {
		case errors.As(err, &v):
			a.refused = true
		case err != nil:
			close(a.decided)
			return 0, err
		}
		a.first = wire.AppendVerdict(nil, v)
		close(a.decided)
	}
	if len(a.first) > 0 {
		n := copy(p, a.first)
		a.first = a.first[n:]
		return n, nil
	}
	if a.refused {
		return 0, io.EOF
	}
	return a.Inner.Read(p)
}

// Write implements io.Writer.
func (a *agentEnd) Write(p []byte) (int, error) {
	n, err := a.Inner.Write(p)
	if err != nil && a.wasRefused() {
		return len(p), nil
	}
	return n, err
}

// CloseWrite implements splice.Conn.
func (a *agentEnd) CloseWrite() error {
	if err := a.Inner.CloseWrite(); err != nil && !a.wasRefused() {
		return err
	}
	return nil
}

// wasRefused waits for the verdict: a write that broke may have met a refusal that
// is still unread.
func (a *agentEnd) wasRefused() bool {
	<-a.decided
	return a.refused
}

// Reset gives the stream up so that the agent sees an error, if it can be told.
func (a *agentEnd) Reset() error {
	if r, ok := a.Inner.(interface{ Reset() error }); ok {
		return r.Reset()
	}
	return a.Close()
}

// Done is closed when the agent takes no more data, if that can be known. A
// refusal is no reason to hurry.
func (a *agentEnd) Done() <-chan struct{} {
	if d, ok := a.Inner.(interface{ Done() <-chan struct{} }); ok {
		return d.Done()
	}
	return nil
}

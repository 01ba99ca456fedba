package peers

import (
	"context"
	"errors"
	"io"

	"github.com/adit-tunnel/adit/relay/internal/fleet"
	"github.com/adit-tunnel/adit/shared/wire"
)

// agentEnd is the agent's end of a stream that is passed on: what it reads begins
// with the agent's verdict, which the other relay waits for. After a refusal it
// takes the rest of what the user sends and drops it, so that the refusal arrives
// in order and is not overtaken by a reset.
type agentEnd struct {
	*fleet.Stream
	ctx     context.Context
	first   []byte // of the verdict, still to be read
	decided chan struct{}
	asked   bool // belongs to the reader
	refused bool // set before decided is closed
}

func newAgentEnd(ctx context.Context, st *fleet.Stream) *agentEnd {
	return &agentEnd{Stream: st, ctx: ctx, decided: make(chan struct{})}
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
	return a.Stream.Read(p)
}

// Write implements io.Writer.
func (a *agentEnd) Write(p []byte) (int, error) {
	n, err := a.Stream.Write(p)
	if err != nil && a.wasRefused() {
		return len(p), nil
	}
	return n, err
}

// CloseWrite implements splice.Conn.
func (a *agentEnd) CloseWrite() error {
	if err := a.Stream.CloseWrite(); err != nil && !a.wasRefused() {
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

package fleet

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/wire"
)

// Stream is a byte pipe to an app or a terminal on an agent's machine. Its first Read
// returns the agent's refusal, if there is one, as a wire.Verdict; so does Verdict, for
// who must know before.
type Stream struct {
	*link.Stream
	Tunnel ident.SessionID // for which it was opened
	lane   Lane
	left   atomic.Bool
}

// Lane is what a stream shares with others on its way: one of the agent's links to this
// relay, or the link to the relay that has the agent.
type Lane interface {
	// Stale says that the way is over or about to be: what begins anew takes another.
	Stale() bool
	// Leaving says that the other end stops what still passes there: what can begin
	// anew another way should do so now.
	Leaving() bool
	// Crowded says that much moves here, and little on another lane to the agent.
	Crowded() bool
	// Outnumbered says that another lane has at least two streams less than the inUse
	// of this one: one more is better off there.
	Outnumbered(inUse int) bool
	// Left is called once for each stream, when it is given up.
	Left(st *Stream)
}

// NewStream makes a stream of a link's. The lane is nil where nobody keeps count.
func NewStream(st *link.Stream, tunnel ident.SessionID, lane Lane) *Stream {
	return &Stream{Stream: st, Tunnel: tunnel, lane: lane}
}

// Read implements net.Conn. What is lost because another relay stops is lost as with a
// link, whatever that relay made of it.
func (s *Stream) Read(p []byte) (int, error) {
	n, err := s.Stream.Read(p)
	if err != nil && !plain(err) && s.Stale() {
		err = fmt.Errorf("%w: the relay that held the agent stops: %w", link.ErrClosed, err)
	}
	return n, err
}

// plain says whether an error needs no other name: an end, a refusal, a deadline, or a
// lost link.
func plain(err error) bool {
	return errors.Is(err, io.EOF) || errors.As(err, new(wire.Verdict)) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, link.ErrClosed)
}

// Close ends the stream in both directions.
func (s *Stream) Close() error {
	s.leave()
	return s.Stream.Close()
}

// Reset ends the stream at once: neither end takes what it got for the whole.
func (s *Stream) Reset() error {
	s.leave()
	return s.Stream.Reset()
}

func (s *Stream) leave() {
	if s.lane != nil && !s.left.Swap(true) {
		s.lane.Left(s)
	}
}

// Stale says what Lane.Stale does.
func (s *Stream) Stale() bool { return s.lane != nil && s.lane.Stale() }

// Leaving says what Lane.Leaving does.
func (s *Stream) Leaving() bool { return s.lane != nil && s.lane.Leaving() }

// Crowded says what Lane.Crowded does.
func (s *Stream) Crowded() bool { return s.lane != nil && s.lane.Crowded() }

// Outnumbered says what Lane.Outnumbered does.
func (s *Stream) Outnumbered(inUse int) bool { return s.lane != nil && s.lane.Outnumbered(inUse) }

package terminal

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/adit-tunnel/adit/shared/wire"
)

const (
	// highWater is how much output may wait for a viewer before the program is kept
	// from printing more, as long as all viewers have that much waiting.
	highWater = 256 << 10
	// tooFar is how far one viewer may stay behind others before it is dropped.
	tooFar = 4 << 20
	// stall is how long a viewer may owe an acknowledgement.
	stall = 15 * time.Second
	// A program that prints much would be read, and sent, in crumbs of a line. What
	// follows a piece within burst gathers for a moment; a single key's echo waits for
	// nothing.
	burst  = 3 * time.Millisecond
	gather = 2 * time.Millisecond
	crumb  = 2 << 10
)

// viewer is one party attached to a terminal. All fields below conn are guarded by
// the terminal's mutex.
type viewer struct {
	conn     net.Conn
	readOnly bool
	wake     chan struct{} // there is something to send, or it is over

	control []byte // encoded frames, sent before output
	output  []byte // output that waits
	unacked int    // output that was sent and not acknowledged
	sent    uint64 // position in the output up to which it was sent
	owing   time.Time
	cols    uint16
	rows    uint16
	last    []byte // encoded frame with which it ends; nil: it goes on
	gone    bool
}

// tell queues a control frame. The terminal's mutex is held.
func (v *viewer) tell(t wire.FrameType, payload []byte) {
	v.control = wire.AppendFrame(v.control, t, payload)
	v.poke()
}

// end has the viewer leave after what waits, or at once where that is too much.
func (v *viewer) end(t wire.FrameType, payload []byte, rest bool) {
	if v.last != nil {
		return
	}
	v.last = wire.AppendFrame(nil, t, payload)
	if !rest {
		v.output = nil
	}
	v.poke()
}

func (v *viewer) poke() {
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

// next takes what may be sent now. over says that nothing follows it.
func (v *viewer) next(mu *sync.Mutex, now time.Time) (frames []byte, n int, over bool) {
	mu.Lock()
	defer mu.Unlock()
	frames, v.control = v.control, nil
	room := wire.TerminalWindow - v.unacked
	if v.last != nil {
		room = len(v.output) // it is bounded, and nobody waits for acknowledgements any more
	}
	for room > 0 && len(v.output) > 0 && len(frames) < 4*wire.MaxFrame {
		k := min(len(v.output), room, wire.MaxFrame)
		frames = wire.AppendFrame(frames, wire.FrameData, v.output[:k])
		v.output, room, n = v.output[k:], room-k, n+k
	}
	if len(v.output) == 0 {
		v.output = nil // let go of what a flood has left behind
	}
	if n > 0 && v.unacked == 0 {
		v.owing = now
	}
	v.unacked += n
	v.sent += uint64(n)
	if v.last != nil && len(v.output) == 0 {
		return append(frames, v.last...), n, true
	}
	return frames, n, v.gone
}

// send writes to the viewer until it is over or the connection is.
func (v *viewer) send(t *terminal) error {
	var last time.Time
	for {
		if time.Since(last) < burst {
			time.Sleep(gather)
		}
		frames, n, over := v.next(&t.mu, time.Now())
		if len(frames) > 0 {
			_ = v.conn.SetWriteDeadline(time.Now().Add(stall))
			if _, err := v.conn.Write(frames); err != nil {
				return err
			}
		}
		if n > 0 {
			t.room.Broadcast()
		}
		switch {
		case over:
			return nil
		case len(frames) > 0:
			last = time.Now()
			continue
		}
		<-v.wake
	}
}

// errLeft says that the viewer closed its side.
var errLeft = errors.New("the viewer left")

// receive reads what the viewer sends until the connection ends.
func (v *viewer) receive(t *terminal) error {
	var buf []byte
	for {
		typ, payload, grown, err := wire.ReadFrame(v.conn, buf)
		if err != nil {
			if errors.Is(err, io.EOF) {
				return errLeft
			}
			return err
		}
		buf = grown
		switch typ {
		case wire.FrameData:
			if !v.readOnly && !t.typed(v, payload) {
				t.drop(v, "the program reads its input too slowly for what was pasted")
			}
		case wire.FrameResize:
			if cols, rows, ok := wire.ParsePair(payload); ok {
				t.resized(v, cols, rows)
			}
		case wire.FrameAck:
			if pos, ok := wire.ParsePosition(payload); ok {
				t.acked(v, pos)
			}
		}
	}
}

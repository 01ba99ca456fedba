package wire

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
)

// TerminalOpen is the payload (JSON) of a terminal stream's hello: which terminal
// of the tunnel, and how this viewer attaches to it.
type TerminalOpen struct {
	Terminal string `json:"terminal"` // a name within the tunnel; made if there is none, unless read-only
	Cols     uint16 `json:"cols"`
	Rows     uint16 `json:"rows"`
	ReadOnly bool   `json:"read_only,omitempty"`
	// Instance and Seen continue an earlier attachment: the instance that its Replay
	// named, and how far in the output the viewer has got.
	Instance string `json:"instance,omitempty"`
	Seen     uint64 `json:"seen,omitempty"`
	Who      string `json:"who,omitempty"` // for the machine's own log
}

// Payload encodes it for Hello.Payload.
func (o TerminalOpen) Payload() ([]byte, error) {
	b, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("encode terminal hello: %w", err)
	}
	return b, nil
}

// ParseTerminalOpen decodes and checks the payload of a terminal stream's hello.
func ParseTerminalOpen(b []byte) (TerminalOpen, error) {
	var o TerminalOpen
	if err := json.Unmarshal(b, &o); err != nil {
		return o, fmt.Errorf("%w: terminal hello: %w", ErrMalformed, err)
	}
	if !ValidTerminal(o.Terminal) {
		return o, fmt.Errorf("%w: terminal hello: a terminal's name is 1 to %d of a-z, 0-9 and hyphen", ErrMalformed, MaxTerminalName)
	}
	if len(o.Instance) > 64 {
		return o, fmt.Errorf("%w: terminal hello: instance", ErrMalformed)
	}
	return o, nil
}

// MaxTerminalName bounds a terminal's name.
const MaxTerminalName = 32

// ValidTerminal says whether a text may name a terminal.
func ValidTerminal(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return s != "" && len(s) <= MaxTerminalName
}

// FrameType says what a frame of a terminal stream is. On the stream a frame is
//
//	type(1) length(2) payload(length)
//
// with a big-endian length; in a browser's WebSocket, where messages have ends of
// their own, it is one binary message of type(1) payload. A reader ignores types
// that it does not know.
type FrameType byte

// The types of frame.
const (
	FrameData    FrameType = 0 // both ways: bytes typed, or bytes printed
	FrameResize  FrameType = 1 // to the agent: cols(2) rows(2), what fits at the viewer's
	FrameAck     FrameType = 2 // to the agent: position(8), the output the viewer has shown
	FrameReplay  FrameType = 3 // to the viewer, first: flags(1) position(8) instance(rest)
	FrameSize    FrameType = 4 // to the viewer: cols(2) rows(2), what the terminal now has
	FrameViewers FrameType = 5 // to the viewer: viewers(2) of whom may type(2)
	FrameExit    FrameType = 6 // to the viewer, last: status(4, signed; -1: a signal) text(rest)
	FrameDropped FrameType = 7 // to the viewer, last: text; it may attach again
)

// MaxFrame bounds a frame's payload.
const MaxFrame = 32 << 10

// TerminalWindow is how many bytes of output the agent sends before it waits for
// an acknowledgement.
const TerminalWindow = 512 << 10

// TerminalReplay is how much output a terminal keeps for those who attach.
const TerminalReplay = 64 << 10

// AppendFrame appends a frame as it is on a stream. A longer payload than MaxFrame
// is the caller's fault and cut.
func AppendFrame(b []byte, t FrameType, payload []byte) []byte {
	payload = payload[:min(len(payload), MaxFrame)]
	b = append(b, byte(t))
	b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	return append(b, payload...)
}

// ReadFrame reads one frame into buf, which is grown as needed; the payload is
// valid until the next use of buf. A clean end between frames is io.EOF.
func ReadFrame(r io.Reader, buf []byte) (t FrameType, payload, grown []byte, err error) {
	var head [3]byte
	if _, err := io.ReadFull(r, head[:1]); err != nil {
		return 0, nil, buf, err
	}
	if _, err := io.ReadFull(r, head[1:]); err != nil {
		return 0, nil, buf, fmt.Errorf("read terminal frame: %w", unexpected(err))
	}
	n := int(binary.BigEndian.Uint16(head[1:]))
	if n > MaxFrame {
		return 0, nil, buf, fmt.Errorf("%w: terminal frame of %d bytes", ErrMalformed, n)
	}
	if cap(buf) < n {
		buf = make([]byte, max(n, 4096))
	}
	payload = buf[:n]
	if _, err := io.ReadFull(r, payload); err != nil {
		return 0, nil, buf, fmt.Errorf("read terminal frame: %w", unexpected(err))
	}
	return FrameType(head[0]), payload, buf, nil
}

// Pair encodes two numbers: a size, or a count of viewers.
func Pair(a, b uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, a), b)
}

// ParsePair decodes Pair.
func ParsePair(p []byte) (a, b uint16, ok bool) {
	if len(p) < 4 {
		return 0, 0, false
	}
	return binary.BigEndian.Uint16(p), binary.BigEndian.Uint16(p[2:]), true
}

// Position encodes a position in a terminal's output.
func Position(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// ParsePosition decodes Position.
func ParsePosition(p []byte) (uint64, bool) {
	if len(p) < 8 {
		return 0, false
	}
	return binary.BigEndian.Uint64(p), true
}

// Replay is what an attachment begins with: where in the output the data frames
// that follow begin.
type Replay struct {
	Instance string // of the terminal: another one begins counting anew
	Position uint64
	// Continues says that nothing is missing after what the viewer has seen; without
	// it the viewer clears its screen first.
	Continues bool
	ReadOnly  bool // the viewer's typing is ignored
}

// Payload encodes it for a frame.
func (r Replay) Payload() []byte {
	var flags byte
	if r.Continues {
		flags |= 1
	}
	if r.ReadOnly {
		flags |= 2
	}
	return append(binary.BigEndian.AppendUint64([]byte{flags}, r.Position), r.Instance...)
}

// ParseReplay decodes a Replay.
func ParseReplay(p []byte) (Replay, bool) {
	if len(p) < 9 {
		return Replay{}, false
	}
	return Replay{Continues: p[0]&1 != 0, ReadOnly: p[0]&2 != 0, Position: binary.BigEndian.Uint64(p[1:]), Instance: string(p[9:])}, true
}

// Exit is how a terminal's program ended.
type Exit struct {
	Status int32  // -1: by a signal
	Text   string // for people
}

// Payload encodes it for a frame.
func (e Exit) Payload() []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(e.Status)), e.Text...)
}

// ParseExit decodes an Exit.
func ParseExit(p []byte) (Exit, bool) {
	if len(p) < 4 {
		return Exit{}, false
	}
	return Exit{Status: int32(binary.BigEndian.Uint32(p)), Text: string(p[4:])}, true
}

// TerminalAttach is the first message of a terminal's WebSocket, as JSON text. The
// relay answers TerminalReady, also as text, before the first frame.
type TerminalAttach struct {
	Token    string `json:"token"`          // the tunnel's admin token, or a right of TerminalAdmitted
	Code     string `json:"code,omitempty"` // in the token's place: works once
	Cols     uint16 `json:"cols,omitempty"`
	Rows     uint16 `json:"rows,omitempty"`
	ReadOnly bool   `json:"read_only,omitempty"`
	Attach   string `json:"attach,omitempty"` // which of the tunnel's terminals; default DefaultTerminal
	Instance string `json:"instance,omitempty"`
	Seen     uint64 `json:"seen,omitempty"`
}

// DefaultTerminal is the terminal of who names none.
const DefaultTerminal = "main"

// TerminalReady tells a viewer, as JSON text, how far its attachment is.
type TerminalReady struct {
	State    string `json:"state"` // TerminalWaiting any number of times, then TerminalAttached; a reader ignores others
	Terminal string `json:"terminal,omitempty"`
	Agent    string `json:"agent,omitempty"`
	ReadOnly bool   `json:"read_only,omitempty"`
	Right    string `json:"right,omitempty"` // of TerminalAdmitted
}

// The states of TerminalReady.
const (
	// TerminalAdmitted answers a code, before all else: with the right that came with
	// it the viewer is let in again for as long as the tunnel is open.
	TerminalAdmitted = "admitted"
	TerminalWaiting  = "waiting"  // the machine has no link now
	TerminalAttached = "attached" // frames follow
)

// TerminalPath is where a tunnel's terminal page is, its session id behind it; its
// WebSocket is at TerminalSocket below that.
const (
	TerminalPath   = "/terminal/"
	TerminalSocket = "/ws"
)

// Close codes of a terminal's WebSocket, beside those of RFC 6455. The reason says
// more, for people.
const (
	CloseEnded    = 4000 // the program ended: FrameExit said how
	CloseDropped  = 4001 // FrameDropped said why: attach again
	CloseLost     = 4002 // the link to the machine: attach again
	CloseRefused  = 4401 // wrong token or code, whether there is such a tunnel or not
	CloseDenied   = 4403 // the machine's owner does not allow it, or sent this viewer away
	CloseNothing  = 4404 // there is no terminal to look on at, yet
	CloseLimit    = 4429 // too many terminals or viewers
	CloseInternal = 4500 // anything else
)

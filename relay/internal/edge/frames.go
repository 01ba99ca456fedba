package edge

import "encoding/binary"

// Opcodes of WebSocket frames (RFC 6455, section 5.2).
const (
	opText    = 1
	opClose   = 8
	opControl = 8 // and above
)

// frames follows one direction of a WebSocket without touching it. It knows where
// frames begin, so that one of ours can be put between two, and tells use from
// keepalive.
type frames struct {
	head   [14]byte // of the frame that begins: at most 2 + 8 + 4
	have   int
	left   uint64 // bytes of payload still to come
	closed bool   // a close frame was begun: nothing may follow it
}

// feed takes what went over the wire and says whether any of it was use: a data
// frame. Text frames of at most one byte are not: socket.io sends its ping and pong
// as "2" and "3".
func (f *frames) feed(p []byte) (used bool) {
	for len(p) > 0 {
		if f.left > 0 {
			n := min(f.left, uint64(len(p)))
			f.left -= n
			p = p[n:]
			continue
		}
		n := copy(f.head[f.have:f.size()], p)
		f.have += n
		p = p[n:]
		if f.have < 2 || f.have < f.size() {
			continue
		}
		f.left = f.length()
		opcode := f.head[0] & 0x0f
		f.closed = f.closed || opcode == opClose
		if opcode < opControl && (opcode != opText || f.left > 1) {
			used = true
		}
		f.have = 0
	}
	return used
}

// untilData takes what went over the wire up to the first data frame, and says how much
// that is.
func (f *frames) untilData(p []byte) int {
	begin := 0
	for begin < len(p) {
		if f.have == 0 && f.left == 0 && p[begin]&0x0f < opControl {
			return begin
		}
		// One byte of a header, or all that is there of a payload: so no frame begins
		// within what is fed.
		n := 1
		if f.left > 0 {
			n = int(min(f.left, uint64(len(p)-begin)))
		}
		f.feed(p[begin : begin+n])
		begin += n
	}
	return begin
}

// size is that of the header, as far as it is known.
func (f *frames) size() int {
	if f.have < 2 {
		return 2
	}
	n := 2
	switch f.head[1] & 0x7f {
	case 126:
		n += 2
	case 127:
		n += 8
	}
	if f.head[1]&0x80 != 0 {
		n += 4
	}
	return n
}

func (f *frames) length() uint64 {
	switch n := f.head[1] & 0x7f; n {
	case 126:
		return uint64(binary.BigEndian.Uint16(f.head[2:]))
	case 127:
		return binary.BigEndian.Uint64(f.head[2:])
	default:
		return uint64(n)
	}
}

// between says whether a control frame may be put in now (RFC 6455, 5.4: also
// between the fragments of a message).
func (f *frames) between() bool { return f.have == 0 && f.left == 0 && !f.closed }

// Close codes (RFC 6455, section 7.4.1, and IANA's registry).
const (
	closeGoingAway      = 1001
	closePolicy         = 1008
	closeServiceRestart = 1012
	closeTryAgainLater  = 1013
)

// closeFrame is a server's close frame: not masked.
func closeFrame(code uint16, reason string) []byte {
	if len(reason) > 123 {
		reason = reason[:123]
	}
	b := append(make([]byte, 0, 4+len(reason)), 0x80|opClose, byte(2+len(reason)))
	b = binary.BigEndian.AppendUint16(b, code)
	return append(b, reason...)
}

package terminal

import (
	"maps"
	"slices"
	"strconv"

	"github.com/adit-tunnel/adit/shared/wire"
)

// ring keeps the end of a terminal's output for those who attach: at least the
// last wire.TerminalReplay bytes. Of what it forgets it remembers the modes that
// were set, so that a replay is shown as it was.
type ring struct {
	buf   []byte
	start uint64 // position of buf's first byte in the whole output
	modes modes  // at start
}

func (r *ring) write(p []byte) {
	r.buf = append(r.buf, p...)
	if over := len(r.buf) - wire.TerminalReplay; over > wire.TerminalReplay {
		r.modes.feed(r.buf[:over])
		r.start += uint64(over)
		r.buf = append(r.buf[:0], r.buf[over:]...)
	}
}

func (r *ring) end() uint64 { return r.start + uint64(len(r.buf)) }

// since returns what came after a position, if all of that is still here.
func (r *ring) since(pos uint64) ([]byte, bool) {
	if pos < r.start || pos > r.end() {
		return nil, false
	}
	return slices.Clone(r.buf[pos-r.start:]), true
}

// replay returns what a screen that knows nothing is shown, and the position that
// its first byte counts as. whole says that nothing is missing before it.
func (r *ring) replay() (data []byte, pos uint64, whole bool) {
	if r.start == 0 {
		return slices.Clone(r.buf), 0, true
	}
	// Begin between two characters, not within an escape sequence.
	m := r.modes.clone()
	skip := 0
	for skip < len(r.buf) && !m.between(r.buf[skip]) {
		m.feed(r.buf[skip : skip+1])
		skip++
	}
	prefix := m.restore()
	data = append(prefix, r.buf[skip:]...)
	return data, r.end() - uint64(len(data)), false
}

// modes follows what output sets for good: the private modes (alternate screen,
// mouse, cursor keys, …), the keypad and the character set. It understands just
// enough of ECMA-48 to find these.
type modes struct {
	set    map[int]bool // private modes that were set or reset
	keypad bool
	g0     byte // character set designated by ESC (; 0: the default

	state  state
	params []byte
	rest   int // continuation bytes that a UTF-8 character still needs
}

type state uint8

const (
	ground state = iota
	escape
	csi
	charset
	text // OSC, DCS, …: until BEL or ST
	textEscape
)

// maxParams bounds what is kept of a sequence.
const maxParams = 64

func (m *modes) clone() modes {
	c := *m
	c.params = slices.Clone(m.params)
	c.set = make(map[int]bool, len(m.set))
	maps.Copy(c.set, m.set)
	return c
}

// between says whether the next byte begins something new.
func (m *modes) between(next byte) bool {
	return m.state == ground && (m.rest == 0 || next&0xc0 != 0x80)
}

func (m *modes) feed(p []byte) {
	for _, b := range p {
		m.step(b)
	}
}

func (m *modes) step(b byte) {
	switch {
	case b == 0x18 || b == 0x1a: // CAN and SUB end every sequence
		m.state = ground
		return
	case b == 0x1b && m.state != text:
		m.state = escape
		return
	}
	switch m.state {
	case ground:
		m.utf8(b)
	case escape:
		m.escaped(b)
	case csi:
		switch {
		case b >= 0x40 && b <= 0x7e:
			m.state = ground
			m.finish(b)
		case b >= 0x20 && len(m.params) < maxParams:
			m.params = append(m.params, b)
		}
	case charset:
		m.g0, m.state = b, ground
	case text:
		switch b {
		case 0x07:
			m.state = ground
		case 0x1b:
			m.state = textEscape
		}
	case textEscape:
		m.state = text
		if b == '\\' {
			m.state = ground
		}
	}
}

func (m *modes) utf8(b byte) {
	switch {
	case b >= 0xf0:
		m.rest = 3
	case b >= 0xe0:
		m.rest = 2
	case b >= 0xc0:
		m.rest = 1
	case b >= 0x80:
		m.rest = max(0, m.rest-1)
	default:
		m.rest = 0
	}
}

func (m *modes) escaped(b byte) {
	m.state = ground
	switch b {
	case '[':
		m.state, m.params = csi, m.params[:0]
	case ']', 'P', '^', '_', 'X':
		m.state = text
	case '(':
		m.state = charset
	case '=':
		m.keypad = true
	case '>':
		m.keypad = false
	case 'c': // full reset
		m.set, m.keypad, m.g0 = nil, false, 0
	}
}

// finish takes in a control sequence: CSI ? n ; n h, the same with l, and the soft
// reset, CSI ! p.
func (m *modes) finish(last byte) {
	p := string(m.params)
	switch {
	case last == 'p' && p == "!":
		m.set, m.keypad, m.g0 = nil, false, 0
	case (last == 'h' || last == 'l') && len(p) > 1 && p[0] == '?':
		for _, field := range splitParams(p[1:]) {
			if n, err := strconv.Atoi(field); err == nil {
				if m.set == nil {
					m.set = map[int]bool{}
				}
				m.set[n] = last == 'h'
			}
		}
	}
}

func splitParams(s string) []string {
	var out []string
	from := 0
	for i := range len(s) {
		if s[i] == ';' {
			out, from = append(out, s[from:i]), i+1
		}
	}
	return append(out, s[from:])
}

// onByDefault are the modes of a fresh screen: wrap around and the cursor.
func onByDefault(mode int) bool { return mode == 7 || mode == 25 }

// restore writes what brings a fresh screen into these modes.
func (m *modes) restore() []byte {
	var numbers []int
	for n, on := range m.set {
		if on != onByDefault(n) && n != 2026 { // synchronized output is over by now
			numbers = append(numbers, n)
		}
	}
	// The alternate screen first: it keeps its own cursor. The rest in any fixed order.
	slices.SortFunc(numbers, func(a, b int) int {
		alt := func(n int) int {
			if n == 47 || n == 1047 || n == 1049 {
				return 0
			}
			return 1
		}
		if c := alt(a) - alt(b); c != 0 {
			return c
		}
		return a - b
	})
	var out []byte
	for _, n := range numbers {
		out = append(strconv.AppendInt(append(out, "\x1b[?"...), int64(n), 10), 'l')
		if m.set[n] {
			out[len(out)-1] = 'h'
		}
	}
	if m.keypad {
		out = append(out, "\x1b="...)
	}
	if m.g0 != 0 && m.g0 != 'B' {
		out = append(out, 0x1b, '(', m.g0)
	}
	return out
}

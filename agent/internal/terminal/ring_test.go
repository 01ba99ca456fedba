package terminal

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/adit-tunnel/adit/shared/wire"
)

func TestReplayIsWholeWhileItFits(t *testing.T) {
	var r ring
	r.write([]byte("hello\r\n"))
	data, pos, whole := r.replay()
	if string(data) != "hello\r\n" || pos != 0 || !whole {
		t.Errorf("what fits is replayed as it was: %q from %d, whole %v", data, pos, whole)
	}
	if rest, ok := r.since(2); !ok || string(rest) != "llo\r\n" {
		t.Errorf("a viewer who saw a part gets the rest: %q %v", rest, ok)
	}
	if _, ok := r.since(100); ok {
		t.Error("nobody has seen what was not printed yet")
	}
}

func TestReplayKeepsModesAndCharacters(t *testing.T) {
	var r ring
	r.write([]byte("\x1b[?1049h\x1b[?25l\x1b[?1h\x1b=\x1b[?2004h\x1b[?2004l\x1b(0"))
	line := "\x1b[38;2;1;2;3m" + strings.Repeat("ä", 30) + "\x1b]0;title\x1b\\\r\n"
	for r.start == 0 {
		r.write([]byte(line)[:7])
		r.write([]byte(line)[7:])
	}
	data, pos, whole := r.replay()
	if whole {
		t.Fatal("it is not the whole output")
	}
	prefix := "\x1b[?1049h\x1b[?1h\x1b[?25l\x1b=\x1b(0"
	if !bytes.HasPrefix(data, []byte(prefix)) {
		t.Fatalf("the replay begins with the modes that are set: %q", data[:60])
	}
	if uint64(len(data))+pos != r.end() {
		t.Errorf("positions count on to the end: %d bytes from %d, end at %d", len(data), pos, r.end())
	}
	if len(data) < wire.TerminalReplay-200 {
		t.Errorf("the replay has %d bytes, want the last 64 KiB", len(data))
	}
	rest := string(data[len(prefix):])
	if !strings.HasSuffix(rest, line) || !strings.ContainsAny(rest[:1], "\x1bä\r\n") {
		t.Errorf("the replay begins between characters and sequences: %q", rest[:20])
	}
	if strings.HasPrefix(rest, "[") || strings.HasPrefix(rest, "\xa4") {
		t.Errorf("the replay begins within one: %q", rest[:20])
	}
}

// Wherever the output is cut, what comes after a beginning is a beginning.
func TestEveryCutIsBetween(t *testing.T) {
	output := []byte("a\x1b[1;31mb\x1b]8;;http://x\x07c\x1bP1$r\x1b\\d€\x1b(0q\x1b(B\x1bc\x18e")
	for cut := range output {
		var m modes
		m.feed(output[:cut])
		i := cut
		for i < len(output) && !m.between(output[i]) {
			m.feed(output[i : i+1])
			i++
		}
		if i == len(output) {
			continue
		}
		starts := fmt.Sprintf("%q", output[i:])
		switch output[i] {
		case 'a', 0x1b, 'b', 'c', 'd', 0xe2, 'q', 0x18, 'e':
		default:
			t.Errorf("cut at %d begins at %s", cut, starts)
		}
	}
}

func TestResetsClearModes(t *testing.T) {
	for _, reset := range []string{"\x1bc", "\x1b[!p"} {
		var m modes
		m.feed([]byte("\x1b[?1049;1000h\x1b=\x1b(0" + reset))
		if got := m.restore(); len(got) != 0 {
			t.Errorf("after %q nothing is set, got %q", reset, got)
		}
	}
}

func FuzzModes(f *testing.F) {
	f.Add([]byte("\x1b[?1049h\xe2\x82"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m modes
		m.feed(b)
		var again modes
		again.feed(m.restore())
		if got, want := string(again.restore()), string(m.restore()); got != want {
			t.Errorf("restored modes are the modes: %q and %q", got, want)
		}
	})
}

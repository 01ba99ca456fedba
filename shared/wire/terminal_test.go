package wire_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/adit-tunnel/adit/shared/wire"
)

func TestTerminalFramesRoundTrip(t *testing.T) {
	var b []byte
	sent := []struct {
		typ     wire.FrameType
		payload string
	}{
		{wire.FrameData, "ls\r"}, {wire.FrameResize, string(wire.Pair(80, 24))}, {wire.FrameData, ""},
		{wire.FrameAck, string(wire.Position(1 << 40))}, {200, "of a later version"}, {wire.FrameData, strings.Repeat("x", wire.MaxFrame)},
	}
	for _, f := range sent {
		b = wire.AppendFrame(b, f.typ, []byte(f.payload))
	}
	r := iotest.HalfReader(bytes.NewReader(b))
	var buf []byte
	for _, want := range sent {
		var typ wire.FrameType
		var payload []byte
		var err error
		typ, payload, buf, err = wire.ReadFrame(r, buf)
		if err != nil || typ != want.typ || string(payload) != want.payload {
			t.Fatalf("a frame should arrive as it was sent: got type %d, %d bytes, %v, want type %d, %d bytes", typ, len(payload), err, want.typ, len(want.payload))
		}
	}
	if _, _, _, err := wire.ReadFrame(r, buf); err != io.EOF {
		t.Errorf("an end between frames is io.EOF, got %v", err)
	}
	for cut := 1; cut < 6; cut++ {
		if _, _, _, err := wire.ReadFrame(bytes.NewReader(b[:cut]), nil); cut < 6 && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("a frame cut at %d is an unexpected end, got %v", cut, err)
		}
	}
	if _, _, _, err := wire.ReadFrame(bytes.NewReader([]byte{0, 0xff, 0xff}), nil); !errors.Is(err, wire.ErrMalformed) {
		t.Errorf("a frame over the limit is refused before it is read, got %v", err)
	}
}

func TestTerminalPayloads(t *testing.T) {
	replay := wire.Replay{Instance: "abc", Position: 77, Continues: true, ReadOnly: true}
	if got, ok := wire.ParseReplay(replay.Payload()); !ok || got != replay {
		t.Errorf("a replay should arrive as it was sent: %+v", got)
	}
	exit := wire.Exit{Status: -1, Text: "killed"}
	if got, ok := wire.ParseExit(exit.Payload()); !ok || got != exit {
		t.Errorf("an exit should arrive as it was sent: %+v", got)
	}
	open := wire.TerminalOpen{Terminal: "main", Cols: 80, Rows: 24, ReadOnly: true, Instance: "abc", Seen: 77, Who: "admin"}
	b, err := open.Payload()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := wire.ParseTerminalOpen(b); err != nil || got != open {
		t.Errorf("a terminal's hello should arrive as it was sent: %+v %v", got, err)
	}
	for _, bad := range []string{``, `[]`, `{}`, `{"terminal":"../x"}`, `{"terminal":"` + strings.Repeat("a", 33) + `"}`, `{"terminal":"Main"}`} {
		if _, err := wire.ParseTerminalOpen([]byte(bad)); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("%q is no terminal's hello, got %v", bad, err)
		}
	}
	if b, err = (wire.TerminalOpen{Terminal: "main", Who: strings.Repeat("x", 8000)}).Payload(); err != nil || len(b) < wire.MaxHelloPayload {
		t.Errorf("the hello itself bounds its payload: %d %v", len(b), err)
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add(wire.AppendFrame(nil, wire.FrameData, []byte("hello")))
	f.Add([]byte{0, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		var out, buf []byte
		for {
			typ, payload, grown, err := wire.ReadFrame(r, buf)
			if err != nil {
				break
			}
			buf = grown
			out = wire.AppendFrame(out, typ, payload)
			wire.ParseReplay(payload)
			wire.ParseExit(payload)
			_, _ = wire.ParseTerminalOpen(payload)
		}
		if !bytes.HasPrefix(b, out) {
			t.Error("what was read, written again, should be what was there")
		}
	})
}

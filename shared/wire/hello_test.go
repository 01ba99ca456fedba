package wire_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"

	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

const session = ident.SessionID("000102030405060708090a0b0c0d0e0f")

func full() wire.Hello {
	return wire.Hello{Kind: wire.KindTCP, Port: 8188, Epoch: 7, Session: session, Request: "req-1", Payload: []byte(`{"a":1}`)}
}

func encode(t *testing.T, h wire.Hello) []byte {
	t.Helper()
	b, err := wire.AppendHello(nil, h)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestHelloRoundTrip(t *testing.T) {
	for name, h := range map[string]wire.Hello{
		"empty":   {},
		"control": {Kind: wire.KindControl},
		"full":    full(),
		"largest": {Kind: 255, Port: 65535, Epoch: 1<<64 - 1, Session: session, Request: ident.RequestID(strings.Repeat("r", 64)), Payload: make([]byte, wire.MaxHelloPayload)},
	} {
		r := bytes.NewReader(append(encode(t, h), "data"...))
		got, err := wire.ReadHello(iotest.OneByteReader(r))
		if err != nil || !reflect.DeepEqual(got, h) {
			t.Errorf("%s: the hello should arrive as it was sent; got %+v, %v", name, got, err)
		}
		if rest, _ := io.ReadAll(r); string(rest) != "data" {
			t.Errorf("%s: the data behind the hello should stay; got %q", name, rest)
		}
	}
}

// TestHelloOnTheWire fixes the encoding: old and new halves must understand each other.
func TestHelloOnTheWire(t *testing.T) {
	const want = "01" + "01" + "0029" + "1ffc" + "0000000000000007" + "000102030405060708090a0b0c0d0e0f" +
		"05" + "7265712d31" + "0007" + "7b2261223a317d"
	if got := hex.EncodeToString(encode(t, full())); got != want {
		t.Errorf("the encoding changed:\n got %s\nwant %s", got, want)
	}
	if got := hex.EncodeToString(wire.AppendVerdict(nil, wire.Verdict{Code: wire.CodePaused, Text: "no"})); got != "010600026e6f" {
		t.Errorf("the encoding of a verdict changed: %s", got)
	}
}

// TestNewerHelloIsUnderstood is the version policy: a newer peer appends fields.
func TestNewerHelloIsUnderstood(t *testing.T) {
	for name, extra := range map[string]int{"a byte": 1, "a kilobyte": 1000} {
		b := encode(t, full())
		b = append(b, make([]byte, extra)...)
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)-4))
		r := bytes.NewReader(append(b, "data"...))
		got, err := wire.ReadHello(r)
		if err != nil || !reflect.DeepEqual(got, full()) {
			t.Errorf("%s more: the known fields should be read; got %+v, %v", name, got, err)
		}
		if rest, _ := io.ReadAll(r); string(rest) != "data" {
			t.Errorf("%s more: the appended fields should be skipped; %q is left", name, rest)
		}
	}
	// A kind that this end does not know is for the caller to refuse, with a verdict.
	b := encode(t, full())
	b[1] = 200
	if got, err := wire.ReadHello(bytes.NewReader(b)); err != nil || got.Kind.String() != "kind-200" {
		t.Errorf("an unknown kind should be read; got %v, %v", got.Kind, err)
	}
}

func TestMalformedHello(t *testing.T) {
	change := func(at int, value byte) []byte {
		b := encode(t, full())
		b[at] = value
		return b
	}
	for name, b := range map[string][]byte{
		"version 0":         change(0, 0),
		"version 2":         change(0, 2),
		"length too small":  change(3, 26),
		"length too large":  change(2, 0xff),
		"request too long":  change(4+26, 65),
		"request past end":  change(4+26, 255),
		"request of spaces": change(4+27, ' '),
		"payload past end":  change(4+27+5, 0x10),
		"an HTTP request":   []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
	} {
		if _, err := wire.ReadHello(bytes.NewReader(b)); !errors.Is(err, wire.ErrMalformed) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: the hello should be refused; got %v", name, err)
		}
	}
	b := encode(t, full())
	for n := range b {
		want := io.ErrUnexpectedEOF
		if n == 0 {
			want = io.EOF // closed before it began
		}
		if _, err := wire.ReadHello(bytes.NewReader(b[:n])); !errors.Is(err, want) {
			t.Errorf("a hello cut after %d bytes should read as %v; got %v", n, want, err)
		}
	}
}

func TestHelloThatCannotBeSent(t *testing.T) {
	for name, h := range map[string]wire.Hello{
		"long request":  {Request: ident.RequestID(strings.Repeat("r", 65))},
		"wrong request": {Request: "a b"},
		"long payload":  {Payload: make([]byte, wire.MaxHelloPayload+1)},
		"short session": {Session: "00"},
		"long session":  {Session: session + "00"},
		"wrong session": {Session: ident.SessionID(strings.Repeat("g", 32))},
		"zero session":  {Session: ident.SessionID(strings.Repeat("0", 32))},
	} {
		if b, err := wire.AppendHello(nil, h); !errors.Is(err, wire.ErrMalformed) || b != nil {
			t.Errorf("%s: what no peer would read should not be sent; got %v", name, err)
		}
	}
}

func TestKindNames(t *testing.T) {
	for kind, want := range map[wire.Kind]string{
		wire.KindTCP: "tcp", wire.KindTerminal: "terminal", wire.KindGate: "gate", wire.KindControl: "control", wire.KindPeer: "peer", 0: "kind-0",
	} {
		if kind.String() != want {
			t.Errorf("kind %d is %q, want %q", kind, kind, want)
		}
	}
}

func TestVerdict(t *testing.T) {
	for _, v := range []wire.Verdict{{}, {Code: wire.CodeAppRefused, Text: "nothing listens on port 8188"}, {Code: wire.CodeUnknownTunnel, Text: strings.Repeat("x", wire.MaxVerdictText)}} {
		r := bytes.NewReader(append(wire.AppendVerdict(nil, v), "data"...))
		got, err := new(wire.VerdictReader).Read(iotest.OneByteReader(r))
		if err != nil || got != v {
			t.Errorf("the verdict should arrive as it was sent; got %+v, %v", got, err)
		}
		if rest, _ := io.ReadAll(r); string(rest) != "data" {
			t.Errorf("the data behind the verdict should stay; got %q", rest)
		}
	}
	for _, text := range []string{strings.Repeat("é", 5000), "x" + strings.Repeat("é", 5000), strings.Repeat("\U0001F6AA", 5000)} {
		got, err := new(wire.VerdictReader).Read(bytes.NewReader(wire.AppendVerdict(nil, wire.Verdict{Code: wire.CodeInternal, Text: text})))
		if err != nil || !utf8.ValidString(got.Text) || len(got.Text) < wire.MaxVerdictText-utf8.UTFMax || !strings.HasPrefix(text, got.Text) {
			t.Errorf("a long text is cut between two characters: %d bytes, %v", len(got.Text), err)
		}
	}
	long := wire.AppendVerdict(nil, wire.Verdict{Code: wire.CodeInternal, Text: strings.Repeat("x", 5000)})
	if got, err := new(wire.VerdictReader).Read(bytes.NewReader(long)); err != nil || len(got.Text) != wire.MaxVerdictText {
		t.Errorf("a long text should be cut; got %d, %v", len(got.Text), err)
	}
	if got, err := new(wire.VerdictReader).Read(bytes.NewReader([]byte{1, 99, 0, 1, 'x'})); err != nil || got.Code != wire.CodeInternal || got.Text != "x" {
		t.Errorf("a newer peer's code should count as internal, with its text; got %+v, %v", got, err)
	}
	for name, b := range map[string][]byte{"version": {2, 0, 0, 0}, "length": {1, 0, 0xff, 0xff}} {
		if _, err := new(wire.VerdictReader).Read(bytes.NewReader(b)); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("%s: a malformed verdict should be refused; got %v", name, err)
		}
	}
	for _, b := range [][]byte{{}, {1}, {1, 0, 0, 2, 'x'}} {
		if _, err := new(wire.VerdictReader).Read(bytes.NewReader(b)); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("a stream that ends before its verdict is broken; got %v", err)
		}
	}
	if got := (wire.Verdict{Code: wire.CodePaused, Text: "paused"}).Error(); !strings.Contains(got, "paused") || !strings.Contains(got, "6") {
		t.Errorf("a refusal should say code and text; got %q", got)
	}
}

func FuzzHello(f *testing.F) {
	seed, err := wire.AppendHello(nil, full())
	if err != nil {
		f.Fatal(err)
	}
	empty, _ := wire.AppendHello(nil, wire.Hello{})
	for _, b := range [][]byte{nil, seed, empty, seed[:20], append(seed, 0, 1, 2), []byte("GET / HTTP/1.1\r\n\r\n"), bytes.Repeat([]byte{0xff}, 64)} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		h, err := wire.ReadHello(r)
		if err != nil {
			return
		}
		if used := len(b) - r.Len(); used != 4+int(binary.BigEndian.Uint16(b[2:])) {
			t.Errorf("read %d bytes of a hello that says otherwise", used)
		}
		again, err := wire.AppendHello(nil, h)
		if err != nil {
			t.Fatalf("what was read should be sendable: %v", err)
		}
		if back, err := wire.ReadHello(bytes.NewReader(again)); err != nil || !reflect.DeepEqual(back, h) {
			t.Errorf("what was read should pass unchanged; got %+v, %v, want %+v", back, err, h)
		}
	})
}

// interrupted returns a byte, and then an error, in turn.
type interrupted struct {
	b    []byte
	stop bool
}

func (r *interrupted) Read(p []byte) (int, error) {
	if r.stop = !r.stop; r.stop || len(r.b) == 0 {
		return 0, os.ErrDeadlineExceeded
	}
	n := copy(p[:1], r.b)
	r.b = r.b[n:]
	return n, nil
}

func TestVerdictReaderGoesOn(t *testing.T) {
	for _, want := range []wire.Verdict{{}, {Code: wire.CodePaused, Text: "lunch"}} {
		r := &interrupted{b: append(wire.AppendVerdict(nil, want), "data"...)}
		var v wire.VerdictReader
		for {
			got, err := v.Read(r)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				continue
			}
			if err != nil || got != want {
				t.Errorf("in pieces the verdict arrives as %+v, %v; want %+v", got, err, want)
			}
			break
		}
		if string(r.b) != "data" {
			t.Errorf("behind the verdict %q is left; want what was sent", r.b)
		}
	}
}

func FuzzVerdict(f *testing.F) {
	for _, b := range [][]byte{nil, {1, 0, 0, 0}, {1, 3, 0, 2, 'n', 'o'}, {1, 255, 4, 0}, {2, 0, 0, 0}} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := new(wire.VerdictReader).Read(bytes.NewReader(b))
		if err != nil {
			return
		}
		if back, err := new(wire.VerdictReader).Read(bytes.NewReader(wire.AppendVerdict(nil, v))); err != nil || back != v {
			t.Errorf("what was read should pass unchanged; got %+v, %v, want %+v", back, err, v)
		}
	})
}

func BenchmarkHello(b *testing.B) {
	h := full()
	h.Payload = nil
	buf := make([]byte, 0, 64)
	r := bytes.NewReader(nil)
	b.ReportAllocs()
	for b.Loop() {
		buf, _ = wire.AppendHello(buf[:0], h)
		r.Reset(buf)
		if _, err := wire.ReadHello(r); err != nil {
			b.Fatal(err)
		}
	}
}

// A trace is an addition behind the payload: a reader of before skips it, and a hello
// without one is as it was.
func TestHelloTrace(t *testing.T) {
	plain := wire.Hello{Kind: wire.KindTCP, Port: 8188, Epoch: 7, Payload: []byte(`{"a":1}`)}
	traced := plain
	traced.Trace = wire.Trace{ID: [16]byte{1, 2, 3}, Span: [8]byte{4, 5}, Flags: 1}
	a, err := wire.AppendHello(nil, plain)
	if err != nil {
		t.Fatal(err)
	}
	b, err := wire.AppendHello(nil, traced)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) != len(a)+25 || !bytes.Equal(a[4:], b[4:len(a)]) {
		t.Errorf("a trace is 25 bytes behind all else: %x %x", a, b)
	}
	for raw, want := range map[string]wire.Trace{string(a): {}, string(b): traced.Trace} {
		got, err := wire.ReadHello(strings.NewReader(raw))
		if err != nil || got.Trace != want || string(got.Payload) != string(plain.Payload) {
			t.Errorf("it reads as %+v, %v; want %+v", got, err, want)
		}
	}
	buf := make([]byte, 0, 256)
	if n := testing.AllocsPerRun(100, func() { _, _ = wire.AppendHello(buf, plain) }); n != 0 {
		t.Errorf("a hello without a trace costs %v allocations", n)
	}
}

package wire

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/adit-tunnel/adit/shared/ident"
)

// Subprotocol is the WebSocket subprotocol of a link (RFC 6455, section 1.9).
const Subprotocol = "adit.link.v1"

// LinkPath is where a relay accepts links.
const LinkPath = "/agent/v1/link"

// Kind says what the opener of a stream wants at the other end.
type Kind uint8

// The kinds of stream.
const (
	KindTCP      Kind = 1 // relay to agent: bytes to and from a local port
	KindTerminal Kind = 2 // relay to agent: a PTY
	KindGate     Kind = 3 // agent to relay: HTTP/1.1 to the gate's own routes
	KindControl  Kind = 4 // agent to relay: the control stream, first on every link
	KindPeer     Kind = 5 // relay to relay: a stream to be passed to an agent
)

// String names the kind for logs.
func (k Kind) String() string {
	switch k {
	case KindTCP:
		return "tcp"
	case KindTerminal:
		return "terminal"
	case KindGate:
		return "gate"
	case KindControl:
		return "control"
	case KindPeer:
		return "peer"
	}
	return fmt.Sprintf("kind-%d", uint8(k))
}

// Hello begins every stream. The opener sends it together with its first data
// and reads the Verdict when it first reads, so it costs no round trip.
type Hello struct {
	Kind    Kind
	Port    uint16          // the target port; 0 where the kind has none
	Epoch   uint64          // the agent session's generation, as the opener knows it
	Session ident.SessionID // the tunnel; empty where there is none
	Request ident.RequestID // for logs at both ends; may be empty
	Payload []byte          // kind's own parameters (JSON), at most MaxHelloPayload bytes
	Trace   Trace           // the opener's span, where it is traced; else zero
}

// Trace is a span at the other end, of which this stream is a part (W3C trace
// context). Zero is none, and is not sent.
type Trace struct {
	ID    [16]byte
	Span  [8]byte
	Flags byte
}

// traceLength is a Trace on the wire.
const traceLength = 16 + 8 + 1

// MaxHelloPayload bounds Hello.Payload in bytes.
const MaxHelloPayload = 4096

// helloVersion is the first byte of a hello. A reader takes any version not
// above its own; fields that a later version appends are skipped by length.
const helloVersion = 1

// helloFixed is the length of the fixed part behind the 4-byte header: port,
// epoch, session id, length of the request id.
const helloFixed = 2 + 8 + 16 + 1

// ErrMalformed is wrapped by every error about bytes that are no valid hello,
// verdict or message.
var ErrMalformed = errors.New("malformed")

// AppendHello appends the encoded hello:
//
//	version(1) kind(1) length(2) | port(2) epoch(8) session(16) n(1) request(n) m(2) payload(m) [trace(25)]
//
// Integers are big-endian; length counts what follows it.
func AppendHello(b []byte, h Hello) ([]byte, error) {
	if len(h.Payload) > MaxHelloPayload {
		return nil, fmt.Errorf("%w: hello field too long", ErrMalformed)
	}
	if h.Request != "" {
		if _, err := ident.ParseRequestID(string(h.Request)); err != nil {
			return nil, fmt.Errorf("%w: hello request id", ErrMalformed)
		}
	}
	var session [16]byte
	if h.Session != "" {
		if len(h.Session) != 2*len(session) {
			return nil, fmt.Errorf("%w: hello session id", ErrMalformed)
		}
		// All zeros stand for no session, so they cannot stand for one.
		if _, err := hex.Decode(session[:], []byte(h.Session)); err != nil || session == [16]byte{} {
			return nil, fmt.Errorf("%w: hello session id", ErrMalformed)
		}
	}
	b = append(b, helloVersion, byte(h.Kind))
	length := helloFixed + len(h.Request) + 2 + len(h.Payload)
	if h.Trace != (Trace{}) {
		length += traceLength
	}
	b = binary.BigEndian.AppendUint16(b, uint16(length))
	b = binary.BigEndian.AppendUint16(b, h.Port)
	b = binary.BigEndian.AppendUint64(b, h.Epoch)
	b = append(b, session[:]...)
	b = append(b, byte(len(h.Request)))
	b = append(b, h.Request...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(h.Payload)))
	b = append(b, h.Payload...)
	if h.Trace != (Trace{}) {
		b = append(append(append(b, h.Trace.ID[:]...), h.Trace.Span[:]...), h.Trace.Flags)
	}
	return b, nil
}

// ReadHello reads one hello and not a byte more.
func ReadHello(r io.Reader) (Hello, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return Hello{}, fmt.Errorf("read hello: %w", err)
	}
	n := int(binary.BigEndian.Uint16(head[2:]))
	if head[0] == 0 || head[0] > helloVersion {
		return Hello{}, fmt.Errorf("%w: hello version %d", ErrMalformed, head[0])
	}
	if n < helloFixed || n > helloFixed+64+2+MaxHelloPayload+1024 {
		return Hello{}, fmt.Errorf("%w: hello length %d", ErrMalformed, n)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return Hello{}, fmt.Errorf("read hello: %w", unexpected(err))
	}
	h := Hello{Kind: Kind(head[1]), Port: binary.BigEndian.Uint16(body), Epoch: binary.BigEndian.Uint64(body[2:])}
	if session := body[10:26]; string(session) != string(make([]byte, 16)) {
		h.Session = ident.SessionID(hex.EncodeToString(session))
	}
	rest := body[helloFixed:]
	if n := int(body[26]); n > 0 {
		if n > len(rest) {
			return Hello{}, fmt.Errorf("%w: hello request id", ErrMalformed)
		}
		id, err := ident.ParseRequestID(string(rest[:n]))
		if err != nil {
			return Hello{}, fmt.Errorf("%w: hello request id", ErrMalformed)
		}
		h.Request, rest = id, rest[n:]
	}
	if len(rest) >= 2 {
		m := int(binary.BigEndian.Uint16(rest))
		if m > len(rest)-2 || m > MaxHelloPayload {
			return Hello{}, fmt.Errorf("%w: hello payload", ErrMalformed)
		}
		if m > 0 {
			h.Payload = rest[2 : 2+m]
		}
		if rest = rest[2+m:]; len(rest) >= traceLength {
			copy(h.Trace.ID[:], rest)
			copy(h.Trace.Span[:], rest[16:])
			h.Trace.Flags = rest[24]
		}
	}
	return h, nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

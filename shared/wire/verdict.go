package wire

import (
	"encoding/binary"
	"fmt"
	"io"
	"unicode/utf8"
)

// Code is the answer to a hello. Anything but CodeOK ends the stream.
type Code uint8

// The codes of a verdict. A code unknown to the reader counts as CodeInternal.
const (
	CodeOK               Code = 0
	CodeBadHello         Code = 1  // hello malformed, or of a kind this end does not know
	CodePortNotAllowed   Code = 2  // the agent's policy refuses the port
	CodeAppRefused       Code = 3  // nothing listens on the port
	CodeAppTimeout       Code = 4  // the port did not answer the dial in time
	CodeStaleEpoch       Code = 5  // the opener's generation is older than the session's
	CodePaused           Code = 6  // the machine's owner paused the agent
	CodeTerminalDisabled Code = 7  // terminals are not enabled on the agent
	CodeOverloaded       Code = 8  // too many streams
	CodeInternal         Code = 9  // anything else; the text says what
	CodeUnknownTunnel    Code = 10 // the agent was not told of this tunnel, or it is closed
	CodeNoTerminal       Code = 11 // there is no terminal of that name to look on at
)

// MaxVerdictText bounds a verdict's text in bytes.
const MaxVerdictText = 1024

// Verdict answers a hello. It is an error when its code is not CodeOK.
type Verdict struct {
	Code Code
	Text string // for people: what happened and what to do
}

// Error makes a refusal usable as an error.
func (v Verdict) Error() string { return fmt.Sprintf("stream refused (code %d): %s", v.Code, v.Text) }

// AppendVerdict appends the encoded verdict: version(1) code(1) length(2) text.
// A longer text is cut, not within a character.
func AppendVerdict(b []byte, v Verdict) []byte {
	if len(v.Text) > MaxVerdictText {
		n := MaxVerdictText
		for n > MaxVerdictText-utf8.UTFMax && !utf8.RuneStart(v.Text[n]) {
			n--
		}
		v.Text = v.Text[:n]
	}
	b = append(b, helloVersion, byte(v.Code))
	b = binary.BigEndian.AppendUint16(b, uint16(len(v.Text)))
	return append(b, v.Text...)
}

// VerdictReader reads one verdict in pieces: what a deadline interrupts goes on with the
// next call. The zero value begins.
type VerdictReader struct {
	head [verdictHead]byte
	text []byte
	n    int // how much of both has come
}

// verdictHead is the length of a verdict without its text.
const verdictHead = 4

// Read returns the verdict when it is complete, and takes not a byte more from r. After
// an error of r it may be called again.
func (v *VerdictReader) Read(r io.Reader) (Verdict, error) {
	for v.n < verdictHead {
		if err := v.fill(r, v.head[v.n:]); err != nil {
			return Verdict{}, err
		}
	}
	length := int(binary.BigEndian.Uint16(v.head[2:]))
	if v.head[0] != helloVersion || length > MaxVerdictText {
		return Verdict{}, fmt.Errorf("%w: verdict", ErrMalformed)
	}
	if v.text == nil && length > 0 {
		v.text = make([]byte, length)
	}
	for v.n < verdictHead+length {
		if err := v.fill(r, v.text[v.n-verdictHead:]); err != nil {
			return Verdict{}, err
		}
	}
	code := Code(v.head[1])
	if code > CodeNoTerminal {
		code = CodeInternal
	}
	return Verdict{Code: code, Text: string(v.text)}, nil
}

// fill takes what comes next. An error counts when nothing came with it: it comes again.
func (v *VerdictReader) fill(r io.Reader, p []byte) error {
	n, err := r.Read(p)
	v.n += n
	if n == 0 && err != nil {
		return fmt.Errorf("read verdict: %w", unexpected(err))
	}
	return nil
}

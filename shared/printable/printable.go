// Package printable owns what is done to text from elsewhere before it is shown to a
// person: a machine's, a relay's, an app's or a browser's name for itself must not
// steer the terminal that it is printed on, nor reorder what stands beside it. It
// prints nothing itself, and leaves alone what a program sends to a terminal on
// purpose.
package printable

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// steers says whether a character does something to a terminal other than to appear:
// controls (C0, DEL, C1), formats such as the overrides of direction, line and
// paragraph separators, and what is no character at all.
func steers(r rune) bool {
	return unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp)
}

// Text makes one line fit to print: what would steer the terminal is a '?'.
func Text(s string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || steers(r) {
			return '?'
		}
		return r
	}, s)
}

// Lines is Text for a text whose line breaks are its own.
func Lines(s string) string {
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		lines[i] = Text(line)
	}
	return strings.Join(lines, "\n")
}

// JSON makes whole JSON documents fit to print and leaves what they say: encoding/json
// escapes controls below U+0020, this the others that steer, which can only stand in
// strings.
func JSON(b []byte) []byte {
	var out []byte
	done := 0
	for i := 0; i < len(b); {
		r, n := rune(b[i]), 1
		if r >= utf8.RuneSelf {
			r, n = utf8.DecodeRune(b[i:])
		}
		if r > ' ' && r < 0x7f || !steers(r) || r == '\n' || r == '\t' || r == '\r' {
			i += n
			continue
		}
		out = append(out, b[done:i]...)
		for _, u := range utf16.AppendRune(nil, r) {
			out = fmt.Appendf(out, `\u%04x`, u)
		}
		i += n
		done = i
	}
	if out == nil {
		return b
	}
	return append(out, b[done:]...)
}

// Encoder returns an encoder whose documents are fit to print.
func Encoder(w io.Writer) *json.Encoder { return json.NewEncoder(documents{w}) }

// documents takes whole documents, as json.Encoder writes them.
type documents struct{ w io.Writer }

// Write implements io.Writer.
func (d documents) Write(p []byte) (int, error) {
	if _, err := d.w.Write(JSON(p)); err != nil {
		return 0, err
	}
	return len(p), nil
}

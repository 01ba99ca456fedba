// Package prompt owns the question for a secret at a terminal: what is typed is not shown,
// from the moment when the question is. It keeps nothing, and reads no more than the line.
package prompt

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/term"
)

// ErrInterrupted says that the person typed Ctrl-C or Ctrl-D instead of an answer.
var ErrInterrupted = errors.New("interrupted")

// Secret asks a question on out and returns the line that is typed at the terminal in,
// without its end. term.ReadPassword would turn the echo off only after the question is
// shown: whoever is quick, or pastes, would see the secret on the screen.
func Secret(in *os.File, out io.Writer, question string) (string, error) {
	before, err := term.MakeRaw(int(in.Fd()))
	if err != nil {
		return "", fmt.Errorf("turn the echo off: %w", err)
	}
	defer func() { _ = term.Restore(int(in.Fd()), before) }() // it was a terminal a moment ago
	line, err := term.NewTerminal(console{frugal{in}, out}, "").ReadPassword(question)
	if errors.Is(err, io.EOF) {
		_, _ = io.WriteString(out, "\r\n")
		return "", ErrInterrupted
	}
	return line, err
}

type console struct {
	io.Reader
	io.Writer
}

// frugal reads byte by byte, so that what is typed behind the line is left to whoever
// reads next.
type frugal struct{ io.Reader }

// Read implements io.Reader.
func (f frugal) Read(p []byte) (int, error) { return f.Reader.Read(p[:min(len(p), 1)]) }

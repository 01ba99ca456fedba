package aditcli

import (
	"io"
	"sync"
)

// stdio makes one connection of a pair of streams, stdin and stdout. A read of
// stdin cannot be interrupted, so a goroutine reads ahead by one buffer; it is the
// one goroutine that may outlive its command, until stdin or the process ends.
type stdio struct {
	in    io.Reader
	out   io.Writer
	start sync.Once
	pipeR *io.PipeReader
	pipeW *io.PipeWriter
}

func newStdio(in io.Reader, out io.Writer) *stdio {
	r, w := io.Pipe()
	return &stdio{in: in, out: out, pipeR: r, pipeW: w}
}

func (s *stdio) pump() {
	buf := make([]byte, 64<<10)
	for {
		n, err := s.in.Read(buf)
		if n > 0 {
			if _, werr := s.pipeW.Write(buf[:n]); werr != nil {
				return // closed
			}
		}
		if err != nil {
			_ = s.pipeW.CloseWithError(err) // io.EOF stays io.EOF
			return
		}
	}
}

// Read reads from stdin.
func (s *stdio) Read(p []byte) (int, error) {
	s.start.Do(func() { go s.pump() })
	return s.pipeR.Read(p)
}

// Write writes to stdout.
func (s *stdio) Write(p []byte) (int, error) { return s.out.Write(p) }

// CloseWrite closes stdout, by which the other process learns of the end.
func (s *stdio) CloseWrite() error {
	if c, ok := s.out.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// Close frees a blocked Read and closes stdout.
func (s *stdio) Close() error {
	_ = s.pipeR.Close()
	return s.CloseWrite()
}

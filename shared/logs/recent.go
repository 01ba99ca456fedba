package logs

import (
	"bytes"
	"io"
	"sync"
)

// Recent keeps the newest lines of a log, for a diagnosis that nobody prepared for.
// Give it to New in Options: it gets what the log gets, secrets cut out.
type Recent struct {
	mu    sync.Mutex
	lines [][]byte // oldest first
	size  int
	max   int
}

// NewRecent returns a Recent that keeps at most so many bytes.
func NewRecent(most int) *Recent { return &Recent{max: most} }

// Write keeps a line. A handler writes one at a time.
func (r *Recent) Write(line []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, bytes.Clone(line))
	r.size += len(line)
	drop := 0
	for r.size > r.max && drop < len(r.lines) {
		r.size -= len(r.lines[drop])
		r.lines[drop] = nil
		drop++
	}
	r.lines = r.lines[drop:]
	return len(line), nil
}

// WriteTo writes what is kept, oldest first.
func (r *Recent) WriteTo(w io.Writer) (int64, error) {
	r.mu.Lock()
	all := bytes.Join(r.lines, nil)
	r.mu.Unlock()
	n, err := w.Write(all)
	return int64(n), err
}

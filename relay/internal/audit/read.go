package audit

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"slices"
	"time"

	"github.com/adit-tunnel/adit/shared/ident"
)

// Filter chooses records. The zero value chooses all.
type Filter struct {
	Since   time.Time // records at or after
	Until   time.Time // records before
	Relay   ident.RelayID
	Team    ident.TeamID
	Agent   ident.AgentID
	Session ident.SessionID
	Task    ident.TaskID
	Event   Event
}

// Match says whether a record is chosen.
func (f Filter) Match(r Record) bool {
	return (f.Since.IsZero() || !r.Time.Before(f.Since)) &&
		(f.Until.IsZero() || r.Time.Before(f.Until)) &&
		(f.Relay == "" || f.Relay == r.Relay) &&
		(f.Team == "" || f.Team == r.Team) &&
		(f.Agent == "" || f.Agent == r.Agent) &&
		(f.Session == "" || f.Session == r.Session) &&
		(f.Task == "" || f.Task == r.Task) &&
		(f.Event == "" || f.Event == r.Event)
}

// LineError is a complete line that is no record.
type LineError struct {
	File string
	Line int
}

// Error says where the line is, not what it holds.
func (e *LineError) Error() string { return fmt.Sprintf("%s:%d: not an audit record", e.File, e.Line) }

// Read iterates over the records in a directory, oldest first; records of several
// relays are merged by time. A *LineError does not end the iteration. The last line
// of a file, when it is not complete, is being written or was never acknowledged:
// it is left out.
func Read(dir string, f Filter) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		all, err := list(dir)
		if err != nil {
			yield(Record{}, fmt.Errorf("read audit log: %w", err))
			return
		}
		var relays []records
		for _, own := range chunk(all, func(one file) ident.RelayID { return one.relay }) {
			if f.Relay != "" && own[0].relay != f.Relay {
				continue
			}
			var rows []records
			for _, row := range chunk(own, func(one file) lane { return one.lane }) {
				rows = append(rows, readFiles(row, f))
			}
			relays = append(relays, merge(rows, func(a, b Record) bool { return a.Seq < b.Seq }))
		}
		merge(relays, func(a, b Record) bool { return a.Time.Before(b.Time) })(yield)
	}
}

// records is what is read, in order; an error among them does not end it.
type records = iter.Seq2[Record, error]

// chunk splits files where what they are of changes.
func chunk[K comparable](all []file, of func(file) K) (out [][]file) {
	for i, one := range all {
		if i == 0 || of(all[i-1]) != of(one) {
			out = append(out, nil)
		}
		out[len(out)-1] = append(out[len(out)-1], one)
	}
	return out
}

// Read iterates over the records of the log's directory, as the function of that
// name does, with everything that was appended before the call.
func (l *Log) Read(f Filter) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		if err := l.Flush(context.Background()); err != nil && !yield(Record{}, err) {
			return
		}
		Read(l.cfg.Dir, f)(yield)
	}
}

// merge yields the records of several rows, of the first ones whichever is before the
// others; within a row their order stays: relays go by time, whatever a clock did.
func merge(rows []records, before func(a, b Record) bool) records {
	if len(rows) == 1 {
		return rows[0]
	}
	return func(yield func(Record, error) bool) {
		type head struct {
			rec  Record
			next func() (Record, error, bool)
		}
		var heads []*head
		// advance loads a head's next record; false when the reader has had enough.
		advance := func(h *head) (more, goOn bool) {
			for {
				rec, err, ok := h.next()
				if !ok {
					return false, true
				}
				if err == nil {
					h.rec = rec
					return true, true
				}
				if !yield(Record{}, err) {
					return false, false
				}
			}
		}
		for _, row := range rows {
			next, stop := iter.Pull2(row)
			defer stop()
			h := &head{next: next}
			more, goOn := advance(h)
			if !goOn {
				return
			}
			if more {
				heads = append(heads, h)
			}
		}
		for len(heads) > 0 {
			i := 0
			for j, h := range heads {
				if before(h.rec, heads[i].rec) {
					i = j
				}
			}
			if !yield(heads[i].rec, nil) {
				return
			}
			more, goOn := advance(heads[i])
			if !goOn {
				return
			}
			if !more {
				heads = slices.Delete(heads, i, i+1)
			}
		}
	}
}

// readFiles iterates over the files of one relay.
func readFiles(fs []file, f Filter) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		for _, one := range fs {
			if !readFile(one.path, f, yield) {
				return
			}
		}
	}
}

// readFile returns false when the reader has had enough.
func readFile(path string, f Filter, yield func(Record, error) bool) bool {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) { // rotated away since it was listed
		return true
	}
	if err != nil {
		return yield(Record{}, fmt.Errorf("read audit log: %w", err))
	}
	defer file.Close()
	if info, err := file.Stat(); err == nil && !f.Since.IsZero() && info.ModTime().Add(time.Second).Before(f.Since) {
		return true // written last before that (its clock is coarse); a copy is younger, never older
	}
	in := bufio.NewReaderSize(file, maxLine)
	for n := 1; ; n++ {
		line, err := in.ReadSlice('\n')
		tooLong := false
		for errors.Is(err, bufio.ErrBufferFull) {
			tooLong = true
			_, err = in.ReadSlice('\n')
		}
		if errors.Is(err, io.EOF) {
			return true
		}
		if err != nil {
			return yield(Record{}, fmt.Errorf("read audit log: %w", err))
		}
		if !tooLong && !f.mayMatch(line) {
			continue
		}
		var r Record
		if tooLong || json.Unmarshal(line, &r) != nil || r.Event == "" {
			if !yield(Record{}, &LineError{path, n}) {
				return false
			}
			continue
		}
		if f.Match(r) && !yield(r, nil) {
			return false
		}
	}
}

// mayMatch spares the decoding of most lines when a filter names something: names
// of these types are in a line as they are, without escapes.
func (f Filter) mayMatch(line []byte) bool {
	for _, s := range []string{string(f.Session), string(f.Team), string(f.Agent)} {
		if s != "" && !bytes.Contains(line, []byte(s)) {
			return false
		}
	}
	return true
}

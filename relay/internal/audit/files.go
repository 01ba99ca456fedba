package audit

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/adit-tunnel/adit/shared/ident"
)

const (
	suffix    = ".jsonl"
	seqDigits = 20 // of the largest uint64, so that names sort as numbers
	maxLine   = 64 << 10
)

// lane is one of the two rows of files of a relay: which one a record is in says how
// long it is kept.
type lane int

const (
	main   lane = iota
	beyond      // of teams that wrote more than their share of late
	lanes
)

// marks tell the lanes' files apart. No relay's name ends like that.
var marks = [lanes]string{main: "", beyond: "~"}

// files is the log's files on disk: "<relay>.<seq of the first record>.jsonl", and
// with a "~" behind the relay for the second lane. The newest of a lane is written;
// nothing is ever renamed, so readers and shippers never see a file move under them.
type files struct {
	dir      string
	relay    ident.RelayID
	maxBytes int64
	keep     int
	log      *slog.Logger
	lock     *os.File
	open     [lanes]writing
}

// writing is a lane's newest file.
type writing struct {
	f    *os.File // nil at first and after an error: the next write begins a new file
	size int64
}

// file is one file of a relay's log.
type file struct {
	path  string
	relay ident.RelayID
	lane  lane
	first uint64
}

// list returns the files in a directory, by relay and lane and then in order. Anything
// else there is not ours.
func list(dir string) ([]file, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []file
	for _, e := range entries {
		base, ok := strings.CutSuffix(e.Name(), suffix)
		i := len(base) - seqDigits - 1
		if !ok || i <= 0 || base[i] != '.' || !e.Type().IsRegular() {
			continue
		}
		first, err := strconv.ParseUint(base[i+1:], 10, 64)
		if err != nil {
			continue
		}
		one := file{path: filepath.Join(dir, e.Name()), first: first}
		name, marked := strings.CutSuffix(base[:i], marks[beyond])
		if one.relay = ident.RelayID(name); marked {
			one.lane = beyond
		}
		out = append(out, one)
	}
	slices.SortFunc(out, func(a, b file) int {
		return cmp.Or(cmp.Compare(a.relay, b.relay), cmp.Compare(a.lane, b.lane), cmp.Compare(a.first, b.first))
	})
	return out, nil
}

func openFiles(cfg Config) (*files, uint64, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, 0, err
	}
	lock, err := os.OpenFile(filepath.Join(cfg.Dir, string(cfg.Relay)+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, 0, err
	}
	// The kernel drops the lock with its process, however that ends.
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		return nil, 0, fmt.Errorf("%s is in use by another process (%w): another relay has this data_dir; stop that one first, or give this one a data_dir of its own", cfg.Dir, err)
	}
	fl := &files{dir: cfg.Dir, relay: cfg.Relay, maxBytes: cfg.MaxBytes, keep: cfg.Keep, log: cfg.Logger, lock: lock}
	seq, err := fl.resume()
	if err != nil {
		lock.Close()
		return nil, 0, err
	}
	return fl, seq, nil
}

// own returns the relay's files, by lane.
func (fl *files) own() (own [lanes][]file, err error) {
	all, err := list(fl.dir)
	for _, f := range all {
		if f.relay == fl.relay {
			own[f.lane] = append(own[f.lane], f)
		}
	}
	return own, err
}

// resume opens the newest files, cuts the lines that a crash left unfinished (they
// were never acknowledged) and returns the seq of the last record. Without any file
// it opens none: the first write does.
func (fl *files) resume() (last uint64, err error) {
	own, err := fl.own()
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			_ = fl.closeAll()
		}
	}()
	for i, lane := range own {
		if len(lane) == 0 {
			continue
		}
		newest := lane[len(lane)-1]
		f, err := os.OpenFile(newest.path, os.O_RDWR|os.O_APPEND, 0o600)
		if err != nil {
			return 0, err
		}
		fl.open[i].f = f
		size, seq, err := repair(f, newest.first, fl.log)
		if err != nil {
			return 0, fmt.Errorf("repair %s: %w", newest.path, err)
		}
		fl.open[i].size, last = size, max(last, seq)
	}
	return last, nil
}

// repair truncates an unfinished last line and finds the last seq.
func repair(f *os.File, first uint64, log *slog.Logger) (size int64, seq uint64, err error) {
	info, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	// Usually one look at the end; more when a power cut left a long run of zeros.
	var from int64
	var tail []byte
	end := 0
	for span := int64(2 * maxLine); end == 0; span *= 4 {
		from = max(0, info.Size()-span)
		tail = make([]byte, info.Size()-from)
		if _, err := f.ReadAt(tail, from); err != nil && !errors.Is(err, io.EOF) {
			return 0, 0, err
		}
		if end = bytes.LastIndexByte(tail, '\n') + 1; from == 0 {
			break
		}
	}
	if size = from + int64(end); size < info.Size() {
		log.Warn("audit log ended in the middle of a record, which was never acknowledged", "file", f.Name(), "bytes_cut", info.Size()-size)
		if err := f.Truncate(size); err != nil {
			return 0, 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, 0, err
		}
	}
	lines := bytes.Split(tail[:end], []byte{'\n'})
	for _, line := range slices.Backward(lines) {
		var r Record
		if json.Unmarshal(line, &r) == nil && r.Seq >= first {
			return size, r.Seq, nil
		}
	}
	// Nothing readable at the end: go on behind what the file can have held at most,
	// so that no number is given twice.
	return size, max(first, 1) - 1 + uint64(size/32), nil
}

// write appends a batch and syncs it.
func (fl *files) write(b *batch) error {
	var faults []error
	for i := range b.lanes {
		if p := &b.lanes[i]; p.data.Len() > 0 {
			faults = append(faults, fl.writePart(lane(i), p.data.Bytes(), p.first))
		}
	}
	return errors.Join(faults...)
}

// writePart appends to a lane what begins with the record first.
func (fl *files) writePart(in lane, b []byte, first uint64) error {
	w := &fl.open[in]
	if w.f == nil || w.size > 0 && w.size+int64(len(b)) > fl.maxBytes {
		if err := fl.next(in, first); err != nil {
			return err
		}
	}
	if _, err := w.f.Write(b); err != nil {
		// Part of a record may be there. If it cannot be taken back, this file is left.
		if w.f.Truncate(w.size) != nil {
			w.abandon()
		}
		return err
	}
	if err := w.f.Sync(); err != nil {
		// The kernel may have dropped the pages and will call the next sync a success:
		// nothing more may depend on this file.
		w.abandon()
		return err
	}
	w.size += int64(len(b))
	return nil
}

func (w *writing) abandon() {
	w.f.Close()
	w.f = nil
}

// next begins a lane's new file and removes the oldest beyond those to keep.
func (fl *files) next(in lane, first uint64) error {
	path := filepath.Join(fl.dir, fmt.Sprintf("%s%s.%0*d%s", fl.relay, marks[in], seqDigits, first, suffix))
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil {
		err = syncDir(fl.dir) // or a power cut takes the whole file
	}
	if err != nil {
		f.Close()
		return err
	}
	if w := &fl.open[in]; w.f != nil {
		w.f.Close() // synced already
	}
	fl.open[in] = writing{f, info.Size()}
	own, err := fl.own()
	if err != nil { // no reason to refuse the record
		fl.log.Warn("old audit files not looked for", "dir", fl.dir, "error", err)
	}
	fl.prune(own)
	return nil
}

// prune removes the oldest files beyond those to keep: of the lane that has more, and
// never the one that is written.
func (fl *files) prune(own [lanes][]file) {
	for len(own[main])+len(own[beyond]) > fl.keep {
		in := main
		if n := len(own[beyond]); n > 1 && n >= len(own[main]) {
			in = beyond
		}
		if len(own[in]) < 2 {
			return
		}
		oldest := own[in][0].path
		if err := os.Remove(oldest); err != nil && !errors.Is(err, fs.ErrNotExist) {
			fl.log.Warn("old audit file not removed", "file", oldest, "error", err)
			return
		}
		own[in] = own[in][1:]
	}
}

func (fl *files) close() error { return errors.Join(fl.closeAll(), fl.lock.Close()) }

func (fl *files) closeAll() error {
	var faults []error
	for i := range fl.open {
		if w := &fl.open[i]; w.f != nil {
			faults = append(faults, w.f.Close())
			w.f = nil
		}
	}
	return errors.Join(faults...)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

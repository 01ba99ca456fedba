package audit

import (
	"bytes"
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

// files is the log's files on disk: "<relay>.<seq of the first record>.jsonl". The
// newest is written; nothing is ever renamed, so readers and shippers never see a
// file move under them.
type files struct {
	dir      string
	relay    ident.RelayID
	maxBytes int64
	keep     int
	log      *slog.Logger
	lock     *os.File

	f    *os.File // nil after an error: the next write begins a new file
	size int64
}

// file is one file of a relay's log.
type file struct {
	path  string
	relay ident.RelayID
	first uint64
}

// list returns the files in a directory, by relay and then in order. Anything else
// there is not ours.
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
		out = append(out, file{filepath.Join(dir, e.Name()), ident.RelayID(base[:i]), first})
	}
	slices.SortFunc(out, func(a, b file) int { return strings.Compare(a.path, b.path) })
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
		return nil, 0, fmt.Errorf("%s is in use by another process: %w", cfg.Dir, err)
	}
	fl := &files{dir: cfg.Dir, relay: cfg.Relay, maxBytes: cfg.MaxBytes, keep: cfg.Keep, log: cfg.Logger, lock: lock}
	seq, err := fl.resume()
	if err != nil {
		lock.Close()
		return nil, 0, err
	}
	return fl, seq, nil
}

func (fl *files) own() ([]file, error) {
	all, err := list(fl.dir)
	return slices.DeleteFunc(all, func(f file) bool { return f.relay != fl.relay }), err
}

// resume opens the newest file, cuts the line that a crash left unfinished (it was
// never acknowledged) and returns the seq of the last record. Without any file it
// opens none: the first write does.
func (fl *files) resume() (uint64, error) {
	own, err := fl.own()
	if err != nil || len(own) == 0 {
		return 0, err
	}
	newest := own[len(own)-1]
	f, err := os.OpenFile(newest.path, os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return 0, err
	}
	size, seq, err := repair(f, newest.first, fl.log)
	if err != nil {
		f.Close()
		return 0, fmt.Errorf("repair %s: %w", newest.path, err)
	}
	fl.f, fl.size = f, size
	return seq, nil
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

// write appends a batch whose first record is seq first, and syncs it.
func (fl *files) write(b []byte, first uint64) error {
	if fl.f == nil || fl.size > 0 && fl.size+int64(len(b)) > fl.maxBytes {
		if err := fl.next(first); err != nil {
			return err
		}
	}
	if _, err := fl.f.Write(b); err != nil {
		// Part of a record may be there. If it cannot be taken back, this file is left.
		if fl.f.Truncate(fl.size) != nil {
			fl.abandon()
		}
		return err
	}
	if err := fl.f.Sync(); err != nil {
		// The kernel may have dropped the pages and will call the next sync a success:
		// nothing more may depend on this file.
		fl.abandon()
		return err
	}
	fl.size += int64(len(b))
	return nil
}

func (fl *files) abandon() {
	fl.f.Close()
	fl.f = nil
}

// next begins a new file and removes the oldest beyond those to keep.
func (fl *files) next(first uint64) error {
	path := filepath.Join(fl.dir, fmt.Sprintf("%s.%0*d%s", fl.relay, seqDigits, first, suffix))
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
	if fl.f != nil {
		fl.f.Close() // synced already
	}
	fl.f, fl.size = f, info.Size()
	own, err := fl.own()
	if err != nil { // no reason to refuse the record
		fl.log.Warn("old audit files not looked for", "dir", fl.dir, "error", err)
	}
	for len(own) > fl.keep {
		if err := os.Remove(own[0].path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			fl.log.Warn("old audit file not removed", "file", own[0].path, "error", err)
			break
		}
		own = own[1:]
	}
	return nil
}

func (fl *files) close() error {
	var err error
	if fl.f != nil {
		err = fl.f.Close()
		fl.f = nil
	}
	return errors.Join(err, fl.lock.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

package store

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// A dump is text, one JSON document a line: a header, the records of one revision
// in the order of their keys, and a trailer with their number and the SHA-256 of
// all lines before it. It knows no etcd version. What lives by a relay's lease
// (presences, relays) is not in it; what ends by itself says when.
const (
	dumpFormat  = "adit-store"
	dumpVersion = 1
	// maxLine bounds a line when reading; etcd's own limit of a record is 1.5 MiB.
	maxLine = 4 << 20
)

type dumpHeader struct {
	Format   string    `json:"format"`
	Version  int       `json:"version"`
	Revision int64     `json:"revision"`
	Created  time.Time `json:"created"`
}

type dumpRecord struct {
	Key   string          `json:"key"` // below the root
	Value json.RawMessage `json:"value"`
	Until time.Time       `json:"until,omitzero"` // when it ends by itself
}

type dumpTrailer struct {
	Count  int    `json:"count"`
	SHA256 string `json:"sha256"`
}

// Summary says what was written or read.
type Summary struct {
	Records  int
	Revision int64 // of the store that was read
}

// Backup writes a consistent copy of all durable records to w, while everything
// goes on.
func (s *Store) Backup(ctx context.Context, w io.Writer) (Summary, error) {
	buffered := bufio.NewWriterSize(w, 64<<10)
	d := &dumper{w: buffered, sum: sha256.New()}
	var sum Summary
	for attempt := 0; ; attempt++ {
		err := s.pages(ctx, func(kvs []*mvccpb.KeyValue, at int64) error {
			if sum.Revision == 0 {
				sum.Revision = at
				if err := d.line(dumpHeader{dumpFormat, dumpVersion, at, s.now()}); err != nil {
					return err
				}
			}
			return d.records(kvs, s.now())
		})
		if err == nil {
			break
		}
		if sum.Revision != 0 || attempt > 5 || !pause(ctx, attempt) {
			return Summary{}, fmt.Errorf("back up the store: %w", err)
		}
	}
	if err := d.trailer(); err != nil {
		return Summary{}, fmt.Errorf("back up the store: %w", err)
	}
	sum.Records = d.count
	return sum, buffered.Flush()
}

type dumper struct {
	w     io.Writer
	sum   hash.Hash
	count int
}

func (d *dumper) line(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	b = append(b, '\n')
	d.sum.Write(b)
	_, err = d.w.Write(b)
	return err
}

func (d *dumper) records(kvs []*mvccpb.KeyValue, now time.Time) error {
	for _, kv := range kvs {
		until, keep := keepInDump(string(kv.Key), kv.Value)
		if !keep || !until.IsZero() && !now.Before(until) {
			continue
		}
		if err := d.line(dumpRecord{Key: string(kv.Key)[len(root):], Value: kv.Value, Until: until}); err != nil {
			return fmt.Errorf("record %s: %w", kv.Key, err)
		}
		d.count++
	}
	return nil
}

func (d *dumper) trailer() error {
	return json.NewEncoder(d.w).Encode(dumpTrailer{d.count, hex.EncodeToString(d.sum.Sum(nil))})
}

// keepInDump says whether a record belongs into a dump, and when it ends by itself.
func keepInDump(key string, value []byte) (until time.Time, keep bool) {
	dir, _ := splitKey(key)
	switch dir {
	case dirAgent, dirFloor, dirTunnel, dirCredential, dirFile, dirTeam, dirUser, dirMember:
		return time.Time{}, true
	case dirOnce:
		var r onceRecord
		if json.Unmarshal(value, &r) != nil {
			return time.Time{}, false
		}
		return r.Until, true
	case dirEnrollment:
		var r EnrollmentRecord
		if json.Unmarshal(value, &r) != nil {
			return time.Time{}, false
		}
		return r.ExpiresAt, true
	}
	return time.Time{}, key == clusterKey
}

// readDump reads a whole dump and returns its records only when it is complete
// and undamaged.
func readDump(r io.Reader) ([]dumpRecord, dumpHeader, error) {
	scan := bufio.NewScanner(r)
	scan.Buffer(make([]byte, 0, 64<<10), maxLine)
	sum := sha256.New()
	var header dumpHeader
	var records []dumpRecord
	var last []byte
	for n := 0; scan.Scan(); n++ {
		if last != nil {
			sum.Write(append(last, '\n'))
			if n == 1 {
				if err := readHeader(last, &header); err != nil {
					return nil, header, err
				}
			} else {
				var rec dumpRecord
				if err := json.Unmarshal(last, &rec); err != nil || rec.Key == "" {
					return nil, header, fmt.Errorf("%w: line %d is no record", ErrDump, n)
				}
				records = append(records, rec)
			}
		}
		last = append([]byte(nil), scan.Bytes()...)
	}
	if err := scan.Err(); err != nil {
		return nil, header, fmt.Errorf("read the backup: %w", err)
	}
	var t dumpTrailer
	if header.Format == "" || json.Unmarshal(last, &t) != nil || t.SHA256 == "" {
		return nil, header, fmt.Errorf("%w: its last line is missing", ErrDump)
	}
	if t.Count != len(records) {
		return nil, header, fmt.Errorf("%w: it has %d records and says %d", ErrDump, len(records), t.Count)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != t.SHA256 {
		return nil, header, fmt.Errorf("%w: its checksum is %s and says %s", ErrDump, got, t.SHA256)
	}
	return records, header, nil
}

func readHeader(line []byte, h *dumpHeader) error {
	if err := json.Unmarshal(line, h); err != nil || h.Format != dumpFormat {
		return fmt.Errorf("%w: its first line is not that of a backup", ErrDump)
	}
	if h.Version != dumpVersion {
		return errors.Join(ErrDump, fmt.Errorf("its format is version %d; this program reads version %d", h.Version, dumpVersion))
	}
	return nil
}

package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Target is where an import goes.
type Target struct {
	Endpoints []string
	TLS       *tls.Config
	Logger    *slog.Logger
}

// Import writes a backup into an external store that has no records of Adit yet,
// and reads all of it back. No relay can begin with a store whose import has not
// finished.
func Import(ctx context.Context, to Target, r io.Reader) (Summary, error) {
	records, header, err := readDump(r)
	if err != nil {
		return Summary{}, fmt.Errorf("import: %w", err)
	}
	client, err := connect(to.Endpoints, to.TLS, (&net.Dialer{}).DialContext, to.Logger)
	if err != nil {
		return Summary{}, fmt.Errorf("import: %w", err)
	}
	defer func() { _ = client.Close() }()
	n, err := load(ctx, client, records)
	if err != nil {
		return Summary{}, fmt.Errorf("import: %w", err)
	}
	return Summary{Records: n, Revision: header.Revision}, nil
}

// Copy carries all durable records of a running store to an external one that has
// none yet. Nothing should change the first one meanwhile: what is written after
// the copy began is not in it.
func Copy(ctx context.Context, from *Store, to Target) (Summary, error) {
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := from.Backup(ctx, w)
		_ = w.CloseWithError(err)
		done <- err
	}()
	sum, err := Import(ctx, to, r)
	_ = r.CloseWithError(err) // frees the writer if the import gave up
	if werr := <-done; err == nil {
		err = werr
	}
	if err != nil {
		return Summary{}, fmt.Errorf("copy the store: %w", err)
	}
	return sum, nil
}

// Restore makes an embedded store from a backup in a data directory that has none,
// with no relay running. The new store is complete or not there.
func Restore(ctx context.Context, dataDir string, r io.Reader, log *slog.Logger) (_ Summary, err error) {
	records, header, err := readDump(r)
	if err != nil {
		return Summary{}, fmt.Errorf("restore: %w", err)
	}
	lock, err := lockDir(dataDir)
	if err != nil {
		return Summary{}, fmt.Errorf("restore: %w", err)
	}
	defer func() { _ = lock.Close() }()
	final := filepath.Join(dataDir, "etcd")
	if entries, err := os.ReadDir(final); err == nil && len(entries) > 0 {
		return Summary{}, fmt.Errorf("restore: %w: %s has a store; move it away first", ErrNotEmpty, final)
	} else if err != nil && !errors.Is(err, os.ErrNotExist) {
		return Summary{}, fmt.Errorf("restore: %w", err)
	}
	temp, err := os.MkdirTemp(dataDir, "restore-")
	if err != nil {
		return Summary{}, fmt.Errorf("restore: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
	n, err := loadEmbedded(ctx, temp, records, log)
	if err != nil {
		return Summary{}, fmt.Errorf("restore: %w", err)
	}
	if err := os.Remove(final); err != nil && !errors.Is(err, os.ErrNotExist) {
		return Summary{}, fmt.Errorf("restore: %w", err)
	}
	if err := os.Rename(filepath.Join(temp, "etcd"), final); err != nil {
		return Summary{}, fmt.Errorf("restore: %w", err)
	}
	if err := syncDir(dataDir); err != nil {
		return Summary{}, fmt.Errorf("restore: %w", err)
	}
	return Summary{Records: n, Revision: header.Revision}, nil
}

func loadEmbedded(ctx context.Context, dir string, records []dumpRecord, log *slog.Logger) (int, error) {
	e, err := startEmbedded(ctx, dir, 8<<30, log) // what was a store fits, whatever its quota
	if err != nil {
		return 0, err
	}
	defer e.stop()
	client, err := connect([]string{e.endpoint}, nil, (&net.Dialer{}).DialContext, log)
	if err != nil {
		return 0, err
	}
	defer func() { _ = client.Close() }()
	return load(ctx, client, records)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return d.Sync()
}

// load writes records into an empty store and counts them there. The mark stands
// from the first write to the last.
func load(ctx context.Context, kv interface {
	keyValues
	clientv3.Lease
}, records []dumpRecord) (int, error) {
	resp, err := kv.Do(ctx, clientv3.OpTxn(
		// Holds if no key below the root was ever created: there is none.
		[]clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(root).WithPrefix(), "=", 0)},
		[]clientv3.Op{clientv3.OpPut(importingKey, "{}")}, nil))
	if err != nil {
		return 0, err
	}
	if !resp.Txn().Succeeded {
		return 0, fmt.Errorf("%w: it has records below %s", ErrNotEmpty, root)
	}
	written := 0
	for now := time.Now(); len(records) > 0; {
		ops, rest, err := batch(ctx, kv, records, now)
		if err != nil {
			return 0, err
		}
		if len(ops) > 0 {
			if _, err := kv.Do(ctx, clientv3.OpTxn(nil, ops, nil)); err != nil {
				return 0, fmt.Errorf("write records: %w", err)
			}
		}
		written += len(ops)
		records = rest
	}
	resp, err = kv.Do(ctx, clientv3.OpGet(root, clientv3.WithPrefix(), clientv3.WithCountOnly()))
	if err != nil {
		return 0, fmt.Errorf("count the records: %w", err)
	}
	if n := int(resp.Get().Count) - 1; n != written {
		return 0, fmt.Errorf("the store holds %d records after %d were written", n, written)
	}
	if _, err := kv.Do(ctx, clientv3.OpDelete(importingKey)); err != nil {
		return 0, fmt.Errorf("finish: %w", err)
	}
	return written, nil
}

// batch returns the next writes, within etcd's limits for one transaction, and
// what remains. Records that have ended since are left out.
func batch(ctx context.Context, leases clientv3.Lease, records []dumpRecord, now time.Time) ([]clientv3.Op, []dumpRecord, error) {
	var ops []clientv3.Op
	size := 0
	for i, r := range records {
		if len(ops) == maxOps || size+len(r.Value) > 512<<10 && len(ops) > 0 {
			return ops, records[i:], nil
		}
		var opts []clientv3.OpOption
		if !r.Until.IsZero() {
			left := r.Until.Sub(now)
			if left <= 0 {
				continue
			}
			granted, err := leases.Grant(ctx, int64(math.Ceil(left.Seconds())))
			if err != nil {
				return nil, nil, fmt.Errorf("grant a lease: %w", err)
			}
			opts = append(opts, clientv3.WithLease(granted.ID))
		}
		ops = append(ops, clientv3.OpPut(root+r.Key, string(r.Value), opts...))
		size += len(r.Value) + len(r.Key)
	}
	return ops, nil, nil
}

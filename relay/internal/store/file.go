package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/adit-tunnel/adit/shared/ident"
)

// FileRecord is a small file that the relays of a pool share: what ACME needs to
// keep. The store neither reads nor protects its contents: who writes secrets seals
// them first.
type FileRecord struct {
	Modified time.Time `json:"modified"`
	Data     []byte    `json:"data"`
}

// PutFile writes a file; its name has slashes and no leading one.
func (s *Store) PutFile(ctx context.Context, name string, data []byte) error {
	defer s.metrics.took(opFile)()
	const doing = "write a shared file"
	value, err := json.Marshal(FileRecord{Modified: s.now(), Data: data})
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	return s.swap(ctx, doing, fileKey(name), func(*keyValue) (proposal, error) {
		return proposal{value: string(value)}, nil
	})
}

// File reads a file from the store itself: the mirror holds none. ErrNotFound when
// there is none of that name.
func (s *Store) File(ctx context.Context, name string) (FileRecord, error) {
	defer s.metrics.took(opFile)()
	const doing = "read a shared file"
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	cur, _, err := s.get(ctx, fileKey(name))
	if err != nil {
		return FileRecord{}, unavailable(ctx, doing, err)
	}
	if cur == nil {
		return FileRecord{}, fmt.Errorf("%s: %w", doing, ErrNotFound)
	}
	var r FileRecord
	if err := json.Unmarshal(cur.value, &r); err != nil {
		return FileRecord{}, fmt.Errorf("%s: %w", doing, err)
	}
	return r, nil
}

// Files lists the names of all files below a directory, sorted.
func (s *Store) Files(ctx context.Context, dir string) ([]string, error) {
	defer s.metrics.took(opFile)()
	const doing = "list shared files"
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	prefix := fileKey("")
	if dir != "" {
		prefix = fileKey(dir + "/")
	}
	resp, err := s.do(ctx, clientv3.OpGet(prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly()))
	if err != nil {
		return nil, unavailable(ctx, doing, err)
	}
	var names []string
	for _, kv := range resp.Get().Kvs {
		names = append(names, strings.TrimPrefix(string(kv.Key), fileKey("")))
	}
	return names, nil
}

// DeleteFiles deletes the file of that name and all below it; none is no error.
func (s *Store) DeleteFiles(ctx context.Context, name string) error {
	defer s.metrics.took(opFile)()
	const doing = "delete shared files"
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	var last error
	for attempt := 0; attempt == 0 || pause(ctx, attempt); attempt++ {
		// Deleting twice is the same as once: no outcome needs to be read back.
		_, last = s.do(ctx, clientv3.OpTxn(nil, []clientv3.Op{
			clientv3.OpDelete(fileKey(name)), clientv3.OpDelete(fileKey(name+"/"), clientv3.WithPrefix()),
		}, nil))
		if last == nil {
			return nil
		}
		if rejected(last) {
			return fmt.Errorf("%s: %w", doing, last)
		}
	}
	return unavailable(ctx, doing, last)
}

// lockTTL is for how long a lock outlives a relay that died with it.
const lockTTL = 15 * time.Second

// Lock waits until this relay alone has the lock of that name. It is for work that
// one relay of the pool should do, not for safety: a relay that hangs for longer
// than the lease may lose it without knowing. unlock gives it back; it is called
// once.
func (s *Store) Lock(ctx context.Context, name string) (unlock func(context.Context) error, err error) {
	const doing = "take a shared lock"
	lease, err := s.grant(ctx, lockTTL)
	if err != nil {
		return nil, unavailable(ctx, doing, err)
	}
	client := s.client.Load()
	if client == nil {
		return nil, fmt.Errorf("%s: %w", doing, ErrUnavailable)
	}
	revoke := func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), attemptTimeout)
		defer cancel()
		if _, err := client.Revoke(ctx, lease); err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return unavailable(ctx, "give back a shared lock", err) // it ends with its lease
		}
		return nil
	}
	keep, stop := context.WithCancel(context.WithoutCancel(ctx))
	alive, err := client.KeepAlive(keep, lease)
	if err == nil {
		err = s.takeLock(ctx, name, lease, alive)
	}
	if err != nil {
		stop()
		return nil, errors.Join(unavailable(ctx, doing, err), revoke(ctx))
	}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		for range alive { // closes when the lease is over or stop was called
			continue
		}
	}()
	return func(ctx context.Context) error {
		stop()
		<-drained
		return revoke(ctx)
	}, nil
}

// takeLock writes the lock's key when nobody has it, and asks again until then.
func (s *Store) takeLock(ctx context.Context, name string, lease clientv3.LeaseID, alive <-chan *clientv3.LeaseKeepAliveResponse) error {
	nonce := ident.NewNonce()
	again := time.NewTicker(250 * time.Millisecond)
	defer again.Stop()
	for {
		cur, _, err := s.get(ctx, lockKey(name))
		if err == nil && cur != nil && string(cur.value) == nonce {
			return nil // an earlier try has landed
		}
		if err == nil && cur == nil {
			ok, err := s.txn(ctx, []clientv3.Cmp{unchangedSince(lockKey(name), nil)}, clientv3.OpPut(lockKey(name), nonce, clientv3.WithLease(lease)))
			if err == nil && ok {
				return nil
			}
			if err != nil && rejected(err) {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case _, ok := <-alive:
			if !ok {
				return errors.New("its lease ended")
			}
		case <-again.C:
		}
	}
}

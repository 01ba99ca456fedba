package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// keyValue is one key's value and its place in the store's history.
type keyValue struct {
	value []byte
	rev   int64
	lease clientv3.LeaseID
}

func newKeyValue(kv *mvccpb.KeyValue) *keyValue {
	return &keyValue{value: kv.Value, rev: kv.ModRevision, lease: clientv3.LeaseID(kv.Lease)}
}

// revisionOf is the ModRevision to compare with: 0 for a key that does not exist.
func revisionOf(kv *keyValue) int64 {
	if kv == nil {
		return 0
	}
	return kv.rev
}

func unchangedSince(key string, kv *keyValue) clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(key), "=", revisionOf(kv))
}

// proposal is what swap shall write at its key: a value, or nothing (delete).
type proposal struct {
	value  string
	delete bool
	lease  clientv3.LeaseID
	when   []clientv3.Cmp // further conditions
	extra  []clientv3.Op
}

// swap is the compare-and-set of everything but agents' records: read, propose,
// write if nothing changed meanwhile, else again. propose may be called several
// times; its error aborts, ErrUnchanged with success. Proposals must be such that
// doing one twice is the same as once: after a write whose answer did not come it
// looks whether the value is there, and if something else is, it proposes again.
func (s *Store) swap(ctx context.Context, doing, key string, propose func(cur *keyValue) (proposal, error)) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	var (
		last error
		mine []string // values whose writes have an unknown outcome
		gone bool     // so has a delete
	)
	for attempt := 0; ; attempt++ {
		if attempt > 0 && !pause(ctx, attempt) {
			return unavailable(ctx, doing, last)
		}
		cur, _, err := s.get(ctx, key)
		if err != nil {
			last = err
			continue
		}
		if cur == nil && gone || cur != nil && slices.Contains(mine, string(cur.value)) {
			return nil
		}
		if full(last) {
			return s.refusedAsFull(ctx, doing, last)
		}
		p, err := propose(cur)
		if errors.Is(err, ErrUnchanged) {
			return nil
		}
		if err != nil {
			return err
		}
		ops := []clientv3.Op{clientv3.OpDelete(key)}
		if !p.delete {
			ops[0] = clientv3.OpPut(key, p.value, clientv3.WithLease(p.lease))
		}
		ok, err := s.txn(ctx, append(p.when, unchangedSince(key, cur)), append(ops, p.extra...)...)
		switch {
		case err == nil && ok:
			return nil
		case err == nil:
			s.metrics.conflicts.Inc()
		case rejected(err):
			return fmt.Errorf("%s: %w", doing, err)
		default:
			s.metrics.unknown.Inc()
			last, gone = err, gone || p.delete
			if !p.delete {
				mine = append(mine, p.value)
			}
		}
	}
}

// changeRecord is swap for a record that must be there, else ErrNotFound. It returns
// the record as it is afterwards.
func changeRecord[R any](ctx context.Context, s *Store, doing, key string, change func(*R) error) (R, error) {
	var record, none R
	err := s.swap(ctx, doing, key, func(cur *keyValue) (proposal, error) {
		if cur == nil {
			return proposal{}, fmt.Errorf("%s: %w", doing, ErrNotFound)
		}
		record = none
		if err := json.Unmarshal(cur.value, &record); err != nil {
			return proposal{}, fmt.Errorf("%s: %w", doing, err)
		}
		if err := change(&record); err != nil {
			return proposal{}, err
		}
		value, err := json.Marshal(record)
		return proposal{value: string(value), lease: cur.lease}, err // what ends by itself still does
	})
	if err != nil {
		return none, err
	}
	return record, nil
}

// stripe keeps the changes of one relay to one agent from racing each other in
// the store, where they would only conflict. Agents share stripes by hash.
type stripe chan struct{}

func (s *Store) stripe(key string) stripe {
	return s.stripes[maphash.String(s.seed, key)%uint64(len(s.stripes))]
}

func (l stripe) acquire(ctx context.Context) error {
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (l stripe) release() { <-l }

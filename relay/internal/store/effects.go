package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/adit-tunnel/adit/shared/ident"
)

// errAgain ends an attempt that another one shall follow.
var errAgain = errors.New("try again")

// onceRecord is what is stored under Once's key.
type onceRecord struct {
	Value string    `json:"value"`
	Nonce string    `json:"nonce"` // of the agent's record that was written with it
	Until time.Time `json:"until"` // the etcd lease only cleans up, late at times
}

// effects turns what a change brings with it into conditions and writes, without
// those of Once. The change's own error is returned unless Once tells of an
// earlier time.
func (u *agentUpdate) effects(ctx context.Context, e Effects, changeErr error) ([]clientv3.Cmp, []clientv3.Op, error) {
	var conditions []clientv3.Cmp
	var ops []clientv3.Op
	if e.Once != nil {
		key := onceKey(e.Once.Key)
		kv, _, err := u.s.get(ctx, key)
		if err != nil {
			u.last = err
			return nil, nil, errAgain
		}
		if err := u.before(kv); err != nil {
			return nil, nil, err
		}
		conditions = append(conditions, unchangedSince(key, kv))
	}
	if changeErr != nil {
		return nil, nil, changeErr
	}
	for id, edit := range e.EditTunnels {
		key := tunnelKey(id)
		kv, _, err := u.s.get(ctx, key)
		if err != nil {
			u.last = err
			return nil, nil, errAgain
		}
		if kv == nil {
			return nil, nil, fmt.Errorf("%s: tunnel %s: %w", u.doing, id, ErrNotFound)
		}
		value, err := editTunnel(id, kv, func(t *TunnelRecord) error { edit(t); return nil })
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", u.doing, err)
		}
		conditions = append(conditions, unchangedSince(key, kv))
		ops = append(ops, clientv3.OpPut(key, value))
	}
	for _, t := range e.PutTunnels {
		value, err := json.Marshal(t)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", u.doing, err)
		}
		ops = append(ops, clientv3.OpPut(tunnelKey(t.Session), string(value)))
	}
	for _, id := range e.DeleteTunnels {
		ops = append(ops, clientv3.OpDelete(tunnelKey(id), clientv3.WithPrefix())) // with its links
	}
	return conditions, ops, nil
}

// before returns a OnceError when the key holds an earlier time that still counts
// and was none of this call's attempts.
func (u *agentUpdate) before(kv *keyValue) error {
	if kv == nil {
		return nil
	}
	var r onceRecord
	if err := json.Unmarshal(kv.value, &r); err != nil {
		return fmt.Errorf("%s: read the earlier result: %w", u.doing, err)
	}
	if _, ok := u.mine[r.Nonce]; ok {
		// It landed between reading the agent's record and this. The next attempt
		// finds it there.
		return errAgain
	}
	if !u.s.now().Before(r.Until) {
		return nil
	}
	return &OnceError{Value: r.Value}
}

// putOnce is the write of Once's key. Attempts of one call share a lease.
func (u *agentUpdate) putOnce(ctx context.Context, o *Once, nonce string) (clientv3.Op, error) {
	value, err := json.Marshal(onceRecord{Value: o.Value, Nonce: nonce, Until: u.s.now().Add(o.TTL)})
	if err != nil {
		return clientv3.Op{}, err
	}
	if u.onceLease == 0 {
		if u.onceLease, err = u.s.grant(ctx, o.TTL); err != nil {
			return clientv3.Op{}, err
		}
	}
	return clientv3.OpPut(onceKey(o.Key), string(value), clientv3.WithLease(u.onceLease)), nil
}

// cleanUp gives back a lease that nothing was attached to.
func (u *agentUpdate) cleanUp(ctx context.Context) {
	if u.onceLease != 0 && !u.onceUsed {
		u.s.giveBack(ctx, u.onceLease)
	}
}

// giveBack ends a lease that nobody needs any more, with what is attached to it. When
// that does not work, it ends by itself.
func (s *Store) giveBack(ctx context.Context, lease clientv3.LeaseID) {
	client := s.client.Load()
	if lease == 0 || client == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if _, err := client.Revoke(ctx, lease); err != nil {
		s.log.Debug("giving back a lease", "error", err)
	}
}

// grant returns a lease of at least that length.
func (s *Store) grant(ctx context.Context, ttl time.Duration) (clientv3.LeaseID, error) {
	client := s.client.Load()
	if client == nil {
		return 0, ErrUnavailable
	}
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	granted, err := client.Grant(ctx, max(1, int64(math.Ceil(ttl.Seconds()))))
	if err != nil {
		return 0, fmt.Errorf("grant a lease: %w", err)
	}
	return granted.ID, nil
}

// OnceValue returns what an Effects.Once with this key has stored, if it did and
// still counts.
func (s *Store) OnceValue(ctx context.Context, key string) (string, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	kv, _, err := s.get(ctx, onceKey(key))
	if err != nil {
		return "", false, unavailable(ctx, "look for an earlier result", err)
	}
	if kv == nil {
		return "", false, nil
	}
	var r onceRecord
	if err := json.Unmarshal(kv.value, &r); err != nil {
		return "", false, fmt.Errorf("read an earlier result: %w", err)
	}
	return r.Value, s.now().Before(r.Until), nil
}

// UpdateTunnel changes a tunnel's own record by compare-and-set. change may be
// called several times and must come to the same result when applied twice; its
// error aborts, ErrUnchanged means success without a write. ErrNotFound when there
// is no such tunnel any more.
func (s *Store) UpdateTunnel(ctx context.Context, id ident.SessionID, change func(*TunnelRecord) error) (TunnelRecord, error) {
	defer s.metrics.took(opUpdateTunnel)()
	doing := "change tunnel " + string(id)
	if err := s.usable(); err != nil {
		return TunnelRecord{}, unavailable(ctx, doing, err)
	}
	var record TunnelRecord
	err := s.swap(ctx, doing, tunnelKey(id), func(cur *keyValue) (proposal, error) {
		if cur == nil {
			return proposal{}, fmt.Errorf("%s: %w", doing, ErrNotFound)
		}
		value, err := editTunnel(id, cur, func(t *TunnelRecord) error {
			before := *t
			err := change(t)
			record = *t
			if err != nil {
				record = before
			}
			return err
		})
		return proposal{value: value}, err
	})
	if err != nil {
		return TunnelRecord{}, err
	}
	return record, nil
}

// editTunnel applies an edit to a stored tunnel; its names stay as they are.
func editTunnel(id ident.SessionID, kv *keyValue, edit func(*TunnelRecord) error) (string, error) {
	var t TunnelRecord
	if err := json.Unmarshal(kv.value, &t); err != nil {
		return "", fmt.Errorf("read tunnel %s: %w", id, err)
	}
	names := t
	if err := edit(&t); err != nil {
		return "", err
	}
	t.Session, t.Team, t.Agent = names.Session, names.Team, names.Agent
	value, err := json.Marshal(t)
	if err != nil {
		return "", err
	}
	return string(value), nil
}

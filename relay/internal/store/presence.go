package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/adit-tunnel/adit/shared/ident"
)

// PutPresence writes where an agent is connected, under this relay's lease. It is
// written only while the agent's record has the presence's epoch, in one
// transaction: else ErrStaleEpoch, and a newer session's presence stays.
func (s *Store) PutPresence(ctx context.Context, p Presence) error {
	defer s.metrics.took(opPutPresence)()
	doing := "put presence of " + p.Key().String()
	value, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	// The mirror mostly knows the record's present revision, which spares a read; the
	// transaction's condition holds only if it does.
	revision, known := s.mirror.epochRevision(p.Key(), p.Epoch)
	var last error
	for attempt := 0; ; attempt++ {
		if attempt > 0 && !pause(ctx, attempt) {
			return unavailable(ctx, doing, last)
		}
		lease, ok := s.leaseID()
		if !ok {
			return unavailable(ctx, doing, errors.New("the relay has no lease"))
		}
		if !known {
			if revision, err = s.epochRevision(ctx, p.Key(), p.Epoch); errors.Is(err, ErrStaleEpoch) {
				return fmt.Errorf("%s: %w", doing, err)
			} else if err != nil {
				last = err
				continue
			}
		}
		key := agentKey(p.Key())
		done, err := s.txn(ctx, []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(key), "=", revision)},
			clientv3.OpPut(presenceKey(p.Key()), string(value), clientv3.WithLease(lease)))
		switch {
		case err == nil && done:
			return nil
		case err == nil:
			s.metrics.conflicts.Inc()
			known = false
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
			return unavailable(ctx, doing, err)
		case rejected(err):
			return fmt.Errorf("%s: %w", doing, err)
		case full(err):
			return s.refusedAsFull(ctx, doing, err)
		default:
			last = err // putting it twice is the same as once
		}
	}
}

// epochRevision reads the revision of an agent's record if it has this epoch.
func (s *Store) epochRevision(ctx context.Context, key ident.AgentKey, epoch uint64) (int64, error) {
	kv, _, err := s.get(ctx, agentKey(key))
	if err != nil {
		return 0, err
	}
	r, err := decodeAgent(kv)
	if err != nil {
		return 0, err
	}
	if kv == nil || r.Epoch != epoch {
		return 0, fmt.Errorf("%w: epoch %d, not %d", ErrStaleEpoch, r.Epoch, epoch)
	}
	return kv.rev, nil
}

func (m *mirror) epochRevision(key ident.AgentKey, epoch uint64) (int64, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	e, ok := m.agents[key]
	if !ok || e.record.Epoch != epoch {
		return 0, false
	}
	return e.rev, true
}

// DeletePresence removes an agent's presence if it is still of that epoch and no
// other relay's: several may have links of one session.
func (s *Store) DeletePresence(ctx context.Context, key ident.AgentKey, epoch uint64) error {
	defer s.metrics.took(opDeletePresence)()
	doing := "delete presence of " + key.String()
	return s.swap(ctx, doing, presenceKey(key), func(cur *keyValue) (proposal, error) {
		if cur == nil {
			return proposal{}, ErrUnchanged
		}
		var p Presence
		if err := json.Unmarshal(cur.value, &p); err != nil {
			return proposal{}, fmt.Errorf("%s: %w", doing, err)
		}
		if p.Epoch != epoch || p.Relay != s.cfg.Relay.ID {
			return proposal{}, ErrUnchanged
		}
		return proposal{delete: true}, nil
	})
}

package store

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/adit-tunnel/adit/shared/ident"
)

// floor is what the counts in a team's agents' records have reached in records that
// were removed. A new record begins there: no generation and no fencing token is ever
// given twice, also to an agent that comes back after its record is gone.
type floor struct {
	Epoch   uint64 `json:"epoch"`
	N       uint64 `json:"n"`
	Fencing uint64 `json:"fencing"`
}

func (f floor) above(r AgentRecord) floor {
	return floor{Epoch: max(f.Epoch, r.Epoch), N: max(f.N, r.N), Fencing: max(f.Fencing, r.Fencing)}
}

// floorOf reads a team's floor from the store.
func (s *Store) floorOf(ctx context.Context, team ident.TeamID) (floor, *keyValue, error) {
	kv, _, err := s.get(ctx, floorKey(team))
	if err != nil || kv == nil {
		return floor{}, kv, err
	}
	var f floor
	if err := json.Unmarshal(kv.value, &f); err != nil {
		return floor{}, nil, fmt.Errorf("read the floor of team %s: %w", team, err)
	}
	return f, kv, nil
}

// RemoveAgent removes an agent's record if gone agrees to it as it is then and the
// agent is not connected, and raises the team's floor to it in the same transaction.
// It does nothing while a relay of the pool does not know of floors, as those of
// earlier releases.
func (s *Store) RemoveAgent(ctx context.Context, key ident.AgentKey, gone func(now time.Time, r AgentRecord) bool) error {
	defer s.metrics.took(opUpdateAgent)()
	doing := "remove agent " + key.String()
	if err := s.usable(); err != nil {
		return unavailable(ctx, doing, err)
	}
	if slices.ContainsFunc(s.Relays(), func(r RelayRecord) bool { return !r.Floors }) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	var last error
	for attempt := 0; ; attempt++ {
		if attempt > 0 && !pause(ctx, attempt) {
			return unavailable(ctx, doing, last)
		}
		cur, _, err := s.get(ctx, agentKey(key))
		if err != nil {
			last = err
			continue
		}
		here, _, err := s.get(ctx, presenceKey(key), clientv3.WithKeysOnly())
		if err != nil {
			last = err
			continue
		}
		record, err := decodeAgent(cur)
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", doing, err)
		case cur == nil || here != nil || !gone(s.now(), record):
			return nil
		}
		f, had, err := s.floorOf(ctx, key.Team)
		if err != nil {
			last = err
			continue
		}
		value, err := json.Marshal(f.above(record))
		if err != nil {
			return fmt.Errorf("%s: %w", doing, err)
		}
		ok, err := s.txn(ctx, []clientv3.Cmp{
			unchangedSince(agentKey(key), cur), unchangedSince(floorKey(key.Team), had), unchangedSince(presenceKey(key), nil),
		}, clientv3.OpDelete(agentKey(key)), clientv3.OpPut(floorKey(key.Team), string(value)))
		switch {
		case err == nil && ok:
			return nil
		case err == nil:
			s.metrics.conflicts.Inc()
		case rejected(err):
			return fmt.Errorf("%s: %w", doing, err)
		case full(err):
			return s.refusedAsFull(ctx, doing, err)
		default: // doing it twice is the same as once
			s.metrics.unknown.Inc()
			last = err
		}
	}
}

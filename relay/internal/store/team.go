package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/adit-tunnel/adit/shared/ident"
)

// ErrInUse says that a record is still needed.
var ErrInUse = errors.New("the record is in use")

// DeleteAgent forgets an agent, its task leases with it; ErrInUse while it has tunnels.
// An agent that does not exist is no error. The team's floor is raised to it: people of
// a team that was removed may still sign in, and its machines come back.
func (s *Store) DeleteAgent(ctx context.Context, key ident.AgentKey) error {
	defer s.metrics.took(opUpdateAgent)()
	doing := "delete agent " + key.String()
	if err := s.usable(); err != nil {
		return unavailable(ctx, doing, err)
	}
	return s.swap(ctx, doing, agentKey(key), func(cur *keyValue) (proposal, error) {
		if cur == nil {
			return proposal{}, ErrUnchanged
		}
		var r AgentRecord
		if err := json.Unmarshal(cur.value, &r); err != nil {
			return proposal{}, fmt.Errorf("%s: %w", doing, err)
		}
		if len(r.Tunnels) > 0 {
			return proposal{}, fmt.Errorf("%s: it has %d tunnels: %w", doing, len(r.Tunnels), ErrInUse)
		}
		f, had, err := s.floorOf(ctx, key.Team)
		if err != nil {
			return proposal{}, unavailable(ctx, doing, err)
		}
		value, err := json.Marshal(f.above(r))
		if err != nil {
			return proposal{}, fmt.Errorf("%s: %w", doing, err)
		}
		floor := floorKey(key.Team)
		return proposal{delete: true, when: []clientv3.Cmp{unchangedSince(floor, had)}, extra: []clientv3.Op{clientv3.OpPut(floor, string(value))}}, nil
	})
}

// DeleteEnrollments deletes a team's enrollment tokens that are still good and returns
// how many those were.
func (s *Store) DeleteEnrollments(ctx context.Context, team ident.TeamID) (int, error) {
	defer s.metrics.took(opEnrollment)()
	const doing = "delete a team's enrollment tokens"
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	resp, err := s.do(ctx, clientv3.OpGet(root+dirEnrollment+"/", clientv3.WithPrefix()))
	if err != nil {
		return 0, unavailable(ctx, doing, err)
	}
	n := 0
	for _, kv := range resp.Get().Kvs {
		var r EnrollmentRecord
		if err := json.Unmarshal(kv.Value, &r); err != nil || r.Team != team {
			continue
		}
		if _, err := s.do(ctx, clientv3.OpDelete(string(kv.Key))); err != nil {
			return n, unavailable(ctx, doing, err)
		}
		n++
	}
	return n, nil
}

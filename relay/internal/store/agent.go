package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/adit-tunnel/adit/shared/ident"
)

// maxOps bounds a transaction; etcd's own default is 128.
const maxOps = 120

// errUnknown says that the history that would tell a write's outcome is gone.
var errUnknown = errors.New("the outcome of a change could not be read back")

// UpdateAgent changes an agent's record by compare-and-set, with everything that
// the change brings with it, and returns the record as it is then. A record that
// does not exist is empty, but for counts that begin where those of the team's removed
// agents ended. change gets a copy of its own and the present time, and
// may be called several times; its error aborts and is returned as it is, with the
// record as it was; ErrUnchanged means success without a write.
//
// A change that cannot be brought to an end within 5 s or ctx returns
// ErrUnavailable; if it may have landed, as a DoubtError. A new record and a new tunnel
// need room in the store, else ErrFull. A write whose answer was lost is looked for,
// also behind later changes of others: it is never done twice.
func (s *Store) UpdateAgent(ctx context.Context, key ident.AgentKey, change func(now time.Time, r *AgentRecord) (Effects, error)) (AgentRecord, error) {
	defer s.metrics.took(opUpdateAgent)()
	doing := "change agent " + key.String()
	if err := s.usable(); err != nil {
		return AgentRecord{}, unavailable(ctx, doing, err)
	}
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	l := s.stripe(key.String())
	if err := l.acquire(ctx); err != nil {
		return AgentRecord{}, unavailable(ctx, doing, err)
	}
	defer l.release()
	u := &agentUpdate{s: s, key: agentKey(key), team: key.Team, doing: doing, change: change, mine: map[string]AgentRecord{}}
	defer u.cleanUp(ctx)
	rec, err := u.run(ctx)
	return rec, u.inDoubt(err)
}

// agentUpdate is one call of UpdateAgent.
type agentUpdate struct {
	s      *Store
	key    string
	team   ident.TeamID
	doing  string
	change func(time.Time, *AgentRecord) (Effects, error)

	mine map[string]AgentRecord // by nonce: writes whose outcome is unknown
	base int64                  // the record's revision before the first of them
	last error                  // why the last attempt came to nothing

	onceLease clientv3.LeaseID
	onceUsed  bool
}

func (u *agentUpdate) run(ctx context.Context) (AgentRecord, error) {
	for attempt := 0; ; attempt++ {
		if attempt > 0 && !pause(ctx, attempt) {
			return AgentRecord{}, unavailable(ctx, u.doing, u.last)
		}
		// Fenced meanwhile: another relay may be acting for the agent.
		if err := u.s.usable(); err != nil {
			return AgentRecord{}, unavailable(ctx, u.doing, err)
		}
		record, done, err := u.attempt(ctx)
		if done || err != nil {
			return record, err
		}
	}
}

// attempt reads, changes and writes once. Not done and no error: again.
func (u *agentUpdate) attempt(ctx context.Context) (_ AgentRecord, done bool, _ error) {
	cur, _, err := u.s.get(ctx, u.key)
	if err != nil {
		u.last = err
		return AgentRecord{}, false, nil
	}
	old, err := decodeAgent(cur)
	if err != nil {
		return AgentRecord{}, false, fmt.Errorf("%s: %w", u.doing, err)
	}
	if len(u.mine) > 0 {
		landed, found, err := u.landed(ctx, cur, old)
		if errors.Is(err, errUnknown) {
			return AgentRecord{}, false, unavailable(ctx, u.doing, err)
		}
		if err != nil {
			u.last = err
			return AgentRecord{}, false, nil
		}
		if found {
			return landed, true, nil
		}
		if revisionOf(cur) > u.base {
			clear(u.mine) // overtaken: none of them can land any more
		}
	}
	if full(u.last) {
		return AgentRecord{}, false, u.s.refusedAsFull(ctx, u.doing, u.last)
	}

	var floorCmp []clientv3.Cmp
	if cur == nil {
		f, had, err := u.s.floorOf(ctx, u.team)
		if err != nil {
			u.last = err
			return AgentRecord{}, false, nil
		}
		old.Epoch, old.N, old.Fencing = f.Epoch, f.N, f.Fencing
		floorCmp = append(floorCmp, unchangedSince(floorKey(u.team), had))
	}

	next := old.Clone()
	effects, changeErr := u.change(u.s.now(), &next)
	conditions, ops, err := u.effects(ctx, effects, changeErr)
	switch {
	case errors.Is(err, errAgain):
		return AgentRecord{}, false, nil
	case err != nil && len(u.mine) > 0:
		// A write of mine may still be on its way: neither yes nor no would be true.
		return AgentRecord{}, false, unavailable(ctx, u.doing, err)
	case errors.Is(err, ErrUnchanged):
		return old, true, nil
	case err != nil:
		return old, false, err
	}
	if (cur == nil || len(effects.PutTunnels) > 0) && !u.s.Room() {
		return old, false, noRoom(u.doing)
	}
	next.N, next.Nonce = old.N+1, ident.NewNonce()
	value, err := json.Marshal(next)
	if err != nil {
		return old, false, fmt.Errorf("%s: %w", u.doing, err)
	}
	if effects.Once != nil {
		op, err := u.putOnce(ctx, effects.Once, next.Nonce)
		if err != nil {
			u.last = err
			return AgentRecord{}, false, nil
		}
		ops = append(ops, op)
	}
	conditions = append(append(conditions, floorCmp...), unchangedSince(u.key, cur))
	ops = append(ops, clientv3.OpPut(u.key, string(value)))
	if len(ops) > maxOps {
		return old, false, fmt.Errorf("%s: %d writes at once are too many", u.doing, len(ops))
	}
	ok, err := u.s.txn(ctx, conditions, ops...)
	switch {
	case err == nil && ok:
		u.onceUsed = effects.Once != nil
		return next, true, nil
	case err == nil:
		u.s.metrics.conflicts.Inc()
		u.last = nil
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		u.onceLease = 0 // it ran out before it was used; the next attempt gets another
	case rejected(err):
		return old, false, fmt.Errorf("%s: %w", u.doing, err)
	default:
		u.s.metrics.unknown.Inc()
		u.last = err
		if len(u.mine) == 0 {
			u.base = revisionOf(cur)
		}
		u.mine[next.Nonce] = next
		u.onceUsed = u.onceUsed || effects.Once != nil
	}
	return AgentRecord{}, false, nil
}

// landed looks for a write of mine in the record and, when others have changed it
// since, in its history. Not there means that it will not land either: its
// condition has been overtaken, or the next attempt, on the same condition,
// competes with it and at most one of them wins. (Without a next attempt that is
// open; see attempt.)
func (u *agentUpdate) landed(ctx context.Context, cur *keyValue, record AgentRecord) (AgentRecord, bool, error) {
	for {
		if r, ok := u.mine[record.Nonce]; ok {
			return r, true, nil
		}
		if revisionOf(cur) <= u.base {
			return AgentRecord{}, false, nil
		}
		var err error
		if cur, _, err = u.s.get(ctx, u.key, clientv3.WithRev(cur.rev-1)); err != nil {
			if errors.Is(err, rpctypes.ErrCompacted) {
				return AgentRecord{}, false, errUnknown
			}
			return AgentRecord{}, false, err
		}
		if record, err = decodeAgent(cur); err != nil {
			return AgentRecord{}, false, err
		}
	}
}

func decodeAgent(kv *keyValue) (AgentRecord, error) {
	var r AgentRecord
	if kv != nil {
		if err := json.Unmarshal(kv.value, &r); err != nil {
			return AgentRecord{}, fmt.Errorf("read its record: %w", err)
		}
	}
	return r.Clone(), nil // makes the maps
}

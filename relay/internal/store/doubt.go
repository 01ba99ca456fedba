package store

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// DoubtError says that a change of an agent's record may have landed: it was sent,
// and the store did not say in time what became of it. It wraps ErrUnavailable.
type DoubtError struct {
	update *agentUpdate
	since  time.Time // when it was given up
	err    error
}

// Error says why nothing is known.
func (e *DoubtError) Error() string { return e.err.Error() }

func (e *DoubtError) Unwrap() error { return e.err }

// inDoubt turns the end of an update into a DoubtError, if one of its writes may
// have landed.
func (u *agentUpdate) inDoubt(err error) error {
	if len(u.mine) == 0 || !errors.Is(err, ErrUnavailable) {
		return err
	}
	return &DoubtError{update: u, since: time.Now(), err: err}
}

// settled is how long after it was given up a write may still land, amply: etcd ends
// its own requests 7 s after they came, and a proposal that its leader has not
// committed by then is committed with the next leader's first entry or never.
const settled = 30 * time.Second

// Settle waits until the store tells whether the change landed, and returns the
// record as the change made it. It is called once, at any time.
func (e *DoubtError) Settle(ctx context.Context) (record AgentRecord, landed bool, err error) {
	for attempt := 0; ; attempt++ {
		if attempt > 0 && !pauseLong(ctx) {
			return AgentRecord{}, false, fmt.Errorf("%s: find out whether it landed: %w", e.update.doing, context.Cause(ctx))
		}
		record, landed, known, err := e.look(ctx)
		if known || errors.Is(err, errUnknown) {
			return record, landed, err
		}
	}
}

// look reads once. known says that what it returns is the last word.
func (e *DoubtError) look(ctx context.Context) (record AgentRecord, landed, known bool, err error) {
	u, asked := e.update, time.Now()
	cur, _, err := u.s.get(ctx, u.key)
	if err != nil {
		return AgentRecord{}, false, false, err
	}
	now, err := decodeAgent(cur)
	if err != nil {
		return AgentRecord{}, false, false, err
	}
	record, landed, err = u.landed(ctx, cur, now)
	if err != nil || landed {
		return record, landed, landed, err
	}
	return AgentRecord{}, false, revisionOf(cur) > u.base || asked.Sub(e.since) > settled, nil
}

// pauseLong is pause for what nobody waits for.
func pauseLong(ctx context.Context) bool {
	t := time.NewTimer(500 * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

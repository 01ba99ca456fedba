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

// CreateEnrollment writes a single-use token; it ends by itself at its expiry.
func (s *Store) CreateEnrollment(ctx context.Context, r EnrollmentRecord) error {
	defer s.metrics.took(opEnrollment)()
	const doing = "create an enrollment token"
	ttl := r.ExpiresAt.Sub(s.now())
	if ttl <= 0 {
		return fmt.Errorf("%s: it has expired already", doing)
	}
	if !s.Room() {
		return noRoom(doing)
	}
	value, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	lease, err := s.grant(ctx, ttl)
	if err != nil {
		return unavailable(ctx, doing, err)
	}
	return s.swap(ctx, doing, enrollmentKey(r.Hash), func(cur *keyValue) (proposal, error) {
		if cur != nil {
			return proposal{}, fmt.Errorf("%s: %w", doing, ErrExists)
		}
		return proposal{value: string(value), lease: lease}, nil
	})
}

// Enrollment returns a token's record and leaves it usable; ErrNotFound when it is
// unknown, expired or used. It reads from the store itself: the mirror holds none.
func (s *Store) Enrollment(ctx context.Context, hash string) (EnrollmentRecord, error) {
	defer s.metrics.took(opEnrollment)()
	const doing = "read an enrollment token"
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	cur, _, err := s.get(ctx, enrollmentKey(hash))
	if err != nil {
		return EnrollmentRecord{}, unavailable(ctx, doing, err)
	}
	var record EnrollmentRecord
	if cur != nil {
		if err := json.Unmarshal(cur.value, &record); err != nil {
			return EnrollmentRecord{}, fmt.Errorf("%s: %w", doing, err)
		}
	}
	if cur == nil || !s.now().Before(record.ExpiresAt) {
		return EnrollmentRecord{}, fmt.Errorf("%s: %w", doing, ErrNotFound)
	}
	return record, nil
}

// TakeEnrollment uses a token up and returns it; ErrNotFound when it is unknown,
// expired or used.
func (s *Store) TakeEnrollment(ctx context.Context, hash string) (EnrollmentRecord, error) {
	defer s.metrics.took(opEnrollment)()
	return takeRecord(ctx, s, "use an enrollment token", enrollmentKey(hash), takenKey(hash), func(r EnrollmentRecord) bool { return s.now().Before(r.ExpiresAt) })
}

// takeRecord uses a record up and returns it; ErrNotFound when there is none that is
// valid. The deletion leaves a mark with this call's nonce, so that a lost answer does
// not cost the record: of two takers exactly one gets it. What is to be written with it is
// in the same transaction.
func takeRecord[R any](ctx context.Context, s *Store, doing, key, taken string, valid func(R) bool, with ...clientv3.Op) (record R, _ error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	var none R
	nonce := ident.NewNonce()
	var last error
	for attempt := 0; ; attempt++ {
		if attempt > 0 && !pause(ctx, attempt) {
			return none, unavailable(ctx, doing, last)
		}
		cur, _, err := s.get(ctx, key)
		if err != nil {
			last = err
			continue
		}
		if cur == nil {
			mark, _, err := s.get(ctx, taken)
			if err != nil {
				last = err
				continue
			}
			if mark != nil && string(mark.value) == nonce {
				return record, nil
			}
			return none, fmt.Errorf("%s: %w", doing, ErrNotFound)
		}
		record = none
		if err := json.Unmarshal(cur.value, &record); err != nil {
			return none, fmt.Errorf("%s: %w", doing, err)
		}
		if !valid(record) {
			return none, fmt.Errorf("%s: %w", doing, ErrNotFound)
		}
		ok, err := s.txn(ctx, []clientv3.Cmp{unchangedSince(key, cur)},
			append(with, clientv3.OpDelete(key), clientv3.OpPut(taken, nonce, clientv3.WithLease(cur.lease)))...)
		switch {
		case err == nil && ok:
			s.giveBack(ctx, cur.lease) // with the mark, which was for a lost answer only
			return record, nil
		case err == nil:
			s.metrics.conflicts.Inc()
		case errors.Is(err, rpctypes.ErrLeaseNotFound): // it has just run out
			return none, fmt.Errorf("%s: %w", doing, ErrNotFound)
		case rejected(err):
			return none, fmt.Errorf("%s: %w", doing, err)
		case full(err):
			return none, s.refusedAsFull(ctx, doing, err)
		default:
			s.metrics.unknown.Inc()
			last = err
		}
	}
}

package store

import (
	"context"
	"encoding/json"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/adit-tunnel/adit/shared/ident"
)

// CreateCode writes a code of a tunnel, which ends by itself at its expiry: ErrLimit
// when the tunnel has that many that nobody has used (two relays at once may both add
// the last one).
func (s *Store) CreateCode(ctx context.Context, r CodeRecord, most int) error {
	defer s.metrics.took(opCode)()
	doing := "create a terminal code of tunnel " + string(r.Session)
	if err := s.takesNew(ctx, doing); err != nil {
		return err
	}
	value, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	there, err := s.do(ctx, clientv3.OpGet(codesPrefix(r.Session), clientv3.WithPrefix()))
	if err != nil {
		return unavailable(ctx, doing, err)
	}
	for _, kv := range there.Get().Kvs {
		if s.worthless(kv.Value) { // it must not keep the place of a good one
			if _, err := s.do(ctx, clientv3.OpDelete(string(kv.Key))); err != nil {
				return unavailable(ctx, doing, err)
			}
			continue
		}
		most--
	}
	if most <= 0 {
		return fmt.Errorf("%s: %w", doing, ErrLimit)
	}
	lease, err := s.grant(ctx, r.ExpiresAt.Sub(s.now()))
	if err != nil {
		return unavailable(ctx, doing, err)
	}
	return s.swap(ctx, doing, codeKey(r.Session, r.Hash), func(cur *keyValue) (proposal, error) {
		if cur != nil {
			return proposal{}, fmt.Errorf("%s: %w", doing, ErrExists)
		}
		return proposal{value: string(value), lease: lease}, nil
	})
}

// worthless says whether a code was made with a credential that has been revoked since,
// or by a person who was removed.
func (s *Store) worthless(code []byte) bool {
	var r CodeRecord
	if json.Unmarshal(code, &r) != nil {
		return false
	}
	t, _ := s.Tunnel(r.Session)
	_, reason := Closed(s, t.Team, Opened{User: r.User, Credential: r.Credential})
	return reason != ""
}

// TakeCode uses a code up and returns it, on whichever relay it was made; ErrNotFound
// when it is unknown, expired or used.
func (s *Store) TakeCode(ctx context.Context, session ident.SessionID, hash string) (CodeRecord, error) {
	defer s.metrics.took(opCode)()
	return takeRecord(ctx, s, "use a terminal code", codeKey(session, hash), takenKey(hash), func(r CodeRecord) bool { return s.now().Before(r.ExpiresAt) })
}

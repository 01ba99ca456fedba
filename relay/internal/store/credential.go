package store

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/adit-tunnel/adit/shared/ident"
)

const (
	// touchEvery is how exact the last use of a credential is.
	touchEvery = time.Minute
	// keepDead is how long a revoked credential that never expires stays, and an
	// expired one that was not revoked.
	keepDead   = 90 * 24 * time.Hour
	sweepEvery = 10 * time.Minute
	// skew is by how much the relays' clocks may differ.
	skew = 5 * time.Minute
)

// CreateCredential writes a new credential; ErrExists when its id is taken.
func (s *Store) CreateCredential(ctx context.Context, r CredentialRecord) error {
	defer s.metrics.took(opCredential)()
	doing := "create credential " + string(r.ID)
	if !s.Room() {
		return noRoom(doing)
	}
	value, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	return s.swap(ctx, doing, credentialKey(r.ID), func(cur *keyValue) (proposal, error) {
		if cur != nil {
			return proposal{}, fmt.Errorf("%s: %w", doing, ErrExists)
		}
		return proposal{value: string(value)}, nil
	})
}

// RevokeCredential marks a team's credential as revoked and returns it. It stays
// as a tombstone until it would have expired, so that a late relay cannot take it
// for valid, and so that every relay closes what it opened, unless that is kept.
// Revoking a revoked one changes nothing but that what was kept is closed after all.
// Of another team: ErrNotFound.
func (s *Store) RevokeCredential(ctx context.Context, team ident.TeamID, id ident.CredentialID, at time.Time, keepTunnels bool) (CredentialRecord, error) {
	return s.changeCredential(ctx, "revoke credential ", id, func(r *CredentialRecord) error {
		if r.Team != team {
			return fmt.Errorf("revoke credential %s: %w", id, ErrNotFound)
		}
		switch {
		case r.RevokedAt.IsZero():
			r.RevokedAt, r.KeepTunnels = at.UTC(), keepTunnels
		case r.KeepTunnels && !keepTunnels:
			r.KeepTunnels = false
		default:
			return ErrUnchanged
		}
		return nil
	})
}

// AdoptCredential makes a team's credential its own: it no longer ends with who made it,
// which CreatedBy alone tells from then on.
func (s *Store) AdoptCredential(ctx context.Context, team ident.TeamID, id ident.CredentialID) error {
	_, err := s.changeCredential(ctx, "adopt credential ", id, func(r *CredentialRecord) error {
		switch {
		case r.Team != team:
			return fmt.Errorf("adopt credential %s: %w", id, ErrNotFound)
		case r.MadeBy == "" && r.Maker == "":
			return ErrUnchanged
		}
		r.MadeBy, r.Maker = "", ""
		return nil
	})
	return err
}

// TouchCredential notes a use. It writes at most once a minute per credential and
// never undoes a revocation.
func (s *Store) TouchCredential(ctx context.Context, id ident.CredentialID, at time.Time) error {
	if r, ok := s.Credential(id); ok && at.Sub(r.LastUsed) < touchEvery {
		return nil
	}
	_, err := s.changeCredential(ctx, "touch credential ", id, func(r *CredentialRecord) error {
		if !r.RevokedAt.IsZero() || at.Sub(r.LastUsed) < touchEvery {
			return ErrUnchanged
		}
		r.LastUsed = at.UTC()
		return nil
	})
	return err
}

func (s *Store) changeCredential(ctx context.Context, doing string, id ident.CredentialID, change func(*CredentialRecord) error) (CredentialRecord, error) {
	defer s.metrics.took(opCredential)()
	return changeRecord(ctx, s, doing+string(id), credentialKey(id), change)
}

// runSweep revokes credentials whose makers are, and deletes those that are of no use to anybody any more. Every
// relay does it; the deletions are conditional.
func (s *Store) runSweep(ctx context.Context) error {
	select {
	case <-s.ready:
	case <-ctx.Done():
		return nil
	}
	for {
		t := time.NewTimer(sweepEvery/2 + rand.N(sweepEvery))
		select {
		case <-t.C:
			s.sweepCredentials(ctx)
			s.sweepSignIns(ctx)
		case <-ctx.Done():
			t.Stop()
			return nil
		}
	}
}

func (s *Store) sweepCredentials(ctx context.Context) {
	for _, p := range snapshot(s.mirror, s.mirror.credentials) {
		if ctx.Err() != nil || s.stale() {
			return
		}
		if r, ok := Credentials(s.Credential).Revoked(p.key); ok && r.ID != p.key {
			// The relay that revoked its maker died before it came to this one. It is good for
			// nothing already; now it says so by itself, also when the maker's record is gone.
			if _, err := s.RevokeCredential(ctx, p.value.record.Team, p.key, r.RevokedAt, r.KeepTunnels); err != nil {
				s.log.Debug("revoking what a revoked credential made", "error", err)
			}
			continue
		}
		if !outlived(p.value.record, s.now()) {
			continue
		}
		doing := "delete dead credential " + string(p.key)
		err := s.swap(ctx, doing, credentialKey(p.key), func(cur *keyValue) (proposal, error) {
			if cur == nil || cur.rev != p.value.rev {
				return proposal{}, ErrUnchanged // somebody else saw to it
			}
			return proposal{delete: true}, nil
		})
		if err != nil {
			s.log.Debug("sweeping credentials", "error", err)
		}
	}
}

// outlived says whether a credential's record may go: a tombstone once the secret
// would be refused for its age anyway.
func outlived(r CredentialRecord, now time.Time) bool {
	now = now.Add(-skew)
	switch {
	case r.RevokedAt.IsZero():
		return !r.ExpiresAt.IsZero() && now.After(r.ExpiresAt.Add(keepDead))
	case r.ExpiresAt.IsZero():
		return now.After(r.RevokedAt.Add(keepDead))
	default:
		return now.After(r.ExpiresAt)
	}
}

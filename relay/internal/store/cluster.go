package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
)

// clusterRecord binds the store to the key that all of its relays have.
type clusterRecord struct {
	Fingerprint string    `json:"fingerprint"`
	Created     time.Time `json:"created"`
	Relay       string    `json:"relay"` // that came first
}

// CheckClusterKey makes sure that all relays of a store have the same cluster key:
// with different ones, the URLs of one would be refused by the others. The first
// relay's fingerprint stays; another one is ErrClusterKey.
func (s *Store) CheckClusterKey(ctx context.Context, fingerprint string) error {
	const doing = "check the cluster key"
	value, err := json.Marshal(clusterRecord{Fingerprint: fingerprint, Created: s.now(), Relay: string(s.cfg.Relay.ID)})
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	if s.client.Load() == nil {
		return fmt.Errorf("%s: %w", doing, ErrUnavailable)
	}
	return s.swap(ctx, doing, clusterKey, func(cur *keyValue) (proposal, error) {
		if cur == nil {
			mark, _, err := s.get(ctx, importingKey)
			if err != nil {
				return proposal{}, unavailable(ctx, doing, err)
			}
			if mark != nil {
				return proposal{}, fmt.Errorf("%s: an import into this store has not finished; empty the prefix %s and import again", doing, root)
			}
			return proposal{value: string(value)}, nil
		}
		var c clusterRecord
		if err := json.Unmarshal(cur.value, &c); err != nil {
			return proposal{}, fmt.Errorf("%s: %w", doing, err)
		}
		if c.Fingerprint != fingerprint {
			return proposal{}, fmt.Errorf("%w: this relay's has fingerprint %s, the store's %s (set by relay %s); every relay of a pool needs the same key file",
				ErrClusterKey, fingerprint, c.Fingerprint, c.Relay)
		}
		return proposal{}, ErrUnchanged
	})
}

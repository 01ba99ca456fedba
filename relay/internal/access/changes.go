package access

import (
	"context"

	"github.com/adit-tunnel/adit/relay/internal/store"
)

// changesBuffer is how many changes may wait for being looked at.
const changesBuffer = 4096

// Follower tells of changes; store.Store is one.
type Follower interface {
	Follow(ctx context.Context, buffer int, changed func(store.Change)) error
}

// StoreChanges returns what Config.Changes asks for.
func StoreChanges(s Follower) func(ctx context.Context, changed func(store.Change)) error {
	return func(ctx context.Context, changed func(store.Change)) error {
		return s.Follow(ctx, changesBuffer, changed)
	}
}

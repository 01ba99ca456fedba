package creds

import (
	"context"

	"github.com/adit-tunnel/adit/relay/internal/store"
)

// changesBuffer is how many changes of the store may wait. A relay with many
// agents sees thousands a second, few of them of rights; losing some costs one
// look at all watches.
const changesBuffer = 1024

// Follower is what StoreChanges needs of the store.
type Follower interface {
	Follow(ctx context.Context, buffer int, changed func(store.Change)) error
}

// StoreChanges is Config.Changes for a store.
func StoreChanges(s Follower) func(ctx context.Context, changed func(store.Change)) error {
	return func(ctx context.Context, changed func(store.Change)) error {
		return s.Follow(ctx, changesBuffer, func(c store.Change) {
			switch c.Kind {
			case "", store.KindCredential, store.KindUser, store.KindMember, store.KindSignIn:
				changed(c)
			}
		})
	}
}

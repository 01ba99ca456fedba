package creds

import (
	"context"

	"github.com/adit-tunnel/adit/relay/internal/store"
)

// changesBuffer is how many changes of the store may wait. A relay with many
// agents sees thousands a second, few of them of rights; losing some costs one
// look at all watches.
const changesBuffer = 1024

// Subscriber is what StoreChanges needs of the store.
type Subscriber interface {
	Subscribe(buffer int) *store.Subscription
}

// StoreChanges is Config.Changes for a store.
func StoreChanges(s Subscriber) func(ctx context.Context, changed func(store.Change)) error {
	return func(ctx context.Context, changed func(store.Change)) error {
		sub := s.Subscribe(changesBuffer)
		defer sub.Close()
		for {
			select {
			case <-ctx.Done():
				return nil
			case c, ok := <-sub.C():
				if !ok { // the store has stopped: nothing will change any more
					<-ctx.Done()
					return nil
				}
				if sub.Lost() {
					changed(store.Change{})
					continue
				}
				switch c.Kind {
				case store.KindCredential, store.KindUser, store.KindMember, store.KindSignIn:
					changed(c)
				}
			}
		}
	}
}

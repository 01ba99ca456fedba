package access

import (
	"context"

	"github.com/adit-tunnel/adit/relay/internal/store"
)

// changesBuffer is how many changes may wait for being looked at.
const changesBuffer = 4096

// Subscriber tells of changes; store.Store is one.
type Subscriber interface {
	Subscribe(buffer int) *store.Subscription
}

// StoreChanges returns what Config.Changes asks for.
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
					c = store.Change{}
				}
				changed(c)
			}
		}
	}
}

package hub

import (
	"sync"

	"github.com/adit-tunnel/adit/shared/wire"
)

// outboxLimit bounds the control messages that wait for one link.
const outboxLimit = 256

// outbox holds the control messages that wait for one link's writer. It takes no
// memory while it is empty, as it mostly is: a channel of this length would be half
// of what an idle agent costs.
type outbox struct {
	mu      sync.Mutex
	waiting []wire.Message
	some    chan struct{} // holds a token when messages wait
}

func newOutbox() *outbox { return &outbox{some: make(chan struct{}, 1)} }

// put adds a message, or returns false when too many wait.
func (o *outbox) put(m wire.Message) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.waiting) >= outboxLimit {
		return false
	}
	o.waiting = append(o.waiting, m)
	select {
	case o.some <- struct{}{}:
	default:
	}
	return true
}

// take returns all that waits, in order, after a token from some.
func (o *outbox) take() []wire.Message {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := o.waiting
	o.waiting = nil
	return all
}

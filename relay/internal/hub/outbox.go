package hub

import (
	"sync"

	"github.com/adit-tunnel/adit/shared/wire"
)

// outboxLimit bounds the control messages that wait for one link.
const outboxLimit = 256

// outbox carries control messages to one link, one at a time and in order, without
// holding up who sends them. While it is empty, as it mostly is, it costs neither a
// buffer nor a goroutine: with ten thousand idle agents these were most of the
// relay's memory.
type outbox struct {
	write func(wire.Message) error
	fail  func(error) // told why writing ended; called once at most

	mu      sync.Mutex
	waiting []wire.Message
	writing bool
	closed  bool
	writers sync.WaitGroup
}

// put adds a message, or returns false when too many wait. After close it does
// nothing.
func (o *outbox) put(m wire.Message) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.closed:
		return true
	case len(o.waiting) >= outboxLimit:
		return false
	}
	o.waiting = append(o.waiting, m)
	if !o.writing {
		o.writing = true
		o.writers.Go(o.run)
	}
	return true
}

// run writes until nothing waits.
func (o *outbox) run() {
	for batch := o.take(); batch != nil; batch = o.take() {
		for _, m := range batch {
			if err := o.write(m); err != nil {
				o.shut()
				o.fail(err)
				return
			}
		}
	}
}

func (o *outbox) take() []wire.Message {
	o.mu.Lock()
	defer o.mu.Unlock()
	batch := o.waiting
	o.waiting = nil
	o.writing = batch != nil
	return batch
}

func (o *outbox) shut() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed, o.waiting = true, nil
}

// close drops what waits and returns when nothing is written any more; the link
// must be closed, or a write could last.
func (o *outbox) close() {
	o.shut()
	o.writers.Wait()
}

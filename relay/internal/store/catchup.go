package store

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// catchUpRate bounds the reads that misses may cause; callers share them, so that
// none is refused and none waits longer than one interval more.
const (
	catchUpRate  = 50 // a second
	catchUpBurst = 10
)

// catchUp shares one read among callers. A caller never joins a read that was on
// its way when it came: that one may be older than what the caller knows of.
type catchUp struct {
	mu     sync.Mutex
	next   *flight
	closed bool
	wake   chan struct{}
}

type flight struct {
	done chan struct{}
	err  error
}

func newCatchUp() *catchUp { return &catchUp{wake: make(chan struct{}, 1)} }

// CatchUp waits until the mirror has everything that was acknowledged before the
// call, by whichever relay: what it does not hold then does not exist.
func (s *Store) CatchUp(ctx context.Context) error {
	c := s.catchUp
	c.mu.Lock()
	if c.closed || s.client.Load() == nil {
		c.mu.Unlock()
		return fmt.Errorf("catch up with the store: %w", ErrUnavailable)
	}
	if c.next == nil {
		c.next = &flight{done: make(chan struct{})}
	}
	f := c.next
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return unavailable(ctx, "catch up with the store", nil)
	}
}

// runCatchUp makes the shared reads, one after the other.
func (s *Store) runCatchUp(ctx context.Context) error {
	c := s.catchUp
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.closed = true
		if c.next != nil {
			c.next.err = fmt.Errorf("catch up with the store: %w", ErrUnavailable)
			close(c.next.done)
			c.next = nil
		}
	}()
	limit := rate.NewLimiter(catchUpRate, catchUpBurst)
	for {
		select {
		case <-c.wake:
		case <-ctx.Done():
			return nil
		}
		if err := limit.Wait(ctx); err != nil {
			return nil // ctx has ended
		}
		c.mu.Lock()
		f := c.next
		c.next = nil
		c.mu.Unlock()
		if f == nil {
			continue // a wake-up left over from callers that the last read served
		}
		f.err = s.confirm(ctx)
		close(f.done)
	}
}

// confirm reads the store's revision from a quorum and waits for the mirror to
// reach it.
func (s *Store) confirm(ctx context.Context) error {
	defer s.metrics.took(opCatchUp)()
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	_, revision, err := s.get(ctx, clusterKey)
	if err != nil {
		return unavailable(ctx, "catch up with the store", err)
	}
	from := s.mirror.revision()
	for n := 1; ; n++ {
		// The revision may belong to a key that no event will tell of.
		if s.mirror.revision() < revision {
			s.askProgress()
		}
		wctx, done := context.WithTimeout(ctx, 100*time.Millisecond)
		err = s.mirror.wait(wctx, revision)
		done()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return unavailable(ctx, "catch up with the store", nil)
		}
		if n%10 == 0 { // a second without a step: this watch may never get there
			if at := s.mirror.revision(); at == from {
				s.reopenWatch()
			} else {
				from = at
			}
		}
	}
}

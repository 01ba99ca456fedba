// Package backoff owns one rule: how long to wait before the next try to reach a
// peer that is gone. It keeps no connection and starts nothing.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	first     = 200 * time.Millisecond // the first wait
	eagerMax  = time.Second            // the longest wait in the eager time
	eagerTime = time.Minute            // a relay's restart or a short outage is over by then
	longMax   = 30 * time.Second       // the longest wait ever
	// Growth is slow at first: after an outage of one second the next try is well
	// under half a second away.
	eagerGrowth = 1.2
	longGrowth  = 1.6
	// jitter is the share of a wait that is left to chance, so that a thousand agents
	// that lost one relay do not come back at once.
	jitter = 0.5
)

// Backoff says when to try again: after 0.2 s, at most 1 s apart for a minute, then
// less and less often up to 30 s. Waits are jittered downwards. The zero value is
// ready; it is for one goroutine.
type Backoff struct {
	since time.Time     // the first Next after a Reset
	wait  time.Duration // the last wait, without jitter
}

// Next returns how long to wait before the next try.
func (b *Backoff) Next() time.Duration {
	switch now := time.Now(); {
	case b.since.IsZero():
		b.since, b.wait = now, first
	case now.Sub(b.since) < eagerTime:
		b.wait = min(grow(b.wait, eagerGrowth), eagerMax)
	default:
		b.wait = min(grow(b.wait, longGrowth), longMax)
	}
	return b.wait - time.Duration(rand.Float64()*jitter*float64(b.wait))
}

// Reset begins anew: the peer was reached.
func (b *Backoff) Reset() { *b = Backoff{} }

// Wait waits for Next. It returns the context's cause when that ends first.
func (b *Backoff) Wait(ctx context.Context) error { return Sleep(ctx, b.Next()) }

// Sleep waits for d, or returns the context's cause when that ends first.
func Sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return context.Cause(ctx)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

func grow(d time.Duration, by float64) time.Duration { return time.Duration(float64(d) * by) }

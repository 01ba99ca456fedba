package uplink

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptrace"
	"sync/atomic"
	"time"

	"github.com/adit-tunnel/adit/shared/link"
)

const (
	attemptTime = 10 * time.Second // of one dial: TCP, proxy, TLS and upgrade
	hedgeAfter  = time.Second
	maxAttempts = 4 // at the same time
)

// reach dials relays until one answers, and returns its link. Targets are tried
// in turn. While no attempt got as far as a TCP connection, a new one is started
// each second beside those that wait, if eager: on a path that is cut, a waiting
// attempt is tried again by TCP after 1, 3, 7 seconds only, and so would miss the
// path's return by seconds. A relay that is merely slow is not hedged against:
// that would multiply the load under which it is slow.
func (u *Uplink) reach(ctx context.Context, targets []string, eager bool) (*link.Link, string, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	type result struct {
		link *link.Link
		a    *attempt
		err  error
	}
	results := make(chan result)
	running := map[*attempt]struct{}{}
	started := 0
	start := func() {
		a := &attempt{url: targets[started%len(targets)]}
		started++
		running[a] = struct{}{}
		go func() {
			l, err := a.dial(ctx, u.conf.Dial)
			results <- result{l, a, err}
		}()
	}
	stop := func(cause error) {
		cancel(cause)
		for len(running) > 0 {
			r := <-results
			delete(running, r.a)
			if r.link != nil {
				_ = r.link.Close(cause)
			}
		}
	}
	hedge := time.NewTicker(hedgeAfter)
	defer hedge.Stop()
	start()
	var errs []error
	for {
		select {
		case r := <-results:
			delete(running, r.a)
			if r.err == nil {
				stop(errNotNeeded)
				return r.link, r.a.url, nil
			}
			errs = append(errs, fmt.Errorf("%s: %w", r.a.url, r.err))
			switch {
			case ctx.Err() != nil:
				stop(nil)
				return nil, "", context.Cause(ctx)
			case started < len(targets):
				start()
			case !anyConnected(running):
				stop(errNotNeeded)
				return nil, "", dialEnding(errors.Join(errs...))
			}
		case <-hedge.C:
			if (eager || started < len(targets)) && len(running) < maxAttempts && !anyConnected(running) {
				start()
			}
		case <-ctx.Done():
			cause := context.Cause(ctx)
			stop(cause)
			return nil, "", cause
		}
	}
}

var errNotNeeded = errors.New("another attempt was faster")

// attempt is one dial.
type attempt struct {
	url       string
	connected atomic.Bool // TCP, to the relay or to the proxy before it
}

func (a *attempt) dial(ctx context.Context, dial Dialer) (*link.Link, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, attemptTime, fmt.Errorf("no link within %s", attemptTime))
	defer cancel()
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		ConnectDone: func(_, _ string, err error) {
			if err == nil {
				a.connected.Store(true)
			}
		},
	})
	l, err := dial(ctx, a.url)
	if err != nil && ctx.Err() != nil && errors.Is(err, context.DeadlineExceeded) {
		return nil, context.Cause(ctx)
	}
	return l, err
}

func anyConnected(attempts map[*attempt]struct{}) bool {
	for a := range attempts {
		if a.connected.Load() {
			return true
		}
	}
	return false
}

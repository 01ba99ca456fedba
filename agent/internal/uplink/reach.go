package uplink

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptrace"
	"slices"
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
// each second beside those that wait, if eager, and the oldest of many is given up:
// on a path that is cut, a waiting attempt is tried again by TCP after 1, 3, 7
// seconds only, and so would miss the path's return by seconds. A relay that is
// merely slow is not hedged against: that would multiply the load under which it
// is slow.
func (u *Uplink) reach(ctx context.Context, targets []string, eager bool) (*link.Link, string, error) {
	r := &race{dial: u.conf.Dial, targets: targets, results: make(chan outcome)}
	defer r.stop()
	hedge := time.NewTicker(hedgeAfter)
	defer hedge.Stop()
	limit := time.NewTimer(attemptTime)
	defer limit.Stop()
	r.start(ctx)
	var errs []error
	for {
		select {
		case o := <-r.results:
			r.remove(o.a)
			if o.err == nil {
				return o.link, o.a.url, nil
			}
			if ctx.Err() != nil {
				return nil, "", context.Cause(ctx)
			}
			if o.a.givenUp {
				continue
			}
			errs = append(errs, fmt.Errorf("%s: %w", o.a.url, o.err))
			switch {
			case r.started < len(targets):
				r.start(ctx)
			case !r.connected():
				return nil, "", dialEnding(errors.Join(errs...))
			}
		case <-hedge.C:
			if (eager || r.started < len(targets)) && !r.connected() {
				r.giveUpOldest()
				r.start(ctx)
			}
		case <-limit.C:
			if !r.connected() { // one that is connected has a limit of its own
				return nil, "", dialEnding(errors.Join(append(errs, errNoAnswer)...))
			}
		case <-ctx.Done():
			return nil, "", context.Cause(ctx)
		}
	}
}

var (
	errNotNeeded = errors.New("another attempt was faster")
	errNoAnswer  = fmt.Errorf("no answer within %s", attemptTime)
)

// race is the attempts of one reach. It is for one goroutine.
type race struct {
	dial    Dialer
	targets []string
	results chan outcome
	running []*attempt // the oldest first
	started int
}

type outcome struct {
	link *link.Link
	a    *attempt
	err  error
}

func (r *race) start(ctx context.Context) {
	ctx, cancel := context.WithCancelCause(ctx)
	a := &attempt{url: r.targets[r.started%len(r.targets)], cancel: cancel}
	r.started++
	r.running = append(r.running, a)
	go func() {
		l, err := a.dialWith(ctx, r.dial)
		r.results <- outcome{l, a, err}
	}()
}

func (r *race) remove(a *attempt) {
	a.cancel(nil)
	r.running = slices.DeleteFunc(r.running, func(x *attempt) bool { return x == a })
}

// giveUpOldest makes room for another attempt. The result still comes, and counts
// if it is a link after all.
func (r *race) giveUpOldest() {
	waiting := 0
	for _, a := range r.running {
		if !a.givenUp {
			waiting++
		}
	}
	for _, a := range r.running {
		if waiting < maxAttempts {
			return
		}
		if !a.givenUp {
			a.givenUp = true
			a.cancel(errNotNeeded)
			waiting--
		}
	}
}

// connected says whether an attempt got as far as a TCP connection.
func (r *race) connected() bool {
	return slices.ContainsFunc(r.running, func(a *attempt) bool { return a.connected.Load() && !a.givenUp })
}

// stop ends all attempts and waits for them.
func (r *race) stop() {
	for _, a := range r.running {
		a.cancel(errNotNeeded)
	}
	for len(r.running) > 0 {
		o := <-r.results
		r.remove(o.a)
		if o.link != nil {
			_ = o.link.Close(errNotNeeded)
		}
	}
}

// attempt is one dial.
type attempt struct {
	url       string
	cancel    context.CancelCauseFunc
	givenUp   bool        // belongs to the race's goroutine
	connected atomic.Bool // TCP, to the relay or to the proxy before it
}

func (a *attempt) dialWith(ctx context.Context, dial Dialer) (*link.Link, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, attemptTime, errNoAnswer)
	defer cancel()
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		ConnectDone: func(_, _ string, err error) {
			if err == nil {
				a.connected.Store(true)
			}
		},
	})
	l, err := dial(ctx, a.url)
	if err != nil && errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return l, err
}

package relay

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// layerRun is a group of parts that start and end together.
type layerRun struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	failed chan<- error
	err    error // the first failure before anybody listened
}

// layer returns an empty group. A kill does not end its parts: they are ended in
// order also then, but nothing waits for anything slow any more.
func layer(kill context.Context) *layerRun {
	ctx, cancel := context.WithCancel(context.WithoutCancel(kill))
	return &layerRun{ctx: ctx, cancel: cancel}
}

// run starts a part that blocks until its context ends.
func (l *layerRun) run(name string, part func(context.Context) error) {
	l.wg.Go(func() {
		err := part(l.ctx)
		if l.ctx.Err() != nil {
			return // it was ended
		}
		if err == nil {
			err = fmt.Errorf("it ended by itself")
		}
		l.fail(fmt.Errorf("%s: %w", name, err))
	})
}

func (l *layerRun) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return
	}
	l.err = err
	if l.failed != nil {
		l.failed <- err
	}
	l.cancel()
}

// onFail sends the first failure of the group, also an earlier one, to a channel
// with room for it.
func (l *layerRun) onFail(failed chan<- error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		failed <- l.err
		return
	}
	l.failed = failed
}

// wait calls a step that needs the group, and gives up with it, with a signal to
// stop or after the time given.
func (l *layerRun) wait(limit time.Duration, signal context.Context, step func(context.Context) error) error { //nolint:revive // signal is not the context of the call
	ctx, cancel := context.WithTimeout(l.ctx, limit)
	defer cancel()
	defer context.AfterFunc(signal, cancel)()
	err := step(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	return err
}

// end ends the group's parts and waits for them.
func (l *layerRun) end() {
	l.cancel()
	l.wg.Wait()
}

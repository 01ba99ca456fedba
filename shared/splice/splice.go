// Package splice owns the copying between two connections, in both directions: it
// is the only package that copies streams. It passes half-closes on, counts, and
// decides when what is left of a broken pair is given up. It never opens a
// connection and never looks at a byte.
package splice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Conn is a connection that can end its two directions separately. A connection
// whose wrapper hides CloseWrite would silently turn a half-close into a close, so
// the method is required.
//
// Two more methods are used where they exist. Reset() error gives a connection up
// so that the peer sees an error, not an end. Done() <-chan struct{} is closed when
// the peer takes no more data although reading saw only an orderly end.
type Conn interface {
	io.ReadWriteCloser
	CloseWrite() error
}

var _ Conn = (*net.TCPConn)(nil)

// DefaultLinger is the Linger that is used when Options name none.
const DefaultLinger = 10 * time.Second

// Options tune Both. The zero value asks for all defaults.
type Options struct {
	// AtoB and BtoA are called with the size of every piece, after it was written.
	// Each is called from one goroutine, not both from the same.
	AtoB, BtoA func(n int)
	// Linger is how long a direction may go on without moving a byte once the
	// other one broke. Default DefaultLinger.
	Linger time.Duration
}

// Result says how many bytes were carried.
type Result struct{ AtoB, BtoA int64 }

// ErrLinger is wrapped when one direction broke and the other moved nothing for
// Options.Linger.
var ErrLinger = errors.New("the other direction broke and this one is idle")

// Both copies in both directions until both have ended, and closes a and b.
//
// When one side says that it has no more to send (io.EOF), the other side's writing
// end is closed and the opposite direction goes on without any limit: a command
// that runs for hours over ssh with its input closed says nothing for hours, and
// nothing tells it from a connection that is stuck. A limit applies only once a
// side can certainly take no more: a write to it failed, or its Done says so. What
// it sent before is still passed on for as long as bytes move at least every
// Linger; then both are given up. A read error means the same side can neither send
// nor take: there is nothing left to wait for and both are given up at once.
//
// The end of ctx gives both up at once and Both returns the context's cause.
// Otherwise the error is nil when both directions ended in order, and the first
// that happened when not.
func Both(ctx context.Context, a, b Conn, opts Options) (Result, error) {
	if opts.Linger <= 0 {
		opts.Linger = DefaultLinger
	}
	p := &pair{a: a, b: b, broken: make(chan struct{})}
	if err := ctx.Err(); err != nil {
		p.giveUp()
		return Result{}, context.Cause(ctx)
	}
	stop := context.AfterFunc(ctx, p.giveUp)
	defer stop()

	var ended sync.WaitGroup
	all := make(chan struct{})
	ended.Go(func() { p.run(&p.ab, a, b, opts.AtoB) })
	ended.Go(func() { p.run(&p.ba, b, a, opts.BtoA) })
	var watch sync.WaitGroup
	watch.Go(func() { p.watch(all, opts.Linger) })
	ended.Wait()
	close(all)
	watch.Wait()

	err := p.first()
	if ctx.Err() != nil && !stop() {
		err = context.Cause(ctx)
	}
	p.closeBoth()
	return Result{AtoB: p.ab.n.Load(), BtoA: p.ba.n.Load()}, err
}

// pair is two connections and what goes on between them.
type pair struct {
	a, b   Conn
	ab, ba direction

	mu       sync.Mutex
	err      error
	once     sync.Once
	isBroken sync.Once
	broken   chan struct{} // closed when a side can take no more
}

type direction struct {
	n     atomic.Int64
	whole bool // it ended in order, and its target was told
}

// run carries one direction to its end.
func (p *pair) run(d *direction, src, dst Conn, count func(int)) {
	rerr, werr := copyTo(d, src, dst, count)
	switch {
	case werr != nil:
		p.fail(fmt.Errorf("write: %w", werr))
		p.breakUp()
	case rerr != nil:
		p.fail(fmt.Errorf("read: %w", rerr))
		p.giveUp()
	default:
		// A target that is gone by now has no use for an end: all was written, and
		// what it still had to say lingers.
		if err := dst.CloseWrite(); err != nil {
			p.breakUp()
		} else {
			d.whole = true
		}
	}
}

// closeBoth closes what both directions left. A side that got a whole stream is
// closed in order; another one is reset, or it would take a torn stream for one.
func (p *pair) closeBoth() {
	p.once.Do(func() {
		end := func(c Conn, d *direction) {
			if d.whole {
				_ = c.Close()
			} else {
				_ = reset(c)
			}
		}
		end(p.a, &p.ba)
		end(p.b, &p.ab)
	})
}

// watch ends the pair when it is broken and nothing moves any more.
func (p *pair) watch(all <-chan struct{}, linger time.Duration) {
	select {
	case <-all:
		return
	case <-p.broken:
	case <-done(p.a):
	case <-done(p.b):
	}
	tick := time.NewTicker(linger)
	defer tick.Stop()
	for moved := p.moved(); ; {
		select {
		case <-all:
			return
		case <-tick.C:
			now := p.moved()
			if now == moved {
				p.fail(ErrLinger)
				p.giveUp()
				return
			}
			moved = now
		}
	}
}

func (p *pair) moved() int64 { return p.ab.n.Load() + p.ba.n.Load() }

func (p *pair) breakUp() { p.isBroken.Do(func() { close(p.broken) }) }

// giveUp frees whoever is blocked on either side.
func (p *pair) giveUp() {
	p.once.Do(func() {
		var wg sync.WaitGroup
		wg.Go(func() { _ = reset(p.a) }) // one may take its time to say goodbye
		wg.Go(func() { _ = reset(p.b) })
		wg.Wait()
	})
}

// fail keeps the first error.
func (p *pair) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = err
	}
}

func (p *pair) first() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

func reset(c Conn) error {
	if r, ok := c.(interface{ Reset() error }); ok {
		return r.Reset()
	}
	return c.Close()
}

func done(c Conn) <-chan struct{} {
	if d, ok := c.(interface{ Done() <-chan struct{} }); ok {
		return d.Done()
	}
	return nil
}

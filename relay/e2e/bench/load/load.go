// Package load is the bench's generator of load and the origin that it is aimed at.
// It knows addresses and hosts, but not what lies between the two: the same load goes
// to an origin directly, through a reverse proxy and through a tunnel. It prints
// nothing and starts nothing but its own connections.
package load

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Endpoint is where the origin is reached.
type Endpoint struct {
	Addr string `json:"addr"` // host:port to connect to
	Host string `json:"host"` // the Host header
	TLS  bool   `json:"tls,omitempty"`
}

// The kinds of load.
const (
	Requests   = "requests"       // small GETs over kept connections, one under way on each
	NewConns   = "new-conns"      // small GETs, each on a connection of its own
	Download   = "download"       // endless answers
	Upload     = "upload"         // endless request bodies
	WebSockets = "ws"             // echoes of 128 bytes, one under way on each socket
	UnderBulk  = "under-bulk"     // small GETs at a fixed rate beside endless answers
	Wait       = "wait"           // until one small GET succeeds
	smallRate  = 40               // of UnderBulk, a second
	wsSize     = 128              // bytes of an echo
	patience   = 20 * time.Second // with one answer
)

// Spec says what to do for how long.
type Spec struct {
	Endpoint
	Kind  string        `json:"kind"`
	Conns int           `json:"conns"`
	Warm  time.Duration `json:"warm"` // load that is not measured, before
	For   time.Duration `json:"for"`
	// Counter is the origin's unix socket, which says how many bytes of uploads have
	// arrived: what a client has written may be in a buffer yet.
	Counter string `json:"counter,omitempty"`
}

// Result is what was measured. Errors count over the whole time, the rest from the
// end of the warming up on.
type Result struct {
	Rate    float64 `json:"rate"`           // a second: answers, echoes or bytes
	Bulk    float64 `json:"bulk,omitempty"` // of UnderBulk: bytes a second
	P50     float64 `json:"p50_ms,omitempty"`
	P99     float64 `json:"p99_ms,omitempty"`
	Ops     int64   `json:"ops,omitempty"`
	Moved   int64   `json:"moved,omitempty"` // bytes, warming up included
	Errors  int64   `json:"errors,omitempty"`
	Problem string  `json:"problem,omitempty"` // the first error
}

// Run puts the load on and returns what came of it.
func Run(ctx context.Context, s Spec) (Result, error) {
	r := &run{Spec: s}
	r.begin()
	if s.Kind != Wait && (s.Conns < 1 || s.For <= 0) {
		return Result{}, errors.New("load: connections and a duration are required")
	}
	switch s.Kind {
	case Requests:
		return r.closedLoop(ctx, r.requests), nil
	case NewConns:
		return r.closedLoop(ctx, r.newConns), nil
	case WebSockets:
		return r.webSockets(ctx), nil
	case Download:
		return r.bulk(ctx, r.download, func() (int64, error) { return r.moved.Load(), nil })
	case Upload:
		count, stop, err := dialCounter(ctx, s.Counter)
		if err != nil {
			return Result{}, err
		}
		defer stop()
		return r.bulk(ctx, r.upload, count)
	case UnderBulk:
		return r.underBulk(ctx), nil
	case Wait:
		return r.wait(ctx)
	}
	return Result{}, fmt.Errorf("load: no such kind: %q", s.Kind)
}

// run is one measurement.
type run struct {
	Spec
	start, from, to time.Time

	moved  atomic.Int64
	errors atomic.Int64
	first  sync.Once
	why    string
}

// begin starts the measurement's time.
func (r *run) begin() {
	r.start = time.Now()
	r.from = r.start.Add(r.Warm)
	r.to = r.from.Add(r.For)
}

// failed notes an error. The end of the measurement's time is none.
func (r *run) failed(err error) {
	if err == nil {
		return
	}
	r.errors.Add(1)
	r.first.Do(func() { r.why = err.Error() })
}

func (r *run) result(from, to time.Time, times []time.Duration) Result {
	slices.Sort(times)
	at := func(p float64) float64 {
		if len(times) == 0 {
			return 0
		}
		return float64(times[min(int(p*float64(len(times))), len(times)-1)]) / float64(time.Millisecond)
	}
	return Result{
		Rate: float64(len(times)) / to.Sub(from).Seconds(), P50: at(0.50), P99: at(0.99),
		Ops: int64(len(times)), Moved: r.moved.Load(), Errors: r.errors.Load(), Problem: r.why,
	}
}

// closedLoop runs one loop a connection; each notes when its answers came.
func (r *run) closedLoop(ctx context.Context, loop func(context.Context, func(since time.Time))) Result {
	ctx, cancel := context.WithDeadline(ctx, r.to.Add(patience))
	defer cancel()
	var wg sync.WaitGroup
	times := make([][]time.Duration, r.Conns)
	for i := range r.Conns {
		wg.Go(func() {
			mine := make([]time.Duration, 0, 1<<12)
			loop(ctx, func(since time.Time) {
				if now := time.Now(); now.After(r.from) && !now.After(r.to) {
					mine = append(mine, now.Sub(since))
				}
			})
			times[i] = mine
		})
	}
	wg.Wait()
	return r.result(r.from, r.to, slices.Concat(times...))
}

// bulk runs one endless transfer a connection and looks at a counter twice.
func (r *run) bulk(ctx context.Context, transfer func(context.Context) error, count func() (int64, error)) (Result, error) {
	ctx, cancel := context.WithDeadline(ctx, r.to)
	defer cancel()
	first, err := count()
	if err != nil {
		return Result{}, err
	}
	var wg sync.WaitGroup
	for range r.Conns {
		wg.Go(func() { r.endless(ctx, transfer) })
	}
	sleep(ctx, time.Until(r.from))
	a, errA := count()
	from := time.Now()
	sleep(ctx, time.Until(r.to))
	b, errB := count()
	to := time.Now()
	wg.Wait()
	if err := errors.Join(errA, errB); err != nil {
		return Result{}, err
	}
	out := r.result(from, to, nil)
	out.Rate, out.Moved = float64(b-a)/to.Sub(from).Seconds(), b-first
	return out, nil
}

// endless repeats a transfer that is not meant to end.
func (r *run) endless(ctx context.Context, transfer func(context.Context) error) {
	for ctx.Err() == nil {
		if err := overtime(ctx, transfer(ctx)); err != nil {
			r.failed(err)
			sleep(ctx, 20*time.Millisecond)
		}
	}
}

// underBulk sends small requests at a fixed rate, whether or not answers come, while
// endless answers run.
func (r *run) underBulk(ctx context.Context) Result {
	ctx, cancel := context.WithDeadline(ctx, r.to.Add(patience))
	defer cancel()
	bulk, stop := context.WithDeadline(ctx, r.to)
	defer stop()
	var wg sync.WaitGroup
	for range r.Conns {
		wg.Go(func() { r.endless(bulk, r.download) })
	}
	sleep(ctx, time.Until(r.from))
	before, from := r.moved.Load(), time.Now()
	var mu sync.Mutex
	var idle []*conn
	var times []time.Duration
	for i := range int(r.For.Seconds() * smallRate) {
		at := from.Add(time.Duration(i) * time.Second / smallRate)
		sleep(ctx, time.Until(at))
		wg.Go(func() {
			var c *conn
			mu.Lock()
			if n := len(idle); n > 0 {
				c, idle = idle[n-1], idle[:n-1]
			}
			mu.Unlock()
			c, err := r.small(ctx, c, false)
			mu.Lock()
			defer mu.Unlock()
			times = append(times, time.Since(at)) // one that was lost took at least so long
			if err != nil {
				r.errors.Add(1)
				r.first.Do(func() { r.why = err.Error() })
				return
			}
			idle = append(idle, c)
		})
	}
	sleep(bulk, time.Until(r.to))
	bytes, took := r.moved.Load()-before, time.Since(from)
	wg.Wait()
	for _, c := range idle {
		c.close()
	}
	out := r.result(from, r.to, times)
	out.Bulk = float64(bytes) / took.Seconds()
	return out
}

// wait asks until an answer comes.
func (r *run) wait(ctx context.Context) (Result, error) {
	for {
		c, err := r.small(ctx, nil, true)
		if err == nil {
			c.close()
			return Result{Rate: 1, P50: float64(time.Since(r.start)) / float64(time.Millisecond), Ops: 1}, nil
		}
		if time.Since(r.start) > r.For {
			return Result{}, fmt.Errorf("no answer from %s within %s: %w", r.Addr, r.For, err)
		}
		sleep(ctx, 20*time.Millisecond)
	}
}

// dial connects to the endpoint.
func (r *run) dial(ctx context.Context) (net.Conn, error) {
	d := net.Dialer{Timeout: patience}
	c, err := d.DialContext(ctx, "tcp", r.Addr)
	if err != nil || !r.TLS {
		return c, err
	}
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	//nolint:gosec // a bench on this machine: which certificate it is makes no difference to its cost
	t := tls.Client(c, &tls.Config{ServerName: host, InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	if err := t.HandshakeContext(ctx); err != nil {
		_ = c.Close()
		return nil, err
	}
	return t, nil
}

// sleep waits, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

package wan

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// chunkSize is how many bytes travel together at most: small enough that a slow
// wire moves in fine steps.
const chunkSize = 16 << 10

// pair is one connection through the link: its near end (who connected) and its
// far end (the target).
type pair struct {
	link     *Link
	near     *net.TCPConn
	accepted time.Time
	lost     atomic.Bool // its bytes vanish, for good

	once sync.Once
	done chan struct{} // closed by reset

	mu  sync.Mutex
	far *net.TCPConn
}

// setFar is false, and closes the far end, when the pair was reset meanwhile.
func (p *pair) setFar(far *net.TCPConn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended() {
		abort(far)
		return false
	}
	p.far = far
	return true
}

// reset ends both ends with an error at their peers (a TCP reset).
func (p *pair) reset() {
	p.once.Do(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		close(p.done)
		abort(p.near)
		if p.far != nil {
			abort(p.far)
		}
	})
}

func (p *pair) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// run carries both directions and returns when both have ended.
func (p *pair) run() {
	// The near end's connect returned at once; on a real link it takes a round trip.
	handshake := p.accepted.Add(2 * p.link.current().Delay)
	var wg sync.WaitGroup
	wg.Go(func() { p.direction(p.link.wires[0], p.near, p.far, handshake) })
	wg.Go(func() { p.direction(p.link.wires[1], p.far, p.near, time.Time{}) })
	wg.Wait()
	_ = p.near.Close()
	_ = p.far.Close()
}

// swallow reads for ever and answers nothing.
func (p *pair) swallow(conn *net.TCPConn) {
	_, _ = io.Copy(io.Discard, conn)
	<-p.done // even the peer's goodbye vanishes
}

// chunk is bytes under way; the last one has an end instead of bytes.
type chunk struct {
	bytes []byte
	due   time.Time
	end   error // io.EOF or errReset
}

// direction carries bytes from src to dst: one goroutine reads and says when each
// chunk arrives, this one delivers.
func (p *pair) direction(w *wire, src, dst *net.TCPConn, notBefore time.Time) {
	q := newQueue(p.link.current().Buffer)
	var wg sync.WaitGroup
	wg.Go(func() { p.read(w, src, q, notBefore) })
	p.deliver(q, dst)
	wg.Wait()
}

func (p *pair) read(w *wire, src *net.TCPConn, q *queue, notBefore time.Time) {
	var last, stalledUntil time.Time
	var sent int64
	buf := make([]byte, chunkSize)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			due := latest(p.link.book(w, n), notBefore.Add(p.link.current().Delay), stalledUntil, last)
			if o := p.link.current(); o.StallEvery > 0 {
				if before := sent / o.StallEvery; (sent+int64(n))/o.StallEvery > before {
					stalledUntil = due.Add(o.StallFor)
				}
			}
			sent, last = sent+int64(n), due
			if !q.put(chunk{bytes: bytes.Clone(buf[:n]), due: due}, p.done) {
				return
			}
		}
		if err != nil {
			end := errReset
			if errors.Is(err, io.EOF) {
				end = io.EOF
			}
			q.put(chunk{due: latest(p.link.book(w, 0), stalledUntil, last), end: end}, p.done)
			return
		}
	}
}

func (p *pair) deliver(q *queue, dst *net.TCPConn) {
	for {
		c, ok := q.take(p.done)
		if !ok || !p.sleepUntil(c.due) || !p.link.waitFlowing(p) {
			return
		}
		switch {
		case p.lost.Load():
			if c.end != nil {
				<-p.done // a lost connection's end is never heard of
				return
			}
		case errors.Is(c.end, io.EOF):
			_ = dst.CloseWrite() // the peer may be gone already
			return
		case c.end != nil:
			p.reset()
			return
		default:
			if _, err := dst.Write(c.bytes); err != nil {
				p.reset()
				return
			}
		}
		q.release(len(c.bytes))
	}
}

// sleepUntil is false when the pair ended.
func (p *pair) sleepUntil(due time.Time) bool {
	d := time.Until(due)
	if d <= 0 {
		return !p.ended()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-p.done:
		return false
	}
}

// queue holds the bytes under way, up to a limit; then its reader waits, and so
// does TCP behind it.
type queue struct {
	mu     sync.Mutex
	limit  int
	held   int
	chunks []chunk
	more   chan struct{} // something was put
	less   chan struct{} // something was released
}

func newQueue(limit int) *queue {
	return &queue{limit: limit, more: make(chan struct{}, 1), less: make(chan struct{}, 1)}
}

// put is false when done closed first.
func (q *queue) put(c chunk, done <-chan struct{}) bool {
	for {
		q.mu.Lock()
		if q.held == 0 || q.held+len(c.bytes) <= q.limit {
			q.held += len(c.bytes)
			q.chunks = append(q.chunks, c)
			q.mu.Unlock()
			poke(q.more)
			return true
		}
		q.mu.Unlock()
		select {
		case <-q.less:
		case <-done:
			return false
		}
	}
}

// take is false when done closed first.
func (q *queue) take(done <-chan struct{}) (chunk, bool) {
	for {
		q.mu.Lock()
		if len(q.chunks) > 0 {
			c := q.chunks[0]
			q.chunks[0] = chunk{}
			q.chunks = q.chunks[1:]
			q.mu.Unlock()
			return c, true
		}
		q.mu.Unlock()
		select {
		case <-q.more:
		case <-done:
			return chunk{}, false
		}
	}
}

func (q *queue) release(n int) {
	q.mu.Lock()
	q.held -= n
	q.mu.Unlock()
	poke(q.less)
}

// poke wakes the other side; one that is awake already needs no second call.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// abort closes a connection so that its peer gets a reset.
func abort(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

func latest(times ...time.Time) time.Time {
	var last time.Time
	for _, t := range times {
		if t.After(last) {
			last = t
		}
	}
	return last
}

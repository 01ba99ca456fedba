package edge

import (
	"bufio"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/fleet"
	"github.com/adit-tunnel/adit/relay/internal/usage"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/link"
)

const (
	// readBuffer holds usual answers' headers, and more would only cost memory: a
	// body is read past it.
	readBuffer = 4 << 10
	// maxAnswerHeader bounds an answer's header, which a hostile app would
	// otherwise make endless.
	maxAnswerHeader = 1 << 20
	// freshFor is how long after its last use a stream is trusted with a request
	// that could not be repeated if the app just then closed it. A new stream costs
	// no round trip, so there is little to win from more.
	freshFor = 2 * time.Second
)

var errHeaderTooLarge = errors.New("the answer's header is larger than 1 MiB")

// longAgo as a deadline interrupts at once.
var longAgo = time.Unix(1, 0)

// upstream is one stream to an app and the HTTP/1.1 connection on it.
type upstream struct {
	*fleet.Stream
	br     *bufio.Reader
	use    atomic.Pointer[usage.Use] // of the request that has it now; nil while idle
	budget int64                     // bytes of header that may still come; negative: not in a header

	reused    bool
	idleSince time.Time
	spoken    func() // drops it from the idle ones
}

func newUpstream(s *fleet.Stream, p *idleStreams, use *usage.Use) *upstream {
	u := &upstream{Stream: s, budget: -1}
	u.use.Store(use)
	u.br = bufio.NewReaderSize(reader{u}, readBuffer)
	u.spoken = func() { p.drop(u) }
	u.OnGivenUp(u.givenUp)
	return u
}

// givenUp ends what the stream is used for when the relay needs its memory: whoever
// writes to a user who takes nothing would not learn of it.
func (u *upstream) givenUp(cause error) {
	if use := u.use.Load(); use != nil {
		use.Cut(cause)
	}
}

// reader reads from the stream itself, behind br.
type reader struct{ *upstream }

func (r reader) Read(p []byte) (int, error) {
	u := r.upstream
	if u.budget == 0 {
		return 0, errHeaderTooLarge
	}
	if u.budget > 0 && int64(len(p)) > u.budget {
		p = p[:u.budget]
	}
	n, err := u.Stream.Read(p)
	if u.budget > 0 {
		u.budget -= int64(n)
	}
	if use := u.use.Load(); use != nil {
		use.Out(n)
	}
	return n, err
}

// Read returns what was read ahead first.
func (u *upstream) Read(p []byte) (int, error) { return u.br.Read(p) }

// Write counts what the user sent.
func (u *upstream) Write(p []byte) (int, error) {
	n, err := u.Stream.Write(p)
	if use := u.use.Load(); use != nil {
		use.In(n)
	}
	return n, err
}

// idleStreams keeps the idle streams of one tunnel and counts those in use. It is never
// shared between tunnels: what an app leaves in a stream stays with that app.
type idleStreams struct {
	session ident.SessionID
	max     int
	idleFor time.Duration
	active  atomic.Int64 // requests and connections

	mu       sync.Mutex
	idle     []*upstream // the most recently used last
	closed   bool
	lastUsed time.Time

	host hostMode
}

func newIdleStreams(session ident.SessionID, maxIdle int, idleFor time.Duration) *idleStreams {
	return &idleStreams{session: session, max: maxIdle, idleFor: idleFor, lastUsed: time.Now()}
}

// get returns an idle stream that is alive, or nil. once asks for one that was
// used just now, for a request that could not be repeated.
func (p *idleStreams) get(once bool) *upstream {
	for {
		u := p.take(once)
		if u == nil {
			return nil
		}
		if u.Unwatch() && !u.Stale() {
			u.reused = true
			return u
		}
		_ = u.Close() // the app closed it, or spoke out of turn
	}
}

// take takes the stream that pick chose out of the idle ones.
func (p *idleStreams) take(once bool) *upstream {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := p.pick(once)
	if i < 0 {
		return nil
	}
	u := p.idle[i]
	p.idle = slices.Delete(p.idle, i, i+1)
	return u
}

// lane is what pick finds of the idle streams of one link: the agent's, or another
// relay's.
type lane struct {
	link   *link.Link
	idle   int // streams
	newest int // of them, as an index
}

// pick chooses among the idle streams, and returns -1 when a new one is better: of
// the links that are not crowded the one with the least in use, there the stream
// that was used last. And none where another link has fewer: eight downloads that begin at
// once would all go where what went before has left its streams. The lock is held.
func (p *idleStreams) pick(once bool) int {
	var room [8]lane
	lanes := room[:0]
	for i, u := range slices.Backward(p.idle) {
		if once && time.Since(u.idleSince) > freshFor {
			break // the others are older still
		}
		n := slices.IndexFunc(lanes, func(l lane) bool { return l.link == u.Link() })
		if n < 0 {
			n = len(lanes)
			lanes = append(lanes, lane{link: u.Link(), newest: i})
		}
		lanes[n].idle++
	}
	best, least := -1, 0
	for _, l := range lanes {
		if p.idle[l.newest].Crowded() {
			continue
		}
		if inUse := l.link.NumStreams() - l.idle; best < 0 || inUse < least {
			best, least = l.newest, inUse
		}
	}
	if least > 1 && p.idle[best].Outnumbered(least) {
		return -1
	}
	return best
}

// put keeps a stream for reuse, or closes it.
func (p *idleStreams) put(u *upstream) {
	u.use.Store(nil)
	u.idleSince = time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lastUsed = u.idleSince
	if p.closed || len(p.idle) >= p.max || u.Stale() {
		_ = u.Close()
		return
	}
	p.idle = append(p.idle, u)
	u.Watch(u.spoken)
}

// drop closes an idle stream whose app said something: it closed the connection, or
// spoke out of turn. No request is to be sent into it.
func (p *idleStreams) drop(u *upstream) {
	p.mu.Lock()
	i := slices.Index(p.idle, u)
	if i >= 0 {
		p.idle = slices.Delete(p.idle, i, i+1)
	}
	p.mu.Unlock()
	if i >= 0 {
		_ = u.Close()
	}
}

// evict closes streams that were idle for too long and says whether there
// was no use at all for that time.
func (p *idleStreams) evict(now time.Time) bool {
	p.mu.Lock()
	keep := 0
	for keep < len(p.idle) && now.Sub(p.idle[keep].idleSince) >= p.idleFor {
		keep++ // the oldest come first
	}
	old := append([]*upstream(nil), p.idle[:keep]...)
	p.idle = append(p.idle[:0], p.idle[keep:]...)
	useless := len(p.idle) == 0 && p.active.Load() == 0 && now.Sub(p.lastUsed) >= p.idleFor
	p.mu.Unlock()
	for _, u := range old {
		_ = u.Close()
	}
	return useless
}

// dropStale closes idle streams whose way is about to end.
func (p *idleStreams) dropStale() {
	p.mu.Lock()
	var stale []*upstream
	p.idle = slices.DeleteFunc(p.idle, func(u *upstream) bool {
		if !u.Stale() && !u.Leaving() {
			return false
		}
		stale = append(stale, u)
		return true
	})
	p.mu.Unlock()
	for _, u := range stale {
		_ = u.Close()
	}
}

// close closes the idle streams and keeps none from now on.
func (p *idleStreams) close() {
	p.mu.Lock()
	idle := p.idle
	p.idle, p.closed = nil, true
	p.mu.Unlock()
	for _, u := range idle {
		_ = u.Close()
	}
}

// enter takes one of the tunnel's places; the caller leaves.
func (p *idleStreams) enter(limit int) bool {
	if p.active.Add(1) > int64(limit) {
		p.active.Add(-1)
		return false
	}
	return true
}

func (p *idleStreams) leave() {
	p.active.Add(-1)
	p.mu.Lock()
	p.lastUsed = time.Now()
	p.mu.Unlock()
}

// hostMode is what probing found, until the record says it.
type hostMode struct {
	mu      sync.Mutex
	asked   time.Time
	running chan struct{} // closed when the probe under way ended
	mode    api.HostHeader
}

// Package usage knows who uses which tunnel on this relay, how much, and since
// when nobody does. It owns the counters and the viewers, and it ends uses when a
// tunnel closes or a viewer is sent away. It never opens or closes a tunnel itself,
// reads no request and writes nothing to the store.
package usage

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/shared/ident"
)

const (
	// presence is how long after its last sign a party still is a viewer "now":
	// browsers are between two requests most of the time.
	presence = time.Minute
	linger   = 5 * time.Minute  // how long a party keeps its viewer id without connections
	blocked  = 10 * time.Minute // how long a kicked viewer's place is refused
	sweeping = 5 * time.Second  // between two sweeps
)

// Bounds of the memory that hostile use could otherwise grow.
const (
	maxViewers   = 512     // remembered per tunnel; those with connections are bounded by edge
	maxSessions  = 200_000 // remembered in all
	maxUserAgent = 256     // bytes kept of a user agent
	closedFor    = 2 * time.Minute
)

var (
	// ErrClosed is the cause that ends uses of a tunnel that is over, and the refusal
	// of later ones; an Over of it says why.
	ErrClosed = errors.New("the tunnel is closed")
	// ErrKicked is the cause that ends the uses of a viewer that was sent away.
	ErrKicked = errors.New("the viewer was disconnected by the tunnel's owner")
)

// Over is ErrClosed or ErrRevoked with what its users are told.
type Over struct {
	Of   error
	Text string // for people, a clause without a dot
}

// Error is the text.
func (o *Over) Error() string { return o.Text }

// Unwrap makes it the error that it is of.
func (o *Over) Unwrap() error { return o.Of }

// Kind says what a use is, which decides what counts as use.
type Kind uint8

// The kinds.
const (
	HTTP      Kind = 1 // every byte counts; so does waiting for an answer
	WebSocket Kind = 2 // bytes are counted, but only Frame says that somebody used it
	TCP       Kind = 3 // every byte counts
	Terminal  Kind = 4 // every byte counts
)

// String names a kind, in records.
func (k Kind) String() string {
	return [...]string{HTTP: "http", WebSocket: "websocket", TCP: "tcp", Terminal: "terminal"}[k]
}

// Party is one remote party: what makes two connections one viewer.
type Party struct {
	Remote    netip.Addr
	UserAgent string
	Link      ident.LinkID // the named link by which it came in; empty: the tunnel's own address
	User      ident.UserID // the person, where the tunnel asks; empty: it is not known
	Name      string       // of them, or as they say; two of one party are still one viewer
}

// Config is what a Meter needs. All of it may be absent.
type Config struct {
	Registerer prometheus.Registerer
	// Viewed is called when a party becomes a viewer of a tunnel: at its first use, or
	// one after it was forgotten. The use waits for it, so it must not wait itself.
	Viewed func(View)
}

// View is a use by which a party became a viewer.
type View struct {
	Session ident.SessionID
	Viewer  ident.ViewerID
	Party   Party
	Kind    Kind
}

// Meter counts. It is safe for concurrent use; counting takes no lock.
type Meter struct {
	config  Config
	metrics *metrics

	mu       sync.RWMutex
	sessions map[ident.SessionID]*session
}

// New returns a Meter.
func New(c Config) *Meter {
	return &Meter{config: c, metrics: newMetrics(c.Registerer), sessions: map[ident.SessionID]*session{}}
}

// Run forgets what is over, until ctx ends.
func (m *Meter) Run(ctx context.Context) error {
	tick := time.NewTicker(sweeping)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			m.sweep(time.Now())
		}
	}
}

// sweep drops viewers that are gone for long and sessions that are over.
func (m *Meter) sweep(now time.Time) {
	m.mu.RLock()
	gone := []ident.SessionID{}
	for id, s := range m.sessions {
		s.mu.Lock()
		for p, v := range s.viewers {
			seen := time.Unix(0, v.lastSeen.Load())
			if v.uses == 0 && now.Sub(seen) >= linger {
				delete(s.viewers, p)
			}
		}
		maps.DeleteFunc(s.kicked, func(_ place, until time.Time) bool { return !now.Before(until) })
		s.forgetLinks(now)
		if s.over != nil && len(s.uses) == 0 && now.Sub(s.overAt) >= closedFor {
			gone = append(gone, id)
		}
		s.mu.Unlock()
	}
	m.mu.RUnlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range gone {
		delete(m.sessions, id)
	}
}

// session is what is known of one tunnel.
type session struct {
	in, out  atomic.Int64
	lastUsed atomic.Int64 // Unix nanoseconds; 0: never
	waiting  atomic.Int64 // HTTP requests without a byte of answer yet

	mu      sync.Mutex
	uses    map[*Use]struct{}
	viewers map[Party]*viewer
	over    error // why no further use is admitted
	overAt  time.Time

	kicked    map[place]time.Time      // refused until then
	linksOver map[ident.LinkID]linkEnd // named links that are over
}

// viewer is one party of one tunnel.
type viewer struct {
	id       ident.ViewerID
	place    place
	link     ident.LinkID
	name     string // guarded by the session's mutex
	since    time.Time
	in, out  atomic.Int64
	lastSeen atomic.Int64 // Unix nanoseconds
	uses     int          // guarded by the session's mutex
}

func (s *session) touch(v *viewer) {
	now := time.Now().UnixNano()
	s.lastUsed.Store(now)
	if v != nil {
		v.lastSeen.Store(now)
	}
}

// used is when the tunnel was last used here; the zero time if never. Somebody
// who waits for an answer is using it.
func (s *session) used(now time.Time) time.Time {
	if s.waiting.Load() > 0 {
		return now
	}
	if n := s.lastUsed.Load(); n != 0 {
		return time.Unix(0, n)
	}
	return time.Time{}
}

func (m *Meter) find(id ident.SessionID) *session {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.sessions[id]
}

func (m *Meter) findOrMake(id ident.SessionID) *session {
	if s := m.find(id); s != nil {
		return s
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.sessions[id]
	if s == nil {
		if len(m.sessions) >= maxSessions {
			m.dropOldest()
		}
		s = &session{uses: map[*Use]struct{}{}, viewers: map[Party]*viewer{}}
		m.sessions[id] = s
	}
	return s
}

// dropOldest makes room for one more session. It looks at a few only: which one
// goes matters little, that it has no uses matters.
func (m *Meter) dropOldest() {
	var oldest ident.SessionID
	at, seen := time.Now(), 0
	for id, s := range m.sessions {
		if used := s.used(at); s.idle() && used.Before(at) {
			oldest, at = id, used
		}
		if seen++; seen >= 64 && oldest != "" {
			break
		}
	}
	delete(m.sessions, oldest)
}

func (s *session) idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.uses) == 0
}

// Begin notes the begin of one use: a request, or a connection. The caller calls
// End. The error is ErrKicked for a blocked viewer, and what Cut was told for a
// tunnel that is over: nothing that began before the tunnel closed slips in after.
func (m *Meter) Begin(ctx context.Context, id ident.SessionID, party Party, kind Kind) (*Use, error) {
	if len(party.UserAgent) > maxUserAgent {
		party.UserAgent = party.UserAgent[:maxUserAgent]
	}
	s := m.findOrMake(id)
	now := time.Now()
	s.mu.Lock()
	if s.over != nil {
		defer s.mu.Unlock()
		return nil, s.over
	}
	if end, over := s.linksOver[party.Link]; over {
		defer s.mu.Unlock()
		return nil, end.cause
	}
	at := party.place()
	if until, ok := s.kicked[at]; ok && now.Before(until) {
		s.mu.Unlock()
		m.metrics.refused.Inc()
		return nil, ErrKicked
	}
	name := party.Name
	party.Name = ""
	v := s.viewers[party]
	first := v == nil
	if first {
		if len(s.viewers) >= maxViewers {
			s.forgetOne()
		}
		v = &viewer{id: ident.NewViewerID(), place: at, link: party.Link, since: now}
		s.viewers[party] = v
	}
	v.name = name
	u := &Use{meter: m, session: s, viewer: v, kind: kind}
	u.ctx, u.cancel = context.WithCancelCause(ctx)
	v.uses++
	s.uses[u] = struct{}{}
	s.mu.Unlock()
	if first && m.config.Viewed != nil {
		party.Name = name
		m.config.Viewed(View{id, v.id, party, kind})
	}
	s.touch(v)
	if kind == HTTP {
		u.waiting.Store(true)
		s.waiting.Add(1)
	}
	m.metrics.open(kind, 1)
	return u, nil
}

// forgetOne drops the viewer without connections that was seen longest ago.
func (s *session) forgetOne() {
	var oldest Party
	var found *viewer
	for p, v := range s.viewers {
		if v.uses == 0 && (found == nil || v.lastSeen.Load() < found.lastSeen.Load()) {
			oldest, found = p, v
		}
	}
	if found != nil {
		delete(s.viewers, oldest)
	}
}

// Use is one request or connection of one viewer.
type Use struct {
	meter   *Meter
	session *session
	viewer  *viewer
	kind    Kind
	ctx     context.Context
	cancel  context.CancelCauseFunc
	waiting atomic.Bool
	ended   atomic.Bool
}

// Context ends, with a cause, when the tunnel closes, the viewer is kicked or the
// context given to Begin ends.
func (u *Use) Context() context.Context { return u.ctx }

// Cut ends this one use with a cause.
func (u *Use) Cut(cause error) { u.cancel(cause) }

// In counts n bytes from the user to the app.
func (u *Use) In(n int) {
	if n <= 0 {
		return
	}
	u.session.in.Add(int64(n))
	u.viewer.in.Add(int64(n))
	u.meter.metrics.in.Add(int64(n))
	if u.kind != WebSocket {
		u.session.touch(u.viewer)
	}
}

// Out counts n bytes from the app to the user.
func (u *Use) Out(n int) {
	if n <= 0 {
		return
	}
	u.session.out.Add(int64(n))
	u.viewer.out.Add(int64(n))
	u.meter.metrics.out.Add(int64(n))
	if u.kind != WebSocket {
		u.session.touch(u.viewer)
	}
	u.answered()
}

// Frame notes a WebSocket frame that is no keepalive, whichever way it goes.
func (u *Use) Frame(_ bool) { u.session.touch(u.viewer) }

func (u *Use) answered() {
	if u.kind == HTTP && u.waiting.Load() && u.waiting.Swap(false) {
		u.session.waiting.Add(-1)
	}
}

// End notes that the use is over. It may be called more than once.
func (u *Use) End() {
	if u.ended.Swap(true) {
		return
	}
	u.answered()
	now := time.Now().UnixNano()
	u.session.mu.Lock()
	delete(u.session.uses, u)
	u.viewer.uses--
	u.session.mu.Unlock()
	u.viewer.lastSeen.Store(now)
	if u.kind != WebSocket {
		u.session.lastUsed.Store(now)
	}
	u.cancel(nil)
	u.meter.metrics.open(u.kind, -1)
}

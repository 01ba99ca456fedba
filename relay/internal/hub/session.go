package hub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/fleet"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/wire"
)

// session is one agent's presence across its links: one process, one generation.
type session struct {
	hub       *Hub
	key       ident.AgentKey
	epoch     uint64
	instance  string
	principal creds.Principal

	// Guarded by hub.mu: who may open streams is decided where closing is.
	members []*member
	streams map[ident.SessionID]map[*fleet.Stream]struct{}
	count   int

	mu       sync.Mutex
	presence store.Presence // as last heard
	written  store.Presence // as last given to the store
	probes   map[uint64]chan wire.Probed
	probeID  uint64
	state    wire.State
	said     *declaration  // what the gate was told last; nil: nothing yet
	news     *rate.Limiter // how often changes are written
	later    atomic.Bool   // one waits for that
	first    atomic.Bool   // this relay is the agent's first, which writes the presence
}

// declaration is what the gate is told of a machine.
type declaration struct {
	state wire.State
	sick  string
}

// rule is what of a declaration decides whether tasks are admitted.
func (d declaration) rule() [3]bool {
	return [3]bool{d.sick != "", d.state.SyncPhase != "", d.state.Paused}
}

// member is one link of a session, with its control stream. It is the lane of the
// streams on it.
type member struct {
	link    *link.Link
	session *session // set before any stream is opened
	out     *wire.Encoder
	queue   *outbox // full: the link is stuck and ends
	index   int
}

// send queues a message on the session's first living link. A link that cannot
// take it is stuck and is closed: the agent comes back and is told everything anew.
func (s *session) send(m wire.Message) {
	s.hub.mu.Lock()
	var first *member
	if len(s.members) > 0 {
		first = s.members[0]
	}
	s.hub.mu.Unlock()
	if first != nil {
		first.send(m)
	}
}

// sendAll queues a message on every link.
func (s *session) sendAll(m wire.Message) {
	s.hub.mu.Lock()
	members := append([]*member(nil), s.members...)
	s.hub.mu.Unlock()
	for _, x := range members {
		x.send(m)
	}
}

func (m *member) send(msg wire.Message) {
	if !m.queue.put(msg) {
		_ = m.link.Close(errors.New("the control stream is stuck"))
	}
}

// end says goodbye on every link and closes it.
func (s *session) end(bye wire.Goodbye) {
	s.hub.mu.Lock()
	members := append([]*member(nil), s.members...)
	s.hub.mu.Unlock()
	for _, m := range members {
		m.goodbye(bye)
	}
}

// goodbyeTime bounds how long a goodbye may take on a stuck link.
const goodbyeTime = time.Second

// goodbye writes at once, past the queue, and closes the link.
func (m *member) goodbye(bye wire.Goodbye) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = m.out.Write(wire.Message{Type: wire.TypeGoodbye, Goodbye: &bye}) // the link may be dead already
	}()
	timer := time.NewTimer(goodbyeTime)
	defer timer.Stop()
	select {
	case <-done:
	case <-m.link.Done():
	case <-timer.C:
	}
	_ = m.link.Close(&GoodbyeError{Goodbye: bye})
	<-done // closing the link ends a write that was stuck
}

// GoodbyeError is the cause of a link that ended on purpose.
type GoodbyeError struct{ wire.Goodbye }

// Error names the reason.
func (e *GoodbyeError) Error() string { return "goodbye: " + string(e.Reason) + ": " + e.Detail }

func (s *session) snapshot() store.Presence {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.presence
}

// storeInterval is how often a presence that did not change is written again, so
// that other relays see a heartbeat. Changes are written at once.
const storeInterval = 60 * time.Second

// maxRefreshes is how many of those may be written at once: a relay whose store is busy
// with what people wait for puts off the others. maxOverdue is how many more may, that
// waited for three intervals.
const (
	maxRefreshes = 8
	maxOverdue   = 24
)

// heard takes in what the agent said and writes it to the store when it changed
// or grew old. The gate hears of declared state and health before anybody can
// rely on it. What changes too fast stays in memory for a while; what finds the store
// without room, and decides nothing, until a later word of the agent, which says
// something every 15 s.
func (s *session) heard(ctx context.Context, facts *wire.Facts, state *wire.State) error {
	now := time.Now().UTC()
	s.mu.Lock()
	if facts != nil {
		s.presence.Facts = *facts
	}
	if state != nil {
		s.state = *state
	}
	s.presence.Heartbeat = now
	p, old, st := s.presence, s.written, s.state
	room := s.hub.cfg.Store.Room()
	said := declaration{state: st, sick: p.Facts.Unhealthy}
	tell := s.said == nil || !reflect.DeepEqual(*s.said, said) && (room || s.said.rule() != said.rule())
	unsaid, unwritten := s.said == nil, s.first.Load() && old.Epoch == 0 // nothing of this session is in the store yet
	s.mu.Unlock()
	news := s.first.Load() && (unwritten || room && changed(old, p))
	if !room { // where it is, and no more
		p.Labels, p.Facts = nil, wire.Facts{}
	}
	if (tell || news) && !unsaid && !unwritten && !s.mayTell(size(p)) {
		s.hub.metrics.deferred.Inc()
		s.tellLater()
		tell, news = false, false
	}

	if tell {
		if err := s.hub.cfg.Gate.Declare(ctx, s.key, s.epoch, st, said.sick); err != nil {
			return fmt.Errorf("declare state: %w", err)
		}
		s.mu.Lock()
		s.said = &said
		s.mu.Unlock()
	}
	if !s.first.Load() {
		return nil
	}
	if !news {
		age := now.Sub(old.Heartbeat)
		if age < storeInterval || !room {
			return nil
		}
		places := s.hub.refreshes
		if age >= 3*storeInterval {
			places = s.hub.overdue
		}
		select {
		case places <- struct{}{}:
			defer func() { <-places }()
		default:
			s.hub.metrics.putOff.Inc()
			return nil
		}
	}
	if err := s.hub.cfg.Store.PutPresence(ctx, p); err != nil {
		return fmt.Errorf("put presence: %w", err)
	}
	s.mu.Lock()
	s.written = p
	s.mu.Unlock()
	return nil
}

// tellLater tries again in a moment, once for all that was put off by then.
func (s *session) tellLater() {
	if !s.later.CompareAndSwap(false, true) {
		return
	}
	s.hub.background(func(ctx context.Context) {
		t := time.NewTimer(time.Second)
		defer t.Stop()
		select {
		case <-t.C:
		case <-s.hub.stop:
			return
		}
		s.later.Store(false)
		if s.hub.session(s.key) != s {
			return // it is over
		}
		if err := s.heard(ctx, nil, nil); err != nil {
			s.hub.log.Debug("keep what the agent said", "agent", s.key.Agent, "error", err)
		}
	})
}

// size is about what a presence takes in the store.
func size(p store.Presence) int {
	b, err := json.Marshal(p)
	if err != nil {
		return 0 // it will not be written either
	}
	return len(b)
}

// changed says whether two presences differ in what people look at: free memory
// and round trips move all the time and wait for the next regular write.
func changed(a, b store.Presence) bool {
	return !reflect.DeepEqual(steady(a), steady(b))
}

func steady(p store.Presence) store.Presence {
	p.Heartbeat = time.Time{}
	p.Facts.Link = nil
	gpus := make([]wire.GPU, len(p.Facts.GPUs))
	copy(gpus, p.Facts.GPUs)
	for i := range gpus {
		gpus[i].VRAMFree = gpus[i].VRAMFree >> 30 // whole GiB
	}
	p.Facts.GPUs = gpus
	return p
}

// Probe asks the agent what listens on a port. It returns fleet.ErrAway
// without a link.
func (h *Hub) Probe(ctx context.Context, key ident.AgentKey, p wire.Probe) (wire.Probed, error) {
	s := h.session(key)
	if s == nil {
		return wire.Probed{}, fleet.ErrAway
	}
	answer := make(chan wire.Probed, 1)
	s.mu.Lock()
	s.probeID++
	p.ID = s.probeID
	s.probes[p.ID] = answer
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.probes, p.ID)
		s.mu.Unlock()
	}()
	s.send(wire.Message{Type: wire.TypeProbe, Probe: &p})
	select {
	case a := <-answer:
		return a, nil
	case <-ctx.Done():
		return wire.Probed{}, fmt.Errorf("probe port %d: %w", p.Port, context.Cause(ctx))
	}
}

func (s *session) probed(p wire.Probed) {
	s.mu.Lock()
	ch := s.probes[p.ID]
	delete(s.probes, p.ID)
	s.mu.Unlock()
	if ch != nil {
		ch <- p // buffered, and taken out of the map: sent once
	}
}

// Owner is who the data of an agent's stream counts as in the memory of a relay.
func Owner(key ident.AgentKey, tunnel ident.SessionID) link.Owner {
	return link.Owner{Tenant: string(key.Team), Agent: string(key.Agent), Tunnel: string(tunnel)}
}

// Open opens a stream to an agent for a tunnel. The hello's epoch is set here; the
// agent's verdict is read with the first data, or by Stream.Verdict. It returns
// fleet.ErrAway without a link, fleet.ErrCut when the tunnel was closed, and the link's
// errors.
func (h *Hub) Open(ctx context.Context, key ident.AgentKey, hello wire.Hello) (*fleet.Stream, error) {
	h.mu.Lock()
	s := h.sessions[key]
	if s == nil || len(s.members) == 0 {
		draining := h.draining
		h.mu.Unlock()
		if draining {
			return nil, fleet.ErrDraining
		}
		h.metrics.opens.WithLabelValues("away").Inc()
		return nil, fleet.ErrAway
	}
	if _, gone := h.cut[hello.Session]; gone && hello.Session != "" {
		h.mu.Unlock()
		h.metrics.opens.WithLabelValues("cut").Inc()
		return nil, fleet.ErrCut
	}
	if h.draining {
		h.mu.Unlock()
		return nil, fleet.ErrDraining
	}
	if s.count >= h.cfg.MaxStreams {
		h.mu.Unlock()
		h.metrics.opens.WithLabelValues("limit").Inc()
		return nil, link.ErrTooManyStreams
	}
	m := s.place()
	s.count++
	h.mu.Unlock()

	hello.Epoch = s.epoch
	inner, err := link.OpenFor(ctx, m.link, Owner(key, hello.Session), hello)
	var st *fleet.Stream
	h.mu.Lock()
	if err == nil {
		if _, gone := h.cut[hello.Session]; gone && hello.Session != "" { // meanwhile
			err = fleet.ErrCut
		} else {
			st = fleet.NewStream(inner, hello.Session, m)
			if s.streams[hello.Session] == nil {
				s.streams[hello.Session] = make(map[*fleet.Stream]struct{})
			}
			s.streams[hello.Session][st] = struct{}{}
		}
	}
	if err != nil {
		s.count--
	}
	h.mu.Unlock()
	if err != nil {
		if inner != nil {
			_ = inner.Close()
		}
		outcome := "error"
		if errors.Is(err, link.ErrMemory) {
			outcome = "memory"
		}
		h.metrics.opens.WithLabelValues(outcome).Inc()
		if errors.Is(err, link.ErrClosed) {
			return nil, fmt.Errorf("%w: %w", fleet.ErrAway, err)
		}
		return nil, err
	}
	h.metrics.opens.WithLabelValues("ok").Inc()
	return st, nil
}

// Left frees the place of a stream in its session.
func (m *member) Left(st *fleet.Stream) {
	s := m.session
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	set := s.streams[st.Tunnel]
	delete(set, st)
	s.count--
	if len(set) == 0 {
		delete(s.streams, st.Tunnel)
	}
}

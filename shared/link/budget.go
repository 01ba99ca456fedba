package link

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// ErrMemory is wrapped by the errors of a stream that was given up because too much
// of the Budget waited on it, and of an Open that would have added to that.
var ErrMemory = errors.New("memory for data that waits is used up")

// Owner says whose data a stream carries: a tenant's, of one of its agents, of one
// of its tunnels. The zero Owner is nobody: the stream is the link's own.
type Owner struct{ Tenant, Agent, Tunnel string }

// Budget bounds how much data may wait for its takers, over all links that share it,
// and shares it out among those that it belongs to. It does so twice.
//
// Before data comes: every stream may get its first window, and more only as long as
// its tunnel, its agent and its tenant have not taken more than their parts of what
// is free. So whoever has much gets less, and there is always some left for others.
//
// When memory is short nevertheless, the heaviest tenant's heaviest agent's heaviest
// tunnel gives up its heaviest streams, first those on which nothing was taken for a
// while. A stream that holds less than protected is given up only if nothing is taken
// from it and that is still not enough: else whoever keeps many such streams would hold
// any amount. One that is nobody's is never given up.
type Budget struct {
	// Relieved is called when streams were given up, for each tunnel. It may be nil
	// and must be set before the Budget is used.
	Relieved func(Relief)

	limit int64
	used  atomic.Int64
	all   account // what is promised in all

	mu    sync.Mutex // of the accounts' tree and the links; taken last
	links map[*mux]struct{}

	relieving   sync.Mutex // held by who gives streams up, and of what follows
	surveyedAt  time.Time  // when the last survey was taken
	surveyAgain int64      // how much is in use when one is taken before surveyEvery is over
}

// Relief is what was given up of one tunnel to get memory back.
type Relief struct {
	Owner   Owner
	Streams int
	Bytes   int64
	// Full says that the memory was used up and the heaviest streams had to go. Otherwise
	// it was short, and nothing was taken from these for some seconds.
	Full bool
}

const (
	// protected is what a stream may always hold: as much as its peer may send without
	// any credit.
	protected = yamuxWindow
	// A stream, a tunnel, an agent and a tenant may be promised these parts of what
	// is free: what one of each takes leaves four fifths, two thirds and a half.
	streamPart, tunnelPart, agentPart, tenantPart = 16, 4, 2, 1
	// sparing is the part of that for streams that have not shown that they take what
	// they get.
	sparing = 4
	// stallTime is how long nothing is taken from a stream before it is given up while
	// memory is short.
	stallTime = 5 * time.Second
	// surveyEvery is how often that is looked at.
	surveyEvery = 250 * time.Millisecond
)

// NewBudget returns a budget of so many bytes.
func NewBudget(limit int64) *Budget { return &Budget{limit: limit, links: map[*mux]struct{}{}} }

// Used is how many bytes wait to be taken: what was received and not read, and the
// buffers of those who read it and have not come back for more, or who wait to send.
func (b *Budget) Used() int64 { return b.used.Load() }

// short says whether so much in use leaves little: from here on streams from which
// nothing is taken may be given up.
func (b *Budget) short(used int64) bool { return used > b.limit/8*5 }

// full says whether it leaves nothing: data goes on coming while room is made, and
// buffers are larger than what is in them.
func (b *Budget) full(used int64) bool { return used > b.limit/8*7 }

// account is what the streams of one owner are promised beyond their first windows: a
// tunnel's, an agent's, a tenant's, and above those that of all.
type account struct {
	owner    Owner    // of a tunnel's account
	up       *account // nil for that of all
	promised atomic.Int64

	// Guarded by Budget.mu.
	under   map[string]*account
	name    string
	streams int
	shut    bool // a tenant's: it opens no more streams while memory is short
}

// addStream returns the account of an owner, for one more stream.
func (b *Budget) addStream(o Owner) *account {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := &b.all
	for _, name := range [...]string{o.Tenant, o.Agent, o.Tunnel} {
		next := a.under[name]
		if next == nil {
			next = &account{up: a, name: name, owner: o}
			if a.under == nil {
				a.under = map[string]*account{}
			}
			a.under[name] = next
		}
		next.streams++
		a = next
	}
	return a
}

// removeStream takes one stream out of its account. What it was promised is given back
// before.
func (b *Budget) removeStream(a *account) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for ; a.up != nil; a = a.up {
		if a.streams--; a.streams == 0 {
			delete(a.up.under, a.name)
		}
	}
}

// promise changes what a stream is promised beyond its first window from had to what
// it wants, or to as much of that as its owners' parts leave; least of it is on its
// way and cannot be taken back. spare is 1, or more to be content with less.
func (b *Budget) promise(a *account, had, least, wanted, spare int64) int64 {
	free := (b.limit - max(b.used.Load(), b.all.promised.Load()-had)) / spare
	got := min(wanted, free/streamPart)
	for x, part := a, int64(tunnelPart); x.up != nil; x, part = x.up, part/2 {
		got = min(got, free/part-(x.promised.Load()-had))
	}
	if got = max(got, least); got != had {
		for x := a; x != nil; x = x.up {
			x.promised.Add(got - had)
		}
	}
	return got
}

// admits says whether another stream of the owner may open.
func (b *Budget) admits(o Owner) bool {
	if !b.short(b.used.Load()) {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	tenant := b.all.under[o.Tenant]
	return tenant == nil || !tenant.shut
}

// add counts n bytes that wait to be taken. It must be called without locks: there
// may be too many.
func (b *Budget) add(n int64) {
	if used := b.used.Add(n); b.short(used) {
		b.relieve()
	}
}

// holding is what a stream holds.
type holding struct {
	flow    *flow
	owner   *account
	held    int64
	stalled bool // nothing was taken for a while
	chosen  bool // to be given up
}

// relieve gives streams up when memory is short. The links' readers call it: it looks
// at every stream, but not often, and one caller at a time does.
func (b *Budget) relieve() {
	if !b.relieving.TryLock() {
		return
	}
	defer b.relieving.Unlock()
	now := time.Now()
	if b.used.Load() < b.surveyAgain && now.Sub(b.surveyedAt) < surveyEvery {
		return
	}
	s := b.survey()
	s.choose(b.limit/8*5, func(h *holding) bool { return h.held >= protected && h.stalled })
	if b.full(s.used) {
		s.choose(b.limit/4*3, func(h *holding) bool { return h.held >= protected })
	}
	if b.full(s.used) { // many small ones from which nothing is taken
		s.choose(b.limit/4*3, func(h *holding) bool { return h.stalled })
	}
	if t := s.tenant(); t != nil && b.full(s.used) {
		b.mu.Lock()
		t.shut = true // it holds all of this in streams that are not to be given up
		b.mu.Unlock()
	}
	b.surveyedAt, b.surveyAgain = now, s.used+b.limit/16
	b.abort(s)
}

// survey is what all streams hold, and what their owners do in all.
type survey struct {
	used    int64
	streams []*holding
	held    map[*account]int64
}

// survey finds out what every stream holds.
func (b *Budget) survey() *survey {
	s := &survey{held: map[*account]int64{}}
	b.mu.Lock()
	links := slices.Collect(maps.Keys(b.links))
	for _, tenant := range b.all.under {
		tenant.shut = false
	}
	b.mu.Unlock()
	for _, m := range links {
		now := m.now()
		m.flowsMu.Lock()
		for _, f := range m.flows {
			h := f.holding(now)
			if h.owner == nil || h.held == 0 {
				continue
			}
			s.streams = append(s.streams, &h)
			for a := h.owner; a.up != nil; a = a.up {
				s.held[a] += h.held
			}
		}
		m.flowsMu.Unlock()
	}
	s.used = b.used.Load()
	return s
}

// tenant returns the heaviest one.
func (s *survey) tenant() (heaviest *account) {
	for a, n := range s.held {
		if a.up.up == nil && (heaviest == nil || n > s.held[heaviest]) {
			heaviest = a
		}
	}
	return heaviest
}

// choose picks streams of those that may be given up, until no more than so much is in
// use: always of whoever is the heaviest then.
func (s *survey) choose(until int64, which func(*holding) bool) {
	queues := map[*account][]*holding{}
	for _, h := range s.streams {
		if !h.chosen && which(h) {
			queues[h.owner] = append(queues[h.owner], h)
		}
	}
	for _, q := range queues {
		slices.SortFunc(q, func(a, b *holding) int { return cmp.Compare(a.held, b.held) })
	}
	for s.used > until {
		tunnel := s.tunnel(queues)
		if tunnel == nil {
			return
		}
		q := queues[tunnel]
		h := q[len(q)-1]
		if queues[tunnel] = q[:len(q)-1]; len(q) == 1 {
			delete(queues, tunnel)
		}
		h.chosen = true
		s.used -= h.held
		for a := tunnel; a.up != nil; a = a.up {
			s.held[a] -= h.held
		}
	}
}

// tunnel returns the heaviest tenant's heaviest agent's heaviest tunnel of those that
// have a queue.
func (s *survey) tunnel(queues map[*account][]*holding) (heaviest *account) {
	tenant := s.tenant()
	for a := range queues {
		if a.up.up != tenant {
			continue
		}
		if heaviest == nil || cmp.Or(cmp.Compare(s.held[a.up], s.held[heaviest.up]), cmp.Compare(s.held[a], s.held[heaviest])) > 0 {
			heaviest = a
		}
	}
	return heaviest
}

// abort gives up the streams that were chosen, and reports them.
func (b *Budget) abort(s *survey) {
	relieved := map[*account]*Relief{}
	for _, h := range s.streams {
		if !h.chosen {
			continue
		}
		cause := fmt.Errorf("%w: this connection holds the most of whoever has the most", ErrMemory)
		if h.stalled {
			cause = fmt.Errorf("%w: nothing was taken from this connection for %s", ErrMemory, stallTime)
		}
		h.flow.release(b)
		if st := h.flow.stream.Load(); st != nil {
			st.abort(cause)
		}
		r := relieved[h.owner]
		if r == nil {
			r = &Relief{Owner: h.owner.owner}
			relieved[h.owner] = r
		}
		r.Full = r.Full || !h.stalled
		r.Streams++
		r.Bytes += h.held
	}
	if b.Relieved != nil {
		for _, r := range relieved {
			b.Relieved(*r)
		}
	}
}

// addLink counts a link's streams; removeLink no longer does.
func (b *Budget) addLink(m *mux) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.links[m] = struct{}{}
}

func (b *Budget) removeLink(m *mux) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.links, m)
}

// closeFlows takes the link, which has ended, out of the budget, and frees whoever
// waits at its streams.
func (m *mux) closeFlows() {
	m.budget.removeLink(m)
	m.flowsMu.Lock()
	defer m.flowsMu.Unlock()
	m.dead = true
	for _, f := range m.flows {
		f.linkClosed(m.budget)
	}
}

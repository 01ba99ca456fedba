package peers

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

// passages are the streams that pass here for one tunnel.
type passages struct {
	all  map[*passage]struct{}
	none chan struct{} // closed when the last one ended
}

// passage is one of them.
type passage struct {
	from  ident.RelayID
	moved atomic.Int64 // Unix nanoseconds of the last byte
}

func (x *passage) move(int) { x.moved.Store(time.Now().UnixNano()) }

func (p *Peers) enter(id ident.SessionID, from ident.RelayID) (x *passage, leave func()) {
	x = &passage{from: from}
	x.move(0)
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.served[id]
	if s == nil {
		s = &passages{all: map[*passage]struct{}{}, none: make(chan struct{})}
		p.served[id] = s
	}
	s.all[x] = struct{}{}
	return x, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if delete(s.all, x); len(s.all) == 0 {
			close(s.none)
			delete(p.served, id)
		}
	}
}

const (
	// leaveTime bounds the telling of another relay that this one stops.
	leaveTime = 2 * time.Second
	// quietFor is how long nothing moved on a stream that a stopping relay does not
	// wait for, where the other relay cannot tell which of its streams are idle.
	quietFor = 2 * time.Second
)

// Drain tells the other relays that this one stops, so that they give up what they
// keep idle here and send WebSockets another way, and waits until the requests that
// are left have their answers, for as long as ctx lasts.
func (p *Peers) Drain(ctx context.Context) {
	told := p.tell(ctx)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for p.busy(time.Now(), told) {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// tell returns the relays that know now.
func (p *Peers) tell(ctx context.Context) map[ident.RelayID]bool {
	ctx, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()
	told := map[ident.RelayID]bool{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, id := range p.guests() {
		wg.Go(func() {
			if err := p.tellOne(ctx, id); err != nil {
				p.log.Debug("tell another relay that this one stops", "peer", id, "error", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			told[id] = true
		})
	}
	wg.Wait()
	return told
}

func (p *Peers) tellOne(ctx context.Context, id ident.RelayID) error {
	w, err := p.to(ctx, id)
	if err != nil {
		return err
	}
	st, err := p.request(ctx, w.Link, wire.Hello{}, request{Op: opLeave})
	if err != nil {
		return err
	}
	return st.Close()
}

// guests are the relays that have a link to here.
func (p *Peers) guests() []ident.RelayID {
	p.mu.Lock()
	defer p.mu.Unlock()
	seen := map[ident.RelayID]bool{}
	for _, id := range p.in {
		seen[id] = true
	}
	return slices.Collect(maps.Keys(seen))
}

// left notes that another relay ends what passes there, and gives up what can begin
// anew.
func (p *Peers) left(from ident.RelayID) {
	p.mu.Lock()
	x := p.out[from]
	p.mu.Unlock()
	if x == nil {
		return // nothing goes there
	}
	if w, _ := x.now(); w != nil {
		w.leaving.Store(true)
	}
	if p.cfg.Leaving != nil {
		p.cfg.Leaving()
	}
}

// busy says whether there is something to wait for: all that relays have here which
// were told, and what moves of the others'.
func (p *Peers) busy(now time.Time, told map[ident.RelayID]bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.served {
		for x := range s.all {
			if told[x.from] || now.Sub(time.Unix(0, x.moved.Load())) < quietFor {
				return true
			}
		}
	}
	return false
}

// Yield waits until no other relay uses a tunnel through this one, for so long at
// most: a relay whose user is on a closing tunnel ends that with a goodbye, which
// a stream cut in the middle would not leave time for.
func (p *Peers) Yield(id ident.SessionID, limit time.Duration) {
	p.mu.Lock()
	s := p.served[id]
	p.mu.Unlock()
	if s == nil {
		return
	}
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-s.none:
	case <-t.C:
	}
}

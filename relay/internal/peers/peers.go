// Package peers owns the links between the relays of a pool: it dials another relay
// when something first wants to go there, keeps the link while the other lives, and
// drops it when the other's record is gone. Both ends prove who they are with
// certificates of the pool's authority that name them, and whoever dials must be a
// relay that the store knows now: the authority may have signed for others, too.
//
// What crosses a link is a stream to an agent that the other relay holds, or one
// question with one answer. A stream takes exactly one hop: what arrives is served
// from this relay's own links to agents, never from another relay's, and nobody but
// a relay can ask for it, since agents' links and the public listener know no such
// stream. The package never decides about tunnels and never looks into a stream.
package peers

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/relay/internal/caller"
	"github.com/adit-tunnel/adit/relay/internal/fleet"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/wire"
)

// Pool is what this relay knows of the others; store.Store is one.
type Pool interface {
	Relay(id ident.RelayID) (store.RelayRecord, bool)
	// CatchUp returns when what is known is at least as new as the call.
	CatchUp(ctx context.Context) error
	Presence(key ident.AgentKey) (store.Presence, bool)
	Agent(key ident.AgentKey) (store.AgentRecord, bool)
	// Serving says whether this relay may act on what it knows; Fenced is closed
	// when it may not any more.
	Serving() bool
	Fenced() <-chan struct{}
}

// Changes is a subscription to the store; store.Subscription is one.
type Changes interface {
	C() <-chan store.Change
	Lost() bool
	Close()
}

// Config is what Peers are made of. All but Leaving, Budget, Answers and Registerer is required.
type Config struct {
	Relay  ident.RelayID
	Listen string // address for the other relays
	TLS    Files
	Pool   Pool
	// Subscribe begins to watch the store.
	Subscribe func(buffer int) Changes
	// Open opens a stream to an agent over this relay's own links, for another
	// relay that knows the agent's session of that generation or a later one. It
	// refuses what is for no tunnel: this package knows none.
	Open func(ctx context.Context, key ident.AgentKey, epoch uint64, h wire.Hello) (*fleet.Stream, error)
	// Leaving is called when another relay ends what still passes there: streams
	// that say Leaving and can begin anew another way should. nil: they are cut when
	// that relay's time is over.
	Leaving func()
	Budget  *link.Budget // of data that waits, over all links of this relay; nil: one for these alone
	// Answers are the questions that other relays may ask. What an answer returns
	// is sent as JSON.
	Answers    map[string]func(ctx context.Context, question []byte) (any, error)
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Peers are the links to the other relays of the pool.
type Peers struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	tls     atomic.Pointer[tls.Config]

	strangers *caller.Limits // of what is logged of connections that are no relay's

	mu      sync.Mutex
	ctx     context.Context // of Run; nil while it does not run
	out     map[ident.RelayID]*peer
	in      map[*link.Link]ident.RelayID
	served  map[ident.SessionID]*passages
	waiters map[ident.AgentKey]chan struct{} // closed when the agent may be reachable
	wg      sync.WaitGroup                   // of Run
}

// New reads the certificates. Nothing listens until Run.
func New(cfg Config) (*Peers, error) {
	if cfg.Relay == "" || cfg.Listen == "" || cfg.Pool == nil || cfg.Subscribe == nil || cfg.Open == nil || cfg.Logger == nil {
		return nil, errors.New("peers: Relay, Listen, Pool, Subscribe, Open and Logger are required")
	}
	if cfg.Budget == nil {
		cfg.Budget = link.NewBudget(1 << 30)
	}
	p := &Peers{
		cfg: cfg, log: cfg.Logger, metrics: newMetrics(cfg.Registerer),
		strangers: caller.NewLimits(time.Minute, 5, 1024),
		out:       map[ident.RelayID]*peer{}, in: map[*link.Link]ident.RelayID{},
		served: map[ident.SessionID]*passages{}, waiters: map[ident.AgentKey]chan struct{}{},
	}
	if err := p.Reload(); err != nil {
		return nil, err
	}
	return p, nil
}

// Run listens for other relays and follows the pool until ctx ends, then closes
// every link and waits for what used them.
func (p *Peers) Run(ctx context.Context) error {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", p.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen for other relays on %s: %w", p.cfg.Listen, err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	p.mu.Lock()
	p.ctx = ctx
	p.mu.Unlock()
	stopped := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer func() {
		stopped()
		_ = ln.Close()
		p.mu.Lock()
		p.ctx = nil // nothing starts from here on
		p.mu.Unlock()
		cancel(errStopped)
		p.closeAll(errStopped)
		p.wg.Wait()
	}()
	failed := make(chan error, 1)
	p.wg.Go(func() { failed <- p.listen(ctx, ln) })

	feed := p.cfg.Subscribe(1024)
	defer feed.Close()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			if ctx.Err() != nil {
				return nil
			}
			return err
		case change, ok := <-feed.C():
			if !ok {
				<-ctx.Done() // the store ended: so will this
				return nil
			}
			p.observe(change)
			if feed.Lost() {
				p.resync()
			}
		case <-p.cfg.Pool.Fenced():
			p.closeAll(errFenced)
			select { // the channel of the next lease comes with the next lease
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
}

var (
	errStopped = errors.New("the relay stopped")
	errFenced  = errors.New("this relay lost its lease in the store")
	errGone    = errors.New("the other relay left the pool")
)

// observe follows the pool: a relay whose record is gone has no business here, and
// who waits for an agent looks again when something about it changed.
func (p *Peers) observe(c store.Change) {
	switch c.Kind {
	case store.KindRelay:
		if c.Deleted {
			p.drop(c.Relay)
		}
	case store.KindPresence, store.KindAgent:
		p.wake(c.Key)
	}
}

func (p *Peers) resync() {
	p.mu.Lock()
	var gone []ident.RelayID
	for id := range p.out {
		if _, ok := p.cfg.Pool.Relay(id); !ok {
			gone = append(gone, id)
		}
	}
	for _, id := range p.in {
		if _, ok := p.cfg.Pool.Relay(id); !ok {
			gone = append(gone, id)
		}
	}
	p.mu.Unlock()
	for _, id := range gone {
		p.drop(id)
	}
	p.wakeAll()
}

// drop ends the links with a relay that left.
func (p *Peers) drop(id ident.RelayID) {
	p.mu.Lock()
	x := p.out[id]
	delete(p.out, id)
	var links []*link.Link
	for l, from := range p.in {
		if from == id {
			links = append(links, l)
		}
	}
	p.mu.Unlock()
	if x != nil {
		x.stop(errGone)
	}
	p.end(links, errGone)
}

// closeAll ends every link, both ways.
func (p *Peers) closeAll(cause error) {
	p.mu.Lock()
	out := p.out
	p.out = map[ident.RelayID]*peer{}
	links := make([]*link.Link, 0, len(p.in))
	for l := range p.in {
		links = append(links, l)
	}
	p.mu.Unlock()
	for _, x := range out {
		x.stop(cause)
	}
	p.end(links, cause)
}

// end closes links at the same time: each may take a moment to flush.
func (p *Peers) end(links []*link.Link, cause error) {
	var wg sync.WaitGroup
	for _, l := range links {
		wg.Go(func() { _ = l.Close(cause) })
	}
	wg.Wait()
}

// waiter returns a channel that is closed when the agent may have become
// reachable.
func (p *Peers) waiter(key ident.AgentKey) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	ch := p.waiters[key]
	if ch == nil {
		ch = make(chan struct{})
		p.waiters[key] = ch
	}
	return ch
}

func (p *Peers) wake(key ident.AgentKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ch := p.waiters[key]; ch != nil {
		close(ch)
		delete(p.waiters, key)
	}
}

func (p *Peers) wakeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, ch := range p.waiters {
		close(ch)
		delete(p.waiters, key)
	}
}

// Links returns the relays to which a link is up, and those that have one to here.
func (p *Peers) Links() (to, from []ident.RelayID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, x := range p.out {
		if l, _ := x.now(); l != nil {
			to = append(to, id)
		}
	}
	for _, id := range p.in {
		from = append(from, id)
	}
	return to, from
}

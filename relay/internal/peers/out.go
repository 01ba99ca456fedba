package peers

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/fleet"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/backoff"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/wire"
)

const (
	// dialTime bounds connecting to another relay, which is near.
	dialTime = 2 * time.Second
	// openTime bounds the other relay's answer to an opening: it only looks at what
	// it has.
	openTime = 3 * time.Second
	// A relay that is silent so long is dead; requests go elsewhere meanwhile.
	deadAfter = 6 * time.Second
	keepAlive = 2 * time.Second
	// window is of each stream: relays are near each other, and their links many.
	window = 4 << 20
	// maxStreams bounds those of one link.
	maxStreams = 32768
)

// peer is one other relay and the link to it.
type peer struct {
	id   ident.RelayID
	stop context.CancelCauseFunc

	mu    sync.Mutex
	link  *way
	err   error
	known chan struct{} // closed when the last try has an outcome, which stays until the link dies
}

// way is a link to another relay. It is the lane of the streams that pass there.
type way struct {
	*link.Link
	to      ident.RelayID
	pool    Pool
	leaving atomic.Bool // the other relay said that it ends what still passes there
}

// Stale implements fleet.Lane: the other relay stops or is gone.
func (w *way) Stale() bool {
	rec, alive := w.pool.Relay(w.to)
	return !alive || rec.Draining
}

// Leaving implements fleet.Lane.
func (w *way) Leaving() bool { return w.leaving.Load() }

// Crowded implements fleet.Lane: which of the agent's links is, the other relay knows.
func (w *way) Crowded() bool { return false }

// Outnumbered implements fleet.Lane.
func (w *way) Outnumbered(int) bool { return false }

// Left implements fleet.Lane.
func (w *way) Left(*fleet.Stream) {}

// now returns the link or why there is none; neither while a try goes on.
func (x *peer) now() (*way, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.link, x.err
}

func (x *peer) set(l *way, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.link, x.err = l, err
	select {
	case <-x.known:
	default:
		close(x.known)
	}
}

// unset notes that the link died and that another is being tried.
func (x *peer) unset() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.link, x.err = nil, nil
	x.known = make(chan struct{})
}

// wait returns the link, waiting for a try under way.
func (x *peer) wait(ctx context.Context) (*way, error) {
	x.mu.Lock()
	known := x.known
	x.mu.Unlock()
	select {
	case <-known:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	l, err := x.now()
	if l == nil && err == nil {
		err = errors.New("its link was lost")
	}
	return l, err
}

// to returns the link to a relay, dialling it when this is the first use.
func (p *Peers) to(ctx context.Context, id ident.RelayID) (*way, error) {
	rec, ok := p.cfg.Pool.Relay(id)
	switch {
	case !ok:
		return nil, fmt.Errorf("relay %s: %w", id, errGone)
	case rec.PeerURL == "":
		return nil, fmt.Errorf("relay %s takes no links from other relays: it has no peer.url", id)
	case !p.cfg.Pool.Serving():
		return nil, errFenced
	}
	p.mu.Lock()
	if p.ctx == nil || p.ctx.Err() != nil {
		p.mu.Unlock()
		return nil, errStopped
	}
	x := p.out[id]
	if x == nil {
		xctx, cancel := context.WithCancelCause(p.ctx)
		x = &peer{id: id, stop: cancel, known: make(chan struct{})}
		p.out[id] = x
		p.wg.Go(func() {
			defer cancel(nil)
			p.keep(xctx, x)
		})
	}
	p.mu.Unlock()
	return x.wait(ctx)
}

// keep keeps the link to one relay until ctx ends.
func (p *Peers) keep(ctx context.Context, x *peer) {
	defer func() { x.set(nil, context.Cause(ctx)) }()
	var back backoff.Backoff
	for ctx.Err() == nil {
		l, err := p.dial(ctx, x.id)
		x.set(l, err)
		if err == nil {
			back.Reset()
			p.metrics.links.Inc()
			p.log.Info("linked to another relay", "peer", x.id)
			p.wakeAll()
			select {
			case <-l.Done():
			case <-ctx.Done():
			}
			x.unset()
			cause := l.Err()
			if ctx.Err() != nil {
				cause = context.Cause(ctx)
			}
			_ = l.Close(cause)
			p.metrics.links.Dec()
			p.log.Info("the link to another relay ended", "peer", x.id, "cause", cause)
			p.wakeAll()
			continue
		}
		if ctx.Err() == nil {
			p.log.Debug("no link to another relay", "peer", x.id, "error", err)
		}
		if back.Wait(ctx) != nil {
			return
		}
		if _, ok := p.cfg.Pool.Relay(x.id); !ok {
			p.drop(x.id)
			return
		}
	}
}

// dial makes one link. Both ends know each other when it returns.
func (p *Peers) dial(ctx context.Context, id ident.RelayID) (*way, error) {
	rec, ok := p.cfg.Pool.Relay(id)
	if !ok {
		return nil, errGone
	}
	u, err := url.Parse(rec.PeerURL)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("the peer.url of relay %s is no URL", id)
	}
	address := u.Host
	if u.Port() == "" {
		address = net.JoinHostPort(u.Hostname(), "443")
	}
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	conf := p.tls.Load().Clone()
	conf.ServerName = string(id) // its certificate must name the relay, wherever it is
	d := tls.Dialer{NetDialer: &net.Dialer{}, Config: conf}
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("dial relay %s: %w", id, err)
	}
	if _, err := leaf(conn.(*tls.Conn)); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("dial relay %s: %w", id, err)
	}
	l, err := link.NewClient(conn, p.linkConfig())
	if err != nil {
		return nil, fmt.Errorf("dial relay %s: %w", id, err)
	}
	if err := p.introduce(ctx, l); err != nil {
		_ = l.Close(err)
		return nil, fmt.Errorf("dial relay %s: %w", id, err)
	}
	return &way{Link: l, to: id, pool: p.cfg.Pool}, nil
}

func (p *Peers) linkConfig() link.Config {
	return link.Config{
		Window: window, MaxStreams: maxStreams, AcceptBacklog: 1024, Budget: p.cfg.Budget,
		KeepAlive: keepAlive, DeadAfter: deadAfter, Logger: p.log,
	}
}

// introduce says who this relay is, on the link's first stream.
func (p *Peers) introduce(ctx context.Context, l *link.Link) error {
	st, err := p.request(ctx, l, wire.Hello{}, request{Op: opHello, Relay: p.cfg.Relay})
	if err != nil {
		return err
	}
	return st.Close()
}

// request opens a stream for a request and waits for the other relay's yes.
func (p *Peers) request(ctx context.Context, l *link.Link, h wire.Hello, r request) (*link.Stream, error) {
	payload, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	h.Kind, h.Payload = wire.KindPeer, payload
	st, err := link.OpenFor(ctx, l, owner(r, h), h)
	if err != nil {
		return nil, err
	}
	if err := st.Verdict(ctx); err != nil {
		_ = st.Reset()
		return nil, err
	}
	return st, nil
}

// carriers lists the other relays that may have a link of the agent, the likeliest
// first.
func (p *Peers) carriers(key ident.AgentKey) (ids []ident.RelayID, epoch uint64) {
	add := func(id ident.RelayID) {
		if id != "" && id != p.cfg.Relay && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	if pr, ok := p.cfg.Pool.Presence(key); ok && pr.GoneSince.IsZero() {
		add(pr.Relay)
		epoch = pr.Epoch
	}
	if rec, ok := p.cfg.Pool.Agent(key); ok {
		for _, id := range recordCarriers(rec) {
			add(id)
		}
		epoch = max(epoch, rec.Epoch)
	}
	return slices.DeleteFunc(ids, func(id ident.RelayID) bool { _, alive := p.cfg.Pool.Relay(id); return !alive }), epoch
}

// recordCarriers are the relays that have a link of the agent's present session, as
// its record says.
func recordCarriers(rec store.AgentRecord) []ident.RelayID {
	ids := []ident.RelayID{rec.Relay}
	for id, epoch := range rec.Also {
		if epoch == rec.Epoch {
			ids = append(ids, id)
		}
	}
	return ids
}

// Open opens a stream to an agent through another relay that has a link to it. The
// agent's verdict is read with the first data, or by Stream.Verdict. It returns
// fleet.ErrAway when no other relay has the agent, fleet.ErrCut when the tunnel is
// closed there, and link.ErrTooManyStreams at the other's limit: nothing was sent to the
// agent then.
func (p *Peers) Open(ctx context.Context, key ident.AgentKey, h wire.Hello) (*fleet.Stream, error) {
	ids, epoch := p.carriers(key)
	var errs []error
	for _, id := range ids {
		st, err := p.openAt(ctx, id, key, epoch, h)
		if err == nil {
			p.metrics.opens.WithLabelValues("ok").Inc()
			return st, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if errors.Is(err, link.ErrTooManyStreams) || errors.Is(err, link.ErrMemory) || errors.Is(err, fleet.ErrCut) {
			p.metrics.opens.WithLabelValues("refused").Inc()
			return nil, err
		}
		errs = append(errs, err)
	}
	p.metrics.opens.WithLabelValues("away").Inc()
	return nil, fmt.Errorf("%w to any other relay: %w", fleet.ErrAway, errors.Join(errs...))
}

// openAt opens a stream through one relay, which says yes first: the agent's own verdict
// comes after that.
func (p *Peers) openAt(ctx context.Context, id ident.RelayID, key ident.AgentKey, epoch uint64, h wire.Hello) (*fleet.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, openTime)
	defer cancel()
	w, err := p.to(ctx, id)
	if err != nil {
		return nil, err
	}
	r := request{Op: opStream, Team: key.Team, Agent: key.Agent, Kind: h.Kind, Payload: h.Payload}
	h.Epoch = epoch
	st, err := p.request(ctx, w.Link, h, r)
	if v, ok := errors.AsType[wire.Verdict](err); ok {
		switch v.Code {
		case wire.CodeOverloaded:
			return nil, fmt.Errorf("relay %s: %w", id, link.ErrTooManyStreams)
		case wire.CodeUnknownTunnel:
			return nil, fmt.Errorf("relay %s: %w", id, fleet.ErrCut)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("relay %s: %w", id, err)
	}
	st.AwaitVerdict()
	return fleet.NewStream(st, h.Session, w), nil
}

// Wait returns when another relay seems to have the agent, or with ctx.
func (p *Peers) Wait(ctx context.Context, key ident.AgentKey) error {
	for {
		changed := p.waiter(key)
		if p.reachable(key) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for agent: %w", fleet.ErrAway)
		}
	}
}

// reachable says whether opening a stream to the agent is worth a try.
func (p *Peers) reachable(key ident.AgentKey) bool {
	pr, ok := p.cfg.Pool.Presence(key)
	here := ok && pr.GoneSince.IsZero()
	ids, _ := p.carriers(key)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range ids {
		x := p.out[id]
		if x == nil {
			return here
		}
		if l, err := x.now(); l != nil || err == nil {
			return here
		}
	}
	return false
}

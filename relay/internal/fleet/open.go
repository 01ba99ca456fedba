package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/traces"
	"github.com/adit-tunnel/adit/shared/wire"
)

const (
	// toldWait and toldTries bound how long an agent may need to learn of a tunnel
	// that was opened this moment, or of its own new generation.
	toldWait  = 100 * time.Millisecond
	toldTries = 10
	// verdictWait bounds the agent's answer: its own dial has a shorter limit.
	verdictWait = 20 * time.Second
	// tunnelTime bounds asking the store for a tunnel that another relay knows and
	// this one does not.
	tunnelTime = 2 * time.Second
)

// Hold is what one request may spend on an agent, in all, however often it opens a
// stream.
type Hold struct {
	For time.Duration // how long it waits for an agent that is away
	// Waiting is called when such a wait begins and when it is over; nil: nobody asks.
	Waiting func(begins bool)

	until time.Time // of the wait; zero: the agent was not away
	told  int       // tries after the agent did not know yet what the relay knows
}

// Open opens a stream to an agent, and waits for one that is away. The agent's verdict
// is not waited for: it comes with the first data, which saves a round trip. It returns
// ErrAway when the hold is used up.
func (f *Fleet) Open(ctx context.Context, key ident.AgentKey, h wire.Hello, hold *Hold) (*Stream, error) {
	for {
		st, err := f.try(ctx, key, h)
		if err == nil || !errors.Is(err, ErrAway) || ctx.Err() != nil {
			return st, err
		}
		if !f.await(ctx, key, hold) {
			return nil, err
		}
	}
}

// Connect is Open for who must know that the agent took the stream before anything is
// sent: it returns a refusal as a wire.Verdict.
func (f *Fleet) Connect(ctx context.Context, key ident.AgentKey, h wire.Hello, hold *Hold) (*Stream, error) {
	for {
		st, err := f.Open(ctx, key, h, hold)
		if err != nil {
			return nil, err
		}
		verdict, cancel := context.WithTimeout(ctx, verdictWait)
		err = st.Verdict(verdict)
		cancel()
		if err == nil {
			return st, nil
		}
		_ = st.Close()
		if !hold.Retry(ctx, err) {
			return nil, err
		}
	}
}

// Retry says whether what ended in err may be tried again because the agent refused
// only for not knowing yet what the relay knows, and waits a moment before it says so.
// The app has seen nothing, so that is right for any request.
func (h *Hold) Retry(ctx context.Context, err error) bool {
	v, ok := errors.AsType[wire.Verdict](err)
	if !ok || v.Code != wire.CodeStaleEpoch && v.Code != wire.CodeUnknownTunnel || h.told >= toldTries {
		return false
	}
	h.told++
	pause(ctx, toldWait)
	return ctx.Err() == nil
}

// Retries is how often Retry said yes.
func (h *Hold) Retries() int { return h.told }

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// await says whether an agent that was away has a link, before the hold is used up.
func (f *Fleet) await(ctx context.Context, key ident.AgentKey, hold *Hold) bool {
	if hold.until.IsZero() {
		hold.until = time.Now().Add(hold.For)
	} else {
		// It came and went, or is said to be there before it is: no busy loop.
		pause(ctx, toldWait)
	}
	ctx, cancel := context.WithDeadline(ctx, hold.until)
	defer cancel()
	if ctx.Err() != nil {
		return false
	}
	if hold.Waiting != nil {
		hold.Waiting(true)
		defer hold.Waiting(false)
	}
	return f.Wait(ctx, key) == nil && ctx.Err() == nil
}

// try is open with a span that the agent's dial continues. Terminals have none.
func (f *Fleet) try(ctx context.Context, key ident.AgentKey, h wire.Hello) (*Stream, error) {
	if f.cfg.Traces == nil || h.Kind == wire.KindTerminal {
		return f.open(ctx, key, h)
	}
	ctx, span := f.cfg.Traces.Start(ctx, "open stream", traces.String("adit.agent", string(key.Agent)), traces.String("adit.session_id", string(h.Session)),
		traces.String("adit.request_id", string(h.Request)), traces.Int("server.port", int(h.Port)))
	h.Trace = traces.ToWire(ctx)
	st, err := f.open(ctx, key, h)
	span.End(err)
	return st, err
}

// open opens a stream over this relay's own link to the agent, else through the relay
// that has one.
func (f *Fleet) open(ctx context.Context, key ident.AgentKey, h wire.Hello) (*Stream, error) {
	st, err := f.cfg.Hub.Open(ctx, key, h)
	if err == nil || f.peers == nil || !errors.Is(err, ErrAway) && !errors.Is(err, ErrDraining) {
		return st, err
	}
	st, other := f.peers.Open(ctx, key, h)
	if errors.Is(other, ErrAway) {
		other = errors.Join(err, other)
	}
	return st, other
}

// Wait returns nil when some relay has the agent, or may have, and an error with ctx.
func (f *Fleet) Wait(ctx context.Context, key ident.AgentKey) error {
	if f.peers == nil {
		return f.cfg.Hub.Wait(ctx, key)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	here, there := make(chan error, 1), make(chan error, 1)
	go func() { here <- f.cfg.Hub.Wait(ctx, key) }()
	go func() { there <- f.peers.Wait(ctx, key) }()
	select {
	case err := <-here:
		if errors.Is(err, ErrDraining) { // it comes here no more
			return <-there
		}
		cancel()
		<-there
		return err
	case err := <-there:
		cancel()
		<-here
		return err
	}
}

// OpenHere opens a stream for another relay, which knows the agent's session of that
// generation or a later one. It looks at this relay's own links only: that is what
// makes a hop the last one. And only for a tunnel: a relay asks for what its users may
// reach, and nothing else.
func (f *Fleet) OpenHere(ctx context.Context, key ident.AgentKey, epoch uint64, h wire.Hello) (*Stream, error) {
	if err := f.forTunnel(ctx, key, h); err != nil {
		return nil, err
	}
	if have, ok := f.cfg.Hub.Online(key); !ok || have < epoch {
		return nil, ErrAway
	}
	return f.cfg.Hub.Open(ctx, key, h)
}

// forTunnel says why a stream that another relay asks for is for no open tunnel of that
// agent, to the tunnel's port; a terminal goes to no port. The other relay may have
// heard of a new tunnel first.
func (f *Fleet) forTunnel(ctx context.Context, key ident.AgentKey, h wire.Hello) error {
	t, ok := f.cfg.Store.Tunnel(h.Session)
	if !ok {
		ctx, cancel := context.WithTimeout(ctx, tunnelTime)
		defer cancel()
		if err := f.cfg.Store.CatchUp(ctx); err != nil {
			return fmt.Errorf("%w: the tunnel is not known here, and the store cannot be asked now: %w", ErrAway, err)
		}
		t, ok = f.cfg.Store.Tunnel(h.Session)
	}
	st, _ := f.cfg.Store.TunnelState(key, h.Session)
	switch {
	case !ok, t.Key() != key, st.State != store.TunnelOpen:
		return fmt.Errorf("%w: the agent has no such tunnel open", ErrCut)
	case h.Kind != wire.KindTerminal && h.Port != t.Port:
		return fmt.Errorf("%w: port %d is not the tunnel's", ErrCut, h.Port)
	}
	return nil
}

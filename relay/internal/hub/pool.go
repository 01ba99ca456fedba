package hub

import (
	"context"
	"errors"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/gate"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

// A session may span relays: an agent with several links keeps them to different
// ones. Each of them has a session of the same generation here; the agent's record
// says which one is first. That one writes the presence; another takes its place
// when it leaves or is gone. A relay is in the record before its first link of the
// agent is used and until after the last one is closed.

// Pool is what the hub needs of the gate where an agent may have links to several
// relays. A nil Pool in Config: there is one relay.
type Pool interface {
	// Join adds this relay to the session of a process. An error that wraps
	// gate.ErrSuperseded refuses it.
	Join(ctx context.Context, key ident.AgentKey, c gate.Claim) (store.AgentRecord, error)
	// Leave says that this relay has no link of the agent; holds is asked whether
	// that is still so. It returns whether another relay has the agent.
	Leave(ctx context.Context, key ident.AgentKey, epoch uint64, holds func() bool) (handed bool, err error)
	// Adopt makes this relay the first of an agent's, since the first is gone.
	Adopt(ctx context.Context, key ident.AgentKey, epoch uint64) error
}

// poolTime bounds a change of the agent's record by the hub itself.
const poolTime = 5 * time.Second

// Changed hears of an agent's record, and of the end of the relay that it names.
func (h *Hub) Changed(key ident.AgentKey, rec store.AgentRecord) {
	if h.cfg.Pool == nil {
		return
	}
	_, also := rec.Also[h.cfg.Relay]
	mine := rec.Relay == h.cfg.Relay
	s := h.session(key)
	switch {
	case s == nil && (also || mine && len(rec.Also) > 0):
		h.background(func(ctx context.Context) {
			if _, err := h.cfg.Pool.Leave(ctx, key, rec.Epoch, func() bool { return h.holds(key) }); err != nil {
				h.log.Debug("leave an agent's session", "agent", key.Agent, "error", err)
			}
		})
	case s == nil:
	case rec.Epoch > s.epoch:
		if h.isDraining() {
			return // what still runs on its link may finish; nothing new opens
		}
		h.background(func(context.Context) {
			s.end(wire.Goodbye{Reason: wire.GoodbyeSuperseded, Detail: "the agent has a newer session at another relay"})
		})
	case rec.Epoch == s.epoch && mine:
		if s.first.CompareAndSwap(false, true) {
			h.background(func(ctx context.Context) { s.publish(ctx) })
		}
	case rec.Epoch == s.epoch && !h.alive(rec.Relay):
		h.background(func(ctx context.Context) {
			if err := h.cfg.Pool.Adopt(ctx, key, s.epoch); err != nil {
				h.log.Warn("take over an agent whose relay is gone", "agent", key.Agent, "relay", rec.Relay, "error", err)
			}
		})
	}
}

// alive says whether a relay has a lease.
func (h *Hub) alive(id ident.RelayID) bool {
	_, ok := h.cfg.Store.Relay(id)
	return ok
}

// publish writes the presence, now that this relay is the agent's first.
func (s *session) publish(ctx context.Context) {
	for range 5 {
		s.mu.Lock()
		s.written = store.Presence{}
		s.mu.Unlock()
		err := s.heard(ctx, nil, nil)
		if err == nil || errors.Is(err, store.ErrStaleEpoch) || ctx.Err() != nil {
			return
		}
		s.hub.log.Debug("write the presence of an agent that was taken over", "agent", s.key.Agent, "error", err)
		t := time.NewTimer(200 * time.Millisecond)
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

func (h *Hub) background(f func(context.Context)) {
	h.serving.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), poolTime)
		defer cancel()
		f(ctx)
	})
}

func (h *Hub) isDraining() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.draining
}

// holds says whether this relay has a link of the agent, or is about to.
func (h *Hub) holds(key ident.AgentKey) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sessions[key] != nil || h.joining[key] > 0
}

// claiming notes that a link of the agent is about to be admitted, until done.
func (h *Hub) claiming(key ident.AgentKey) (done func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.joining[key]++
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.joining[key]--; h.joining[key] == 0 {
			delete(h.joining, key)
		}
	}
}

// claim gets the generation for a link: that of the process's session at another
// relay, or a new one. first says whether this relay is the agent's first.
func (h *Hub) claim(ctx context.Context, key ident.AgentKey, hello wire.AgentHello) (epoch uint64, first bool, err error) {
	c := gate.Claim{Instance: hello.Instance, Seen: hello.Generation, Live: h.live(key), Alone: hello.Alone, Capacity: hello.TaskCapacity}
	if wantsToJoin(hello) {
		if h.cfg.Pool == nil {
			return 0, false, gate.ErrSuperseded
		}
		rec, err := h.cfg.Pool.Join(ctx, key, c)
		return hello.Generation, rec.Relay == h.cfg.Relay, err
	}
	epoch, _, err = h.cfg.Gate.Connect(ctx, key, c)
	return epoch, true, err
}

// wantsToJoin says whether a link is meant to be one more of a living session.
func wantsToJoin(hello wire.AgentHello) bool {
	return hello.Generation > 0 && (hello.LinkIndex > 0 || hello.Join)
}

// leavesToOthers leaves an agent's session whose last link here is gone, and says
// whether another relay has the agent.
func (h *Hub) leavesToOthers(s *session) bool {
	if h.cfg.Pool == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), poolTime)
	defer cancel()
	handed, err := h.cfg.Pool.Leave(ctx, s.key, s.epoch, func() bool { return h.holds(s.key) })
	if err != nil {
		h.log.Debug("leave an agent's session", "agent", s.key.Agent, "epoch", s.epoch, "error", err)
		return !s.first.Load()
	}
	return handed
}

// moveTime bounds the wait for agents that were told to move.
const moveTime = 1500 * time.Millisecond

// awaitMoves waits until the agents have a link elsewhere: what is closed then is
// missed by nobody.
func (h *Hub) awaitMoves(ctx context.Context, all []*session) {
	if h.cfg.Pool == nil || len(h.cfg.Relays()) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, moveTime)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for _, s := range all {
		for h.session(s.key) == s && !h.movedOn(s) {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}
}

func (h *Hub) movedOn(s *session) bool {
	rec, ok := h.cfg.Store.Agent(s.key)
	if !ok || rec.Epoch > s.epoch {
		return true
	}
	for id, epoch := range rec.Also {
		if epoch == rec.Epoch && id != h.cfg.Relay {
			return true
		}
	}
	return rec.Relay != h.cfg.Relay
}

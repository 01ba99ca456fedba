package hub

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/shared/wire"
)

// leave takes a link out of its session. With the last one the session is over:
// the agent is marked gone, and forgotten after the grace time.
func (h *Hub) leave(s *session, m *member, reason error) {
	label := "lost"
	if bye, ok := errors.AsType[*GoodbyeError](reason); ok {
		label = string(knownReason(bye.Reason))
	}
	h.metrics.disconnects.WithLabelValues(label).Inc()
	h.mu.Lock()
	for i, x := range s.members {
		if x == m {
			s.members = append(s.members[:i:i], s.members[i+1:]...)
			break
		}
	}
	over := len(s.members) == 0
	current := h.sessions[s.key] == s
	if over && current {
		delete(h.sessions, s.key)
		h.metrics.sessions.Set(float64(len(h.sessions)))
	}
	h.mu.Unlock()
	if !over || !current {
		return
	}
	h.log.Info("agent gone", "team", s.key.Team, "agent", s.key.Agent, "epoch", s.epoch, "reason", reason)
	h.cfg.Event(Event{Kind: audit.AgentGone, Key: s.key, Epoch: s.epoch, Detail: fmt.Sprint(reason), Principal: s.principal})
	h.serving.Add(1)
	go h.fade(s)
}

// fade keeps a lost agent in lists for the grace time.
func (h *Hub) fade(s *session) {
	defer h.serving.Done()
	if h.leavesToOthers(s) {
		return
	}
	p := s.snapshot()
	p.GoneSince = time.Now().UTC()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	select {
	case <-h.stop: // the relay stops: the agent will be elsewhere in a moment
	default:
		if !h.cfg.Store.Room() {
			break // the list may flicker
		}
		if err := h.cfg.Store.PutPresence(ctx, p); err != nil {
			h.log.Debug("mark agent gone", "agent", s.key.Agent, "error", err)
		}
		grace := time.NewTimer(h.cfg.Grace)
		defer grace.Stop()
		select {
		case <-grace.C:
		case <-h.stop:
		}
	}
	ctx2, cancel2 := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel2()
	if err := h.cfg.Store.DeletePresence(ctx2, s.key, s.epoch); err != nil {
		h.log.Debug("forget agent", "agent", s.key.Agent, "error", err)
	}
}

func knownReason(r wire.GoodbyeReason) wire.GoodbyeReason {
	switch r {
	case wire.GoodbyeSuperseded, wire.GoodbyeDrain, wire.GoodbyeRevoked, wire.GoodbyeShutdown, wire.GoodbyeFenced:
		return r
	}
	return wire.GoodbyeError
}

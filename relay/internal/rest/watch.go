package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/gate"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

const (
	// settle is how long changes are collected before they are sent: one action
	// often changes several records.
	settle = 50 * time.Millisecond
	// eventTime bounds the writing of one event to a slow reader.
	eventTime = 10 * time.Second
	// historySize is how many notices a stream that resumes can be told of.
	historySize = 256
	// maxStreams bounds the streams of one team on this relay: each is told of every
	// change in the store.
	maxStreams = 256
)

// history keeps the newest notices of tunnels, which no snapshot shows, for
// streams that resume.
type history struct {
	run string // of this process: ids of another one mean nothing here

	mu      sync.Mutex
	last    uint64
	ring    []numbered // oldest first
	streams map[chan struct{}]struct{}
	teams   map[ident.TeamID]int // streams of each
}

type numbered struct {
	n      uint64
	notice gate.Notice
}

func newHistory() *history {
	return &history{run: ident.NewNonce()[:8], streams: make(map[chan struct{}]struct{}), teams: make(map[ident.TeamID]int)}
}

func (h *history) add(n gate.Notice) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last++
	if len(h.ring) == historySize {
		h.ring = append(h.ring[:0], h.ring[1:]...)
	}
	h.ring = append(h.ring, numbered{h.last, n})
	for wake := range h.streams {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
}

// since returns a team's notices behind n, and the newest number.
func (h *history) since(n uint64, team ident.TeamID) ([]numbered, uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []numbered
	for _, x := range h.ring {
		if x.n > n && x.notice.Key.Team == team {
			out = append(out, x)
		}
	}
	return out, h.last
}

// join returns a channel that hears of new notices, and where the stream begins:
// behind the event that its reader saw last, if that was of this process. It is nil
// when the team has its share of streams.
func (h *history) join(team ident.TeamID, lastID string) (wake chan struct{}, from uint64, leave func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.teams[team] >= maxStreams {
		return nil, 0, nil
	}
	h.teams[team]++
	wake, from = make(chan struct{}, 1), h.last
	if run, text, ok := strings.Cut(lastID, "-"); ok && run == h.run {
		if n, err := strconv.ParseUint(text, 10, 64); err == nil && n <= h.last {
			from = n
		}
	}
	h.streams[wake] = struct{}{}
	return wake, from, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.streams, wake)
		if h.teams[team]--; h.teams[team] == 0 {
			delete(h.teams, team)
		}
	}
}

func (h *history) id(n uint64) string { return h.run + "-" + strconv.FormatUint(n, 10) }

// watchAgents streams changes: a snapshot first, then what changes, until the
// caller leaves, its credential ends, or the relay drains.
func (a *API) watchAgents(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	if _, err := query(r); err != nil {
		return err
	}
	if a.stopping.Err() != nil {
		return errDraining
	}
	ctx, stop := a.cfg.Auth.Watch(r.Context(), p)
	defer stop()
	wake, from, leave := a.events.join(p.Team, r.Header.Get("Last-Event-ID"))
	if wake == nil {
		return api.Problemf(api.CodeTeamWatchLimit, "the team has %d event streams on this relay, as many as one team may have; end some", maxStreams).WithRetry(30 * time.Second)
	}
	defer leave()
	feed := a.cfg.Store.Subscribe(1024)
	defer feed.Close()
	a.metrics.watchers.Inc()
	defer a.metrics.watchers.Dec()

	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Time{})
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no") // nginx would hold events back
	w.WriteHeader(http.StatusOK)
	s := &stream{api: a, w: w, rc: rc, by: p, sent: make(map[ident.AgentID][]byte), n: from}
	if err := s.snapshot(); err != nil {
		return nil // the reader left: nothing can be told any more
	}
	if err := s.notices(); err != nil {
		return nil
	}
	err := s.follow(ctx, feed, wake)
	if errors.Is(err, errDraining) {
		err = errors.New(restarts)
	} else if !creds.Ended(err) {
		return nil // the reader left
	}
	_ = s.event(api.Event{Kind: api.EventGoodbye, Detail: err.Error()}, s.n) // if it still listens
	return nil
}

// restarts is what callers are told of a relay that stops.
const restarts = "the relay restarts"

// stream is one open event stream.
type stream struct {
	api  *API
	w    http.ResponseWriter
	rc   *http.ResponseController
	by   creds.Principal
	sent map[ident.AgentID][]byte // as last told
	n    uint64                   // the newest notice that was told
}

func (s *stream) follow(ctx context.Context, feed gate.Feed, wake <-chan struct{}) error {
	comment := time.NewTicker(s.api.cfg.Comment)
	defer comment.Stop()
	dirty := make(map[ident.AgentID]bool)
	var due <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s.api.stopping.Done():
			return errDraining
		case c, ok := <-feed.C():
			if !ok {
				return errDraining
			}
			if feed.Lost() {
				if err := s.snapshot(); err != nil {
					return err
				}
				continue
			}
			switch c.Kind {
			case store.KindKnock:
				if err := s.knock(c); err != nil {
					return err
				}
			case store.KindAgent, store.KindPresence, store.KindTunnel:
				if c.Key.Team == s.by.Team && s.by.MayReach(c.Key.Agent) {
					dirty[c.Key.Agent] = true
					if due == nil {
						due = time.After(settle)
					}
				}
			}
		case <-due:
			due = nil
			for id := range dirty {
				if err := s.agent(id); err != nil {
					return err
				}
			}
			clear(dirty)
		case <-wake:
			if err := s.notices(); err != nil {
				return err
			}
		case <-comment.C:
			if err := s.write([]byte(": still here\n\n")); err != nil {
				return err
			}
		}
	}
}

// snapshot tells all agents at once, and begins anew.
func (s *stream) snapshot() error {
	clear(s.sent)
	now := time.Now()
	e := api.Event{Kind: api.EventSnapshot, Agents: []api.Agent{}}
	for _, p := range s.api.cfg.Store.Presences(s.by.Team) {
		if s.api.left(p, now) || !s.by.MayReach(p.Agent) {
			continue
		}
		agent := s.api.describe(p, now)
		text, err := json.Marshal(agent)
		if err != nil {
			return fmt.Errorf("encode agent: %w", err)
		}
		s.sent[p.Agent] = text
		e.Agents = append(e.Agents, agent)
	}
	return s.event(e, s.n)
}

// agent tells what changed about one agent, if anything did.
func (s *stream) agent(id ident.AgentID) error {
	now := time.Now()
	p, ok := s.api.cfg.Store.Presence(ident.AgentKey{Team: s.by.Team, Agent: id})
	if !ok || s.api.left(p, now) {
		if _, told := s.sent[id]; !told {
			return nil
		}
		delete(s.sent, id)
		return s.event(api.Event{Kind: api.EventAgentGone, AgentID: id}, s.n)
	}
	agent := s.api.describe(p, now)
	text, err := json.Marshal(agent)
	if err != nil {
		return fmt.Errorf("encode agent: %w", err)
	}
	if bytes.Equal(text, s.sent[id]) {
		return nil
	}
	s.sent[id] = text
	return s.event(api.Event{Kind: api.EventAgentChanged, AgentID: id, Agent: &agent}, s.n)
}

func (s *stream) notices() error {
	list, _ := s.api.events.since(s.n, s.by.Team)
	for _, x := range list {
		s.n = x.n
		n := x.notice
		if !s.by.MayReach(n.Key.Agent) {
			continue
		}
		if err := s.event(api.Event{Kind: n.Kind, AgentID: n.Key.Agent, Session: n.Session, Detail: n.Detail}, x.n); err != nil {
			return err
		}
	}
	return nil
}

func (s *stream) event(e api.Event, n uint64) error {
	data, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode event: %w", err)
	}
	return s.write(fmt.Appendf(nil, "id: %s\nevent: %s\ndata: %s\n\n", s.api.events.id(n), e.Kind, data))
}

func (s *stream) write(b []byte) error {
	_ = s.rc.SetWriteDeadline(time.Now().Add(eventTime)) // not every connection has deadlines
	if _, err := s.w.Write(b); err != nil {
		return err
	}
	return s.rc.Flush()
}

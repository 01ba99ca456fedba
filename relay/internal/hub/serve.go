package hub

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"golang.org/x/time/rate"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/caller"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/fleet"
	"github.com/adit-tunnel/adit/relay/internal/gate"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/wire"
)

// helloTime bounds the time from a link's upgrade to its agent's hello.
const helloTime = 10 * time.Second

// mute is how long an agent may say nothing on a link that is alive below: it sends its
// facts every HeartbeatInterval.
const mute = 3 * wire.HeartbeatInterval

// ServeLink serves GET /agent/v1/link for an authenticated principal. It returns when
// the connection is a link, which is then served in a goroutine that Run waits for:
// as long as a handler runs, its request and buffers are kept, and an idle agent
// should cost little. Refusals are problems over HTTP.
func (h *Hub) ServeLink(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	if p.Kind != creds.KindAgent {
		return api.NewProblem(api.CodeForbidden, "links are for agent credentials (ak-…)")
	}
	if problem := h.mayLink(p); problem != nil {
		h.metrics.connects.WithLabelValues("refused").Inc()
		return problem
	}
	h.mu.Lock()
	full, draining := len(h.sessions) >= h.cfg.MaxAgents, h.draining
	if !full && !draining {
		h.serving.Add(1)
	}
	h.mu.Unlock()
	switch {
	case draining:
		h.metrics.connects.WithLabelValues("refused").Inc()
		return api.NewProblem(api.CodeRelayDraining, "this relay is stopping; connect to another one, or again in a moment").WithRetry(time.Second)
	case full:
		h.metrics.connects.WithLabelValues("refused").Inc()
		return api.NewProblem(api.CodeRelayFull, "this relay has as many agents as it admits").WithRetry(30 * time.Second)
	}
	l, err := link.Accept(w, r, link.Config{
		Window: h.cfg.Window, MaxStreams: h.cfg.MaxStreams, MaxIncoming: maxGateStreams + 1, AcceptBacklog: backlog, Handshake: true, Budget: h.cfg.Budget, Logger: h.log, Hooks: h.metrics.hooks(),
	})
	if err != nil {
		h.serving.Done()
		h.metrics.connects.WithLabelValues("error").Inc()
		h.log.Debug("accept link", "remote", r.RemoteAddr, "error", err)
		return nil // the upgrade answered for itself
	}
	remote := r.RemoteAddr
	place := h.silent.Enter(string(p.Team), func() {
		h.metrics.connects.WithLabelValues("refused").Inc()
		h.serving.Go(func() { _ = l.Close(errCrowded) }) // its goodbye takes a moment
	})
	go func() {
		defer h.serving.Done()
		live, stop := h.cfg.Creds.Watch(context.Background(), p)
		defer stop()
		err := h.serveLink(live, l, p, remote, place)
		place.Leave()
		_ = l.Close(err)
	}()
	return nil
}

// Bounds of the links that have said no hello yet, on this relay and of one team. An
// agent needs one round trip to say it, so a fleet that comes back at once fits in.
const (
	maxSilent     = 4096
	maxSilentTeam = 1024
)

var errCrowded = errors.New("the agent had said no hello when another link of its team needed the place")

// serveLink waits in a small frame: what greeting takes of the stack is given back.
func (h *Hub) serveLink(ctx context.Context, l *link.Link, p creds.Principal, remote string, place *caller.Place) error {
	s, m, in, err := h.greet(ctx, l, &p, remote, place)
	if err != nil {
		return err
	}
	reason := h.converse(ctx, s, m, in)
	h.leave(s, m, reason)
	return reason
}

// greet hears who the agent is and gives its link a session. With the hello it leaves
// its place among the silent links.
func (h *Hub) greet(ctx context.Context, l *link.Link, p *creds.Principal, remote string, place *caller.Place) (_ *session, _ *member, _ *wire.Decoder, err error) {
	hctx, cancel := context.WithTimeout(ctx, helloTime)
	defer cancel()
	// The deadline must also end a read on a stream that was opened and left silent.
	defer context.AfterFunc(hctx, func() {
		if errors.Is(hctx.Err(), context.DeadlineExceeded) {
			_ = l.Close(errors.New("the agent said no hello in time"))
		}
	})()

	control, err := l.Accept(hctx)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("accept control stream: %w", err)
	}
	defer func() {
		if err != nil {
			_ = control.Close()
		}
	}()
	first, err := wire.ReadHello(control)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("read control stream: %w", err)
	}
	if first.Kind != wire.KindControl {
		_, _ = control.Write(wire.AppendVerdict(nil, wire.Verdict{Code: wire.CodeBadHello, Text: "the first stream of a link is the control stream"}))
		return nil, nil, nil, fmt.Errorf("first stream of kind %s: %w", first.Kind, wire.ErrMalformed)
	}
	if _, err := control.Write(wire.AppendVerdict(nil, wire.Verdict{})); err != nil {
		return nil, nil, nil, fmt.Errorf("write verdict: %w", err)
	}
	in := wire.NewDecoder(control)
	m := &member{link: l, out: wire.NewEncoder(control)}
	m.queue = &outbox{write: m.out.Write, fail: func(err error) { _ = l.Close(err) }}
	msg, err := in.Read()
	if err != nil {
		return nil, nil, nil, fmt.Errorf("read hello: %w", err)
	}
	place.Leave()
	if msg.Hello == nil {
		return nil, nil, nil, h.refuse(m, wire.GoodbyeError, "the first message is no hello")
	}
	msg.Bound()
	hello := *msg.Hello
	if _, err := ident.ParseAgentID(string(hello.Agent)); err != nil {
		return nil, nil, nil, h.refuse(m, wire.GoodbyeError, err.Error())
	}
	key := ident.AgentKey{Team: p.Team, Agent: hello.Agent}
	if err := h.cfg.Creds.MayLink(*p, key); err != nil {
		h.cfg.Event(Event{Kind: audit.AuthRefused, Key: key, RemoteAddr: remote, Detail: "link: " + err.Error(), Principal: *p})
		return nil, nil, nil, h.refuse(m, wire.GoodbyeError, err.Error())
	}
	m.index = hello.LinkIndex

	s, err := h.admit(hctx, m, hello, *p, remote)
	if err != nil {
		if bye, ok := errors.AsType[*GoodbyeError](err); ok {
			m.goodbye(bye.Goodbye)
		}
		return nil, nil, nil, err
	}
	return s, m, in, nil
}

func (h *Hub) refuse(m *member, reason wire.GoodbyeReason, detail string) error {
	h.metrics.connects.WithLabelValues("refused").Inc()
	bye := wire.Goodbye{Reason: reason, Detail: detail}
	m.goodbye(bye)
	return &GoodbyeError{Goodbye: bye}
}

// admit gives the link its session: an additional link joins the living session of
// its process, any other claims the next generation and takes the old one's place.
func (h *Hub) admit(ctx context.Context, m *member, hello wire.AgentHello, p creds.Principal, remote string) (*session, error) {
	key := ident.AgentKey{Team: p.Team, Agent: hello.Agent}
	joins := wantsToJoin(hello)
	if joins {
		if s := h.join(key, hello, m); s != nil {
			h.metrics.connects.WithLabelValues("joined").Inc()
			m.link.HandshakeDone()
			m.send(h.welcome(s))
			return s, nil
		}
	}
	defer h.claiming(key)()
	epoch, first, err := h.claim(ctx, key, hello)
	switch {
	case joins && errors.Is(err, gate.ErrSuperseded):
		// It must not claim a generation: that would supersede its own first link.
		h.metrics.connects.WithLabelValues("refused").Inc()
		return nil, &GoodbyeError{Goodbye: wire.Goodbye{Reason: wire.GoodbyeError, Detail: "a further link joins the session of its process, and there is none of that generation here"}}
	case errors.Is(err, gate.ErrSuperseded):
		h.metrics.connects.WithLabelValues("superseded").Inc()
		return nil, &GoodbyeError{Goodbye: wire.Goodbye{
			Reason: wire.GoodbyeSuperseded,
			Detail: fmt.Sprintf("a newer process named %q is connected in this team; give one of the two another agent_id, or stop one", hello.Agent),
		}}
	case err != nil:
		detail := "the relay's store is not available; trying again is right"
		outcome := "error"
		if p, ok := errors.AsType[*api.Problem](err); ok {
			detail = p.Detail
			if p.Status < http.StatusInternalServerError {
				outcome = "refused"
			}
		}
		h.metrics.connects.WithLabelValues(outcome).Inc()
		h.log.Debug("agent refused", "team", key.Team, "agent", key.Agent, "error", err)
		return nil, &GoodbyeError{Goodbye: wire.Goodbye{Reason: wire.GoodbyeError, Detail: detail}}
	}
	now := time.Now().UTC()
	s := &session{
		hub: h, key: key, epoch: epoch, instance: hello.Instance, principal: p,
		members: []*member{m}, streams: make(map[ident.SessionID]map[*fleet.Stream]struct{}),
		probes: make(map[uint64]chan wire.Probed),
		presence: store.Presence{
			Team: key.Team, Agent: key.Agent, Relay: h.cfg.Relay, Epoch: epoch,
			ConnectedAt: now, Heartbeat: now, Version: hello.Version, Platform: hello.Platform,
			Labels: hello.Labels, Capabilities: hello.Capabilities, Facts: hello.Facts, Credential: p.Credential,
		},
		state: hello.State, news: rate.NewLimiter(sessionNewsRate, sessionNews),
	}
	m.session = s
	s.first.Store(first)
	h.mu.Lock()
	if h.draining {
		h.mu.Unlock()
		return nil, &GoodbyeError{Goodbye: wire.Goodbye{Reason: wire.GoodbyeDrain, Detail: "the relay is stopping", MoveTo: h.cfg.Relays()}}
	}
	old := h.sessions[key]
	if old != nil && old.epoch > epoch { // two connects raced; the later claim stays
		h.mu.Unlock()
		return nil, &GoodbyeError{Goodbye: wire.Goodbye{Reason: wire.GoodbyeSuperseded, Detail: "a newer link of this agent was admitted at the same time"}}
	}
	h.sessions[key] = s
	h.metrics.sessions.Set(float64(len(h.sessions)))
	h.mu.Unlock()
	if old != nil {
		h.replace(old, s, remote)
	}
	// Declared state and presence are in the store before anyone hears of the agent.
	if err := s.heard(ctx, nil, nil); err != nil {
		h.leave(s, m, err)
		return nil, &GoodbyeError{Goodbye: wire.Goodbye{Reason: wire.GoodbyeError, Detail: "the relay's store is not available; trying again is right"}}
	}
	m.link.HandshakeDone()
	m.send(h.welcome(s))
	if !first { // the record may have changed before the session could hear of it
		if rec, ok := h.cfg.Store.Agent(key); ok {
			h.Changed(key, rec)
		}
	}
	h.mu.Lock()
	if a := h.arrivals[key]; a != nil && h.sessions[key] == s {
		close(a.ch)
		delete(h.arrivals, key)
	}
	h.mu.Unlock()
	h.metrics.connects.WithLabelValues("ok").Inc()
	h.log.Info("agent connected", "team", key.Team, "agent", key.Agent, "epoch", epoch, "version", hello.Version, "remote", remote)
	h.cfg.Event(Event{Kind: audit.AgentConnected, Key: key, Epoch: epoch, RemoteAddr: remote, Principal: p})
	return s, nil
}

// replace ends a session whose place a newer one took.
func (h *Hub) replace(old, s *session, remote string) {
	detail := "this agent connected again"
	if old.instance != s.instance {
		detail = fmt.Sprintf("another process named %q connected from %s; give one of the two another agent_id, or stop one", s.key.Agent, remote)
		h.cfg.Event(Event{Kind: audit.AgentSuperseded, Key: s.key, Epoch: old.epoch, RemoteAddr: remote, Detail: detail, Principal: s.principal})
	}
	old.end(wire.Goodbye{Reason: wire.GoodbyeSuperseded, Detail: detail})
}

func (h *Hub) join(key ident.AgentKey, hello wire.AgentHello, m *member) *session {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.sessions[key]
	if s == nil || h.draining || s.instance != hello.Instance || s.epoch != hello.Generation || len(s.members) >= maxLinks {
		return nil
	}
	m.session = s
	s.members = append(s.members, m)
	return s
}

// maxLinks bounds the parallel links of one session: eight links with eight extra
// ones each are the most that an agent's configuration allows.
const maxLinks = 8 * (1 + 8)

// live says whether some session of the agent is alive: here, or on another relay.
func (h *Hub) live(key ident.AgentKey) bool {
	if h.session(key) != nil {
		return true
	}
	p, ok := h.cfg.Store.Presence(key)
	return ok && p.GoneSince.IsZero() && p.Relay != h.cfg.Relay
}

func (h *Hub) welcome(s *session) wire.Message {
	w := wire.Welcome{
		Generation: s.epoch, Relay: h.cfg.Relay, Version: h.cfg.Version, PublicURL: h.cfg.PublicURL,
		Time: time.Now().UTC(), Relays: h.cfg.Relays(), MaxStreams: h.cfg.MaxStreams, Tunnels: []wire.TunnelNotice{},
	}
	for _, t := range h.cfg.Store.AgentTunnels(s.key) {
		w.Tunnels = append(w.Tunnels, notice(t))
	}
	return wire.Message{Type: wire.TypeWelcome, Welcome: &w}
}

// converse keeps the conversation on one link until it ends, and says why.
func (h *Hub) converse(ctx context.Context, s *session, m *member, in *wire.Decoder) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	calls := &gateCalls{link: m.link, owner: Owner(s.key, ""), serve: func() *http.Server { return h.gateServer(ctx, s) }}
	defer calls.end()
	m.link.OnIncoming(func() { calls.came(ctx) })
	// A revoked credential ends the link from outside.
	revoked := make(chan struct{})
	spared := context.AfterFunc(ctx, func() {
		defer close(revoked)
		if cause := context.Cause(ctx); creds.Ended(cause) {
			m.goodbye(wire.Goodbye{Reason: wire.GoodbyeRevoked, Detail: cause.Error()})
		}
	})
	hung := time.AfterFunc(mute, func() {
		_ = m.link.Close(fmt.Errorf("nothing heard of the agent for %s", mute))
	})
	defer hung.Stop()
	err := h.listen(ctx, s, m, in, hung)
	if !spared() {
		<-revoked
	}
	if cause := m.link.Err(); cause != nil {
		err = cause
	}
	cancel(err)
	_ = m.link.Close(err)
	m.queue.close()
	return err
}

// listen reads the agent's messages until the control stream ends. It waits with as
// little on its stack as possible, for each link has one: what is said is dealt with
// elsewhere.
func (h *Hub) listen(ctx context.Context, s *session, m *member, in *wire.Decoder, hung *time.Timer) error {
	done := make(chan error)
	for {
		if err := in.Next(); err != nil {
			return err
		}
		go func() { done <- h.understand(ctx, s, m, in, hung) }()
		if err := <-done; err != nil {
			return err
		}
	}
}

// understand deals with the message that came, and returns an error when it was the last.
func (h *Hub) understand(ctx context.Context, s *session, m *member, in *wire.Decoder, hung *time.Timer) error {
	msg, err := in.Message()
	if err != nil {
		return err
	}
	msg.Bound()
	hung.Reset(mute)
	switch {
	case msg.Type == wire.TypePing && msg.Ping != nil:
		m.send(wire.Message{Type: wire.TypePong, Ping: msg.Ping})
	case msg.Facts != nil || msg.State != nil:
		// A store that is away must not end the link: what was heard is kept in
		// memory, and the next heartbeat tries again.
		if err := s.heard(ctx, msg.Facts, msg.State); err != nil {
			h.log.Warn("keep what the agent said", "agent", s.key.Agent, "error", err)
		}
	case msg.Probed != nil:
		s.probed(*msg.Probed)
	case msg.Goodbye != nil:
		return &GoodbyeError{Goodbye: *msg.Goodbye}
	}
	return nil
}

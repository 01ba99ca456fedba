package terminal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/caller"
	"github.com/adit-tunnel/adit/relay/internal/fleet"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/relay/internal/usage"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

const (
	maxFirst   = 8 << 10  // bytes of the first message
	maxMessage = 64 << 10 // bytes of any later one

	// goodbyeLinger is how long a viewer may take to answer a close.
	goodbyeLinger = 300 * time.Millisecond
	// closeGrace is how much later than an agent this relay may hear of a close.
	closeGrace = 3 * time.Second
	// pingEvery keeps the connection alive in between, and finds dead viewers.
	pingEvery   = 25 * time.Second
	pingTimeout = 20 * time.Second
	// writeTimeout bounds one message to a viewer that does not read.
	writeTimeout = 30 * time.Second
	// revokedEvery is how often it is looked whether a viewer's host still may let
	// anybody in: the promise is a second.
	revokedEvery = 500 * time.Millisecond
)

// socket is one viewer's WebSocket.
type socket struct {
	t       *Terminal
	session ident.SessionID
	request ident.RequestID
	remote  string
	agent   string // user agent
	record  store.TunnelRecord
	actor   string // for records: by what it was let in
	host    host   // who made the code that let it in; empty: the tunnel's own token did

	place   *caller.Place   // among those without a token
	ws      *websocket.Conn // set once, under t.mu; nil during the handshake
	conn    net.Conn        // below it
	dropped bool            // another one needed its place; guarded by t.mu
	joined  bool            // it counts as one of its team; guarded by t.mu
	stream  *fleet.Stream   // to the machine, once there is one; guarded by t.mu

	in, out atomic.Int64 // bytes typed and printed
	ended   sync.Once
}

// closing is an end that the viewer is told of.
type closing struct {
	code   websocket.StatusCode
	reason string
	cause  error
}

// Error says what the viewer is told, and the cause.
func (c *closing) Error() string {
	if c.cause != nil {
		return c.reason + ": " + c.cause.Error()
	}
	return c.reason
}

func (c *closing) Unwrap() error { return c.cause }

// run is the socket's life.
func (s *socket) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err := s.converse(ctx)
	end := &closing{code: wire.CloseInternal, reason: "the terminal's connection broke"}
	errors.As(err, &end)
	s.t.cfg.Logger.Debug("terminal viewer left", "session_id", s.session, "request_id", s.request, "error", err)
	s.end(end.code, end.reason)
}

// end says goodbye, and does not wait long for an answer. Only the first end counts.
func (s *socket) end(code websocket.StatusCode, reason string) {
	s.ended.Do(func() {
		late := time.AfterFunc(goodbyeLinger, s.cut)
		defer late.Stop()
		_ = s.ws.Close(code, reason[:min(len(reason), 123)]) // the viewer may be gone
	})
}

func (s *socket) cut() { _ = s.conn.Close() }

func (s *socket) converse(ctx context.Context) error {
	first, err := s.first(ctx)
	if err != nil {
		return err
	}
	err = s.authenticate(ctx, &first)
	if end, ok := errors.AsType[*closing](err); ok { // its token is right
		s.t.metrics.refused.WithLabelValues("closed").Inc()
		s.t.note(ctx, s, audit.TerminalRefused, s.actor, end.reason)
		return end
	}
	if err != nil {
		s.t.tries.Take(s.remote, time.Now())
		s.t.metrics.refused.WithLabelValues("token").Inc()
		s.record = store.TunnelRecord{}
		s.t.note(ctx, s, audit.TerminalRefused, "anonymous", err.Error())
		if errors.Is(err, errCode) {
			return &closing{code: wire.CloseRefused, reason: err.Error(), cause: err}
		}
		return refused(err)
	}
	if first.Code != "" { // before anything can go wrong: the code is used up
		s.tell(ctx, wire.TerminalReady{
			State: wire.TerminalAdmitted, Agent: string(s.record.Agent), ReadOnly: first.ReadOnly, Right: s.t.right(s.session, s.host, first.ReadOnly).Reveal(),
		})
	}
	if !s.t.join(s) {
		s.t.metrics.refused.WithLabelValues("limit").Inc()
		err := &closing{code: wire.CloseLimit, reason: fmt.Sprintf("the team has %d terminal viewers on this relay, as many as one team may have", maxTeam)}
		s.t.note(ctx, s, audit.TerminalRefused, s.actor, err.reason)
		return err
	}
	use, err := s.t.cfg.Meter.Begin(usage.Watched(ctx), s.session, s.party(), usage.Terminal)
	if err != nil {
		s.t.metrics.refused.WithLabelValues("closed").Inc()
		return endOf(err)
	}
	defer use.End()
	stream, err := s.open(use.Context(), first)
	if err != nil {
		if cause := context.Cause(use.Context()); cause != nil {
			err = endOf(cause)
		} else if _, open := s.lookup(); !open { // the machine heard of it first
			err = s.over()
		}
		s.t.metrics.refused.WithLabelValues("agent").Inc()
		s.t.note(ctx, s, audit.TerminalRefused, s.actor, err.Error())
		return err
	}
	defer stream.Close()
	s.t.mu.Lock()
	s.stream = stream
	s.t.mu.Unlock()
	return s.attached(ctx, use, stream, first)
}

// first reads the message that has to come first.
func (s *socket) first(ctx context.Context) (wire.TerminalAttach, error) {
	var a wire.TerminalAttach
	s.ws.SetReadLimit(maxFirst)
	fctx, cancel := context.WithTimeout(ctx, s.t.cfg.FirstMessage)
	defer cancel()
	// A context that ends during a read closes the socket without a word; here the
	// viewer is told.
	late := time.AfterFunc(s.t.cfg.FirstMessage-goodbyeLinger, func() {
		s.end(websocket.StatusPolicyViolation, "no token came in time")
	})
	defer late.Stop()
	typ, b, err := s.ws.Read(fctx)
	if err != nil {
		s.t.metrics.refused.WithLabelValues("late").Inc()
		return a, fmt.Errorf("read the first message: %w", err)
	}
	bad := &closing{code: websocket.StatusPolicyViolation, reason: "the first message is JSON with a token or a code"}
	if typ != websocket.MessageText {
		return a, bad
	}
	if err := json.Unmarshal(b, &a); err != nil {
		bad.cause = errors.New("it is not") // the error could quote a token
		return a, bad
	}
	if a.Attach == "" {
		a.Attach = wire.DefaultTerminal
	}
	if !wire.ValidTerminal(a.Attach) || len(a.Instance) > 64 {
		return a, &closing{code: websocket.StatusPolicyViolation, reason: "a terminal's name is 1 to 32 of a-z, 0-9 and hyphen"}
	}
	s.ws.SetReadLimit(maxMessage)
	return a, nil
}

// open opens the agent's stream, and waits for an agent that is away.
func (s *socket) open(ctx context.Context, a wire.TerminalAttach) (*fleet.Stream, error) {
	o := wire.TerminalOpen{
		Terminal: a.Attach, Cols: a.Cols, Rows: a.Rows, ReadOnly: a.ReadOnly, Instance: a.Instance, Seen: a.Seen,
		Who: s.actor + " from " + s.remote,
	}
	payload, err := o.Payload()
	if err != nil {
		return nil, err
	}
	hello := wire.Hello{Kind: wire.KindTerminal, Session: s.session, Request: s.request, Payload: payload}
	stream, err := s.t.cfg.Fleet.Connect(ctx, s.record.Key(), hello, &fleet.Hold{For: s.t.cfg.Hold, Waiting: func(begins bool) {
		if begins {
			s.tell(ctx, wire.TerminalReady{State: wire.TerminalWaiting, Agent: string(s.record.Agent)})
		}
	}})
	switch {
	case err == nil:
		return stream, nil
	case ctx.Err() != nil:
		return nil, err
	}
	return nil, opening(err)
}

// opening tells the viewer why the machine gave no terminal.
func opening(err error) *closing {
	c := &closing{code: wire.CloseLost, reason: "the machine has no connection to the relay at present", cause: err}
	var v wire.Verdict
	if !errors.As(err, &v) {
		return c
	}
	switch v.Code {
	case wire.CodeTerminalDisabled:
		c.code, c.reason = wire.CloseDenied, "terminals are off on this machine: terminal.enabled in its agent's configuration turns them on"
	case wire.CodePaused:
		c.code, c.reason = wire.CloseDenied, "the machine's owner paused the agent"
	case wire.CodeNoTerminal:
		c.code, c.reason = wire.CloseNothing, "nobody has opened the terminal yet: there is nothing to look on at"
	case wire.CodeOverloaded:
		c.code, c.reason = wire.CloseLimit, v.Text
	case wire.CodeStaleEpoch, wire.CodeUnknownTunnel:
	default:
		c.code, c.reason = wire.CloseInternal, v.Text
	}
	return c
}

// tell sends a state; what is wrong with the connection shows soon enough.
func (s *socket) tell(ctx context.Context, r wire.TerminalReady) {
	b, err := json.Marshal(r)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	_ = s.ws.Write(ctx, websocket.MessageText, b)
}

// attached carries frames until either side ends, between two records.
func (s *socket) attached(ctx context.Context, use *usage.Use, stream *fleet.Stream, a wire.TerminalAttach) error {
	what := fmt.Sprintf("terminal %s, %s, tunnel opened by %s", a.Attach, how(a.ReadOnly), s.record.OpenedBy)
	if err := s.t.append(ctx, s, audit.TerminalOpened, s.actor, what); err != nil {
		return &closing{code: wire.CloseInternal, reason: "the relay could not record this session, and so does not admit it", cause: err}
	}
	start := time.Now()
	s.t.metrics.opened.Inc()
	s.t.metrics.active.Inc()
	defer s.t.metrics.active.Dec()
	s.tell(ctx, wire.TerminalReady{State: wire.TerminalAttached, Terminal: a.Attach, Agent: string(s.record.Agent), ReadOnly: a.ReadOnly})

	ctx, cancel := context.WithCancelCause(ctx)
	fired := make(chan struct{})
	undo := context.AfterFunc(use.Context(), func() {
		defer close(fired)
		c := endOf(context.Cause(use.Context()))
		s.end(c.code, c.reason)
		cancel(c)
	})
	var wg sync.WaitGroup
	wg.Go(func() { cancel(s.down(ctx, use, stream)) })
	wg.Go(func() { cancel(s.keepAlive(ctx)) })
	wg.Go(func() { cancel(s.outlive(ctx)) })
	wg.Go(func() {
		<-ctx.Done()
		_ = stream.Close() // frees down
	})
	wg.Go(func() { cancel(s.up(ctx, use, stream, a.ReadOnly)) })
	<-ctx.Done()
	cause := context.Cause(ctx)
	if c, ok := errors.AsType[*closing](cause); ok {
		s.end(c.code, c.reason) // before the reader's context closes the socket without a word
	}
	s.cutLate(&wg)
	if !undo() {
		<-fired
	}
	end := fmt.Sprintf("%s; %d bytes typed, %d bytes printed, %s", what, s.in.Load(), s.out.Load(), time.Since(start).Round(time.Second))
	s.t.note(context.WithoutCancel(ctx), s, audit.TerminalClosed, s.actor, end)
	return cause
}

// cutLate waits for the carriers, which end with the connection.
func (s *socket) cutLate(wg *sync.WaitGroup) {
	late := time.AfterFunc(goodbyeLinger, s.cut)
	defer late.Stop()
	wg.Wait()
}

// lost says why an agent's stream ended. An agent that ends it in good order mostly
// heard before this relay's own users did that the tunnel is closed: then that is
// the reason.
func (s *socket) lost(ctx context.Context, use *usage.Use, err error) *closing {
	if cause := context.Cause(use.Context()); cause != nil { // streams are cut right after the uses
		return endOf(cause)
	}
	if s.t.cfg.Stopping != nil && s.t.cfg.Stopping() { // agents move before Drain tells users
		return &closing{code: websocket.StatusServiceRestart, reason: restarting, cause: err}
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		wait := time.NewTimer(closeGrace)
		defer wait.Stop()
		select {
		case <-use.Context().Done():
			return endOf(context.Cause(use.Context()))
		case <-ctx.Done():
		case <-wait.C:
		}
	}
	return &closing{code: wire.CloseLost, reason: "the connection to the machine was lost", cause: err}
}

// down carries what the agent sends.
func (s *socket) down(ctx context.Context, use *usage.Use, stream *fleet.Stream) error {
	var buf, message []byte
	for {
		typ, payload, grown, err := wire.ReadFrame(stream, buf)
		if err != nil {
			return s.lost(ctx, use, err)
		}
		buf = grown
		if typ == wire.FrameData {
			use.Out(len(payload))
			s.out.Add(int64(len(payload)))
		}
		message = append(append(message[:0], byte(typ)), payload...)
		// Not ctx: its end must leave time for a goodbye.
		wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
		err = s.ws.Write(wctx, websocket.MessageBinary, message)
		cancel()
		switch {
		case err != nil:
			return fmt.Errorf("write to the viewer: %w", err)
		case typ == wire.FrameExit:
			return &closing{code: wire.CloseEnded, reason: "the program ended"}
		case typ == wire.FrameDropped:
			return &closing{code: wire.CloseDropped, reason: string(payload)}
		}
	}
}

// up carries what the viewer sends. Typing of who only looks on goes nowhere.
func (s *socket) up(ctx context.Context, use *usage.Use, stream *fleet.Stream, readOnly bool) error {
	var frames []byte
	over := false
	for {
		typ, b, err := s.ws.Read(context.WithoutCancel(ctx))
		if err != nil {
			return fmt.Errorf("read from the viewer: %w", err)
		}
		if typ != websocket.MessageBinary || len(b) == 0 {
			continue // of a later version
		}
		kind, payload := wire.FrameType(b[0]), b[1:]
		frames = frames[:0]
		switch kind {
		case wire.FrameData:
			if readOnly {
				continue
			}
			use.In(len(payload))
			s.in.Add(int64(len(payload)))
			for len(payload) > wire.MaxFrame {
				frames = wire.AppendFrame(frames, kind, payload[:wire.MaxFrame])
				payload = payload[wire.MaxFrame:]
			}
		case wire.FrameResize, wire.FrameAck:
			payload = payload[:min(len(payload), 16)]
		default:
			continue
		}
		frames = wire.AppendFrame(frames, kind, payload)
		// What came down last says why the stream takes no more: the program's end, if
		// it was one. So down tells it, and the viewer is listened to until then.
		if !over {
			_, err := stream.Write(frames)
			over = err != nil
		}
	}
}

// outlive waits until the viewer's host has lost the right to let them in, or who may use
// the tunnel was changed, or ctx ends.
func (s *socket) outlive(ctx context.Context) error {
	tick := time.NewTicker(revokedEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
			if s.t.revoked(s.record, s.host) {
				return errRevoked
			}
			if now, ok := s.t.cfg.Store.Tunnel(s.session); ok && now.AccessVersion() != s.record.AccessVersion() {
				return errChanged
			}
		}
	}
}

// keepAlive pings the viewer until ctx ends.
func (s *socket) keepAlive(ctx context.Context) error {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
			pctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTimeout)
			err := s.ws.Ping(pctx)
			cancel()
			if err != nil {
				return fmt.Errorf("ping the viewer: %w", err)
			}
		}
	}
}

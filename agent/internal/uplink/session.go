package uplink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/wire"
)

const (
	greetTime = 10 * time.Second // for the relay's welcome
	// doubtAfter is how long a link may be silent before it is doubted. Either end of it
	// asks the other after 4 s of silence.
	doubtAfter = 5500 * time.Millisecond
	doubtGrace = 1500 * time.Millisecond // for the answer to a last question
	// mute is how long pongs may be missing on a link that is alive below: more
	// than a full window takes on a slow line, and a relay that answers nothing for
	// so long serves nobody.
	mute       = 90 * time.Second
	lookAtLink = 500 * time.Millisecond
	outQueue   = 64
	maxProbes  = 8
)

// session is the conversation on one link.
type session struct {
	up    *Uplink
	link  *link.Link
	url   string
	index int

	out     *wire.Encoder
	in      *wire.Decoder
	control *link.Stream
	queue   chan wire.Message
	ponged  atomic.Int64 // when the last pong came, since begun
	begun   time.Time
	hello   wire.AgentHello              // what the relay was told at first
	doubt   chan struct{}                // a value: the link fell silent
	relief  chan struct{}                // a value: it spoke again
	move    chan struct{}                // a value: the relay stops
	leave   atomic.Pointer[wire.Goodbye] // with which it said so
	joins   bool                         // it asks to be one more link of a living session

	endOnce sync.Once
	ended   chan struct{} // closed by end
	ending  *ending       // set before ended is closed

	// Set by Uplink.admit, guarded by its mutex.
	generation uint64
	relay      ident.RelayID
	since      time.Time
	relays     []string // others of the pool, as the welcome named them
	moving     bool     // another link is being made in its place
}

func newSession(u *Uplink, l *link.Link, url string, index int) *session {
	return &session{
		up: u, link: l, url: url, index: index, begun: time.Now(),
		queue:  make(chan wire.Message, outQueue),
		doubt:  make(chan struct{}, 1),
		relief: make(chan struct{}, 1),
		move:   make(chan struct{}, 1),
		ended:  make(chan struct{}),
	}
}

// greet opens the control stream, introduces the agent, and returns the relay's
// welcome. A relay that will not have the agent says goodbye: that is an *ending.
func (s *session) greet(ctx context.Context) (*wire.Welcome, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, greetTime, errors.New("the relay did not welcome the agent in time"))
	defer cancel()
	// The end of ctx must also end a read.
	defer context.AfterFunc(ctx, func() { _ = s.link.Close(context.Cause(ctx)) })()
	var err error
	if s.control, err = link.OpenHello(ctx, s.link, wire.Hello{Kind: wire.KindControl}); err != nil {
		return nil, fmt.Errorf("open control stream: %w", err)
	}
	s.out, s.in = wire.NewEncoder(s.control), wire.NewDecoder(s.control)
	c := &s.up.conf
	s.hello = wire.AgentHello{
		Agent: c.Agent, Instance: s.up.instance, Generation: s.up.Epoch(), LinkIndex: s.index,
		Join: s.joins && s.index == 0, Alone: s.up.alone(),
		Version: c.Version, Platform: c.Platform, Labels: c.Labels, Capabilities: c.Capabilities,
		TaskCapacity: c.TaskCapacity, Tunnels: c.Tunnels.IDs(), Facts: s.facts(), State: c.Machine.State(),
	}
	if err := s.out.Write(wire.Message{Type: wire.TypeHello, Hello: &s.hello}); err != nil {
		return nil, err
	}
	for {
		m, err := s.in.Read()
		switch {
		case err != nil && ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case err != nil:
			return nil, fmt.Errorf("wait for welcome: %w", err)
		case m.Goodbye != nil:
			return nil, goodbye(m.Goodbye)
		case m.Welcome != nil:
			return m.Welcome, nil
		}
	}
}

// end decides how the session ended; the first call counts. The link is closed.
func (s *session) end(e *ending) {
	s.endOnce.Do(func() {
		s.ending = e
		close(s.ended)
	})
	_ = s.link.Close(e.err)
}

// converse talks on an admitted link until it ends, or ctx does, and says how. It
// leaves no goroutine, stream or link behind.
func (u *Uplink) converse(ctx context.Context, s *session) *ending {
	// The streams outlive ctx for the time that a stopping agent gives them.
	live, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() { s.write(live) })
	wg.Go(func() { s.report(live) })
	wg.Go(func() { s.listen(live, &wg) })
	wg.Go(func() {
		err := u.conf.Desk.Serve(live, s.link)
		s.end(&ending{reason: reasonLost, err: err})
	})
	wg.Go(func() {
		select {
		case <-ctx.Done():
			s.farewell(context.Cause(ctx))
		case <-live.Done():
		}
	})
	select {
	case <-s.ended:
	case <-s.link.Done():
		// What the relay said last may still be unread: listen has the last word, and
		// the desk's Serve ends the session otherwise.
		<-s.ended
	}
	cancel(s.ending)
	_ = s.link.Close(s.ending)
	wg.Wait()
	u.leave(s)
	e := *s.ending
	u.mu.Lock()
	e.generation, e.lived = s.generation, time.Since(s.since)
	u.mu.Unlock()
	return &e
}

// farewell is the end that this side chose: it waits for the streams, says
// goodbye and closes.
func (s *session) farewell(cause error) {
	select {
	case <-s.up.quiet:
	case <-s.ended:
		return
	}
	s.farewellWith(wire.Goodbye{Reason: wire.GoodbyeShutdown, Detail: "the agent is stopping"}, cause)
}

// farewellWith says goodbye and ends the session.
func (s *session) farewellWith(bye wire.Goodbye, cause error) {
	_ = s.control.SetWriteDeadline(time.Now().Add(time.Second))
	if err := s.out.Write(wire.Message{Type: wire.TypeGoodbye, Goodbye: &bye}); err != nil {
		s.up.conf.Logger.Debug("say goodbye", "error", err)
	}
	s.end(&ending{reason: reasonShutdown, err: cause})
}

// send queues a message. A relay that reads so slowly that the queue is full gets
// its link ended.
func (s *session) send(m wire.Message) {
	select {
	case s.queue <- m:
	default:
		s.end(&ending{reason: reasonError, err: errors.New("the relay does not read the control stream")})
	}
}

// write is the one who writes, so that a stuck stream stops nobody else.
func (s *session) write(ctx context.Context) {
	for {
		select {
		case m := <-s.queue:
			if err := s.out.Write(m); err != nil {
				s.end(&ending{reason: reasonLost, err: err})
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// report sends facts and state, asks with them for a pong, and watches whether the link
// lives.
func (s *session) report(ctx context.Context) {
	changed, cancel := s.up.conf.Machine.Subscribe()
	defer cancel()
	facts := time.NewTicker(wire.HeartbeatInterval)
	defer facts.Stop()
	look := time.NewTicker(lookAtLink)
	defer look.Stop()
	var id uint64
	s.ponged.Store(int64(time.Since(s.begun)))
	lastState := s.hello.State
	tell := func() {
		if state := s.up.conf.Machine.State(); !sameState(state, lastState) {
			lastState = state
			s.send(wire.Message{Type: wire.TypeState, State: &state})
		}
		s.sendFacts()
	}
	if s.outdated() { // by what changed before the subscription
		tell()
	}
	var asked time.Time // when the relay was asked because of its silence
	doubted := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-facts.C:
			s.sendFacts()
			s.link.Ping() // for the round trip that people are shown
			id++
			s.send(wire.Message{Type: wire.TypePing, Ping: &wire.Ping{ID: id}})
		case <-changed:
			tell()
		case now := <-look.C:
			switch silent := s.link.Silence() >= doubtAfter; {
			case !silent && doubted:
				offer(s.relief)
				fallthrough
			case !silent:
				asked, doubted = time.Time{}, false
			case asked.IsZero():
				asked = now
				s.link.Ping()
			case !doubted && now.Sub(asked) >= doubtGrace:
				doubted = true
				offer(s.doubt)
			}
			if since := time.Since(s.begun) - time.Duration(s.ponged.Load()); since > mute {
				s.end(&ending{reason: reasonLost, err: fmt.Errorf("the relay answered no ping for %s", since.Round(time.Second))})
			}
		}
	}
}

func offer(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// outdated says whether the machine has changed since the hello told of it.
func (s *session) outdated() bool {
	told, now := s.hello.Facts, s.facts()
	told.Link, now.Link = nil, nil
	return !sameState(s.hello.State, s.up.conf.Machine.State()) || !reflect.DeepEqual(told, now)
}

func (s *session) sendFacts() {
	f := s.facts()
	s.send(wire.Message{Type: wire.TypeFacts, Facts: &f})
}

func (s *session) facts() wire.Facts {
	f := s.up.conf.Machine.Facts()
	f.Link = &wire.LinkFacts{RTTMillis: s.rttMillis(), Congestion: s.link.Congestion()}
	return f
}

func (s *session) rttMillis() float64 {
	return float64(s.link.RTT().Microseconds()) / 1000
}

// listen reads what the relay says until the control stream ends.
func (s *session) listen(ctx context.Context, wg *sync.WaitGroup) {
	probes := make(chan struct{}, maxProbes)
	for {
		m, err := s.in.Read()
		if err != nil {
			if g := s.leave.Load(); g != nil {
				s.end(goodbye(g))
				return
			}
			r := reasonLost
			if errors.Is(err, wire.ErrMalformed) || errors.Is(err, wire.ErrMessageTooLong) {
				r = reasonError
				s.tell(err)
			}
			if errors.Is(err, io.EOF) {
				err = errors.New("the relay ended the control stream")
			}
			s.end(&ending{reason: r, err: err})
			return
		}
		switch {
		case m.Goodbye != nil && s.asked(m.Goodbye):
		case m.Goodbye != nil:
			s.end(goodbye(m.Goodbye))
			return
		case m.Type == wire.TypePing && m.Ping != nil:
			s.send(wire.Message{Type: wire.TypePong, Ping: m.Ping})
		case m.Type == wire.TypePong && m.Ping != nil:
			s.ponged.Store(int64(time.Since(s.begun)))
		case m.TunnelOpened != nil:
			if s.up.current(s) {
				s.up.conf.Tunnels.opened(*m.TunnelOpened)
			}
		case m.TunnelClosed != nil:
			if s.up.current(s) {
				s.up.conf.Tunnels.closed(m.TunnelClosed.Session)
				s.up.conf.Desk.Cut(m.TunnelClosed.Session)
			}
		case m.Probe != nil:
			select {
			case probes <- struct{}{}:
				q := *m.Probe
				wg.Go(func() {
					defer func() { <-probes }()
					s.answerProbe(ctx, q)
				})
			default:
				s.send(wire.Message{Type: wire.TypeProbed, Probed: &wire.Probed{ID: m.Probe.ID, Detail: "too many probes at once"}})
			}
		}
	}
}

// answerProbe looks at the port. A panic over a strange answer of an app ends
// this probe only.
func (s *session) answerProbe(ctx context.Context, q wire.Probe) {
	a := wire.Probed{ID: q.ID, Detail: "the probe went wrong"}
	defer func() {
		if p := recover(); p != nil {
			s.up.conf.Logger.Error("probe panicked", "panic", fmt.Sprint(p), "port", q.Port, "stack", string(debug.Stack()))
		}
		s.send(wire.Message{Type: wire.TypeProbed, Probed: &a})
	}()
	a = s.up.conf.Probe(ctx, q)
}

// tell says goodbye to a relay that broke the protocol.
func (s *session) tell(err error) {
	_ = s.control.SetWriteDeadline(time.Now().Add(time.Second))
	_ = s.out.Write(wire.Message{Type: wire.TypeGoodbye, Goodbye: &wire.Goodbye{Reason: wire.GoodbyeError, Detail: err.Error()}})
}

func sameState(a, b wire.State) bool {
	percent := func(p *float64) float64 {
		if p == nil {
			return -1
		}
		return *p
	}
	return a.SyncPhase == b.SyncPhase && a.SyncDetail == b.SyncDetail && a.Paused == b.Paused && percent(a.SyncPercent) == percent(b.SyncPercent)
}

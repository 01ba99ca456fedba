package fleet_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/fleet"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/wire"
)

func TestWhereAStreamIsLookedFor(t *testing.T) {
	own, other := fleet.NewStream(nil, "own", nil), fleet.NewStream(nil, "other", nil)
	broken := errors.New("broken")
	type result struct {
		st  *fleet.Stream
		err error
	}
	for name, c := range map[string]struct {
		here, there result
		alone       bool
		want        result
		asked       int // the other relays
	}{
		"this relay's own link comes first":      {here: result{st: own}, there: result{st: other}, want: result{st: own}},
		"away here, another relay has it":        {here: result{err: fleet.ErrAway}, there: result{st: other}, want: result{st: other}, asked: 1},
		"away everywhere":                        {here: result{err: fleet.ErrAway}, there: result{err: fleet.ErrAway}, want: result{err: fleet.ErrAway}, asked: 1},
		"away, and no other relay":               {here: result{err: fleet.ErrAway}, alone: true, want: result{err: fleet.ErrAway}},
		"a closed tunnel is closed everywhere":   {here: result{err: fleet.ErrCut}, there: result{st: other}, want: result{err: fleet.ErrCut}},
		"closed, as the other relay knows":       {here: result{err: fleet.ErrAway}, there: result{err: fleet.ErrCut}, want: result{err: fleet.ErrCut}, asked: 1},
		"a full link is full":                    {here: result{err: link.ErrTooManyStreams}, there: result{st: other}, want: result{err: link.ErrTooManyStreams}},
		"the other relay's link is full":         {here: result{err: fleet.ErrAway}, there: result{err: link.ErrMemory}, want: result{err: link.ErrMemory}, asked: 1},
		"another fault is no reason to go on":    {here: result{err: broken}, there: result{st: other}, want: result{err: broken}},
		"this relay drains, another has it":      {here: result{err: fleet.ErrDraining}, there: result{st: other}, want: result{st: other}, asked: 1},
		"this relay drains, no other has it":     {here: result{err: fleet.ErrDraining}, there: result{err: fleet.ErrAway}, want: result{err: fleet.ErrAway}, asked: 1},
		"this relay drains, and is the only one": {here: result{err: fleet.ErrDraining}, alone: true, want: result{err: fleet.ErrDraining}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPool("a", "b")
			if c.alone {
				p = newPool("a")
			}
			p.relays["a"].open = func(wire.Hello) (*fleet.Stream, error) { return c.here.st, c.here.err }
			p.open = func() (*fleet.Stream, error) { return c.there.st, c.there.err }
			st, err := p.relays["a"].Open(t.Context(), key, wire.Hello{}, &fleet.Hold{})
			if st != c.want.st || !errors.Is(err, c.want.err) {
				t.Errorf("%v, %v, want %v, %v", st, err, c.want.st, c.want.err)
			}
			if p.opens != c.asked {
				t.Errorf("the other relays were asked %d times, want %d", p.opens, c.asked)
			}
		})
	}
}

// One request waits for an agent no longer than its hold in all, however often the agent
// is said to be back.
func TestTheHoldIsForAllTries(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		r := alone()
		r.wait = func(context.Context) error { return nil } // it comes, and goes before it is used
		waits, begun := 0, 0
		hold := fleet.Hold{For: 5 * time.Second, Waiting: func(begins bool) {
			if begins {
				waits, begun = waits+1, begun+1
			} else {
				waits--
			}
		}}
		start := time.Now()
		if _, err := r.Open(t.Context(), key, wire.Hello{}, &hold); !errors.Is(err, fleet.ErrAway) {
			t.Errorf("an agent that never stays: %v", err)
		}
		if took := time.Since(start); took != 5*time.Second || len(r.did) > 60 {
			t.Errorf("it took %s and %d tries, want 5 s and no busy loop", took, len(r.did))
		}
		if waits != 0 || begun == 0 {
			t.Errorf("of %d waits that began, %d go on", begun, waits)
		}
		start = time.Now()
		if _, err := r.Open(t.Context(), key, wire.Hello{}, &hold); !errors.Is(err, fleet.ErrAway) || time.Since(start) > time.Second {
			t.Errorf("the same request waits again, for %s: %v", time.Since(start), err)
		}
	})
}

func TestARequestIsHeldUntilTheAgentIsBack(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		r := alone()
		back := fleet.NewStream(nil, session, nil)
		r.wait = func(context.Context) error {
			time.Sleep(3 * time.Second)
			r.open = func(wire.Hello) (*fleet.Stream, error) { return back, nil }
			return nil
		}
		start := time.Now()
		st, err := r.Open(t.Context(), key, wire.Hello{}, &fleet.Hold{For: 10 * time.Second})
		if st != back || err != nil || time.Since(start) != 3*time.Second {
			t.Errorf("after %s: %v %v", time.Since(start), st, err)
		}
	})
}

func TestWhoLeavesWaitsNoLonger(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if _, err := alone().Open(ctx, key, wire.Hello{}, &fleet.Hold{For: time.Hour}); err == nil || time.Since(start) != time.Second {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
	})
}

// An agent that does not know yet of a tunnel, or of its own generation, is asked again
// for a second; what else it says is its last word.
func TestAnAgentThatWasNotToldYet(t *testing.T) {
	for name, c := range map[string]struct {
		verdicts []wire.Code // one after the other, the last one for ever
		opens    int
		took     time.Duration
		want     wire.Code
	}{
		"yes":                         {[]wire.Code{wire.CodeOK}, 1, 0, wire.CodeOK},
		"not told of the tunnel":      {[]wire.Code{wire.CodeUnknownTunnel, wire.CodeUnknownTunnel, wire.CodeOK}, 3, 200 * time.Millisecond, wire.CodeOK},
		"nor of its generation":       {[]wire.Code{wire.CodeStaleEpoch, wire.CodeUnknownTunnel, wire.CodeOK}, 3, 200 * time.Millisecond, wire.CodeOK},
		"never told":                  {[]wire.Code{wire.CodeUnknownTunnel}, 11, time.Second, wire.CodeUnknownTunnel},
		"told, and then it says no":   {[]wire.Code{wire.CodeStaleEpoch, wire.CodePaused}, 2, 100 * time.Millisecond, wire.CodePaused},
		"no listener is no such case": {[]wire.Code{wire.CodeAppRefused}, 1, 0, wire.CodeAppRefused},
	} {
		t.Run(name, func(t *testing.T) {
			testkit.Bubble(t, func(t *testing.T) {
				r := alone()
				said := 0
				r.open = agent(t, func(st *link.Stream) {
					now := c.verdicts[min(said, len(c.verdicts)-1)]
					said++
					says(wire.Verdict{Code: now})(st)
				})
				start := time.Now()
				var hold fleet.Hold
				st, err := r.Connect(t.Context(), key, wire.Hello{Kind: wire.KindTCP, Port: 1}, &hold)
				var v wire.Verdict
				if err != nil && !errors.As(err, &v) {
					t.Fatal(err)
				}
				if st != nil {
					_ = st.Close()
				}
				if took := time.Since(start); v.Code != c.want || len(r.did) != c.opens || took != c.took || hold.Retries() != c.opens-1 {
					t.Errorf("verdict %d after %d opens, %d retries and %s, want %d after %d and %s", v.Code, len(r.did), hold.Retries(), took, c.want, c.opens, c.took)
				}
			})
		})
	}
}

func TestAnAgentThatDoesNotAnswer(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		r := alone()
		r.open = agent(t, func(st *link.Stream) { _, _ = io.Copy(io.Discard, st) })
		start := time.Now()
		if _, err := r.Connect(t.Context(), key, wire.Hello{Kind: wire.KindTCP, Port: 1}, &fleet.Hold{}); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 20*time.Second {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
	})
}

func TestWait(t *testing.T) {
	comes := func(context.Context) error { return nil }
	drains := func(context.Context) error { return fleet.ErrDraining }
	for name, c := range map[string]struct {
		here, there func(context.Context) error
		alone       bool
		want        error
	}{
		"it comes here":                         {here: comes},
		"it comes to another relay":             {there: comes},
		"it comes here, where nobody else is":   {here: comes, alone: true},
		"it does not come":                      {want: fleet.ErrAway},
		"it comes here no more, but to another": {here: drains, there: comes},
		"it comes here no more, nor elsewhere":  {here: drains, want: fleet.ErrAway},
		"it comes here no more, nobody else is": {here: drains, alone: true, want: fleet.ErrDraining},
	} {
		t.Run(name, func(t *testing.T) {
			testkit.Bubble(t, func(t *testing.T) {
				p := newPool("a", "b")
				if c.alone {
					p = newPool("a")
				}
				p.relays["a"].wait, p.wait = c.here, c.there
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if err := p.relays["a"].Wait(ctx, key); !errors.Is(err, c.want) {
					t.Errorf("%v, want %v", err, c.want)
				}
			})
		})
	}
}

// Another relay gets streams to the tunnels of agents that are linked here, and no other.
func TestWhatAnotherRelayGets(t *testing.T) {
	closing := store.TunnelState{State: store.TunnelClosing}
	open := store.TunnelState{State: store.TunnelOpen}
	mine := store.TunnelRecord{Session: session, Team: key.Team, Agent: key.Agent, Port: 8188}
	others := mine
	others.Agent = "gpu-2"
	good := wire.Hello{Kind: wire.KindTCP, Session: session, Port: 8188}
	for name, c := range map[string]struct {
		hello  wire.Hello
		tunnel *store.TunnelRecord
		state  store.TunnelState
		late   func(*pool) error
		epoch  uint64 // of the agent here; 0: none
		want   error
	}{
		"an open tunnel":                 {hello: good, tunnel: &mine, state: open, epoch: 7},
		"a newer session here":           {hello: good, tunnel: &mine, state: open, epoch: 8},
		"an older session here":          {hello: good, tunnel: &mine, state: open, epoch: 6, want: fleet.ErrAway},
		"no session here":                {hello: good, tunnel: &mine, state: open, want: fleet.ErrAway},
		"a terminal, which has no port":  {hello: wire.Hello{Kind: wire.KindTerminal, Session: session}, tunnel: &mine, state: open, epoch: 7},
		"another port than the tunnel's": {hello: wire.Hello{Kind: wire.KindTCP, Session: session, Port: 22}, tunnel: &mine, state: open, epoch: 7, want: fleet.ErrCut},
		"another agent's tunnel":         {hello: good, tunnel: &others, state: open, epoch: 7, want: fleet.ErrCut},
		"a tunnel that closes":           {hello: good, tunnel: &mine, state: closing, epoch: 7, want: fleet.ErrCut},
		"a tunnel that nobody knows":     {hello: good, epoch: 7, want: fleet.ErrCut},
		"a tunnel that is known in a moment": {hello: good, epoch: 7, late: func(p *pool) error {
			p.tunnels[session], p.states[session] = mine, open
			return nil
		}},
		"a tunnel that may be known, but the store is away": {hello: good, epoch: 7, want: fleet.ErrAway, late: func(*pool) error { return store.ErrUnavailable }},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPool("a", "b")
			r := p.relays["a"]
			if c.tunnel != nil {
				p.tunnels[session], p.states[session] = *c.tunnel, c.state
			}
			if c.late != nil {
				p.late = func() error { return c.late(p) }
			}
			r.epoch = c.epoch
			r.open = func(wire.Hello) (*fleet.Stream, error) { return fleet.NewStream(nil, session, nil), nil }
			st, err := r.OpenHere(t.Context(), key, 7, c.hello)
			if (st != nil) != (c.want == nil) || !errors.Is(err, c.want) {
				t.Errorf("%v, %v, want %v", st, err, c.want)
			}
			if p.opens != 0 {
				t.Error("a stream that came from another relay goes to a third")
			}
		})
	}
}

// What a closing tunnel has here ends after no new stream can come, and after other
// relays had time for a goodbye.
func TestCutOrder(t *testing.T) {
	for want, p := range map[string]*pool{"refuse yield cut": newPool("a", "b"), "refuse cut": newPool("a")} {
		r := p.relays["a"]
		r.Cut(key, session, "closed")
		got := ""
		for i, s := range r.did {
			if i > 0 {
				got += " "
			}
			got += s
		}
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// lane is a way that is over when it is told so.
type lane struct {
	fleet.Lane
	stale bool
	left  []ident.SessionID
}

func (l *lane) Stale() bool           { return l.stale }
func (l *lane) Left(st *fleet.Stream) { l.left = append(l.left, st.Tunnel) }

func TestAStreamLeavesItsLaneOnce(t *testing.T) {
	open := agent(t, says(wire.Verdict{}))
	for name, end := range map[string]func(*fleet.Stream){
		"closed": func(s *fleet.Stream) { _ = s.Close(); _ = s.Close() },
		"reset":  func(s *fleet.Stream) { _ = s.Reset(); _ = s.Close() },
		"both":   func(s *fleet.Stream) { _ = s.Close(); _ = s.Reset() },
	} {
		bare, err := open(wire.Hello{Kind: wire.KindTCP, Port: 1})
		if err != nil {
			t.Fatal(err)
		}
		l := &lane{}
		end(fleet.NewStream(bare.Stream, session, l))
		if !slices.Equal(l.left, []ident.SessionID{session}) {
			t.Errorf("%s: it left for %v", name, l.left)
		}
	}
}

// A stream that breaks because another relay stops is lost as with a link, and what
// the app ends itself is not.
func TestAStreamThatIsLostWithItsRelay(t *testing.T) {
	yes, no := says(wire.Verdict{}), says(wire.Verdict{Code: wire.CodePaused})
	for name, c := range map[string]struct {
		stale bool
		end   func(*link.Stream)
		lost  bool
	}{
		"reset, and its way goes on":   {false, func(st *link.Stream) { yes(st); _ = st.Reset() }, false},
		"reset, and its way is over":   {true, func(st *link.Stream) { yes(st); _ = st.Reset() }, true},
		"ended, and its way is over":   {true, yes, false},
		"refused, and its way is over": {true, no, false},
	} {
		t.Run(name, func(t *testing.T) {
			bare, err := agent(t, c.end)(wire.Hello{Kind: wire.KindTCP, Port: 1})
			if err != nil {
				t.Fatal(err)
			}
			st := fleet.NewStream(bare.Stream, session, &lane{stale: c.stale})
			defer func() { _ = st.Close() }()
			_, err = io.ReadAll(st)
			if got := errors.Is(err, link.ErrClosed); got != c.lost {
				t.Errorf("it reads as %v", err)
			}
		})
	}
}

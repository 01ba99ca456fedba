package uplink

import (
	"context"
	"errors"
	"time"

	"github.com/adit-tunnel/adit/shared/backoff"
	"github.com/adit-tunnel/adit/shared/wire"
)

// Extra links go beside a main link, to the same relay, while a tunnel is open.
// They join the session and carry streams, so that bulk is apart from what somebody
// waits for, and a line is filled that one TCP connection cannot fill. Nothing else
// depends on them: one that is lost takes what ran on it and is made again, whether
// the agent is online is said by the main links. An agent without a tunnel has none.

// extraBase is the least index of an extra link: those of main link i are numbered
// from (i+1)*extraBase.
const extraBase = 16

// extra keeps the extra link of a number beside a main link.
func (u *Uplink) extra(ctx context.Context, main, number int) {
	changed, cancel := u.conf.Tunnels.Subscribe()
	defer cancel()
	x := &extraLink{up: u, main: main, index: (main+1)*extraBase + number, tunnels: changed}
	for {
		url, err := x.wanted(ctx)
		if err != nil {
			return
		}
		wait := x.back.Next()
		switch end := x.once(ctx, url); {
		case ctx.Err() != nil:
			return
		case end == nil: // it was left to end by itself, or is not wanted any more
			x.back.Reset()
			continue
		default:
			u.metrics.reconnects.WithLabelValues(string(end.reason)).Inc()
			u.conf.Logger.Debug("extra link ended", "link_index", x.index, "reason", string(end.reason), "error", end.err)
			if end.reason == reasonNotJoined {
				wait = notJoined // a relay that cannot
			} else if end.lived >= settled {
				x.back.Reset()
				wait = x.back.Next()
			}
		}
		if err := backoff.Sleep(ctx, wait); err != nil {
			return
		}
	}
}

// extraLink is the state of one extra; it is for one goroutine.
type extraLink struct {
	up          *Uplink
	main, index int
	tunnels     <-chan struct{} // gets a value when a tunnel opened or closed
	back        backoff.Backoff
}

// wanted waits until a tunnel is open and the main link is up, and returns its URL.
func (x *extraLink) wanted(ctx context.Context) (string, error) {
	for {
		changed := x.up.changes()
		if m := x.up.mainLink(x.main); m != nil && x.up.conf.Tunnels.Count() > 0 {
			return m.url, nil
		}
		select {
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-changed:
		case <-x.tunnels:
		}
	}
}

// once makes the link and tends it. Its ending is nil when the link did its duty.
func (x *extraLink) once(ctx context.Context, url string) *ending {
	l, _, err := x.up.reach(ctx, []string{url}, false)
	if err != nil {
		return asEnding(err)
	}
	s := newSession(x.up, l, url, x.index)
	s.joins = true
	w, err := s.greet(ctx)
	if err == nil {
		err = x.up.admit(s, w)
	}
	if err != nil {
		_ = l.Close(err)
		return asEnding(err)
	}
	x.up.conf.Logger.Debug("extra link up", "url", url, "relay_id", w.Relay, "link_index", x.index, "congestion", l.Congestion(), "carrier", l.Carrier())
	ended := make(chan *ending, 1)
	go func() { ended <- x.up.converse(ctx, s) }()
	return x.tend(s, ended)
}

// tend ends the link when it is of no use, and returns how it ended.
func (x *extraLink) tend(s *session, ended <-chan *ending) *ending {
	beside := x.up.mainLink(x.main)
	idle := time.NewTimer(x.up.conf.ExtraIdle)
	defer idle.Stop()
	for {
		changed := x.up.changes()
		m := x.up.mainLink(x.main)
		switch {
		case !x.up.current(s):
			s.end(&ending{reason: reasonReplaced, err: errors.New("the agent has a new session")})
			return <-ended
		case m != nil && m != beside && !s.fresh():
			// The main link fell silent too, and was replaced.
			s.end(&ending{reason: reasonReplaced, err: errors.New("silent, as the main link was before it was replaced")})
			return <-ended
		case m != nil && m.url != s.url:
			x.up.retire(s, ended)
			return nil
		case m != nil:
			beside = m
		}
		select {
		case end := <-ended:
			return end
		case <-s.move: // the relay stops: what runs here may finish
			x.up.retire(s, ended)
			return nil
		case <-s.doubt: // the main link finds out
		case <-changed:
		case <-x.tunnels:
			if x.up.conf.Tunnels.Count() == 0 {
				idle.Reset(x.up.conf.ExtraIdle)
			}
		case <-idle.C:
			if x.up.conf.Tunnels.Count() == 0 {
				s.farewellWith(wire.Goodbye{Reason: wire.GoodbyeShutdown, Detail: "no tunnel is open"}, errors.New("no tunnel is open"))
				<-ended
				return nil
			}
		}
	}
}

// isExtra says whether the session is that of an extra link.
func (s *session) isExtra() bool { return s.index >= extraBase }

// fresh says whether the relay was heard lately on the link.
func (s *session) fresh() bool { return s.link.Silence() < doubtAfter }

// mainLink is the living main link of an index that stays, nil when there is none.
func (u *Uplink) mainLink(index int) *session {
	u.mu.Lock()
	defer u.mu.Unlock()
	for s := range u.live {
		if s.index == index && s.generation == u.seen && !s.moving {
			return s
		}
	}
	return nil
}

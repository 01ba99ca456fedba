package uplink

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/adit-tunnel/adit/shared/backoff"
)

// keep keeps one link until ctx ends: dial, talk, and again when it ended.
func (u *Uplink) keep(ctx context.Context, index int) {
	c := &course{configured: u.conf.RelayURLs}
	for {
		if index > 0 {
			if err := u.mayJoin(ctx); err != nil {
				return
			}
		}
		end := u.once(ctx, c, index)
		if ctx.Err() != nil {
			return
		}
		wait := c.after(end, u.Epoch())
		u.report(end, index, wait)
		u.metrics.reconnects.WithLabelValues(string(end.reason)).Inc()
		if err := backoff.Sleep(ctx, wait); err != nil {
			return
		}
	}
}

// once makes a link, and further ones in its place while it is in doubt, and
// returns how the last of them ended.
func (u *Uplink) once(ctx context.Context, c *course, index int) *ending {
	s, err := u.connect(ctx, c, index, nil)
	if err != nil {
		return asEnding(err)
	}
	for {
		ended := make(chan *ending, 1)
		go func() { ended <- u.converse(ctx, s) }()
		next, end := u.watch(ctx, c, s, ended)
		if next == nil {
			return end
		}
		s = next
	}
}

// watch waits for the end of a conversation. When the link falls silent, it dials
// another beside it: on a path that comes back after some seconds, a new
// connection works at once, where the old one waits for TCP's next try. Whichever
// lives first is kept.
func (u *Uplink) watch(ctx context.Context, c *course, s *session, ended <-chan *ending) (*session, *ending) {
	for {
		select {
		case end := <-ended:
			return nil, end
		case <-s.move:
			if next, end, over := u.moveOn(ctx, c, s, ended); over {
				return next, end
			}
			continue
		case <-s.doubt:
		}
		if s.index > 0 {
			continue // the first link decides; this one ends by itself
		}
		u.conf.Logger.Debug("link is silent, dialling another beside it", "url", s.url)
		next, end, over := u.beside(ctx, c, s, ended)
		if over {
			return next, end
		}
	}
}

// beside dials another link while s is in doubt. over is false when s lives again.
func (u *Uplink) beside(ctx context.Context, c *course, s *session, ended <-chan *ending) (next *session, end *ending, over bool) {
	spareCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	lastTry := make(chan struct{}) // closed: the present try is the last
	spare := make(chan *session, 1)
	go func() { spare <- u.persist(spareCtx, c, s, lastTry) }()
	for done := false; !done; {
		select {
		case next = <-spare:
			done = true
		case <-s.relief:
			cancel(errAlive)
		case end = <-ended:
			ended = nil
			close(lastTry) // a try under way is what comes next anyhow
			if end.reason != reasonLost {
				cancel(end)
			}
		}
	}
	if next == nil {
		return nil, end, end != nil
	}
	if end == nil {
		s.end(&ending{reason: reasonReplaced, err: errors.New("a new link took its place")})
		end = <-ended
	}
	u.metrics.reconnects.WithLabelValues(string(reasonReplaced)).Inc()
	u.conf.Logger.Info("link replaced by a new one", "url", next.url, "old_ended", end.err)
	return next, nil, true
}

// persist tries to link until it works, ctx ends, or lastTry is closed.
func (u *Uplink) persist(ctx context.Context, c *course, instead *session, lastTry <-chan struct{}) *session {
	var back backoff.Backoff
	for {
		s, err := u.connect(ctx, c, instead.index, instead)
		if err == nil {
			return s
		}
		u.conf.Logger.Debug("link beside the silent one", "error", err)
		wait := time.NewTimer(back.Next())
		select {
		case <-ctx.Done():
		case <-lastTry:
		case <-wait.C:
			continue
		}
		wait.Stop()
		return nil
	}
}

var errAlive = errors.New("the link lives after all")

// connect dials and greets. instead is the link in doubt that the new one is to
// replace, nil for none.
func (u *Uplink) connect(ctx context.Context, c *course, index int, instead *session) (*session, error) {
	l, url, err := u.reach(ctx, u.spread(c, index), c.isEager())
	if err != nil {
		return nil, err
	}
	if instead != nil && context.Cause(ctx) != nil {
		_ = l.Close(context.Cause(ctx))
		return nil, context.Cause(ctx)
	}
	s := newSession(u, l, url, index)
	s.joins = u.joins(index, instead, c.alone)
	w, err := s.greet(ctx)
	if err == nil {
		err = u.admit(s, w)
	}
	if err != nil {
		_ = l.Close(err)
		c.alone = s.joins && index == 0
		return nil, err
	}
	c.welcomed(url, w.Relays)
	u.conf.Logger.Info("link up", "url", url, "relay_id", w.Relay, "relay_version", w.Version, "generation", w.Generation,
		"link_index", index, "tunnels", len(w.Tunnels), "congestion", l.Congestion(), "carrier", l.Carrier())
	u.conf.Notify("linked to " + string(w.Relay) + " at " + url)
	return s, nil
}

// report logs an ending once, in the words of who must act on it.
func (u *Uplink) report(e *ending, index int, wait time.Duration) {
	u.setLastError(e)
	attrs := []any{"reason", string(e.reason), "error", e.err, "link_index", index, "retry_in", wait.Round(time.Millisecond).String()}
	level, msg := slog.LevelWarn, "link lost"
	switch e.reason {
	case reasonSuperseded:
		if wait < stayAway {
			level, msg = slog.LevelInfo, "link superseded by this process's own"
			break
		}
		u.setSuperseded(e.err.Error())
		level, msg = slog.LevelError, "another process took over this agent's name: staying away; give one of the two another agent_id, or stop one"
	case reasonRevoked, reasonUnauthorized:
		level, msg = slog.LevelError, "the relay does not accept the credential: make a new one and put it into the credential file, it is read again at each try"
	case reasonDial, reasonRefused:
		msg = "no link to a relay"
	case reasonDrain:
		level, msg = slog.LevelInfo, "relay is stopping, moving"
	}
	u.conf.Logger.Log(context.Background(), level, msg, attrs...) //nolint:sloglint // one of the constants above
	u.conf.Notify("no link: " + e.Error())
}

func asEnding(err error) *ending {
	if e, ok := errors.AsType[*ending](err); ok {
		return e
	}
	return &ending{reason: reasonLost, err: err}
}

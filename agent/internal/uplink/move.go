package uplink

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/adit-tunnel/adit/shared/wire"
)

// Several links of one process are one session: the first claims its generation,
// each further one joins it, at another relay where there is one. A link that is
// lost is made again by joining while another lives, so that losing a relay costs
// neither the session nor what runs on the other links.

// joins says whether a link that is made now is one more of the living session.
// instead is the link that it replaces; one that moves still counts as living. An
// extra link counts while it is heard, unless alone is said.
func (u *Uplink) joins(index int, instead *session, alone bool) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if index > 0 {
		return true
	}
	for s := range u.live {
		if s.generation == u.seen && (s != instead || s.moving) && (!s.isExtra() || s.fresh() && !alone) {
			return true
		}
	}
	return false
}

// alone says that no link is up, nor about to end.
func (u *Uplink) alone() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.live) == 0
}

// spread puts the relays that have a link of this session already behind the
// others, among which are those that the living links' relays named.
func (u *Uplink) spread(c *course, index int) []string {
	u.mu.Lock()
	var used, learned []string
	for s := range u.live {
		if (s.index != index || s.moving) && !s.isExtra() {
			used = append(used, s.url)
			learned = append(learned, s.relays...)
		}
	}
	u.mu.Unlock()
	all := c.targets()
	if len(used) == 0 {
		return all
	}
	for _, l := range c.trusted(learned) {
		if !slices.Contains(all, l) {
			all = append(all, l)
		}
	}
	isUsed := func(url string) bool { return slices.Contains(used, strings.TrimRight(url, "/")) }
	out := slices.DeleteFunc(slices.Clone(all), isUsed)
	return append(out, slices.DeleteFunc(all, func(url string) bool { return !isUsed(url) })...)
}

// asked notes that the relay stops and asks this link to go elsewhere. It returns
// false when that is no news: then the link just ends.
func (s *session) asked(g *wire.Goodbye) bool {
	if g.Reason != wire.GoodbyeDrain || len(g.MoveTo) == 0 || !s.leave.CompareAndSwap(nil, g) {
		return false
	}
	offer(s.move)
	return true
}

// retireTime is how long a relay that stops may keep a link after another one took
// its place: it ends it when what runs there has ended.
const retireTime = 5 * time.Minute

// moveOn makes a link to another relay before the one that stops closes its own.
// over is false when nothing became of it.
func (u *Uplink) moveOn(ctx context.Context, c *course, s *session, ended <-chan *ending) (next *session, end *ending, over bool) {
	c.moved(s.leave.Load().MoveTo, s.url)
	if len(c.prefer) == 0 {
		return nil, nil, false
	}
	u.mu.Lock()
	s.moving = true
	u.mu.Unlock()
	u.conf.Logger.Info("the relay stops: linking to another one first", "url", s.url)
	lastTry := make(chan struct{})
	made := make(chan *session, 1)
	go func() { made <- u.persist(ctx, c, s, lastTry) }()
	for done := false; !done; {
		select {
		case next = <-made:
			done = true
		case end = <-ended:
			ended = nil
			close(lastTry)
		}
	}
	if next == nil {
		return nil, end, end != nil
	}
	if end == nil {
		u.retire(s, ended)
	}
	u.metrics.reconnects.WithLabelValues(string(reasonDrain)).Inc()
	return next, nil, true
}

// retire leaves a link to the relay that ends it.
func (u *Uplink) retire(s *session, ended <-chan *ending) {
	u.retired.Go(func() {
		limit := time.NewTimer(retireTime)
		defer limit.Stop()
		select {
		case <-ended:
			return
		case <-limit.C:
		}
		s.end(&ending{reason: reasonReplaced, err: errors.New("the relay that stops kept the link for too long")})
		<-ended
	})
}

// moved notes where a relay that stops sent this link.
func (c *course) moved(to []string, from string) {
	c.prefer = slices.DeleteFunc(c.trusted(to), func(u string) bool { return u == strings.TrimRight(from, "/") })
	if len(c.prefer) > 0 {
		c.last = "" // the relay that stops is the last resort
	}
}

package uplink

import (
	"context"
	"time"

	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/wire"
)

// What the policy tests need of the inside.

// Course is course.
type Course = course

// NewCourse returns a course over configured relays.
func NewCourse(urls ...string) *Course { return &course{configured: urls} }

// Targets is targets.
func (c *course) Targets() []string { return c.targets() }

// Welcomed is welcomed.
func (c *course) Welcomed(url string, relays []string) { c.welcomed(url, relays) }

// End is an ending made from what a relay said.
type End struct {
	Goodbye    *wire.Goodbye
	Err        error // without a goodbye: of an attempt
	Lost       bool
	Generation uint64
	Lived      time.Duration
}

// After is after.
func (c *course) After(e End, seen uint64) time.Duration {
	var x *ending
	switch {
	case e.Goodbye != nil:
		x = goodbye(e.Goodbye)
	case e.Lost:
		x = &ending{reason: reasonLost, err: e.Err}
	default:
		x = dialEnding(e.Err)
	}
	x.generation, x.lived = e.Generation, e.Lived
	return c.after(x, seen)
}

// Reach is reach, with a dialer of its own.
func Reach(ctx context.Context, dial Dialer, targets []string, eager bool) (*link.Link, string, error) {
	u := &Uplink{conf: Config{Dial: dial}}
	return u.reach(ctx, targets, eager)
}

// Welcome, Opened, Shut and Expire drive a table as the conversation does.
func (t *Tunnels) Welcome(w *wire.Welcome, alone bool) { t.welcome(w, alone) }

// Opened is opened.
func (t *Tunnels) Opened(n wire.TunnelNotice) { t.opened(n) }

// Shut is closed.
func (t *Tunnels) Shut(n wire.TunnelNotice) { t.closed(n.Session) }

// Save is save.
func (t *Tunnels) Save() { t.save() }

// Expire is expire.
func (t *Tunnels) Expire(now time.Time) time.Duration { return t.expire(now) }

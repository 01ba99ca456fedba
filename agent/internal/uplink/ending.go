package uplink

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/adit-tunnel/adit/shared/backoff"
	"github.com/adit-tunnel/adit/shared/carrier"
	"github.com/adit-tunnel/adit/shared/wire"
)

// reason says why a link ended or was not made. It is a metric's label too.
type reason string

const (
	reasonDial         reason = "dial"         // no relay could be reached
	reasonRefused      reason = "refused"      // the relay answered and would not
	reasonUnauthorized reason = "unauthorized" // 401 or 403
	reasonLost         reason = "lost"         // the link died
	reasonDrain        reason = "drain"
	reasonFenced       reason = "fenced"
	reasonSuperseded   reason = "superseded"
	reasonRevoked      reason = "revoked"
	reasonError        reason = "error"      // either side broke the protocol
	reasonStale        reason = "stale"      // a generation lower than seen
	reasonNotJoined    reason = "not_joined" // a further link became no part of the session
	reasonReplaced     reason = "replaced"   // a better link took its place
	reasonShutdown     reason = "shutdown"
)

// reasons are all of them.
var reasons = [...]reason{
	reasonDial, reasonRefused, reasonUnauthorized, reasonLost, reasonDrain, reasonFenced, reasonSuperseded, reasonRevoked,
	reasonError, reasonStale, reasonNotJoined, reasonReplaced, reasonShutdown,
}

// ending is how a link or the attempt at one ended. It is an error.
type ending struct {
	reason     reason
	err        error
	moveTo     []string
	retryAfter time.Duration
	generation uint64 // of the link; 0 when it was not admitted
	lived      time.Duration
}

// Error names reason and cause.
func (e *ending) Error() string { return fmt.Sprintf("%s: %v", e.reason, e.err) }

// Unwrap returns the cause.
func (e *ending) Unwrap() error { return e.err }

// goodbye turns the relay's last word into an ending.
func goodbye(g *wire.Goodbye) *ending {
	e := &ending{err: errors.New(g.Detail), moveTo: g.MoveTo}
	switch g.Reason {
	case wire.GoodbyeDrain:
		e.reason = reasonDrain
	case wire.GoodbyeSuperseded:
		e.reason = reasonSuperseded
	case wire.GoodbyeRevoked:
		e.reason = reasonRevoked
	case wire.GoodbyeFenced:
		e.reason = reasonFenced
	default:
		e.reason = reasonError
	}
	return e
}

// dialEnding turns the errors of attempts into an ending; a relay that answered
// tells more than one that did not.
func dialEnding(err error) *ending {
	e := &ending{reason: reasonDial, err: err}
	if refused, ok := errors.AsType[*carrier.RefusedError](err); ok {
		e.reason = reasonRefused
		switch refused.Status {
		case http.StatusUnauthorized, http.StatusForbidden:
			e.reason = reasonUnauthorized
		case http.StatusTooManyRequests:
			e.retryAfter = refused.RetryAfter
		}
	}
	return e
}

const (
	stayAway    = 30 * time.Second // between tries of a process that is not wanted
	notJoined   = 5 * time.Minute  // between tries of a further link that the relay does not join
	maxPatience = time.Minute      // the longest wait that a relay may ask for
	settled     = 2 * time.Second  // a link that lived so long was a success
	fresh       = time.Second      // one that lived shorter must not be followed at once
)

// course decides where to dial next, and when. It is for one goroutine.
type course struct {
	configured []string
	learned    []string // other relays, as the last welcome named them
	prefer     []string // where a goodbye sent us
	last       string   // the relay of the last link
	back       backoff.Backoff
	alone      bool      // the relay did not let the first link join: extra links prove no session
	eager      time.Time // since when the present trouble lasts
}

// welcomed notes a success.
func (c *course) welcomed(url string, relays []string) {
	c.last, c.prefer, c.learned, c.alone = url, nil, c.trusted(relays), false
}

// targets lists the relays in the order in which they are to be tried.
func (c *course) targets() []string {
	var out []string
	add := func(urls ...string) {
		for _, u := range urls {
			if u = strings.TrimRight(u, "/"); u != "" && !slices.Contains(out, u) {
				out = append(out, u)
			}
		}
	}
	add(c.prefer...)
	add(c.last)
	add(c.configured...)
	add(c.learned...)
	return out
}

// after returns how long to wait when a link or an attempt ended so. seen is the
// highest generation that this process has.
func (c *course) after(e *ending, seen uint64) time.Duration {
	if e.generation != 0 && e.lived >= settled {
		c.back.Reset()
		c.eager = time.Time{}
	}
	if c.eager.IsZero() {
		c.eager = time.Now()
	}
	c.prefer = nil
	switch e.reason {
	case reasonDrain:
		left := c.last
		c.prefer = slices.DeleteFunc(c.trusted(e.moveTo), func(u string) bool { return u == left })
		if len(c.prefer) > 0 {
			c.last = "" // the relay that stops is the last resort
		}
		if e.lived >= fresh {
			return 0
		}
	case reasonSuperseded:
		// Our own next link supersedes the one before it, too; then all is well.
		if e.generation == 0 || e.generation >= seen {
			return stayAway
		}
	case reasonRevoked, reasonUnauthorized:
		return stayAway + time.Duration(rand.Int64N(int64(stayAway/10)))
	case reasonNotJoined:
		return notJoined
	case reasonReplaced:
		return 0
	}
	return max(c.back.Next(), min(e.retryAfter, maxPatience))
}

// isEager says whether the trouble is young, so that it is worth to try hard.
func (c *course) isEager() bool { return c.eager.IsZero() || time.Since(c.eager) < eagerTime }

const eagerTime = time.Minute

// trusted keeps the relays that may be learned from another relay: where the
// configuration has only encrypted addresses, no other kind is followed.
func (c *course) trusted(urls []string) []string {
	encryptedOnly := !slices.ContainsFunc(c.configured, func(u string) bool { return !encrypted(u) })
	var out []string
	for _, raw := range urls {
		u, err := url.Parse(raw)
		if err != nil || u.Hostname() == "" || u.User != nil || !slices.Contains([]string{"http", "https", "ws", "wss"}, u.Scheme) {
			continue
		}
		if encryptedOnly && !encrypted(raw) {
			continue
		}
		out = append(out, strings.TrimRight(raw, "/"))
	}
	return out
}

func encrypted(u string) bool {
	return strings.HasPrefix(u, "https://") || strings.HasPrefix(u, "wss://")
}

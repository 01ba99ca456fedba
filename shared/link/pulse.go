package link

import (
	"fmt"
	"sync"
	"time"
)

const (
	// busyBytes since the last beat make a link busy: then its round trip is measured
	// each time, for the windows follow it, and once more when the queues are gone.
	busyBytes = 64 << 10
	// measureEvery is how many beats an idle link's round trip may be old.
	measureEvery = 6
	// slowAnswer is a round trip of a link that is congested, and gets asked often
	// enough for an answer to be always on its way.
	slowAnswer = time.Second
)

// pulse asks the peer for signs of life and closes the link when there are none. A peer
// that talks by itself, over a link that is neither busy nor slow, is not asked. It lives
// on a timer alone: a goroutine's stack is most of what an idle link costs.
type pulse struct {
	l        *Link
	patience time.Duration // with a peer that is silent

	mu      sync.Mutex
	timer   *time.Timer
	stopped bool
	wake    time.Time // when the timer is to fire
	grace   time.Duration
	unasked int    // beats since the last ping
	busy    bool   // at the last beat
	bytes   uint64 // that had moved by the last beat
}

func startPulse(l *Link, client bool) *pulse {
	p := &pulse{l: l, patience: l.cfg.KeepAlive}
	if !client {
		p.patience += l.cfg.KeepAlive / 10 // else both would ask at the same moment
	}
	p.patience = min(p.patience, l.cfg.DeadAfter/2)
	l.mux.ping()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wake = time.Now().Add(p.patience)
	p.timer = time.AfterFunc(p.patience, p.beat)
	return p
}

func (p *pulse) beat() {
	if cause := p.look(time.Now()); cause != nil {
		p.l.kill(cause)
	}
}

// look pings if that is due, and says why the link is dead if it is.
func (p *pulse) look(now time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return nil
	}
	cfg, mux := &p.l.cfg, p.l.mux
	silent := mux.silence()
	// This process may itself have been stopped or starved: then the peer's words lie
	// unread in the socket, and it gets time to be heard.
	if now.Sub(p.wake) > cfg.KeepAlive/2 {
		p.grace = cfg.KeepAlive
	}
	if silent >= cfg.DeadAfter+p.grace {
		return fmt.Errorf("%w for %s", errSilent, silent.Round(100*time.Millisecond))
	}
	next := p.patience - silent
	if next > 0 {
		p.grace = 0
	}
	mux.forgetPing(2 * cfg.DeadAfter)
	mux.rest()
	moved := mux.bytesIn.Load() + mux.bytesOut.Load()
	busy := moved-p.bytes >= busyBytes || mux.pingSent.Load() != 0 || p.l.RTT() > slowAnswer
	ask := busy || p.busy
	p.bytes, p.busy = moved, busy
	if p.unasked++; next <= 0 || ask || p.unasked >= measureEvery {
		p.unasked = 0
		mux.ping()
		next = min(p.patience, cfg.DeadAfter+p.grace-silent)
	}
	next = max(next, time.Millisecond)
	p.wake = now.Add(next)
	p.timer.Reset(next)
	return nil
}

func (p *pulse) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
	p.timer.Stop()
}

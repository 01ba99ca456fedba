package link

import (
	"fmt"
	"sync"
	"time"
)

const (
	// busyBytes since the last check make a link busy: then its round trip is measured
	// each time, for the windows follow it, and once more when the queues are gone.
	busyBytes = 64 << 10
	// measureEvery is how many checks an idle link's round trip may be old.
	measureEvery = 8
	// slowAnswer is a round trip of a link that is congested, and gets asked often
	// enough for an answer to be always on its way.
	slowAnswer = time.Second
)

// keepalive is the link's one heartbeat: it finds out that the peer is dead, keeps NATs and
// proxies on the way from forgetting the connection, and measures the round trip. It asks
// the peer for a sign of life, and closes the link when none comes. A peer that sends by
// itself, over a link that is neither busy nor slow, is not asked. It lives on a timer
// alone: a goroutine's stack is most of what an idle link costs.
//
// Pings are answered by the peer's mux. So they say nothing about what is above it: that an
// agent's and a relay's control streams are read is seen there, by the agent's report.
type keepalive struct {
	l        *Link
	interval time.Duration // how long the peer may be silent before it is asked

	mu      sync.Mutex
	timer   *time.Timer
	stopped bool
	due     time.Time // when the timer is to fire
	grace   time.Duration
	unasked int    // checks since the last ping
	busy    bool   // at the last check
	bytes   uint64 // that had moved by the last check
}

func startKeepalive(l *Link, client bool) *keepalive {
	k := &keepalive{l: l, interval: l.cfg.KeepAlive}
	if client {
		k.interval += l.cfg.KeepAlive / 10 // else both would ask at the same moment
	}
	k.interval = min(k.interval, l.cfg.DeadAfter/2)
	l.mux.ping()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.due = time.Now().Add(k.interval)
	k.timer = time.AfterFunc(k.interval, k.fire)
	return k
}

func (k *keepalive) fire() {
	if cause := k.check(time.Now()); cause != nil {
		k.l.kill(cause)
	}
}

// check pings if that is due, and says why the link is dead if it is.
func (k *keepalive) check(now time.Time) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.stopped {
		return nil
	}
	cfg, mux := &k.l.cfg, k.l.mux
	silent := mux.silence()
	// This process may itself have been stopped or starved: then what the peer sent lies
	// unread in the socket, and there is time for it to be read.
	if now.Sub(k.due) > cfg.KeepAlive/2 {
		k.grace = cfg.KeepAlive
	}
	if silent >= cfg.DeadAfter+k.grace {
		return fmt.Errorf("%w for %s", errSilent, silent.Round(100*time.Millisecond))
	}
	next := k.interval - silent
	if next > 0 {
		k.grace = 0
	}
	mux.expirePing(2 * cfg.DeadAfter)
	mux.stopPacing()
	moved := mux.bytesIn.Load() + mux.bytesOut.Load()
	busy := moved-k.bytes >= busyBytes || mux.pingSent.Load() != 0 || k.l.RTT() > slowAnswer
	ask := busy || k.busy
	k.bytes, k.busy = moved, busy
	if k.unasked++; next <= 0 || ask || k.unasked >= measureEvery {
		k.unasked = 0
		mux.ping()
		next = min(k.interval, cfg.DeadAfter+k.grace-silent)
	}
	next = max(next, time.Millisecond)
	k.due = now.Add(next)
	k.timer.Reset(next)
	return nil
}

func (k *keepalive) stop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.stopped = true
	k.timer.Stop()
}

// ping asks the peer for a sign of life and starts measuring the round trip,
// unless an answer is outstanding.
func (m *mux) ping() {
	if m.pingSent.CompareAndSwap(0, int64(m.now())+1) {
		m.sendControl(makeHeader(typePing, flagSYN, 0, m.pingID.Add(1)))
	} else {
		m.sendControl(makeHeader(typePing, flagSYN, 0, 0)) // proves life, measures nothing
	}
}

// expirePing gives up the measurement of a ping whose answer is that late: a peer that
// had too much to answer leaves some out.
func (m *mux) expirePing(late time.Duration) {
	if sent := m.pingSent.Load(); sent != 0 && m.now()+1-time.Duration(sent) > late {
		m.pingSent.CompareAndSwap(sent, 0)
	}
}

// silence is how long nothing has come from the peer.
func (m *mux) silence() time.Duration { return m.now() - time.Duration(m.lastRead.Load()) }

// RTT is the last measured round trip, queues at both ends included; 0 until the
// first answer.
func (l *Link) RTT() time.Duration { return time.Duration(l.mux.rtt.Load()) }

// Silence is how long nothing has come from the peer. A living peer is never silent
// for much more than the KeepAlive and the line's delay.
func (l *Link) Silence() time.Duration { return l.mux.silence() }

// Ping asks the peer for a sign of life at once: see Silence.
func (l *Link) Ping() { l.mux.ping() }

package link

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/shared/carrier"
)

// fakeLine is a line of so many bytes a second. What is sent faster is lost, and BBR's
// estimate is what arrives, as with several links that take each other's places.
type fakeLine struct {
	capacity float64
	push     float64 // how much of it the sender tries to use
	noise    float64 // the part that is lost anyway
	stuck    bool    // an estimate that is far too low, until restarted
	v        carrier.Sample
	bound    uint64
	restarts int
	chance   *rand.Rand
}

func (w *fakeLine) Sample() (carrier.Sample, bool) { return w.v, true }
func (w *fakeLine) Restart()                       { w.restarts++; w.stuck = false }
func (w *fakeLine) Limit(rate uint64)              { w.bound = rate }

// packet is how many bytes are lost together.
const packet = 1448

// send is what a sender does in d. What is lost by noise is a matter of chance.
func (w *fakeLine) send(d time.Duration) {
	rate := w.capacity * w.push
	if w.stuck {
		rate /= 20
	}
	if w.bound > 0 {
		rate = min(rate, float64(w.bound))
	}
	w.v.Sent += uint64(rate * d.Seconds())
	w.v.Retransmitted += uint64(max(0, rate-w.capacity) * d.Seconds())
	for range int(rate * d.Seconds() / packet) {
		if w.noise > 0 && w.chance.Float64() < w.noise {
			w.v.Retransmitted += packet
		}
	}
	w.v.Bandwidth = uint64(min(rate, w.capacity*1.1))
}

// transfer sends for d, and returns what became of it: bytes a second, and the part of
// them that was lost, of the second half.
func transfer(p *pacer, w *fakeLine, now *time.Duration, d time.Duration) (rate, lost float64) {
	const step = 10 * time.Millisecond
	var half carrier.Sample
	for t := time.Duration(0); t < d; t += step {
		if t >= d/2 && half.Sent == 0 {
			half = w.v
		}
		p.bulk(*now)
		w.send(step)
		*now += step
		p.sent(*now)
	}
	sent, resent := float64(w.v.Sent-half.Sent), float64(w.v.Retransmitted-half.Retransmitted)
	return sent / (d / 2).Seconds(), resent / sent
}

func TestBulkLeavesAnOverfilledLine(t *testing.T) {
	w := &fakeLine{capacity: 20e6, push: 1.2}
	w.v.RTT = 80 * time.Millisecond
	slowed := 0
	p := &pacer{line: w, slowed: func() { slowed++ }}
	now := time.Second
	rate, lost := transfer(p, w, &now, 20*time.Second)
	if rate < 0.93*w.capacity || lost > 0.02 {
		t.Errorf("bulk moves %.1f MB/s on a line of %.1f, and %.1f %% is lost", rate/1e6, w.capacity/1e6, lost*100)
	}
	if slowed == 0 {
		t.Error("nobody was told that bulk was slowed down")
	}
	// Others leave: the rate grows, and in the end nothing holds it.
	w.capacity = 40e6
	if rate, _ = transfer(p, w, &now, 20*time.Second); rate < 0.9*w.capacity {
		t.Errorf("with twice the room, bulk moves %.1f MB/s of %.1f", rate/1e6, w.capacity/1e6)
	}
	// What begins later begins without a bound.
	for w.bound == 0 {
		transfer(p, w, &now, paceEvery)
	}
	now += 2 * paceQuiet
	p.bulk(now)
	if w.bound != 0 || w.restarts != 2 {
		t.Errorf("after a pause, bulk begins with a bound of %d and after %d restarts", w.bound, w.restarts)
	}
}

func TestLossOfTheLineIsNoReason(t *testing.T) {
	for _, noise := range []float64{0.01, 0.032, 0.05, 0.1, 0.3} {
		for _, capacity := range []float64{2e6, 30e6} {
			w := &fakeLine{capacity: capacity, push: 1.2, noise: noise, chance: rand.New(rand.NewPCG(1, uint64(capacity)))}
			w.v.RTT = 80 * time.Millisecond
			now := time.Second
			p := &pacer{line: w}
			transfer(p, w, &now, 2*time.Second) // it begins with too much
			w.push = 0.9
			const long = 120 * time.Second
			if rate, _ := transfer(p, w, &now, long); rate < 0.6*w.push*capacity {
				t.Errorf("a line of %.0f MB/s that loses %.1f %% is sent %.1f a second", capacity/1e6, noise*100, rate/1e6)
			}
			// Once it loses nothing, what overfills it is noticed again.
			w.noise, w.push = 0, 1.2
			if _, lost := transfer(p, w, &now, long); lost > 0.02 {
				t.Errorf("a line of %.0f MB/s that lost %.1f %% once is overfilled for good: %.1f %% is lost", capacity/1e6, noise*100, lost*100)
			}
		}
	}
}

// A limit is for bulk: what else is sent later is not held by it.
func TestNoLimitAtRest(t *testing.T) {
	w := &fakeLine{capacity: 20e6, push: 1.2}
	now := time.Second
	p := &pacer{line: w}
	for w.bound == 0 {
		transfer(p, w, &now, paceEvery)
	}
	if p.stop(now); w.bound == 0 {
		t.Error("the limit went while there was bulk")
	}
	if p.stop(now + 2*paceQuiet); w.bound != 0 {
		t.Errorf("long after the bulk, the limit is %d", w.bound)
	}
}

func TestBulkBeginsAnew(t *testing.T) {
	w := &fakeLine{capacity: 20e6, push: 0.9}
	now := time.Second
	p := &pacer{line: w}
	pause := func() {
		transfer(p, w, &now, 2*time.Second)
		now += 2 * paceQuiet
	}
	pause()
	if w.restarts != 1 {
		t.Errorf("the first bulk on a link came after %d restarts", w.restarts)
	}
	before := w.restarts
	transfer(p, w, &now, time.Second)
	if w.restarts != before {
		t.Error("an estimate that is still good was thrown away")
	}
	for range 10 { // too short for any look but the first
		transfer(p, w, &now, 100*time.Millisecond)
		now += 2 * paceQuiet
	}
	if w.restarts != before {
		t.Error("short transfers with pauses between restart BBR")
	}
	w.stuck = true
	w.send(10 * time.Millisecond)
	if transfer(p, w, &now, time.Second); w.restarts != before+1 || w.stuck {
		t.Error("an estimate that fell to a twentieth was believed")
	}
}

// A write that took long is no pause.
func TestSlowWritesAreOneTransfer(t *testing.T) {
	w := &fakeLine{capacity: 60e3, push: 1}
	p := &pacer{line: w}
	now := time.Second
	for range 20 {
		p.bulk(now)
		w.send(3 * time.Second)
		now += 3 * time.Second
		p.sent(now)
	}
	if w.restarts != 1 {
		t.Errorf("a transfer over a slow line restarted BBR %d times", w.restarts)
	}
}

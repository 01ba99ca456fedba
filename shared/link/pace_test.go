package link

import (
	"testing"
	"time"
)

// fakeLine is a line of so many bytes a second. What is sent faster is lost, and BBR's
// estimate is what arrives, as with several links that take each other's places.
type fakeLine struct {
	capacity float64
	push     float64 // how much of it the sender tries to use
	noise    float64 // the part that is lost anyway
	stuck    bool    // an estimate that is far too low, until restarted
	v        vitals
	bound    uint64
	restarts int
}

func (w *fakeLine) vitals() (vitals, bool) { return w.v, true }
func (w *fakeLine) restart()               { w.restarts++; w.stuck = false }
func (w *fakeLine) limit(rate uint64)      { w.bound = rate }

// send is what a sender does in d.
func (w *fakeLine) send(d time.Duration) {
	rate := w.capacity * w.push
	if w.stuck {
		rate /= 20
	}
	if w.bound > 0 {
		rate = min(rate, float64(w.bound))
	}
	lost := max(0, rate-w.capacity) + rate*w.noise
	w.v.sent += uint64(rate * d.Seconds())
	w.v.resent += uint64(lost * d.Seconds())
	w.v.bandwidth = uint64(min(rate, w.capacity*1.1))
}

// transfer sends for d, and returns what became of it: bytes a second, and the part of
// them that was lost, of the second half.
func transfer(p *pacer, w *fakeLine, now *time.Duration, d time.Duration) (rate, lost float64) {
	const step = 10 * time.Millisecond
	var half vitals
	for t := time.Duration(0); t < d; t += step {
		if t >= d/2 && half.sent == 0 {
			half = w.v
		}
		p.bulk(*now)
		w.send(step)
		*now += step
	}
	sent, resent := float64(w.v.sent-half.sent), float64(w.v.resent-half.resent)
	return sent / (d / 2).Seconds(), resent / sent
}

func TestBulkLeavesAnOverfilledLine(t *testing.T) {
	w := &fakeLine{capacity: 20e6, push: 1.2}
	w.v.rtt = 80 * time.Millisecond
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
	now += 2 * paceQuiet
	p.bulk(now)
	if w.bound != 0 || w.restarts != 2 {
		t.Errorf("after a pause, bulk begins with a bound of %d and after %d restarts", w.bound, w.restarts)
	}
}

func TestLossOfTheLineIsNoReason(t *testing.T) {
	w := &fakeLine{capacity: 100e6, push: 0.9, noise: 0.01}
	w.v.rtt = 80 * time.Millisecond
	now := time.Second
	p := &pacer{line: w}
	transfer(p, w, &now, 10*time.Second)
	if w.bound != 0 {
		t.Errorf("a line that loses 1 %% is sent %d bytes a second", w.bound)
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
	now += 2 * paceQuiet
	w.stuck = true
	w.send(10 * time.Millisecond)
	if transfer(p, w, &now, time.Second); w.restarts != before+1 || w.stuck {
		t.Error("an estimate that fell to a twentieth was believed")
	}
}

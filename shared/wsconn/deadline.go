package wsconn

import (
	"sync"
	"time"
)

// deadline is a point in time that callers can wait for and move.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer
	at    time.Time
	done  chan struct{} // closed when it has passed
}

func (d *deadline) init() { d.done = make(chan struct{}) }

// setTo moves the deadline; the zero time means none.
func (d *deadline) setTo(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.done // the timer has fired: wait until its work is done
	}
	d.timer = nil
	d.at = t
	passed := isClosed(d.done)
	if t.IsZero() || time.Until(t) > 0 {
		if passed {
			d.done = make(chan struct{})
		}
		if !t.IsZero() {
			done := d.done
			d.timer = time.AfterFunc(time.Until(t), func() { close(done) })
		}
		return
	}
	if !passed {
		close(d.done)
	}
}

// wait returns a channel that is closed when the deadline has passed.
func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.done
}

// set says whether there is a deadline.
func (d *deadline) set() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.at.IsZero()
}

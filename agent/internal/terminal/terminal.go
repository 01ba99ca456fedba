package terminal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/adit-tunnel/adit/shared/wire"
)

const (
	maxViewers = 32
	// maxTyped bounds input that the program has not read.
	maxTyped = 4 << 20
	// afterExit is how long output of a program that ended is still waited for: what
	// it left running in the background may hold the terminal open for ever.
	afterExit = time.Second
)

// terminal is one program on one PTY.
type terminal struct {
	key      key
	instance string
	shell    *shell
	log      logger

	mu      sync.Mutex
	room    *sync.Cond // output was taken, a viewer came or went, or it is over
	ring    ring
	viewers map[*viewer]struct{}
	cols    uint16
	rows    uint16
	typing  [][]byte // input that waits
	waiting int      // its bytes
	input   chan struct{}
	used    time.Time // somebody typed or something was printed
	reason  string    // why it was ended from here; empty: the program ended
	over    bool

	done chan struct{} // closed when nothing of it runs any more
}

// logger is what a terminal says of itself.
type logger interface {
	Debug(msg string, args ...any)
}

// run serves the terminal until its program has ended, and calls over before
// anybody is told.
func (t *terminal) run(over func()) wire.Exit {
	var wg sync.WaitGroup
	wg.Go(t.print)
	stop := make(chan struct{})
	wg.Go(func() { t.feed(stop) })
	exit := t.shell.wait()
	t.mu.Lock()
	reason := t.reason
	t.mu.Unlock()
	if reason != "" {
		exit.Text = reason
		t.shell.clear()
	}
	_ = t.shell.tty.SetReadDeadline(time.Now().Add(afterExit))
	t.mu.Lock()
	t.over = true
	t.room.Broadcast()
	t.mu.Unlock()
	close(stop)
	_ = t.shell.tty.SetWriteDeadline(time.Now())
	wg.Wait()
	_ = t.shell.tty.Close()

	over()
	t.mu.Lock()
	for v := range t.viewers {
		v.end(wire.FrameExit, exit.Payload(), true)
	}
	t.mu.Unlock()
	close(t.done)
	return exit
}

// print takes the program's output to the ring and to the viewers.
func (t *terminal) print() {
	buf := make([]byte, 32<<10)
	var last time.Time
	for {
		t.waitRoom()
		n, err := t.shell.tty.Read(buf)
		now := time.Now()
		if n > 0 {
			t.printed(buf[:n])
		}
		if n < crumb && now.Sub(last) < burst && err == nil {
			time.Sleep(gather)
		}
		last = now
		if err != nil { // EIO: no program has the terminal open any more
			if !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.log.Debug("terminal output ended", "error", err)
			}
			return
		}
	}
}

// waitRoom keeps a program from printing while all viewers have enough to read.
// One that is quicker than others is not kept waiting by them.
func (t *terminal) waitRoom() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for !t.over && len(t.viewers) > 0 && !t.hasRoom() {
		t.room.Wait()
	}
}

func (t *terminal) hasRoom() bool {
	full := 0
	for v := range t.viewers {
		switch {
		case v.last != nil: // it leaves
		case len(v.output) < highWater:
			return true
		default:
			full++
		}
	}
	return full == 0
}

func (t *terminal) printed(p []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.used = time.Now()
	t.ring.write(p)
	for v := range t.viewers {
		switch {
		case v.last != nil:
		case len(v.output)+len(p) > tooFar:
			v.end(wire.FrameDropped, []byte("too slow for what is printed"), false)
		default:
			v.output = append(v.output, p...)
			v.poke()
		}
	}
}

// feed gives the program what was typed.
func (t *terminal) feed(stop <-chan struct{}) {
	for {
		select {
		case <-t.input:
		case <-stop:
			return
		}
		for {
			t.mu.Lock()
			if len(t.typing) == 0 {
				t.mu.Unlock()
				break
			}
			p := t.typing[0]
			t.typing = t.typing[1:]
			t.mu.Unlock()
			if _, err := t.shell.tty.Write(p); err != nil {
				return
			}
			t.mu.Lock()
			t.waiting -= len(p)
			t.mu.Unlock()
		}
	}
}

// typed queues input. It reports false when too much waits already.
func (t *terminal) typed(v *viewer, p []byte) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.used = time.Now()
	if t.waiting+len(p) > maxTyped {
		return false
	}
	t.typing = append(t.typing, append([]byte(nil), p...))
	t.waiting += len(p)
	select {
	case t.input <- struct{}{}:
	default:
	}
	t.fit(v) // whoever types sees it in their own size
	return true
}

// resized notes what fits at a viewer's, and takes it over from one who may type.
func (t *terminal) resized(v *viewer, cols, rows uint16) {
	t.mu.Lock()
	defer t.mu.Unlock()
	v.cols, v.rows = cols, rows
	t.fit(v)
}

// fit gives the terminal a viewer's size. The mutex is held.
func (t *terminal) fit(v *viewer) {
	if v.readOnly || !sane(v.cols, v.rows) || (v.cols == t.cols && v.rows == t.rows) {
		return
	}
	t.setSize(v.cols, v.rows)
	for o := range t.viewers {
		o.tell(wire.FrameSize, wire.Pair(t.cols, t.rows))
	}
}

func (t *terminal) setSize(cols, rows uint16) {
	t.cols, t.rows = cols, rows
	if err := setSize(t.shell.tty, cols, rows); err != nil {
		t.log.Debug("set terminal size", "error", err)
	}
}

// sane bounds sizes: programs allocate by them.
func sane(cols, rows uint16) bool { return cols >= 2 && rows >= 1 && cols <= 1000 && rows <= 1000 }

// acked notes how far a viewer has got.
func (t *terminal) acked(v *viewer, pos uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if pos > v.sent {
		pos = v.sent
	}
	if left := int(v.sent - pos); left < v.unacked {
		v.unacked = left
		v.owing = time.Now()
		v.poke()
	}
}

func (t *terminal) drop(v *viewer, why string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	v.end(wire.FrameDropped, []byte(why), false)
	t.room.Broadcast()
}

// errFull says that a terminal has as many viewers as it admits.
var errFull = fmt.Errorf("%d viewers are attached already, the limit", maxViewers)

// errOver says that the program has just ended.
var errOver = errors.New("the program has just ended")

// attach adds a viewer, with what it needs to see queued.
func (t *terminal) attach(v *viewer, o wire.TerminalOpen) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.over:
		return errOver
	case len(t.viewers) >= maxViewers:
		return errFull
	}
	r := wire.Replay{Instance: t.instance, ReadOnly: v.readOnly}
	whole := true
	if o.Instance == t.instance {
		v.output, r.Continues = t.ring.since(o.Seen)
		r.Position = o.Seen
	}
	if !r.Continues {
		v.output, r.Position, whole = t.ring.replay()
	}
	v.sent = r.Position
	v.cols, v.rows = o.Cols, o.Rows
	v.tell(wire.FrameReplay, r.Payload())
	t.viewers[v] = struct{}{}
	before := [2]uint16{t.cols, t.rows}
	t.fit(v)
	if !whole && before == [2]uint16{t.cols, t.rows} {
		// A full-screen program draws anew when the size changes.
		t.setSize(t.cols, t.rows+1)
		t.setSize(t.cols, t.rows-1)
	}
	v.tell(wire.FrameSize, wire.Pair(t.cols, t.rows))
	t.count()
	t.room.Broadcast()
	return nil
}

// detach removes a viewer.
func (t *terminal) detach(v *viewer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.viewers[v]; !ok {
		return
	}
	delete(t.viewers, v)
	v.gone = true
	v.poke()
	t.used = time.Now()
	t.count()
	t.room.Broadcast()
}

// count tells everybody how many are there. The mutex is held.
func (t *terminal) count() {
	writers := uint16(0)
	for v := range t.viewers {
		if !v.readOnly {
			writers++
		}
	}
	for v := range t.viewers {
		v.tell(wire.FrameViewers, wire.Pair(uint16(len(t.viewers)), writers))
	}
}

// check drops viewers that stalled, and says since when the terminal is unused and
// whether anybody looks on.
func (t *terminal) check(now time.Time) (idle time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for v := range t.viewers {
		if v.last == nil && v.unacked > 0 && now.Sub(v.owing) > stall {
			v.end(wire.FrameDropped, []byte("nothing was acknowledged for some time"), false)
		}
	}
	t.room.Broadcast()
	return now.Sub(t.used)
}

// end hangs up and, after a moment, kills what the terminal runs. It returns at once.
func (t *terminal) end(reason string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over || t.reason != "" {
		return
	}
	t.reason = reason
	t.shell.hangup()
}

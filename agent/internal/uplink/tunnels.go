package uplink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/adit-tunnel/adit/agent/internal/status"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

const (
	// expiryMargin is how long after its expiry a tunnel is still believed open: the
	// relay closes it, and says so, unless it cannot.
	expiryMargin = 30 * time.Second
	// tombstone is how long a closed tunnel is remembered as closed.
	tombstone = 10 * time.Minute
	// maxTunnels bounds the table against a relay gone mad.
	maxTunnels = 10000
)

// Tunnels is the agent's knowledge of which tunnels are open. It outlives links
// and, in its file, the process: while no relay can be asked, what was open last
// counts as open until it expires.
type Tunnels struct {
	path string
	log  *slog.Logger

	mu      sync.Mutex
	open    map[ident.SessionID]tunnel
	shut    map[ident.SessionID]time.Time // closed lately, and when
	skew    time.Duration                 // relay's clock minus ours
	known   chan struct{}                 // closed when a relay has told all
	changed map[chan struct{}]struct{}
	dirty   bool          // the file is behind
	wake    chan struct{} // there is something to write, or the next expiry has changed
}

type tunnel struct {
	Notice wire.TunnelNotice `json:"notice"`
	// Deadline is when the tunnel ends for sure, by this machine's clock.
	Deadline time.Time `json:"deadline"`
}

// NewTunnels returns a table that is kept in the file at path.
func NewTunnels(path string, log *slog.Logger) *Tunnels {
	return &Tunnels{
		path: path, log: log,
		open: map[ident.SessionID]tunnel{}, shut: map[ident.SessionID]time.Time{},
		known: make(chan struct{}), changed: map[chan struct{}]struct{}{}, wake: make(chan struct{}, 1),
	}
}

// Load reads what an earlier run knew.
func (t *Tunnels) Load() error {
	var list []tunnel
	if err := status.ReadJSON(t.path, &list); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("read tunnels: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, x := range list {
		if time.Now().Before(x.Deadline) {
			t.open[x.Notice.Session] = x
		}
	}
	return nil
}

// List returns the open tunnels, the oldest first.
func (t *Tunnels) List() []wire.TunnelNotice {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := make([]wire.TunnelNotice, 0, len(t.open))
	for _, x := range t.open {
		list = append(list, x.Notice)
	}
	slices.SortFunc(list, func(a, b wire.TunnelNotice) int {
		if c := a.OpenedAt.Compare(b.OpenedAt); c != 0 {
			return c
		}
		if a.Session < b.Session {
			return -1
		}
		return 1
	})
	return list
}

// IDs returns the ids of the open tunnels.
func (t *Tunnels) IDs() []ident.SessionID {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Sorted(maps.Keys(t.open))
}

// Count is the number of open tunnels.
func (t *Tunnels) Count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.open)
}

// Closed says whether a tunnel was closed lately.
func (t *Tunnels) Closed(id ident.SessionID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.shut[id]
	return ok
}

// Known is closed when a relay has told which tunnels are open.
func (t *Tunnels) Known() <-chan struct{} { return t.known }

// Subscribe returns a channel that gets a value after changes. cancel ends it.
func (t *Tunnels) Subscribe() (changed <-chan struct{}, cancel func()) {
	ch := make(chan struct{}, 1)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.changed[ch] = struct{}{}
	return ch, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.changed, ch)
	}
}

// welcome takes the relay's list. alone says that no other link is up, whose
// notices might be newer than this list: only then is what it lacks gone.
func (t *Tunnels) welcome(w *wire.Welcome, alone bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !w.Time.IsZero() {
		t.skew = time.Until(w.Time)
	}
	dirty := false
	listed := map[ident.SessionID]bool{}
	for _, n := range w.Tunnels {
		listed[n.Session] = true
		dirty = t.put(n) || dirty
	}
	for id := range t.open {
		if alone && !listed[id] {
			delete(t.open, id)
			dirty = true
		}
	}
	select {
	case <-t.known:
	default:
		close(t.known)
		dirty = true // subscribers wait for this, too
	}
	if dirty {
		t.note()
	}
}

func (t *Tunnels) opened(n wire.TunnelNotice) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.put(n) {
		t.note()
	}
}

// put enters a tunnel and says whether that changed anything; t.mu is held.
func (t *Tunnels) put(n wire.TunnelNotice) bool {
	if _, gone := t.shut[n.Session]; gone {
		return false // ids are never used again: this notice is late
	}
	if _, err := ident.ParseSessionID(string(n.Session)); err != nil {
		return false
	}
	old, have := t.open[n.Session]
	if !have && len(t.open) >= maxTunnels {
		return false
	}
	deadline := n.ExpiresAt.Add(expiryMargin - t.skew)
	if n.ExpiresAt.IsZero() {
		deadline = time.Now().Add(24 * time.Hour) // the longest that is usual
	}
	next := tunnel{Notice: n, Deadline: deadline}
	if have && old.Notice == next.Notice && old.Deadline.Sub(deadline).Abs() < time.Second {
		return false
	}
	t.open[n.Session] = next
	return true
}

func (t *Tunnels) closed(id ident.SessionID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(t.shut, func(_ ident.SessionID, at time.Time) bool { return now.Sub(at) > tombstone })
	if len(t.shut) < maxTunnels {
		t.shut[id] = now
	}
	if _, ok := t.open[id]; ok {
		delete(t.open, id)
		t.note()
	}
}

// note wakes the subscribers, and run to write the file; t.mu is held. Whoever asks
// about tunnels never waits for a disk.
func (t *Tunnels) note() {
	t.dirty = true
	for ch := range t.changed {
		offer(ch)
	}
	offer(t.wake)
}

// run writes the file and drops tunnels that expired while no relay said so, until
// ctx ends.
func (t *Tunnels) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			t.save()
			return
		case <-t.wake:
		case <-timer.C:
		}
		timer.Reset(t.expire(time.Now()))
		t.save()
	}
}

// save writes the table if it changed. What cannot be written still holds in memory.
func (t *Tunnels) save() {
	t.mu.Lock()
	list := slices.Collect(maps.Values(t.open))
	dirty := t.dirty
	t.dirty = false
	t.mu.Unlock()
	if !dirty {
		return
	}
	slices.SortFunc(list, func(a, b tunnel) int { return a.Deadline.Compare(b.Deadline) })
	if list == nil {
		list = []tunnel{}
	}
	if err := status.WriteJSON(t.path, list); err != nil {
		t.log.Error("save tunnels", "error", err)
	}
}

// expire drops what is over and returns the time until the next one.
func (t *Tunnels) expire(now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	// Wall clocks jump: look again before long.
	next, dirty := time.Minute, false
	for id, x := range t.open {
		// A deadline read from the file has no monotonic part, one computed here loses
		// it, so that a machine that slept through it notices.
		left := x.Deadline.Round(0).Sub(now.Round(0))
		if left <= 0 {
			delete(t.open, id)
			dirty = true
			t.log.Info("tunnel expired while no relay said so", "session_id", id)
			continue
		}
		next = min(next, left)
	}
	if dirty {
		t.note()
	}
	return next
}

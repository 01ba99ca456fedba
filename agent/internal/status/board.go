// Package status owns what the agent knows of its machine: the facts it observes
// (GPUs, ComfyUI, health), and the state that the machine's owner declared
// (syncing, paused), which survives a restart. It is asked often and answers from
// memory; it never talks to a relay.
package status

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"sync"

	"github.com/adit-tunnel/adit/shared/wire"
)

// ErrInvalid is wrapped by errors about a state that cannot be declared.
var ErrInvalid = errors.New("invalid state")

// Board holds the present facts and state. Whoever must pass them on subscribes.
type Board struct {
	path   string // of the state file
	bootID string

	saving sync.Mutex // held around a change and its writing, so that the file gets them in order

	mu    sync.Mutex // never held while writing: State and Paused are asked for every stream
	facts wire.Facts
	state wire.State
	subs  map[chan struct{}]struct{}
}

// saved is the state file. A phase like "syncing" was declared by a program that
// a reboot ended: it holds for one boot. The pause is the owner's and holds on.
type saved struct {
	BootID string     `json:"boot_id"`
	State  wire.State `json:"state"`
}

// NewBoard returns a Board that keeps its state in the file at path.
func NewBoard(path string) *Board {
	return &Board{path: path, bootID: bootID(), subs: map[chan struct{}]struct{}{}}
}

// Load reads the state that an earlier run saved. A file that cannot be read
// counts as paused: the kill switch must not be lost with it.
func (b *Board) Load() error {
	var s saved
	err := ReadJSON(b.path, &s)
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		b.state = wire.State{Paused: true}
		return fmt.Errorf("read state, the agent counts as paused until `adit-agent resume`: %w", err)
	case s.BootID != b.bootID:
		b.state = wire.State{Paused: s.State.Paused}
	default:
		b.state = s.State
	}
	return nil
}

// State returns what was declared.
func (b *Board) State() wire.State {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state
}

// Paused says whether the kill switch is on.
func (b *Board) Paused() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state.Paused
}

// SetPaused throws the kill switch. It is in force even when its error says that
// it could not be saved.
func (b *Board) SetPaused(paused bool) error {
	return b.change(func(s *wire.State) { s.Paused = paused })
}

// idlePhases are the names under which "nothing is going on" may be declared.
var idlePhases = []string{"", "idle", "ready", "none"}

const (
	maxPhase  = 64
	maxDetail = 512
)

// Declare sets the phase that the machine is in, such as "syncing"; "idle" or an
// empty phase ends it. The percentage may be nil.
func (b *Board) Declare(phase, detail string, percent *float64) error {
	switch {
	case len(phase) > maxPhase:
		return fmt.Errorf("%w: a phase has at most %d bytes", ErrInvalid, maxPhase)
	case len(detail) > maxDetail:
		return fmt.Errorf("%w: a detail has at most %d bytes", ErrInvalid, maxDetail)
	case percent != nil && !(*percent >= 0 && *percent <= 100): // so that NaN is refused, too
		return fmt.Errorf("%w: percent is 0 to 100", ErrInvalid)
	}
	phase, detail = strings.TrimSpace(wire.Text(phase)), wire.Text(detail) // as the relay would cut it
	for _, idle := range idlePhases {
		if strings.EqualFold(phase, idle) {
			phase, detail, percent = "", "", nil
		}
	}
	return b.change(func(s *wire.State) { s.SyncPhase, s.SyncDetail, s.SyncPercent = phase, detail, percent })
}

func (b *Board) change(f func(*wire.State)) error {
	b.saving.Lock()
	defer b.saving.Unlock()
	b.mu.Lock()
	before := b.state
	f(&b.state)
	after := b.state
	changed := !reflect.DeepEqual(before, after)
	if changed {
		b.notify()
	}
	b.mu.Unlock()
	if !changed {
		return nil
	}
	if err := WriteJSON(b.path, saved{BootID: b.bootID, State: after}); err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	return nil
}

// Facts returns what was observed last.
func (b *Board) Facts() wire.Facts {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.facts
}

// Update changes the facts. Subscribers hear of it when the change is more than
// the coming and going of free memory.
func (b *Board) Update(f func(*wire.Facts)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	before := steady(b.facts)
	f(&b.facts)
	if !reflect.DeepEqual(before, steady(b.facts)) {
		b.notify()
	}
}

// steady leaves out what moves all the time.
func steady(f wire.Facts) wire.Facts {
	gpus := make([]wire.GPU, len(f.GPUs))
	for i, g := range f.GPUs {
		g.VRAMFree = 0
		gpus[i] = g
	}
	f.GPUs = gpus
	f.Link = nil
	return f
}

// Subscribe returns a channel that gets a value after changes of facts or state;
// several changes may give one value. cancel ends it.
func (b *Board) Subscribe() (changed <-chan struct{}, cancel func()) {
	ch := make(chan struct{}, 1)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.subs[ch] = struct{}{}
	return ch, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.subs, ch)
	}
}

// notify wakes the subscribers; b.mu is held.
func (b *Board) notify() {
	for ch := range b.subs {
		select {
		case ch <- struct{}{}:
		default: // it has yet to read of an earlier change
		}
	}
}

func bootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "" // elsewhere than on Linux every start is the same boot
	}
	return strings.TrimSpace(string(id))
}

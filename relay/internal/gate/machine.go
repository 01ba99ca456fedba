package gate

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// ErrSuperseded says that a newer process with the agent's name lives.
var ErrSuperseded = errors.New("a newer process with this agent's name is connected")

// errUnchanged says that a step found everything as it should be.
var errUnchanged = errors.New("unchanged")

// closedMemory is how many closed tunnels an agent's record remembers, so that
// closing again what is closed is no error. It is not below the largest number of
// tunnels per agent.
const closedMemory = 64

// endedFor is for how long an agent's record, and each relay, remember why a tunnel
// closed: those whom the close cut off come back within seconds.
const endedFor = 10 * time.Minute

// Step is one change of an agent's record: the record as it is read, the relay's
// time, and how far the pool's clocks may be apart. Its methods are the gate's
// transitions. Each either changes Record, returns a *api.Problem and leaves what
// it did to be thrown away, or returns errUnchanged. A step is used once.
//
// An entry's holder must stop at its expiry. Everybody else counts it as gone only
// when the expiry and the skew margin have passed, so two clocks less than the
// margin apart never have it both ways.
type Step struct {
	Record *store.AgentRecord
	Now    time.Time
	Skew   time.Duration
	Relay  ident.RelayID            // this one; empty: the only one there is
	Gone   func(ident.RelayID) bool // a relay is dead; nil: none is

	Events  []Event
	Effects store.Effects
}

// Event is one thing that a step did.
type Event struct {
	Kind    audit.Event
	Session ident.SessionID
	Task    ident.TaskID
	Fencing uint64
	Detail  string
}

func (s *Step) event(e Event) { s.Events = append(s.Events, e) }

// past says that the holder of an entry must have stopped.
func (s *Step) past(expires time.Time) bool { return !s.Now.Before(expires) }

// gone says that an entry counts no more for anybody.
func (s *Step) gone(expires time.Time) bool { return !s.Now.Before(expires.Add(s.Skew)) }

// Running returns how many leases count.
func (s *Step) Running() int {
	n := 0
	for _, l := range s.Record.Leases {
		if !s.gone(l.Expires) {
			n++
		}
	}
	return n
}

// Expire drops what counts no more. Every other step begins with it. On its own it
// returns errUnchanged when there was nothing to drop.
func (s *Step) Expire() error {
	s.forgetEnded() // with the next change: on its own it is worth no write
	changed := false
	for _, id := range sortedKeys(s.Record.Tunnels) {
		t := s.Record.Tunnels[id]
		if !s.gone(t.Expires) {
			continue
		}
		reason := t.Reason
		switch {
		case reason != "":
		case t.State == store.TunnelWaiting:
			reason = store.ReasonWait
		default:
			reason = store.ReasonExpired
		}
		s.remove(id, audit.TunnelExpired, reason)
		changed = true
	}
	for _, id := range sortedKeys(s.Record.Leases) {
		if l := s.Record.Leases[id]; s.gone(l.Expires) {
			delete(s.Record.Leases, id)
			changed = true
			s.event(Event{Kind: audit.TaskExpired, Task: id, Fencing: l.Fencing})
		}
	}
	if !changed {
		return errUnchanged
	}
	return nil
}

// remove takes a tunnel out of the record and its own record out of the store.
func (s *Step) remove(id ident.SessionID, kind audit.Event, reason store.Reason) {
	if s.Record.Tunnels[id].State != store.TunnelWaiting { // a waiting one has no record yet
		s.Effects.DeleteTunnels = append(s.Effects.DeleteTunnels, id)
	}
	delete(s.Record.Tunnels, id)
	past := s.Record.Closed // may be shared with other copies of the record
	s.Record.Closed = append(slices.Clone(past[max(0, len(past)+1-closedMemory):]), id)
	ended := make(map[ident.SessionID]store.TunnelEnd, len(s.Record.Ended)+1)
	for _, id := range s.Record.Closed {
		if e, ok := s.Record.Ended[id]; ok {
			ended[id] = e
		}
	}
	ended[id] = store.TunnelEnd{At: s.Now, Reason: reason}
	s.Record.Ended = ended
	s.event(Event{Kind: kind, Session: id, Detail: string(reason)})
}

// forgetEnded drops why tunnels ended that nobody comes back to any more.
func (s *Step) forgetEnded() {
	old := func(_ ident.SessionID, e store.TunnelEnd) bool { return s.Now.Sub(e.At) >= endedFor }
	ended := maps.Clone(s.Record.Ended) // may be shared with other copies of the record
	maps.DeleteFunc(ended, old)
	if len(ended) == 0 {
		ended = nil
	}
	s.Record.Ended = ended
}

// Opening says what is to be opened, and how.
type Opening struct {
	Tunnel     store.TunnelRecord // complete
	WhenBusy   api.WhenBusy
	WaitUntil  time.Time // of WhenBusy wait
	MaxTunnels int       // on one agent
	Once       *store.Once
}

// Open opens a tunnel, or lets it wait for the running tasks: then waiting is true
// and new tasks are kept out from now on. Opening again what is open is success.
func (s *Step) Open(o Opening) (running int, waiting bool, err error) {
	_ = s.Expire()
	id := o.Tunnel.Session
	running = s.Running()
	switch t, ok := s.Record.Tunnels[id]; {
	case ok && t.State == store.TunnelOpen:
		return running, false, errUnchanged
	case ok && t.State == store.TunnelWaiting:
		return running, true, errUnchanged
	case ok, slices.Contains(s.Record.Closed, id):
		return running, false, sessionClosed()
	case s.Record.Declared.Paused:
		return running, false, refuse(api.CodeAgentPaused, 30*time.Second, "the machine's owner paused the agent; 'adit-agent resume' on the machine ends that")
	case o.MaxTunnels > 0 && len(s.Record.Tunnels) >= o.MaxTunnels:
		return running, false, api.Problemf(api.CodeAgentTunnelLimit, "the agent has %d tunnels, as many as one agent may have; close one", len(s.Record.Tunnels)).WithRetry(30 * time.Second)
	case running > 0 && o.WhenBusy == api.BusyReject:
		return running, false, refuse(api.CodeAgentBusy, 5*time.Second, "tasks run on the agent and when_busy is reject")
	case running > 0 && o.WhenBusy == api.BusyWait:
		s.put(id, store.TunnelState{State: store.TunnelWaiting, Expires: o.WaitUntil})
		s.event(Event{Kind: audit.TunnelWaiting, Session: id})
		return running, true, nil
	}
	s.open(o)
	return running, false, nil
}

// Promote opens a tunnel that waits, once no lease counts.
func (s *Step) Promote(o Opening) (running int, waiting bool, err error) {
	_ = s.Expire()
	running = s.Running()
	t, ok := s.Record.Tunnels[o.Tunnel.Session]
	switch {
	case !ok && !s.Now.Before(o.WaitUntil):
		return running, false, waitedTooLong()
	case !ok || t.State == store.TunnelClosing:
		return running, false, sessionClosed()
	case t.State == store.TunnelOpen:
		return running, false, errUnchanged
	case s.past(t.Expires):
		return running, true, waitedTooLong()
	case running > 0:
		return running, true, errUnchanged
	}
	s.open(o)
	return 0, false, nil
}

func (s *Step) open(o Opening) {
	s.put(o.Tunnel.Session, store.TunnelState{State: store.TunnelOpen, Expires: o.Tunnel.ExpiresAt})
	s.Effects.PutTunnels = append(s.Effects.PutTunnels, o.Tunnel)
	s.Effects.Once = o.Once
	e := Event{Kind: audit.TunnelOpened, Session: o.Tunnel.Session}
	if o.Tunnel.Access != nil {
		e.Detail = o.Tunnel.Access.String()
	}
	s.event(e)
}

func (s *Step) put(id ident.SessionID, t store.TunnelState) {
	if s.Record.Tunnels == nil {
		s.Record.Tunnels = make(map[ident.SessionID]store.TunnelState)
	}
	s.Record.Tunnels[id] = t
}

// Extend moves a tunnel's end. It never shortens, so that the record never ends
// before what its holder was told. Whoever extends a tunnel wants it: that counts
// as use, so one call also keeps a tunnel that is about to close for idleness.
func (s *Step) Extend(id ident.SessionID, expires time.Time) (time.Time, error) {
	_ = s.Expire()
	t, ok := s.Record.Tunnels[id]
	if !ok || t.State != store.TunnelOpen || s.past(t.Expires) {
		return time.Time{}, api.NotFound(api.CodeTunnelNotFound)
	}
	if expires.After(t.Expires) {
		t.Expires = expires
		s.put(id, t)
		s.event(Event{Kind: audit.TunnelExtended, Session: id})
	}
	end, now := t.Expires, s.Now
	s.Effects.EditTunnels = map[ident.SessionID]func(*store.TunnelRecord){
		id: func(t *store.TunnelRecord) {
			t.ExpiresAt = end
			if now.After(t.LastUsed) {
				t.LastUsed = now
			}
		},
	}
	return end, nil
}

// BeginClose is the first phase of closing: the tunnels named, or all, still keep
// tasks out but carry no more bytes. It returns those that now close or already
// did. A tunnel that waits has carried nothing and is gone at once.
func (s *Step) BeginClose(ids []ident.SessionID, all bool, reason store.Reason) ([]ident.SessionID, error) {
	dropped := s.Expire() == nil
	if all {
		ids = sortedKeys(s.Record.Tunnels)
	}
	out := make([]ident.SessionID, 0, len(ids))
	changed := dropped
	for _, id := range ids {
		t, ok := s.Record.Tunnels[id]
		switch {
		case !ok && slices.Contains(s.Record.Closed, id):
			out = append(out, id)
		case !ok:
			return nil, api.NotFound(api.CodeTunnelNotFound)
		case t.State == store.TunnelWaiting:
			s.remove(id, audit.TunnelClosed, reason)
			out, changed = append(out, id), true
		case t.State == store.TunnelClosing:
			out = append(out, id)
		default:
			t.State, t.ClosingSince, t.Reason = store.TunnelClosing, s.Now, reason
			s.put(id, t)
			s.event(Event{Kind: audit.TunnelClosing, Session: id, Detail: string(reason)})
			out, changed = append(out, id), true
		}
	}
	if !changed {
		return out, errUnchanged
	}
	return out, nil
}

// FinishClose is the second phase, when this relay carries nothing of the tunnels
// any more. The last of the relays that might have carried them removes them. Of those named, what does not close (any more) is passed over.
func (s *Step) FinishClose(ids []ident.SessionID) error {
	changed := s.Expire() == nil
	for _, id := range ids {
		t, ok := s.Record.Tunnels[id]
		if !ok || t.State != store.TunnelClosing {
			continue
		}
		everywhere, noted := s.cut(&t)
		switch {
		case everywhere:
			s.remove(id, audit.TunnelClosed, t.Reason)
			changed = true
		case noted:
			s.put(id, t)
			changed = true
		}
	}
	if !changed {
		return errUnchanged
	}
	return nil
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	return slices.Sorted(maps.Keys(m))
}

package gate

import (
	"cmp"
	"errors"
	"maps"
	"math"
	"net/http"
	"slices"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

// Reasons for which a tunnel closes, as audit, notices and logs name them.
const (
	ReasonAsked   = "closed by a user"
	ReasonExpired = "expired"
	ReasonIdle    = "idle"
	ReasonPort    = "the agent does not allow the port"
	ReasonWait    = "the running tasks did not end in time"
	ReasonLeft    = "the caller left while waiting"
)

// ErrSuperseded says that a newer process with the agent's name lives.
var ErrSuperseded = errors.New("a newer process with this agent's name is connected")

// errUnchanged says that a step found everything as it should be.
var errUnchanged = errors.New("unchanged")

// closedMemory is how many closed tunnels an agent's record remembers, so that
// closing again what is closed is no error. It is not below the largest number of
// tunnels per agent.
const closedMemory = 64

// maxEpochLead bounds how far an agent's own count may be ahead of the record's: a
// store restored from a backup is behind by some, never by so many.
const maxEpochLead = 1 << 32

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
			reason = ReasonWait
		default:
			reason = ReasonExpired
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
func (s *Step) remove(id ident.SessionID, kind audit.Event, reason string) {
	if s.Record.Tunnels[id].State != store.TunnelWaiting { // a waiting one has no record yet
		s.Effects.DeleteTunnels = append(s.Effects.DeleteTunnels, id)
	}
	delete(s.Record.Tunnels, id)
	past := s.Record.Closed // may be shared with other copies of the record
	s.Record.Closed = append(slices.Clone(past[max(0, len(past)+1-closedMemory):]), id)
	s.event(Event{Kind: kind, Session: id, Detail: reason})
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
		return running, false, refuse("agent_paused", 30*time.Second, "the machine's owner paused the agent; 'adit-agent resume' on the machine ends that")
	case o.MaxTunnels > 0 && len(s.Record.Tunnels) >= o.MaxTunnels:
		return running, false, api.Problemf(http.StatusTooManyRequests, "agent_tunnel_limit", api.HopRelay,
			"the agent has %d tunnels, as many as one agent may have; close one", len(s.Record.Tunnels)).WithRetry(30 * time.Second)
	case running > 0 && o.WhenBusy == api.BusyReject:
		return running, false, refuse("agent_busy", 5*time.Second, "tasks run on the agent and when_busy is reject")
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
	s.event(Event{Kind: audit.TunnelOpened, Session: o.Tunnel.Session})
}

func (s *Step) put(id ident.SessionID, t store.TunnelState) {
	if s.Record.Tunnels == nil {
		s.Record.Tunnels = make(map[ident.SessionID]store.TunnelState)
	}
	s.Record.Tunnels[id] = t
}

// Extend moves a tunnel's end. It never shortens, so that the record never ends
// before what its holder was told.
func (s *Step) Extend(id ident.SessionID, expires time.Time) (time.Time, error) {
	_ = s.Expire()
	t, ok := s.Record.Tunnels[id]
	if !ok || t.State != store.TunnelOpen || s.past(t.Expires) {
		return time.Time{}, notFound("tunnel")
	}
	if !expires.After(t.Expires) {
		return t.Expires, errUnchanged
	}
	t.Expires = expires
	s.put(id, t)
	s.Effects.EditTunnels = map[ident.SessionID]func(*store.TunnelRecord){
		id: func(t *store.TunnelRecord) { t.ExpiresAt = expires },
	}
	s.event(Event{Kind: audit.TunnelExtended, Session: id})
	return expires, nil
}

// BeginClose is the first phase of closing: the tunnels named, or all, still keep
// tasks out but carry no more bytes. It returns those that now close or already
// did. A tunnel that waits has carried nothing and is gone at once.
func (s *Step) BeginClose(ids []ident.SessionID, all bool, reason string) ([]ident.SessionID, error) {
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
			return nil, notFound("tunnel")
		case t.State == store.TunnelWaiting:
			s.remove(id, audit.TunnelClosed, reason)
			out, changed = append(out, id), true
		case t.State == store.TunnelClosing:
			out = append(out, id)
		default:
			t.State, t.ClosingSince, t.Reason = store.TunnelClosing, s.Now, reason
			s.put(id, t)
			s.event(Event{Kind: audit.TunnelClosing, Session: id, Detail: reason})
			out, changed = append(out, id), true
		}
	}
	if !changed {
		return out, errUnchanged
	}
	return out, nil
}

// FinishClose is the second phase, when nothing carries the tunnels' bytes any
// more. Of those named, what does not close (any more) is passed over.
func (s *Step) FinishClose(ids []ident.SessionID) error {
	changed := s.Expire() == nil
	for _, id := range ids {
		if t, ok := s.Record.Tunnels[id]; ok && t.State == store.TunnelClosing {
			s.remove(id, audit.TunnelClosed, t.Reason)
			changed = true
		}
	}
	if !changed {
		return errUnchanged
	}
	return nil
}

// Admission asks for a lease.
type Admission struct {
	Task      ident.TaskID
	TTL       time.Duration
	Owner     string
	Detail    string
	TokenHash string
}

// Admit grants a lease, or says why not. That the agent is offline is for the
// caller to know. Asking again with the same token is success.
func (s *Step) Admit(a Admission) (store.LeaseState, error) {
	_ = s.Expire()
	if l, ok := s.Record.Leases[a.Task]; ok {
		if l.TokenHash == a.TokenHash {
			return l, errUnchanged
		}
		return l, refuse("task_exists", retryUntil(l.Expires, s.Now), "a lease for a task of this name is held; choose another task_id or leave it out")
	}
	switch {
	case s.Record.Unhealthy != "":
		return store.LeaseState{}, refuse("agent_unhealthy", 15*time.Second, "a health check of the agent fails: "+s.Record.Unhealthy)
	case len(s.Record.Tunnels) > 0: // Expire left those that count
		return store.LeaseState{}, refuse("agent_in_tunnel", 15*time.Second, "a tunnel is open on the agent; tasks are admitted when the last one is closed")
	case s.Record.Declared.SyncPhase != "":
		return store.LeaseState{}, refuse("agent_syncing", 15*time.Second, "the machine is syncing: "+s.Record.Declared.SyncPhase)
	case s.Record.Declared.Paused:
		return store.LeaseState{}, refuse("agent_paused", 30*time.Second, "the machine's owner paused the agent")
	case len(s.Record.Leases) >= max(1, s.Record.Capacity):
		return store.LeaseState{}, refuse("agent_busy", s.firstEnd(), "the agent runs as many tasks as it takes")
	}
	s.Record.Fencing++
	l := store.LeaseState{
		Expires: s.Now.Add(a.TTL), Owner: a.Owner, TokenHash: a.TokenHash,
		Fencing: s.Record.Fencing, Detail: a.Detail, Admitted: s.Now,
	}
	if s.Record.Leases == nil {
		s.Record.Leases = make(map[ident.TaskID]store.LeaseState)
	}
	s.Record.Leases[a.Task] = l
	s.event(Event{Kind: audit.TaskAdmitted, Task: a.Task, Fencing: l.Fencing})
	return l, nil
}

// firstEnd is when, at the latest, a lease may have made room: no longer than it
// makes sense to wait for somebody who polls.
func (s *Step) firstEnd() time.Duration {
	d := 15 * time.Second
	for _, l := range s.Record.Leases {
		d = min(d, retryUntil(l.Expires.Add(s.Skew), s.Now))
	}
	return d
}

func retryUntil(at, now time.Time) time.Duration {
	return min(max(time.Second, at.Sub(now)), 15*time.Second)
}

// Renew moves a lease's end to ttl from now.
func (s *Step) Renew(task ident.TaskID, tokenHash string, ttl time.Duration) (store.LeaseState, error) {
	l, ok := s.Record.Leases[task]
	switch {
	case !ok || s.past(l.Expires):
		return l, leaseExpired()
	case l.TokenHash != tokenHash:
		return l, wrongToken()
	}
	_ = s.Expire()
	l.Expires = s.Now.Add(ttl)
	s.Record.Leases[task] = l
	s.event(Event{Kind: audit.TaskRenewed, Task: task, Fencing: l.Fencing})
	return l, nil
}

// Release ends a lease. The outcome counts as completed or not.
func (s *Step) Release(task ident.TaskID, tokenHash string, completed bool) (store.LeaseState, error) {
	l, ok := s.Record.Leases[task]
	switch {
	case !ok:
		return l, leaseExpired()
	case l.TokenHash != tokenHash:
		return l, wrongToken()
	}
	delete(s.Record.Leases, task)
	_ = s.Expire()
	detail := "failed"
	if completed {
		s.Record.Completed++
		detail = "completed"
	}
	s.event(Event{Kind: audit.TaskReleased, Task: task, Fencing: l.Fencing, Detail: detail})
	return l, nil
}

// Claim is what an agent's process says when it claims the next generation.
type Claim struct {
	Relay    ident.RelayID
	Instance string // the process
	Seen     uint64 // the highest generation it knows; 0: a fresh process
	Live     bool   // another session of the agent is alive now
	Capacity int    // task leases at once
}

// Connect gives an agent's process the next generation. A fresh process takes over
// from whoever is there. One that was superseded does not, while the newer lives:
// otherwise two machines of one name would take turns for ever.
func (s *Step) Connect(c Claim) (uint64, error) {
	_ = s.Expire()
	r := s.Record
	if r.Instance != c.Instance && c.Seen > 0 && c.Live && r.Instance != "" {
		return r.Epoch, api.NewProblem(http.StatusConflict, "superseded", api.HopRelay, ErrSuperseded.Error()).WithCause(ErrSuperseded)
	}
	if c.Seen > r.Epoch && c.Seen-r.Epoch > maxEpochLead || max(c.Seen, r.Epoch) == math.MaxUint64 {
		return r.Epoch, api.NewProblem(http.StatusBadRequest, "generation_invalid", api.HopRelay, "the agent names a generation that no relay can have given it")
	}
	r.Epoch = max(r.Epoch, c.Seen) + 1
	r.Relay, r.Instance, r.Capacity = c.Relay, c.Instance, max(1, c.Capacity)
	return r.Epoch, nil
}

// Declare records what the machine says of itself, for the generation it has.
func (s *Step) Declare(epoch uint64, state wire.State, unhealthy string) error {
	switch {
	case s.Record.Epoch != epoch:
		return api.NewProblem(http.StatusConflict, "stale_epoch", api.HopRelay, "a newer session of the agent exists").WithCause(ErrSuperseded)
	case sameState(s.Record.Declared, state) && s.Record.Unhealthy == unhealthy:
		return errUnchanged
	}
	_ = s.Expire()
	s.Record.Declared, s.Record.Unhealthy = state, unhealthy
	return nil
}

func sameState(a, b wire.State) bool {
	pa, pb := a.SyncPercent, b.SyncPercent
	a.SyncPercent, b.SyncPercent = nil, nil
	return a == b && (pa == pb || pa != nil && pb != nil && *pa == *pb)
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	return slices.Sorted(maps.Keys(m))
}

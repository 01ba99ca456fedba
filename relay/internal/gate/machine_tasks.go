package gate

import (
	"math"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

// maxEpochLead bounds how far an agent's own count may be ahead of the record's: a
// store restored from a backup is behind by some, never by so many.
const maxEpochLead = 1 << 32

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
		return l, refuse(api.CodeTaskExists, retryUntil(l.Expires, s.Now), "a lease for a task of this name is held; choose another task_id or leave it out")
	}
	switch {
	case s.Record.Unhealthy != "":
		return store.LeaseState{}, refuse(api.CodeAgentUnhealthy, 15*time.Second, "a health check of the agent fails: "+s.Record.Unhealthy)
	case len(s.Record.Tunnels) > 0: // Expire left those that count
		return store.LeaseState{}, refuse(api.CodeAgentInTunnel, 15*time.Second, "a tunnel is open on the agent; tasks are admitted when the last one is closed")
	case s.Record.Declared.SyncPhase != "":
		return store.LeaseState{}, refuse(api.CodeAgentSyncing, 15*time.Second, "the machine is syncing: "+s.Record.Declared.SyncPhase)
	case s.Record.Declared.Paused:
		return store.LeaseState{}, refuse(api.CodeAgentPaused, 30*time.Second, "the machine's owner paused the agent")
	case len(s.Record.Leases) >= max(1, s.Record.Capacity):
		return store.LeaseState{}, refuse(api.CodeAgentBusy, s.firstEnd(), "the agent runs as many tasks as it takes")
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
	outcome := api.TaskFailed
	if completed {
		s.Record.Completed++
		outcome = api.TaskCompleted
	}
	s.event(Event{Kind: audit.TaskReleased, Task: task, Fencing: l.Fencing, Detail: string(outcome)})
	return l, nil
}

// Claim is what an agent's process says when it claims the next generation.
type Claim struct {
	Relay    ident.RelayID
	Instance string // the process
	Seen     uint64 // the highest generation it knows; 0: a fresh process
	Live     bool   // another session of the agent is alive now
	Alone    bool   // the process has no other link, whatever relays believe
	Capacity int    // task leases at once
}

// Connect gives an agent's process the next generation. A fresh process takes over
// from whoever is there. One that was superseded does not, while the newer lives:
// otherwise two machines of one name would take turns for ever.
func (s *Step) Connect(c Claim) (uint64, error) {
	_ = s.Expire()
	r := s.Record
	if r.Instance != c.Instance && c.Seen > 0 && c.Live && r.Instance != "" {
		return r.Epoch, superseded()
	}
	if c.Seen > r.Epoch && c.Seen-r.Epoch > maxEpochLead || max(c.Seen, r.Epoch) == math.MaxUint64 {
		return r.Epoch, api.NewProblem(api.CodeOutOfRange, "the agent names a generation that no relay can have given it")
	}
	if c.Alone && r.Instance == c.Instance {
		r.Relay, r.Also = "", nil // no relay but this can reach it
	}
	s.move(c.Relay)
	r.Epoch = max(r.Epoch, c.Seen) + 1
	r.Gone = time.Time{}
	r.Relay, r.Instance, r.Capacity = c.Relay, c.Instance, max(1, c.Capacity)
	return r.Epoch, nil
}

// Declare records what the machine says of itself, for the generation it has.
func (s *Step) Declare(epoch uint64, state wire.State, unhealthy string) error {
	switch {
	case s.Record.Epoch != epoch:
		return superseded()
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

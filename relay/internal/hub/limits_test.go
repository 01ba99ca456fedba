package hub

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/gate"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/wire"
)

// ledger is a store and a gate that count.
type ledger struct {
	Store
	mu        sync.Mutex
	full      bool
	presences []store.Presence
	declared  []wire.State
}

func (l *ledger) PutPresence(_ context.Context, p store.Presence) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.presences = append(l.presences, p)
	return nil
}

func (l *ledger) Room() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.full
}

func (l *ledger) Connect(context.Context, ident.AgentKey, gate.Claim) (uint64, store.AgentRecord, error) {
	return 1, store.AgentRecord{}, nil
}

func (l *ledger) Declare(_ context.Context, _ ident.AgentKey, _ uint64, state wire.State, _ string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.declared = append(l.declared, state)
	return nil
}

func (l *ledger) counts() (presences, declared int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.presences), len(l.declared)
}

func newSessions(l *ledger) (*Hub, func(agent string) *session) {
	h := &Hub{
		cfg: Config{Store: l, Gate: l, AgentsPerTeam: 5000}, metrics: newMetrics(prometheus.NewRegistry(), link.NewBudget(1)),
		refreshes: make(chan struct{}, maxRefreshes), overdue: make(chan struct{}, maxOverdue),
		sessions: map[ident.AgentKey]*session{}, stop: make(chan struct{}),
	}
	return h, func(agent string) *session {
		s := &session{
			hub: h, key: ident.AgentKey{Team: "team", Agent: ident.AgentID(agent)}, epoch: 1,
			principal: creds.Principal{Kind: creds.KindAgent, Team: "team", Credential: "cred"}, news: rate.NewLimiter(sessionNewsRate, sessionNews),
		}
		s.presence = store.Presence{Team: "team", Agent: s.key.Agent, Epoch: 1}
		s.first.Store(true)
		h.sessions[s.key] = s
		return s
	}
}

// An agent that says something new all the time is written now and then, and what it
// said last is not lost.
func TestChangesThatComeTooFastWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &ledger{}
		h, session := newSessions(l)
		s := session("gpu-1")
		for i := range 1000 {
			if err := s.heard(t.Context(), &wire.Facts{Tool: fmt.Sprint(i)}, &wire.State{SyncPhase: fmt.Sprint(i)}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
		}
		if presences, declared := l.counts(); presences > sessionNews+12 || declared > sessionNews+12 || presences < 10 || declared < 10 {
			t.Errorf("1000 changes within 10 s were written %d and %d times, about once a second is right", presences, declared)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := l.presences[len(l.presences)-1].Facts.Tool + l.declared[len(l.declared)-1].SyncPhase; got != "999999" {
			t.Errorf("what the agent said last is %q in the store", got)
		}
		close(h.stop)
		h.serving.Wait()
	})
}

// Nor do many agents of one credential together write more than it may.
func TestChangesOfOneCredentialAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &ledger{}
		h, session := newSessions(l)
		facts := func(i int) *wire.Facts {
			return &wire.Facts{Tool: fmt.Sprint(i), Unhealthy: strings.Repeat("x", 15<<10)}
		}
		for round := range 10 {
			for n := range 500 {
				s := h.session(ident.AgentKey{Team: "team", Agent: ident.AgentID(fmt.Sprint(n))})
				if s == nil {
					s = session(fmt.Sprint(n))
				}
				if err := s.heard(t.Context(), facts(round), nil); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(time.Second)
		}
		close(h.stop)
		h.serving.Wait()
		written := 0
		for _, p := range l.presences[500:] { // the first word of each agent counts as its link
			written += size(p)
		}
		if most := newsBytes + 11*newsBytesRate; written > most {
			t.Errorf("%d bytes were written within 10 s, at most %d are right", written, most)
		}
	})
}

// A store without room is not asked for what can wait; that a machine pauses cannot.
func TestWhatCanWaitWaitsForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &ledger{full: true}
		_, session := newSessions(l)
		s := session("gpu-1")
		for i := range 3 {
			if err := s.heard(t.Context(), &wire.Facts{Tool: fmt.Sprint(i)}, &wire.State{Paused: i == 2}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * storeInterval)
		}
		if presences, declared := l.counts(); presences != 1 || declared != 2 {
			t.Errorf("a full store was given %d presences and %d declarations, should be the first and both", presences, declared)
		}
		l.mu.Lock()
		l.full = false
		l.mu.Unlock()
		if err := s.heard(t.Context(), nil, nil); err != nil {
			t.Fatal(err)
		}
		if got := l.presences[len(l.presences)-1].Facts.Tool; got != "2" {
			t.Errorf("with room again the store has %q", got)
		}
	})
}

// All of a team's agents may come back at once; one credential that links again and
// again is told to wait, and no other one with it.
func TestLinksOfOneCredentialAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, _ := newSessions(&ledger{})
		fleet := creds.Principal{Kind: creds.KindAgent, Team: "team", Credential: "fleet"}
		admitted := func(p creds.Principal, tries int) int {
			n := 0
			for range tries {
				p := h.mayLink(p)
				if p == nil {
					n++
				} else if p.Status != http.StatusTooManyRequests || p.RetryAfter <= 0 {
					t.Fatalf("refused with %d, again after %s", p.Status, p.RetryAfter)
				}
			}
			return n
		}
		if n := admitted(fleet, 1000); n != 1000 {
			t.Errorf("%d of 1000 agents are back at once", n)
		}
		time.Sleep(15 * time.Second)
		if n := admitted(fleet, 1000); n != 1000 {
			t.Errorf("%d of 1000 agents are back once more", n)
		}
		if n := admitted(fleet, 10000); n > 600 {
			t.Errorf("a loop made %d links", n)
		}
		bound := creds.Principal{Kind: creds.KindAgent, Team: "team", Agent: "gpu-1", Credential: "own"}
		if n := admitted(bound, 1000); n != ownLinks {
			t.Errorf("the credential of one agent made %d links at once, %d are right", n, ownLinks)
		}
		for i := range 5 {
			bound.Agent, bound.Credential = ident.AgentID(fmt.Sprint(i)), ident.CredentialID(fmt.Sprint(i))
			if n := admitted(bound, 64); n == 0 {
				t.Error("another credential of the team has to wait, too")
			}
		}
		other := creds.Principal{Kind: creds.KindAgent, Team: "other", Credential: "others"}
		if n := admitted(other, 1000); n != 1000 {
			t.Errorf("%d of 1000 agents of another team are back at once", n)
		}
	})
}

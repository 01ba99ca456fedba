package gate_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/gate"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

// model says in plain words what an agent's record stands for: true time, true
// expiries, and what each caller was promised. It knows nothing of the machine.
type model struct {
	now      time.Time // true time; relays' clocks are off by less than half the skew
	tunnels  map[ident.SessionID]*modelTunnel
	leases   map[ident.TaskID]*modelLease
	epoch    uint64
	fencing  uint64
	capacity int
	sick     bool
	syncing  bool
	paused   bool
	finished uint64
	closed   map[ident.SessionID]bool
	missed   time.Time // since when the record says that the agent is away
}

type modelTunnel struct {
	state   string
	expires time.Time // by the clock of the relay that set it
}

type modelLease struct {
	token   string
	expires time.Time
}

const skew = 3 * time.Second

// TestMachineAgainstAModel runs random histories of one agent through relays whose
// clocks are up to 2 s apart, with tries that run twice and writes that are lost.
func TestMachineAgainstAModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{
			now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), capacity: 1,
			tunnels: map[ident.SessionID]*modelTunnel{}, leases: map[ident.TaskID]*modelLease{}, closed: map[ident.SessionID]bool{},
		}
		rec := store.AgentRecord{}
		clocks := []time.Duration{
			time.Duration(rapid.IntRange(-1000, 1000).Draw(t, "clock a")) * time.Millisecond,
			time.Duration(rapid.IntRange(-1000, 1000).Draw(t, "clock b")) * time.Millisecond,
		}
		tokens := map[uint64]bool{}
		apply := func(name string, f func(s *gate.Step) error) (*gate.Step, error) {
			off := rapid.SampledFrom(clocks).Draw(t, "relay")
			next := rec.Clone()
			s := &gate.Step{Record: &next, Now: m.now.Add(off), Skew: skew}
			err := f(s)
			if err != nil { // refused or unchanged: the store writes nothing
				return s, err
			}
			if rapid.IntRange(0, 9).Draw(t, "store") == 0 { // the write loses its race: it runs again
				next = rec.Clone()
				s = &gate.Step{Record: &next, Now: m.now.Add(off), Skew: skew}
				if err := f(s); err != nil {
					t.Fatalf("%s: the same step on the same record: %v", name, err)
				}
			}
			rec = next
			rec.Nonce = "written"
			switch {
			case rec.Gone.IsZero():
				m.missed = time.Time{}
			case m.missed.IsZero():
				m.missed = m.now
			}
			return s, nil
		}
		drawTunnel := func() ident.SessionID {
			return ident.SessionID(fmt.Sprintf("%032d", rapid.IntRange(0, 5).Draw(t, "tunnel")))
		}
		drawTask := func() ident.TaskID {
			return ident.TaskID(fmt.Sprintf("task-%d", rapid.IntRange(0, 3).Draw(t, "task")))
		}
		// held says whether a lease's holder may still run its task.
		running := func() int {
			n := 0
			for _, l := range m.leases {
				if m.now.Before(l.expires.Add(-skew)) {
					n++
				}
			}
			return n
		}
		// alive are the tunnels that may carry bytes somewhere, in true time.
		alive := func() (ids []ident.SessionID) {
			for id, tn := range m.tunnels {
				if tn.state != "" && m.now.Before(tn.expires) {
					ids = append(ids, id)
				}
			}
			return ids
		}
		t.Repeat(map[string]func(*rapid.T){
			"time passes": func(t *rapid.T) {
				m.now = m.now.Add(time.Duration(rapid.IntRange(1, 20000).Draw(t, "ms")) * time.Millisecond)
			},
			"open": func(t *rapid.T) {
				id := drawTunnel()
				life := time.Duration(rapid.IntRange(1, 60).Draw(t, "life")) * time.Second
				busy := rapid.SampledFrom([]api.WhenBusy{api.BusyAllow, api.BusyReject, api.BusyWait}).Draw(t, "when busy")
				var waiting bool
				var expires time.Time
				s, err := apply("open", func(s *gate.Step) (err error) {
					expires = s.Now.Add(life)
					_, waiting, err = s.Open(gate.Opening{
						Tunnel:   store.TunnelRecord{Session: id, ExpiresAt: expires},
						WhenBusy: busy, WaitUntil: expires, MaxTunnels: 4,
					})
					return err
				})
				switch {
				case err == nil && waiting:
					m.tunnels[id] = &modelTunnel{store.TunnelWaiting, expires}
				case err == nil:
					m.tunnels[id] = &modelTunnel{store.TunnelOpen, expires}
					if len(s.Effects.PutTunnels) != 1 {
						t.Fatalf("opening wrote %d tunnel records, want 1", len(s.Effects.PutTunnels))
					}
					if busy != api.BusyAllow && running() > 0 {
						t.Fatalf("when_busy %s opened beside %d running tasks", busy, running())
					}
				}
			},
			"promote": func(t *rapid.T) {
				id := drawTunnel()
				var expires time.Time
				if _, err := apply("promote", func(s *gate.Step) (err error) {
					expires = s.Now.Add(time.Minute)
					_, _, err = s.Promote(gate.Opening{Tunnel: store.TunnelRecord{Session: id, ExpiresAt: expires}})
					return err
				}); err == nil {
					if m.tunnels[id] == nil || m.tunnels[id].state != store.TunnelWaiting {
						t.Fatalf("promoted a tunnel that did not wait: %+v", m.tunnels[id])
					}
					if running() > 0 {
						t.Fatalf("a waiting tunnel opened while %d tasks run", running())
					}
					m.tunnels[id] = &modelTunnel{store.TunnelOpen, expires}
				}
			},
			"extend": func(t *rapid.T) {
				id := drawTunnel()
				by := time.Duration(rapid.IntRange(1, 90).Draw(t, "by")) * time.Second
				var expires time.Time
				if _, err := apply("extend", func(s *gate.Step) (err error) {
					expires, err = s.Extend(id, s.Now.Add(by))
					return err
				}); err == nil {
					if m.tunnels[id] == nil || m.tunnels[id].state != store.TunnelOpen || expires.Before(m.tunnels[id].expires) {
						t.Fatalf("extended %+v to %v", m.tunnels[id], expires)
					}
					m.tunnels[id].expires = expires
				}
			},
			"begin close": func(t *rapid.T) {
				all := rapid.Bool().Draw(t, "all")
				id := drawTunnel()
				s, err := apply("begin close", func(s *gate.Step) error {
					_, err := s.BeginClose([]ident.SessionID{id}, all, "asked")
					return err
				})
				if err != nil {
					return
				}
				for _, e := range s.Events {
					switch tn := m.tunnels[e.Session]; e.Kind {
					case audit.TunnelClosing:
						tn.state = store.TunnelClosing
					case audit.TunnelClosed:
						if tn.state != store.TunnelWaiting {
							t.Fatalf("a tunnel in state %s was gone at the first phase", tn.state)
						}
						delete(m.tunnels, e.Session)
						m.closed[e.Session] = true
					}
				}
			},
			"finish close": func(t *rapid.T) {
				id := drawTunnel()
				s, err := apply("finish close", func(s *gate.Step) error { return s.FinishClose([]ident.SessionID{id}) })
				if err != nil {
					return
				}
				for _, e := range s.Events {
					if e.Kind != audit.TunnelClosed {
						continue
					}
					if m.tunnels[id].state != store.TunnelClosing {
						t.Fatalf("finished a tunnel in state %s", m.tunnels[id].state)
					}
					delete(m.tunnels, id)
					m.closed[id] = true
				}
			},
			"expire": func(t *rapid.T) { _, _ = apply("expire", (*gate.Step).Expire) },
			"admit": func(t *rapid.T) {
				task := drawTask()
				token := fmt.Sprint("token", rapid.IntRange(0, 1<<30).Draw(t, "token"))
				ttl := time.Duration(rapid.IntRange(5, 60).Draw(t, "ttl")) * time.Second
				var lease store.LeaseState
				_, err := apply("admit", func(s *gate.Step) (err error) {
					lease, err = s.Admit(gate.Admission{Task: task, TTL: ttl, TokenHash: token})
					return err
				})
				if err != nil {
					return
				}
				if ids := alive(); len(ids) > 0 {
					t.Fatalf("a task was admitted beside %d living tunnels: %v", len(ids), ids)
				}
				if running() >= m.capacity {
					t.Fatalf("%d tasks run where %d may", running()+1, m.capacity)
				}
				if m.sick || m.syncing || m.paused {
					t.Fatalf("admitted on an agent that is sick %v, syncing %v, paused %v", m.sick, m.syncing, m.paused)
				}
				if l := m.leases[task]; l != nil && m.now.Before(l.expires.Add(-skew)) {
					t.Fatalf("two leases for %s", task)
				}
				if lease.Fencing != m.fencing+1 || tokens[lease.Fencing] {
					t.Fatalf("fencing token %d after %d", lease.Fencing, m.fencing)
				}
				m.fencing, tokens[lease.Fencing] = lease.Fencing, true
				m.leases[task] = &modelLease{token, lease.Expires}
			},
			"renew": func(t *rapid.T) {
				task := drawTask()
				l := m.leases[task]
				if l == nil {
					return
				}
				var lease store.LeaseState
				if _, err := apply("renew", func(s *gate.Step) (err error) {
					lease, err = s.Renew(task, l.token, 10*time.Second)
					return err
				}); err == nil {
					if !m.now.Before(l.expires.Add(2 * time.Second)) {
						t.Fatalf("renewed a lease that ended at %v, at %v", l.expires, m.now)
					}
					l.expires = lease.Expires
				} else if m.now.Before(l.expires.Add(-2 * time.Second)) {
					t.Fatalf("a living lease was not renewed: %v", err)
				}
			},
			"release": func(t *rapid.T) {
				task := drawTask()
				l := m.leases[task]
				if l == nil {
					return
				}
				ok := rapid.Bool().Draw(t, "completed")
				_, err := apply("release", func(s *gate.Step) error {
					_, err := s.Release(task, l.token, ok)
					return err
				})
				if err == nil {
					delete(m.leases, task)
					if ok {
						m.finished++
					}
				} else if m.now.Before(l.expires.Add(-2 * time.Second)) {
					t.Fatalf("a living lease was lost: %v", err)
				}
			},
			"connect": func(t *rapid.T) {
				seen := uint64(rapid.IntRange(0, int(m.epoch)+2).Draw(t, "seen"))
				capacity := rapid.IntRange(0, 3).Draw(t, "capacity")
				claim := gate.Claim{
					Relay: "r", Instance: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "instance"), Seen: seen,
					Live: rapid.Bool().Draw(t, "live"), Capacity: capacity,
				}
				var epoch uint64
				if _, err := apply("connect", func(s *gate.Step) (err error) {
					epoch, err = s.Connect(claim)
					return err
				}); err == nil {
					if epoch <= m.epoch || epoch <= seen {
						t.Fatalf("epoch %d after %d, seen %d", epoch, m.epoch, seen)
					}
					m.epoch, m.capacity = epoch, max(1, capacity)
				}
			},
			"declare": func(t *rapid.T) {
				var state wire.State
				sick := ""
				if rapid.Bool().Draw(t, "syncing") {
					state.SyncPhase = "models"
				}
				state.Paused = rapid.Bool().Draw(t, "paused")
				if rapid.Bool().Draw(t, "sick") {
					sick = "no answer"
				}
				epoch := m.epoch - uint64(rapid.IntRange(0, 1).Draw(t, "behind"))
				if _, err := apply("declare", func(s *gate.Step) error { return s.Declare(epoch, state, sick) }); err == nil {
					if epoch != m.epoch {
						t.Fatal("a declaration of an older generation was taken")
					}
					m.syncing, m.paused, m.sick = state.SyncPhase != "", state.Paused, sick != ""
				}
			},
			"miss": func(*rapid.T) { _, _ = apply("miss", (*gate.Step).Miss) },
			"meet": func(*rapid.T) { _, _ = apply("meet", (*gate.Step).Meet) },
			"forget": func(t *rapid.T) {
				s := step(&rec, m.now.Add(rapid.SampledFrom(clocks).Draw(t, "relay")))
				if rec.Nonce == "" || !s.Forgettable(20*time.Second) {
					return
				}
				if len(m.tunnels) > 0 || len(m.leases) > 0 {
					t.Fatalf("an agent with %d tunnels and %d leases was forgotten", len(m.tunnels), len(m.leases))
				}
				if since := m.now.Sub(m.missed); m.missed.IsZero() || since < 20*time.Second {
					t.Fatalf("an agent that was missed at %v was forgotten at %v", m.missed, m.now)
				}
				// As stores do: the next record begins where this one's counts ended.
				rec = store.AgentRecord{Epoch: rec.Epoch, N: rec.N, Fencing: rec.Fencing}
				m.capacity, m.finished, m.missed = 1, 0, time.Time{}
				m.sick, m.syncing, m.paused = false, false, false
				clear(m.closed)
			},
			"": func(t *rapid.T) { // what must hold after every step
				for id, tn := range m.tunnels {
					st, there := rec.Tunnels[id]
					switch {
					case !there && m.now.Before(tn.expires):
						t.Fatalf("tunnel %s is lost: it has until %v, it is %v", id, tn.expires, m.now)
					case there && st.State != tn.state:
						t.Fatalf("tunnel %s is %s, should be %s", id, st.State, tn.state)
					case there && !st.Expires.Equal(tn.expires):
						t.Fatalf("tunnel %s ends at %v, should at %v", id, st.Expires, tn.expires)
					case !there:
						delete(m.tunnels, id)
						m.closed[id] = true
					}
				}
				for task, l := range m.leases {
					st, there := rec.Leases[task]
					switch {
					case !there && m.now.Before(l.expires):
						t.Fatalf("lease %s is lost", task)
					case there && (st.TokenHash != l.token || !st.Expires.Equal(l.expires)):
						t.Fatalf("lease %s is %+v, should be %+v", task, st, l)
					case !there:
						delete(m.leases, task)
					}
				}
				if len(rec.Tunnels) != len(m.tunnels) || len(rec.Leases) != len(m.leases) {
					t.Fatalf("the record has %d tunnels and %d leases, should have %d and %d", len(rec.Tunnels), len(rec.Leases), len(m.tunnels), len(m.leases))
				}
				if rec.Fencing != m.fencing || rec.Completed != m.finished || rec.Epoch != m.epoch {
					t.Fatalf("fencing, completed, epoch are %d %d %d, should be %d %d %d", rec.Fencing, rec.Completed, rec.Epoch, m.fencing, m.finished, m.epoch)
				}
				for _, id := range rec.Closed {
					if !m.closed[id] {
						t.Fatalf("%s counts as closed and never was", id)
					}
				}
			},
		})
	})
}

func step(rec *store.AgentRecord, now time.Time) *gate.Step {
	return &gate.Step{Record: rec, Now: now, Skew: skew}
}

func code(err error) string {
	if p, ok := errors.AsType[*api.Problem](err); ok {
		return string(p.Code)
	}
	return fmt.Sprint(err)
}

func TestAdmitRefusesInOrder(t *testing.T) {
	now := time.Now()
	full := store.AgentRecord{
		Unhealthy: "gpu lost", Declared: wire.State{SyncPhase: "models", Paused: true},
		Tunnels: map[ident.SessionID]store.TunnelState{"a": {State: store.TunnelClosing, Expires: now.Add(time.Hour)}},
		Leases:  map[ident.TaskID]store.LeaseState{"other": {Expires: now.Add(time.Hour)}},
	}
	for _, c := range []struct {
		want string
		mend func(r *store.AgentRecord)
	}{
		{"agent_unhealthy", func(r *store.AgentRecord) { r.Unhealthy = "" }},
		{"agent_in_tunnel", func(r *store.AgentRecord) { r.Tunnels = nil }},
		{"agent_syncing", func(r *store.AgentRecord) { r.Declared.SyncPhase = "" }},
		{"agent_paused", func(r *store.AgentRecord) { r.Declared.Paused = false }},
		{"agent_busy", func(r *store.AgentRecord) { r.Capacity = 2 }},
		{"<nil>", func(*store.AgentRecord) {}},
	} {
		r := full.Clone()
		_, err := step(&r, now).Admit(gate.Admission{Task: "t", TTL: time.Minute, TokenHash: "x"})
		if code(err) != c.want {
			t.Errorf("got %s, want %s", code(err), c.want)
		}
		var p *api.Problem
		if errors.As(err, &p) && p.RetryAfter <= 0 {
			t.Errorf("%s says not when to try again", c.want)
		}
		c.mend(&full)
	}
	r := full.Clone()
	if _, err := step(&r, now).Admit(gate.Admission{Task: "other", TokenHash: "x"}); code(err) != "task_exists" {
		t.Errorf("a held task id: got %s, want task_exists", code(err))
	}
}

// An entry counts as gone only with the margin; its holder stops before.
func TestExpiryHasAMargin(t *testing.T) {
	now := time.Now()
	r := store.AgentRecord{
		Tunnels: map[ident.SessionID]store.TunnelState{"a": {State: store.TunnelOpen, Expires: now}},
		Leases:  map[ident.TaskID]store.LeaseState{"t": {Expires: now, TokenHash: "x"}},
	}
	late := now.Add(skew - time.Millisecond)
	c := r.Clone()
	if _, err := step(&c, late).Admit(gate.Admission{Task: "n", TTL: time.Minute}); code(err) != "agent_in_tunnel" {
		t.Errorf("inside the margin: got %s, want agent_in_tunnel", code(err))
	}
	c = r.Clone()
	if _, err := step(&c, now).Renew("t", "x", time.Minute); code(err) != "lease_expired" {
		t.Errorf("renewing at the expiry: got %s, want lease_expired", code(err))
	}
	c = r.Clone()
	if _, err := step(&c, now).Extend("a", now.Add(time.Hour)); code(err) != "tunnel_not_found" {
		t.Errorf("extending at the expiry: got %s, want tunnel_not_found", code(err))
	}
	c = r.Clone()
	s := step(&c, now.Add(skew))
	if _, err := s.Admit(gate.Admission{Task: "n", TTL: time.Minute}); err != nil {
		t.Errorf("behind the margin: %v", err)
	}
	if !slices.Equal(s.Effects.DeleteTunnels, []ident.SessionID{"a"}) {
		t.Errorf("the tunnel's own record is not deleted with it: %v", s.Effects.DeleteTunnels)
	}
}

func TestSupersededProcessStaysAway(t *testing.T) {
	var r store.AgentRecord
	connect := func(instance string, seen uint64, live bool) (uint64, error) {
		return step(&r, time.Now()).Connect(gate.Claim{Relay: "r", Instance: instance, Seen: seen, Live: live})
	}
	for _, c := range []struct {
		instance string
		seen     uint64
		live     bool
		epoch    uint64
		why      string
	}{
		{"old", 0, false, 1, "the first"},
		{"old", 1, false, 2, "its link was lost"},
		{"new", 0, true, 3, "a fresh process takes over"},
		{"old", 2, true, 0, "it was superseded and the newer lives"},
		{"new", 3, true, 4, "the newer one again"},
		{"old", 2, false, 5, "the newer one is gone"},
		{"old", 90, false, 91, "the store came back from a backup"},
	} {
		epoch, err := connect(c.instance, c.seen, c.live)
		if c.epoch == 0 {
			if !errors.Is(err, gate.ErrSuperseded) {
				t.Errorf("%s: got epoch %d, %v; want superseded", c.why, epoch, err)
			}
		} else if err != nil || epoch != c.epoch {
			t.Errorf("%s: got epoch %d, %v; want %d", c.why, epoch, err, c.epoch)
		}
	}
	if _, err := connect("evil", 1<<63, false); code(err) != "out_of_range" {
		t.Errorf("a generation out of the blue: %s", code(err))
	}
}

func TestClosingTwiceIsNoError(t *testing.T) {
	now := time.Now()
	r := store.AgentRecord{Tunnels: map[ident.SessionID]store.TunnelState{"a": {State: store.TunnelOpen, Expires: now.Add(time.Hour)}}}
	if _, err := step(&r, now).BeginClose([]ident.SessionID{"a"}, false, "x"); err != nil {
		t.Fatal(err)
	}
	if err := step(&r, now).FinishClose([]ident.SessionID{"a"}); err != nil {
		t.Fatal(err)
	}
	ids, err := step(&r, now).BeginClose([]ident.SessionID{"a"}, false, "x")
	if code(err) != "unchanged" || !slices.Equal(ids, []ident.SessionID{"a"}) {
		t.Errorf("closing again: %v, %v", ids, err)
	}
	if _, err := step(&r, now).BeginClose([]ident.SessionID{"b"}, false, "x"); code(err) != "tunnel_not_found" {
		t.Errorf("closing what never was: %v", err)
	}
	if len(slices.Collect(maps.Keys(r.Tunnels))) != 0 {
		t.Errorf("left: %v", r.Tunnels)
	}
}

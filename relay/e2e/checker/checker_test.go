package checker_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/e2e/checker"
	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/gate"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

var agent = ident.AgentKey{Team: "6f1d3c52-7a94-4c1e-9d3b-2f6a1e0c9b11", Agent: "gpu-1"}

const skew = 3 * time.Second

// pool plays relays on one record with the real machine, and keeps what a real
// pool would leave behind.
type pool struct {
	t    *testing.T
	in   checker.Input
	rec  store.AgentRecord
	now  time.Time
	seq  map[ident.RelayID]uint64
	n    int
	dead map[ident.RelayID]bool // its next record is lost, with the relay
}

func newPool(t *testing.T) *pool {
	p := &pool{t: t, now: time.Now().Add(-time.Hour).UTC(), seq: map[ident.RelayID]uint64{}, dead: map[ident.RelayID]bool{}}
	p.in.Capacity, p.in.Skew = 1, skew
	for _, relay := range []ident.RelayID{"a", "b"} {
		p.write(relay, audit.Record{Event: audit.RelayStarted})
	}
	if err := p.step("a", func(s *gate.Step) error {
		_, err := s.Connect(gate.Claim{Relay: "a", Instance: "1", Capacity: 1})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *pool) write(relay ident.RelayID, r audit.Record) {
	p.seq[relay]++
	r.Relay, r.Seq, r.Time = relay, p.seq[relay], p.now
	p.in.Audit = append(p.in.Audit, r)
}

// step is one change through a relay. It says whether it landed.
func (p *pool) step(relay ident.RelayID, f func(*gate.Step) error) error {
	p.now = p.now.Add(50 * time.Millisecond)
	next := p.rec.Clone()
	s := &gate.Step{Record: &next, Now: p.now, Skew: skew}
	if err := f(s); err != nil {
		return err
	}
	next.N, next.Nonce = p.rec.N+1, fmt.Sprint("nonce-", p.rec.N+1)
	p.rec = next
	p.in.History = append(p.in.History, checker.Version{Key: agent, Record: next.Clone()})
	if p.dead[relay] {
		p.dead[relay] = false
		p.write(relay, audit.Record{Event: audit.RelayStarted})
		return nil
	}
	for _, e := range s.Events {
		p.write(relay, audit.Record{Event: e.Kind, Team: agent.Team, Agent: agent.Agent, Session: e.Session, Task: e.Task,
			Fencing: e.Fencing, Epoch: next.Epoch, Revision: next.N, Detail: e.Detail})
	}
	return nil
}

// call keeps an answer, as the caller of a step would.
func (p *pool) call(c checker.Call, lost bool) {
	c.Key, c.Sent, c.Got = agent, p.now.Add(-20*time.Millisecond), p.now.Add(10*time.Millisecond)
	switch {
	case lost:
		c.Status, c.Expires = 0, time.Time{}
	case c.Status == 0:
		c.Status = 200
	}
	p.in.Journal = append(p.in.Journal, c)
}

func (p *pool) open(relay ident.RelayID, busy api.WhenBusy, life time.Duration) ident.SessionID {
	p.n++
	id := ident.SessionID(fmt.Sprintf("%032x", p.n))
	lost := p.dead[relay]
	var o gate.Opening
	err := p.step(relay, func(s *gate.Step) error {
		o = gate.Opening{Tunnel: store.TunnelRecord{Session: id, Team: agent.Team, Agent: agent.Agent, ExpiresAt: s.Now.Add(life)}, WhenBusy: busy, WaitUntil: s.Now.Add(time.Minute)}
		_, _, err := s.Open(o)
		return err
	})
	if err != nil {
		p.call(checker.Call{Op: checker.OpOpen, Session: id, Status: 409}, false)
		return ""
	}
	if p.rec.Tunnels[id].State == store.TunnelOpen {
		p.call(checker.Call{Op: checker.OpOpen, Session: id, Expires: o.Tunnel.ExpiresAt}, lost)
	}
	return id
}

func (p *pool) promote(relay ident.RelayID, id ident.SessionID) {
	o := gate.Opening{Tunnel: store.TunnelRecord{Session: id, ExpiresAt: p.now.Add(time.Hour)}, WaitUntil: p.rec.Tunnels[id].Expires}
	if p.step(relay, func(s *gate.Step) error { _, _, err := s.Promote(o); return err }) == nil {
		p.call(checker.Call{Op: checker.OpOpen, Session: id, Expires: o.Tunnel.ExpiresAt}, false)
	}
}

func (p *pool) close(relay ident.RelayID, id ident.SessionID) {
	lost, sent := p.dead[relay], p.now.Add(20*time.Millisecond)
	err := p.step(relay, func(s *gate.Step) error {
		_, err := s.BeginClose([]ident.SessionID{id}, false, store.ReasonAsked)
		return err
	})
	c := checker.Call{Op: checker.OpClose, Session: id}
	if err == nil && !lost {
		_ = p.step(relay, func(s *gate.Step) error { return s.FinishClose([]ident.SessionID{id}) })
	}
	p.call(c, lost)
	p.in.Journal[len(p.in.Journal)-1].Sent = sent
}

func (p *pool) finish(relay ident.RelayID) {
	_ = p.step(relay, func(s *gate.Step) error {
		var ids []ident.SessionID
		for id := range s.Record.Tunnels {
			ids = append(ids, id)
		}
		return s.FinishClose(ids)
	})
}

func (p *pool) admit(relay ident.RelayID, task ident.TaskID, ttl time.Duration) uint64 {
	lost := p.dead[relay]
	err := p.step(relay, func(s *gate.Step) error {
		_, err := s.Admit(gate.Admission{Task: task, TTL: ttl, Owner: "sk:test", TokenHash: "hash-" + string(task)})
		return err
	})
	if err != nil {
		p.call(checker.Call{Op: checker.OpAdmit, Task: task, Status: 409, Code: "agent_in_tunnel"}, false)
		return 0
	}
	l := p.rec.Leases[task]
	p.call(checker.Call{Op: checker.OpAdmit, Task: task, Fencing: l.Fencing, Expires: l.Expires}, lost)
	return l.Fencing
}

func (p *pool) renew(relay ident.RelayID, task ident.TaskID, token uint64) {
	if p.step(relay, func(s *gate.Step) error { _, err := s.Renew(task, "hash-"+string(task), 20*time.Second); return err }) == nil {
		p.call(checker.Call{Op: checker.OpRenew, Task: task, Fencing: token, Expires: p.rec.Leases[task].Expires}, false)
	}
}

func (p *pool) release(relay ident.RelayID, task ident.TaskID, token uint64) {
	if p.step(relay, func(s *gate.Step) error { _, err := s.Release(task, "hash-"+string(task), true); return err }) == nil {
		p.call(checker.Call{Op: checker.OpRelease, Task: task, Fencing: token}, false)
	}
}

// day is a run with everything in it that the gate can do.
func day(t *testing.T) *pool {
	p := newPool(t)
	one := p.open("a", api.BusyAllow, time.Hour)
	p.admit("b", "t-refused", 10*time.Second)
	_ = p.step("b", func(s *gate.Step) error { _, err := s.Extend(one, p.now.Add(2*time.Hour)); return err })
	p.close("b", one)
	token := p.admit("a", "t-1", 10*time.Second)
	p.renew("b", "t-1", token)
	two := p.open("b", api.BusyWait, time.Hour)
	p.release("a", "t-1", token)
	p.promote("b", two)
	p.close("a", two)
	p.admit("b", "t-2", 5*time.Second)
	p.now = p.now.Add(10 * time.Second)
	token = p.admit("a", "t-3", 5*time.Second) // finds t-2 expired
	three := p.open("a", api.BusyAllow, 2*time.Second)
	p.release("b", "t-3", token)
	p.now = p.now.Add(10 * time.Second)
	token = p.admit("a", "t-4", 10*time.Second) // finds the tunnel expired
	_ = three
	p.release("a", "t-4", token)
	p.open("b", api.BusyAllow, 3*time.Hour)
	return p
}

func check(in checker.Input) *checker.Report { return checker.Check(in) }

func TestAGoodDayHasNoViolation(t *testing.T) {
	r := check(day(t).in)
	if len(r.Violations) > 0 || len(r.Unproven) > 0 {
		t.Errorf("a run of the real machine is without fault and without doubt:\n%s%q", r, r.Unproven)
	}
	for name, want := range map[string]int{"tunnels": 4, "tunnels that waited for tasks": 1, "tasks admitted": 4, "acknowledged: tunnels opened": 4, "  of them open at the end": 1, "  ended by their own time": 1, "acknowledged: tasks admitted": 4} {
		if got := r.Count(name); got != want {
			t.Errorf("%s: counted %d, want %d\n%s", name, got, want, r)
		}
	}
}

// A random run through relays that are killed at any moment is without violation,
// whatever is missing from the audit: with the history nothing is in doubt.
func TestKillsCostRecordsButNotProof(t *testing.T) {
	lost := 0
	for seed := range uint64(40) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		p := newPool(t)
		var open []ident.SessionID
		held := map[ident.TaskID]uint64{}
		for i := range 300 {
			relay := []ident.RelayID{"a", "b"}[rnd.IntN(2)]
			p.dead[relay] = rnd.IntN(12) == 0
			switch rnd.IntN(7) {
			case 0:
				if id := p.open(relay, api.BusyAllow, time.Duration(2+rnd.IntN(60))*time.Second); id != "" {
					open = append(open, id)
				}
			case 1, 2:
				for _, id := range open {
					p.close(relay, id)
				}
				open = nil
			case 3, 4:
				task := ident.TaskID(fmt.Sprint("t-", i))
				if token := p.admit(relay, task, 10*time.Second); token > 0 {
					held[task] = token
				}
			case 5:
				for task, token := range held {
					p.release(relay, task, token)
					delete(held, task)
				}
			case 6:
				p.finish(relay)
			}
			p.dead[relay] = false
			p.now = p.now.Add(time.Duration(rnd.IntN(2000)) * time.Millisecond)
		}
		p.finish("a")
		r := check(p.in)
		if len(r.Violations) > 0 {
			t.Fatalf("seed %d: a run of the real machine has violations:\n%s", seed, r)
		}
		lost += r.Count("changes without a record, by a killed relay")
		in := p.in
		in.History = nil
		if r := check(in); len(r.Violations) > 0 {
			t.Fatalf("seed %d: without the history doubt became a violation:\n%s", seed, r)
		}
	}
	if lost == 0 {
		t.Error("no run lost a record: the test shows nothing")
	}
	t.Logf("%d changes went without a record", lost)
}

// find returns the n-th record of an event.
func find(in *checker.Input, event audit.Event, n int) *audit.Record {
	for i := range in.Audit {
		if in.Audit[i].Event == event {
			if n == 0 {
				return &in.Audit[i]
			}
			n--
		}
	}
	panic("no " + string(event))
}

func drop(in *checker.Input, r *audit.Record) {
	relay, seq := r.Relay, r.Seq
	in.Audit = slices.DeleteFunc(in.Audit, func(x audit.Record) bool { return x.Relay == relay && x.Seq == seq })
	for i := range in.Audit { // as if it had never been there
		if in.Audit[i].Relay == relay && in.Audit[i].Seq > seq {
			in.Audit[i].Seq--
		}
	}
}

func call(in *checker.Input, op checker.Op, n int) *checker.Call {
	for i := range in.Journal {
		if in.Journal[i].Op == op && in.Journal[i].OK() {
			if n == 0 {
				return &in.Journal[i]
			}
			n--
		}
	}
	panic("no " + string(op))
}

// Each doctored log breaks one promise; a checker that does not see it is worthless.
func TestDoctoredLogsAreCaught(t *testing.T) {
	const auditOnly, everything = false, true
	for name, c := range map[string]struct {
		with   bool // history and journal too
		doctor func(in *checker.Input)
		rule   string
	}{
		"a task within a tunnel's life": {auditOnly, func(in *checker.Input) {
			open, end := find(in, audit.TunnelOpened, 0), find(in, audit.TunnelClosing, 0)
			r := find(in, audit.TaskAdmitted, 0)
			r.Revision = open.Revision
			end.Revision = max(end.Revision, r.Revision+1)
		}, "admission"},
		"a task while a tunnel waits": {auditOnly, func(in *checker.Input) {
			r := *find(in, audit.TaskAdmitted, 2)
			w := find(in, audit.TunnelWaiting, 0)
			r.Revision, r.Fencing, r.Task = w.Revision, 99, "x"
			drop(in, find(in, audit.TaskAdmitted, 2))
			r.Relay, r.Seq = w.Relay, 1000
			in.Audit = append(in.Audit, r)
		}, "admission"},
		"a tunnel that never ended": {auditOnly, func(in *checker.Input) {
			drop(in, find(in, audit.TunnelClosed, 0))
		}, "admission"},
		"a token given out twice": {auditOnly, func(in *checker.Input) {
			find(in, audit.TaskAdmitted, 1).Fencing = find(in, audit.TaskAdmitted, 0).Fencing
		}, "fencing"},
		"a token that goes backwards": {auditOnly, func(in *checker.Input) {
			a, b := find(in, audit.TaskAdmitted, 1), find(in, audit.TaskAdmitted, 2)
			a.Fencing, b.Fencing = b.Fencing, a.Fencing
		}, "fencing"},
		"a token given to nobody": {auditOnly, func(in *checker.Input) {
			drop(in, find(in, audit.TaskAdmitted, 1))
		}, "fencing"},
		"an epoch that goes backwards": {auditOnly, func(in *checker.Input) {
			find(in, audit.TaskAdmitted, 3).Epoch = 0
			find(in, audit.TaskAdmitted, 0).Epoch = 7
		}, "epoch"},
		"an epoch given to two processes": {everything, func(in *checker.Input) {
			for i := 5; i < len(in.History); i++ {
				in.History[i].Record.Instance = "another"
			}
		}, "epoch"},
		"one revision made by two relays": {auditOnly, func(in *checker.Input) {
			r := *find(in, audit.TaskAdmitted, 0)
			r.Relay, r.Seq, r.Event = "c", 1, audit.TaskRenewed
			in.Audit = append(in.Audit, r)
		}, "revision"},
		"a tunnel opened twice": {auditOnly, func(in *checker.Input) {
			r := *find(in, audit.TunnelOpened, 0)
			r.Relay, r.Seq, r.Revision = "c", 1, r.Revision+1
			in.Audit = append(in.Audit, r)
		}, "tunnel"},
		"a tunnel used behind its end": {auditOnly, func(in *checker.Input) {
			r := *find(in, audit.TunnelExtended, 0)
			r.Relay, r.Seq, r.Revision = "c", 1, 1000
			in.Audit = append(in.Audit, r)
		}, "tunnel"},
		"a lease renewed behind its end": {auditOnly, func(in *checker.Input) {
			find(in, audit.TaskRenewed, 0).Revision = 1000
		}, "lease"},
		"two tasks at once on an agent of one": {auditOnly, func(in *checker.Input) {
			r := find(in, audit.TaskReleased, 1)
			r.Revision = 1000
			find(in, audit.TunnelOpened, 3).Revision = 1001
		}, "capacity"},
		"a waiting tunnel opens beside a task": {auditOnly, func(in *checker.Input) {
			find(in, audit.TaskReleased, 0).Revision = find(in, audit.TunnelOpened, 1).Revision + 1
		}, "waiting"},
		"records taken away": {auditOnly, func(in *checker.Input) {
			r := *find(in, audit.TaskRenewed, 0)
			in.Audit = slices.DeleteFunc(in.Audit, func(x audit.Record) bool { return x == r })
		}, "seq"},

		"a record of what never happened": {everything, func(in *checker.Input) {
			find(in, audit.TaskReleased, 0).Fencing = 1234
		}, "audit"},
		"a change without a record": {everything, func(in *checker.Input) {
			drop(in, find(in, audit.TunnelOpened, 3))
		}, "audit"},
		"a task admitted into a record with a tunnel": {everything, func(in *checker.Input) {
			for i := range in.History {
				if r := &in.History[i].Record; len(r.Leases) > 0 {
					r.Tunnels = map[ident.SessionID]store.TunnelState{"00000000000000000000000000000001": {State: store.TunnelClosing}}
					return
				}
			}
		}, "admission"},
		"a version overwritten": {everything, func(in *checker.Input) {
			in.History = slices.Delete(in.History, 3, 4)
		}, "history"},
		"a change made twice": {everything, func(in *checker.Input) {
			in.History[4].Record.Nonce = in.History[3].Record.Nonce
		}, "history"},
		"a record deleted": {everything, func(in *checker.Input) {
			in.History = append(in.History, checker.Version{Key: agent, Deleted: true})
		}, "history"},
		"a tunnel dropped before its end": {everything, func(in *checker.Input) {
			find(in, audit.TunnelExpired, 0).Time = find(in, audit.TaskAdmitted, 2).Time
		}, "lost"},
		"a lease dropped before its end": {everything, func(in *checker.Input) {
			find(in, audit.TaskExpired, 0).Time = find(in, audit.TaskAdmitted, 1).Time
		}, "lost"},
		"an acknowledged tunnel that never was": {everything, func(in *checker.Input) {
			c := *call(in, checker.OpOpen, 0)
			c.Session = "ffffffffffffffffffffffffffffffff"
			in.Journal = append(in.Journal, c)
		}, "lost"},
		"an acknowledged tunnel that is gone": {everything, func(in *checker.Input) {
			last := &in.History[len(in.History)-1].Record
			last.Tunnels = nil
			drop(in, find(in, audit.TunnelOpened, 3))
		}, "lost"},
		"a tunnel that nobody asked to close": {everything, func(in *checker.Input) {
			c := call(in, checker.OpClose, 0)
			in.Journal = slices.DeleteFunc(in.Journal, func(x checker.Call) bool { return x.Op == checker.OpClose && x.Session == c.Session })
		}, "lost"},
		"an acknowledged close of an open tunnel": {everything, func(in *checker.Input) {
			c := *call(in, checker.OpClose, 0)
			c.Session = call(in, checker.OpOpen, 3).Session
			in.Journal = append(in.Journal, c)
		}, "lost"},
		"an acknowledged extension that is gone": {everything, func(in *checker.Input) {
			c := *call(in, checker.OpOpen, 3)
			c.Op, c.Expires = checker.OpExtend, c.Expires.Add(time.Hour)
			in.Journal = append(in.Journal, c)
		}, "lost"},
		"an acknowledged lease that never was": {everything, func(in *checker.Input) {
			c := *call(in, checker.OpAdmit, 0)
			c.Fencing = 77
			in.Journal = append(in.Journal, c)
		}, "lost"},
		"a lease that was gone too early": {everything, func(in *checker.Input) {
			a := *call(in, checker.OpAdmit, 0)
			a.Op, a.Status, a.Sent, a.Got = checker.OpRenew, 410, a.Got, a.Got.Add(time.Millisecond)
			in.Journal = append(in.Journal, a)
		}, "lost"},
		"one token in two hands": {everything, func(in *checker.Input) {
			call(in, checker.OpAdmit, 1).Fencing = call(in, checker.OpAdmit, 0).Fencing
		}, "fencing"},
		"tokens that go backwards for callers": {everything, func(in *checker.Input) {
			a, b := call(in, checker.OpAdmit, 1), call(in, checker.OpAdmit, 3)
			a.Fencing, b.Fencing = b.Fencing, a.Fencing
		}, "fencing"},
		"a task admitted while its caller saw a tunnel": {everything, func(in *checker.Input) {
			for i := range in.Journal {
				if c := &in.Journal[i]; c.Op == checker.OpAdmit && !c.OK() {
					c.Status = 201
				}
			}
		}, "exclusion"},
	} {
		t.Run(name, func(t *testing.T) {
			in := day(t).in
			if !c.with {
				in.History, in.Journal = nil, nil
			}
			c.doctor(&in)
			if r := check(in); !r.Broken(c.rule) {
				t.Errorf("nobody noticed: want a violation of %q, got\n%s", c.rule, r)
			}
		})
	}
}

// What a kill may have hidden is doubt without the history, and a fault with it.
func TestAMissingEndBehindAKillIsDoubt(t *testing.T) {
	p := newPool(t)
	one := p.open("a", api.BusyAllow, time.Hour)
	p.dead["b"] = true // dies with the record of the end
	_ = p.step("b", func(s *gate.Step) error {
		_, err := s.BeginClose([]ident.SessionID{one}, false, store.ReasonAsked)
		return err
	})
	p.dead["b"] = true
	p.finish("b")
	p.admit("a", "t-1", 10*time.Second)
	p.in.Journal = append(p.in.Journal, checker.Call{Op: checker.OpClose, Key: agent, Session: one, Sent: p.now.Add(-time.Minute), Got: p.now})

	r := check(p.in)
	if len(r.Violations) > 0 || r.Count("changes without a record, by a killed relay") != 2 {
		t.Errorf("the history explains it:\n%s", r)
	}
	in := p.in
	in.History, in.Journal = nil, nil
	if r = check(in); len(r.Violations) > 0 || len(r.Unproven) != 1 || !strings.Contains(r.Unproven[0], string(one)) {
		t.Errorf("the audit alone leaves one thing in doubt:\n%s%q", r, r.Unproven)
	}
	for i := range in.Audit { // the same without a kill is no doubt
		if in.Audit[i].Relay == "b" && in.Audit[i].Seq > 1 {
			in.Audit[i].Event = audit.AgentGone
		}
	}
	if r = check(in); !r.Broken("admission") {
		t.Errorf("no relay was killed, so the tunnel never ended:\n%s", r)
	}
}

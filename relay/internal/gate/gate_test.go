package gate_test

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/gate"
	"github.com/adit-tunnel/adit/relay/internal/gate/gatetest"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

var (
	box  = ident.AgentKey{Team: "0b9d3d9e-64cf-4d2b-9f3c-0e1a3a5b0001", Agent: "gpu-1"}
	user = creds.Principal{Kind: creds.KindUser, Team: box.Team, User: "alice", Name: "user:alice"}
)

// relay is one relay of a pool: its gate, what it cut and told, and its records.
type relay struct {
	*gate.Gate
	local  *gatetest.Local
	audit  *gatetest.Audit
	before atomic.Pointer[func()] // called once, before this relay's next change of a record
	stop   func()
}

// view is a relay's way to the store.
type view struct {
	gatetest.View
	r *relay
}

// UpdateAgent implements gate.Store.
func (v view) UpdateAgent(ctx context.Context, key ident.AgentKey, change func(time.Time, *store.AgentRecord) (store.Effects, error)) (store.AgentRecord, error) {
	if before := v.r.before.Swap(nil); before != nil {
		(*before)()
	}
	return v.View.UpdateAgent(ctx, key, change)
}

type pool struct {
	t     *testing.T
	store *gatetest.Store
	audit *gatetest.Audit
}

func newPool(t *testing.T) *pool {
	return &pool{t: t, store: gatetest.NewStore(), audit: &gatetest.Audit{}}
}

// relay starts a relay whose clock is off by so much.
func (p *pool) relay(id ident.RelayID, off time.Duration, limits gate.Limits) *relay {
	p.t.Helper()
	r := &relay{local: gatetest.NewLocal(), audit: p.audit}
	g, err := gate.New(gate.Config{
		Store: view{gatetest.View{Store: p.store, Off: off}, r}, Local: r.local, Audit: p.audit, Relay: id,
		Key: ident.ClusterKey{1}, Limits: gatetest.Limits(limits), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		p.t.Fatal(err)
	}
	r.Gate = g
	p.store.SetRelay(id, true)
	ctx, cancel := context.WithCancel(p.t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	var once sync.Once
	r.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				p.t.Errorf("run: %v", err)
			}
		})
	}
	p.t.Cleanup(r.stop)
	synctest.Wait() // it follows the store from here on
	return r
}

// connect links the agent to a relay.
func (p *pool) connect(r *relay, id ident.RelayID, capacity int) {
	p.t.Helper()
	epoch, _, err := r.Connect(p.t.Context(), box, gate.Claim{Instance: "i", Capacity: capacity})
	if err != nil {
		p.t.Fatal(err)
	}
	p.store.SetPresence(store.Presence{Team: box.Team, Agent: box.Agent, Relay: id, Epoch: epoch})
}

func (r *relay) open(t *testing.T, spec gate.OpenSpec) gate.Opened {
	t.Helper()
	o, err := r.Open(t.Context(), user, box, spec)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return o
}

func (r *relay) admit(t *testing.T, task ident.TaskID, ttl time.Duration) (api.TaskLease, error) {
	t.Helper()
	return r.Admit(t.Context(), user, box, task, ttl, "")
}

func wantCode(t *testing.T, err error, want api.Code) *api.Problem {
	t.Helper()
	var p *api.Problem
	if !errors.As(err, &p) || p.Code != want {
		t.Fatalf("got %v, want a problem with code %s", err, want)
	}
	return p
}

func TestTunnelKeepsTasksOutUntilItIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t)
		r := p.relay("a", 0, gate.Limits{})
		p.connect(r, "a", 1)
		before, err := r.admit(t, "before", time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		o := r.open(t, gate.OpenSpec{Port: 8188})
		synctest.Wait()
		if o.Running != 1 {
			t.Errorf("running tasks: %d, want 1", o.Running)
		}
		if !r.AdminToken(o.Tunnel.Session).Matches(o.Tunnel.AdminHash) || len(r.AdminToken(o.Tunnel.Session)) != 44 {
			t.Error("the admin token is not the one whose hash is stored")
		}
		wantCode(t, second(r.admit(t, "during", time.Minute)), "agent_in_tunnel")
		if _, err := r.Renew(t.Context(), "x", box, "before", ident.Secret(before.LeaseToken), time.Minute); err != nil {
			t.Errorf("a lease that ran before the tunnel was not renewed: %v", err)
		}
		closed, err := r.Close(t.Context(), "user:alice", box, nil, true, store.ReasonAsked)
		if err != nil || !slices.Equal(closed, []ident.SessionID{o.Tunnel.Session}) {
			t.Fatalf("close: %v, %v", closed, err)
		}
		synctest.Wait() // what finishes a close records that by itself
		if _, ok := r.local.WasCut(o.Tunnel.Session); !ok {
			t.Error("the tunnel was closed and not cut")
		}
		if err := r.Release(t.Context(), "x", box, "before", ident.Secret(before.LeaseToken), true); err != nil {
			t.Fatal(err)
		}
		after, err := r.admit(t, "after", time.Minute)
		if err != nil {
			t.Fatalf("after the close: %v", err)
		}
		if after.FencingToken != before.FencingToken+1 {
			t.Errorf("fencing token %d after %d", after.FencingToken, before.FencingToken)
		}
		synctest.Wait()
		if opened, closed := r.local.Told(); !slices.Equal(opened, []ident.SessionID{o.Tunnel.Session}) || !slices.Equal(closed, opened) {
			t.Errorf("the agent was told of %v opened and %v closed", opened, closed)
		}
		// What two sides change is written by both, each when it gets to it: the order is
		// that of the revisions. A refusal changes nothing and has none.
		records := p.audit.Records()
		slices.SortStableFunc(records, func(a, b audit.Record) int { return cmp.Compare(a.Revision, b.Revision) })
		var got []audit.Event
		for _, r := range records {
			got = append(got, r.Event)
		}
		want := []audit.Event{
			audit.TaskRefused, audit.TaskAdmitted, audit.TunnelOpened, audit.TaskRenewed,
			audit.TunnelClosing, audit.TunnelClosed, audit.TaskReleased, audit.TaskAdmitted,
		}
		if !slices.Equal(got, want) {
			t.Errorf("audit is %v, want %v", got, want)
		}
	})
}

func second[T any](_ T, err error) error { return err }

func TestIdempotencyKeyReturnsTheSameSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t)
		r := p.relay("a", 0, gate.Limits{})
		p.connect(r, "a", 1)
		spec := gate.OpenSpec{Port: 8188, IdempotencyKey: "k", BodyHash: "h"}
		first := r.open(t, spec)
		p.store.DropPresence(box) // the answer is the same even when the agent went away
		again := r.open(t, spec)
		if again.Tunnel.Session != first.Tunnel.Session || !again.Again {
			t.Errorf("the repetition opened %s, want %s", again.Tunnel.Session, first.Tunnel.Session)
		}
		p.connect(r, "a", 1)
		spec.BodyHash = "other"
		_, err := r.Open(t.Context(), user, box, spec)
		wantCode(t, err, "idempotency_mismatch")
		other := user
		other.User = "bob"
		o, err := r.Open(t.Context(), other, box, spec)
		if err != nil || o.Tunnel.Session == first.Tunnel.Session {
			t.Errorf("another caller's key is the same key: %v", err)
		}
		spec.BodyHash = "h"
		if _, err := r.Close(t.Context(), "x", box, []ident.SessionID{first.Tunnel.Session}, false, "x"); err != nil {
			t.Fatal(err)
		}
		_, err = r.Open(t.Context(), user, box, spec)
		wantCode(t, err, "session_closed")
		time.Sleep(10 * time.Minute)
		if o := r.open(t, spec); o.Again {
			t.Error("the key was still remembered after 10 minutes")
		}
	})
}

func TestTwinsWithOneKeyOpenOneTunnel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t)
		a, b := p.relay("a", 0, gate.Limits{}), p.relay("b", 0, gate.Limits{})
		p.connect(a, "a", 1)
		var mu sync.Mutex
		got := map[ident.SessionID]int{}
		var wg sync.WaitGroup
		for i := range 8 {
			r := []*relay{a, b}[i%2]
			wg.Go(func() {
				o := r.open(t, gate.OpenSpec{Port: 1, IdempotencyKey: "k"})
				mu.Lock()
				defer mu.Unlock()
				got[o.Tunnel.Session]++
			})
		}
		wg.Wait()
		if rec, _ := p.store.Agent(box); len(got) != 1 || len(rec.Tunnels) != 1 {
			t.Errorf("8 calls with one key got %d sessions; %d are open", len(got), len(rec.Tunnels))
		}
	})
}

func TestWhenBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t)
		r := p.relay("a", 0, gate.Limits{})
		p.connect(r, "a", 2)
		lease, err := r.admit(t, "t", time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.Open(t.Context(), user, box, gate.OpenSpec{Port: 1, WhenBusy: api.BusyReject})
		if prob := wantCode(t, err, "agent_busy"); prob.RetryAfter <= 0 {
			t.Error("a refusal says not when to try again")
		}

		type result struct {
			o   gate.Opened
			err error
		}
		wait := func(ctx context.Context, limit time.Duration) <-chan result {
			ch := make(chan result, 1)
			go func() {
				o, err := r.Open(ctx, user, box, gate.OpenSpec{Port: 1, WhenBusy: api.BusyWait, WaitTimeout: limit})
				ch <- result{o, err}
			}()
			synctest.Wait()
			return ch
		}
		// It keeps tasks out at once, and opens when the last one ended.
		ch := wait(t.Context(), time.Hour)
		wantCode(t, second(r.admit(t, "u", time.Minute)), "agent_in_tunnel")
		if n := len(p.store.AgentTunnels(box)); n != 0 {
			t.Errorf("%d tunnels can be used while one waits", n)
		}
		if err := r.Release(t.Context(), "x", box, "t", ident.Secret(lease.LeaseToken), true); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		select {
		case got := <-ch:
			if got.err != nil || got.o.Running != 0 {
				t.Fatalf("opened with %d tasks: %v", got.o.Running, got.err)
			}
		default:
			t.Fatal("the last task ended and the tunnel still waits")
		}
		if _, err := r.Close(t.Context(), "x", box, nil, true, "x"); err != nil {
			t.Fatal(err)
		}
		// A lease that runs out ends the wait too, with the margin.
		if _, err = r.admit(t, "t", 10*time.Second); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		ch = wait(t.Context(), time.Hour)
		if got := <-ch; got.err != nil || time.Since(start) < 10*time.Second || time.Since(start) > 15*time.Second {
			t.Fatalf("opened after %v: %v", time.Since(start), got.err)
		}
		if _, err := r.Close(t.Context(), "x", box, nil, true, "x"); err != nil {
			t.Fatal(err)
		}
		// A caller that leaves, or whose time is over, keeps nobody out.
		for _, name := range []string{"leaves", "times out"} {
			if lease, err = r.admit(t, "t", time.Hour); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			ch = wait(ctx, time.Minute)
			if name == "leaves" {
				cancel()
			}
			got := <-ch
			cancel()
			if got.err == nil {
				t.Fatalf("%s: opened nevertheless", name)
			}
			if name == "times out" {
				wantCode(t, got.err, "agent_busy")
			}
			if _, err := r.admit(t, "v", 5*time.Second); err != nil {
				t.Errorf("%s: tasks are still kept out: %v", name, err)
			}
			if err := r.Release(t.Context(), "x", box, "t", ident.Secret(lease.LeaseToken), false); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
		}
	})
}

func TestCloseIsFinishedByTheRelayThatHoldsTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t)
		a, b := p.relay("a", 0, gate.Limits{}), p.relay("b", 0, gate.Limits{})
		p.connect(a, "a", 1)
		o := b.open(t, gate.OpenSpec{Port: 1})
		start := time.Now()
		if _, err := b.Close(t.Context(), "x", box, nil, true, "asked"); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d > 100*time.Millisecond {
			t.Errorf("the close took %v", d)
		}
		if _, ok := a.local.WasCut(o.Tunnel.Session); !ok {
			t.Error("the holder did not cut")
		}
		if rec, _ := p.store.Agent(box); len(rec.Tunnels) != 0 {
			t.Errorf("not finished: %v", rec.Tunnels)
		}
		last := p.audit.Records()[len(p.audit.Records())-1]
		if last.Event != audit.TunnelClosed || last.Actor != "relay:a" {
			t.Errorf("finished by %s with %s, want relay:a with tunnel_closed", last.Actor, last.Event)
		}

		// With the holder dead, tasks stay out until its lease and the grace are over.
		o = b.open(t, gate.OpenSpec{Port: 1})
		a.stop()
		start = time.Now()
		if ids, err := b.Close(t.Context(), "x", box, nil, true, "asked"); err != nil || len(ids) != 1 {
			t.Fatal(ids, err)
		}
		if d := time.Since(start); d != time.Second {
			t.Errorf("waited %v for a relay that does not answer, want 1s", d)
		}
		wantCode(t, second(b.admit(t, "t", time.Minute)), "agent_in_tunnel")
		p.store.SetRelay("a", false)
		time.Sleep(time.Second)
		wantCode(t, second(b.admit(t, "t", time.Minute)), "agent_in_tunnel")
		time.Sleep(3 * time.Second)
		if _, err := b.admit(t, "t", time.Minute); err != nil {
			t.Errorf("after the grace: %v", err)
		}
		if _, ok := b.local.WasCut(o.Tunnel.Session); !ok {
			t.Error("the other relay did not cut its own users")
		}
	})
}

func TestStoreAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t)
		a := p.relay("a", 0, gate.Limits{})
		p.connect(a, "a", 1)
		o := a.open(t, gate.OpenSpec{Port: 1, ExpiresIn: 10 * time.Minute})
		p.store.SetDown(true)
		_, err := a.Open(t.Context(), user, box, gate.OpenSpec{Port: 1})
		if prob := wantCode(t, err, "store_unavailable"); prob.Status != 503 || prob.RetryAfter <= 0 {
			t.Errorf("status %d, retry after %v", prob.Status, prob.RetryAfter)
		}
		wantCode(t, second(a.admit(t, "t", time.Minute)), "store_unavailable")
		time.Sleep(10*time.Minute + time.Second)
		if _, ok := a.local.WasCut(o.Tunnel.Session); !ok {
			t.Error("the tunnel outlives its end while the store is away")
		}
		p.store.SetDown(false)
		time.Sleep(2 * time.Second)
		if _, err := a.admit(t, "t", time.Minute); err != nil {
			t.Errorf("with the store back: %v", err)
		}
	})
}

func TestLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t)
		a := p.relay("a", 0, gate.Limits{PerAgent: 2, PerTeam: 3, OpensPerSecond: 1, OpensBurst: 5})
		p.connect(a, "a", 1)
		a.open(t, gate.OpenSpec{Port: 1})
		a.open(t, gate.OpenSpec{Port: 1})
		_, err := a.Open(t.Context(), user, box, gate.OpenSpec{Port: 1})
		if prob := wantCode(t, err, "agent_tunnel_limit"); prob.Status != 429 || prob.RetryAfter <= 0 {
			t.Errorf("status %d, retry after %v", prob.Status, prob.RetryAfter)
		}
		other := ident.AgentKey{Team: box.Team, Agent: "gpu-2"}
		if _, _, err := a.Connect(t.Context(), other, gate.Claim{Instance: "j"}); err != nil {
			t.Fatal(err)
		}
		p.store.SetPresence(store.Presence{Team: other.Team, Agent: other.Agent, Epoch: 1})
		if _, err := a.Open(t.Context(), user, other, gate.OpenSpec{Port: 1}); err != nil {
			t.Fatal(err)
		}
		_, err = a.Open(t.Context(), user, other, gate.OpenSpec{Port: 1})
		wantCode(t, err, "team_tunnel_limit")
		_, err = a.Open(t.Context(), user, box, gate.OpenSpec{Port: 1})
		if prob := wantCode(t, err, "too_many_opens"); prob.RetryAfter.D() != time.Second {
			t.Errorf("retry after %v, want 1s", prob.RetryAfter)
		}
		if _, err := a.Close(t.Context(), "x", box, nil, true, "x"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		time.Sleep(time.Second)
		a.open(t, gate.OpenSpec{Port: 1})
	})
}

func TestUnknownAndOfflineAgents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t)
		a := p.relay("a", 0, gate.Limits{})
		_, err := a.Open(t.Context(), user, box, gate.OpenSpec{Port: 1})
		wantCode(t, err, "agent_not_found")
		wantCode(t, second(a.admit(t, "t", time.Minute)), "agent_not_found")
		p.connect(a, "a", 1)
		p.store.SetPresence(store.Presence{Team: box.Team, Agent: box.Agent, GoneSince: time.Now()})
		_, err = a.Open(t.Context(), user, box, gate.OpenSpec{Port: 1})
		if prob := wantCode(t, err, "agent_offline"); prob.Hop != api.HopLink {
			t.Errorf("hop %q, want link", prob.Hop)
		}
		wantCode(t, second(a.admit(t, "t", time.Minute)), "agent_offline")
		p.connect(a, "a", 1)
		rec, _ := p.store.Agent(box)
		if err := a.Declare(t.Context(), box, rec.Epoch, wire.State{Paused: true}, ""); err != nil {
			t.Fatal(err)
		}
		_, err = a.Open(t.Context(), user, box, gate.OpenSpec{Port: 1})
		wantCode(t, err, "agent_paused")
		if err := a.Declare(t.Context(), box, rec.Epoch-1, wire.State{}, ""); !errors.Is(err, gate.ErrSuperseded) {
			t.Errorf("an older generation declared: %v", err)
		}
	})
}

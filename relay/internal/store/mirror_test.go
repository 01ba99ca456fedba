package store_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/testkit"
)

// Who was told of a tunnel finds it on every relay, at once.
func TestMissIsConfirmed(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		a, b := w.relay(), w.relay()
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				key := ident.AgentKey{Team: teamA, Agent: ident.AgentID(fmt.Sprintf("gpu-%d", i))}
				for range 15 {
					tu := tunnelOf(key, time.Now())
					if !insist(t, "open", func() error { _, err := a.UpdateAgent(t.Context(), key, open(tu)); return err }) ||
						!insist(t, "catch up", func() error { return b.CatchUp(t.Context()) }) {
						return
					}
					if _, ok := b.Tunnel(tu.Session); !ok {
						t.Error("the other relay does not know a tunnel that was answered before it was asked")
					}
				}
			})
		}
		wg.Wait()
	})
}

// The store's revision may belong to keys that are not ours, or to none that we
// keep: a miss is confirmed nevertheless.
func TestCatchUpPastForeignKeys(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		s := w.relay()
		raw := w.raw()
		for range 5 {
			if _, err := raw.Put(t.Context(), "/somebody/else", "x"); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
			err := s.CatchUp(ctx)
			cancel()
			if err != nil {
				t.Fatalf("catching up past a foreign key: %v", err)
			}
		}
	})
}

// A relay that was cut off while the history it needs was compacted has the same
// state as the others when it is back, and its subscribers heard of each change.
func TestCompactionDuringBrokenWatch(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		a := w.relay()
		cable := newWire()
		b := w.relay(on(cable), withTTL(60*time.Second))
		stays, changes, goes := tunnelOf(gpu1, time.Now()), tunnelOf(gpu1, time.Now()), tunnelOf(gpu1, time.Now())
		for _, tu := range []store.TunnelRecord{stays, changes, goes} {
			if _, err := a.UpdateAgent(t.Context(), gpu1, open(tu)); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		sub := b.Subscribe(100)
		defer sub.Close()

		cable.cut()
		cable.drop()
		lists := b.Lists()
		fresh := tunnelOf(gpu1, time.Now())
		for _, change := range []func(time.Time, *store.AgentRecord) (store.Effects, error){shut(goes.Session), open(fresh)} {
			if _, err := a.UpdateAgent(t.Context(), gpu1, change); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := a.UpdateTunnel(t.Context(), changes.Session, func(r *store.TunnelRecord) error { r.App = "jupyter"; return nil }); err != nil {
			t.Fatal(err)
		}
		raw := w.raw()
		g, err := raw.Get(t.Context(), "x")
		if err == nil {
			_, err = raw.Compact(t.Context(), g.Header.Revision, clientv3.WithCompactPhysical())
		}
		if err != nil {
			t.Fatal(err)
		}
		cable.mend()

		want := map[string]bool{
			"tunnel " + string(goes.Session) + " deleted": true, "tunnel " + string(fresh.Session): true,
			"tunnel " + string(changes.Session): true, "agent gpu-1": true,
		}
		deadline := time.After(testkit.Patience)
		for len(want) > 0 {
			select {
			case c := <-sub.C():
				name := string(c.Kind) + " " + string(c.Session)
				if c.Kind == store.KindAgent {
					name = "agent " + string(c.Key.Agent)
				}
				if c.Deleted {
					name += " deleted"
				}
				if c.Session == stays.Session {
					t.Error("a subscriber was told of a tunnel that did not change")
				}
				delete(want, name)
			case <-deadline:
				t.Fatalf("a subscriber did not hear of %v", want)
			}
		}
		if b.Lists() == lists {
			t.Error("the watch went on past the compaction: this test tests nothing")
		}
		if _, ok := b.Tunnel(goes.Session); ok {
			t.Error("a tunnel that was closed meanwhile is still there")
		}
		if r, _ := b.Tunnel(changes.Session); r.App != "jupyter" {
			t.Errorf("a changed tunnel is %+v", r)
		}
		if got := b.AgentTunnels(gpu1); len(got) != 3 {
			t.Errorf("the agent has %d tunnels, expected 3", len(got))
		}
	})
}

// A relay that hears nothing grants nothing, and goes on with what it knows.
func TestSilenceIsStale(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		a := w.relay()
		cable := newWire()
		b := w.relay(on(cable), withTTL(60*time.Second), prepared(func(s *store.Store) { s.SetStaleAfter(1500 * time.Millisecond) }))
		tu := tunnelOf(gpu1, time.Now())
		if _, err := b.UpdateAgent(t.Context(), gpu1, open(tu)); err != nil {
			t.Fatal(err)
		}
		if err := b.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		cable.cut()
		testkit.Eventually(t, "the relay notices the silence", func() bool { return b.Status().Stale })
		start := time.Now()
		if _, err := b.UpdateAgent(t.Context(), gpu1, add); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("a change while stale gave %v, expected ErrUnavailable", err)
		}
		testkit.Took(t, "refusing while stale", time.Since(start), time.Second)
		if _, ok := b.Tunnel(tu.Session); !ok {
			t.Error("a stale relay forgot an open tunnel")
		}
		testkit.Eventually(t, "the status says why", func() bool { st := b.Status(); return !st.Quorum && st.Detail != "" })
		other := tunnelOf(gpu1, time.Now())
		if _, err := a.UpdateAgent(t.Context(), gpu1, open(other)); err != nil {
			t.Fatal(err)
		}
		cable.mend()
		testkit.Eventually(t, "the relay is back and up to date", func() bool {
			_, ok := b.Tunnel(other.Session)
			st := b.Status()
			return ok && !st.Stale && st.Quorum
		})
		if _, err := b.UpdateAgent(t.Context(), gpu1, add); err != nil {
			t.Errorf("a change after the silence: %v", err)
		}
	})
}

// Records that nobody can read stop nothing.
func TestUnreadableRecord(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		s := w.relay()
		raw := w.raw()
		for _, key := range []string{store.TunnelKey("0"), store.AgentKey(ident.AgentKey{Team: "x", Agent: "y"}), store.Root + "unknown/kind", store.Root + "loose", store.Root + "agent/halfname"} {
			if _, err := raw.Put(t.Context(), key, "{broken"); err != nil {
				t.Fatal(err)
			}
		}
		tu := tunnelOf(gpu1, time.Now())
		if _, err := s.UpdateAgent(t.Context(), gpu1, open(tu)); err != nil {
			t.Fatal(err)
		}
		if err := s.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, ok := s.Tunnel(tu.Session); !ok {
			t.Error("after unreadable records the mirror stood still")
		}
	})
}

// A thousand changes a second: the mirror keeps up, a subscriber that does is told
// of all, one that does not is told that it lost some.
func TestThousandEventsASecond(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		s := w.relay()
		raw := w.raw()
		fast, slow := s.Subscribe(4096), s.Subscribe(1)
		defer fast.Close()
		defer slow.Close()
		const total, perTxn = 3000, 50
		start := time.Now()
		tick := time.NewTicker(perTxn * time.Millisecond)
		defer tick.Stop()
		var last int64
		var sessions []ident.SessionID
		var worst time.Duration
		for range total / perTxn {
			<-tick.C
			var ops []clientv3.Op
			for range perTxn {
				tu := tunnelOf(gpu1, time.Now())
				sessions = append(sessions, tu.Session)
				value, err := json.Marshal(tu)
				if err != nil {
					t.Fatal(err)
				}
				ops = append(ops, clientv3.OpPut(store.TunnelKey(tu.Session), string(value)))
			}
			r, err := raw.Txn(t.Context()).Then(ops...).Commit()
			if err != nil {
				t.Fatal(err)
			}
			last = r.Header.Revision
			written := time.Now()
			if err := s.WaitRevision(t.Context(), last); err != nil {
				t.Fatal(err)
			}
			worst = max(worst, time.Since(written))
		}
		t.Logf("%d events in %s, the mirror was at most %s behind", total, time.Since(start).Round(time.Millisecond), worst.Round(time.Microsecond))
		if worst > 5*time.Second {
			t.Errorf("the mirror was %s behind", worst)
		}
		if got := s.AgentTunnels(gpu1); len(got) != total {
			t.Errorf("the mirror has %d tunnels, expected %d", len(got), total)
		}
		told := map[ident.SessionID]bool{}
		for len(told) < total {
			select {
			case c := <-fast.C():
				told[c.Session] = true
			case <-time.After(testkit.Patience):
				t.Fatalf("a subscriber heard of %d changes, expected %d", len(told), total)
			}
		}
		if fast.Lost() {
			t.Error("a subscriber that kept up lost changes")
		}
		if <-slow.C(); !slow.Lost() || slow.Lost() {
			t.Error("a subscriber that did not keep up was not told so, once")
		}
		if !slices.ContainsFunc(sessions, func(id ident.SessionID) bool { _, ok := s.Tunnel(id); return ok }) {
			t.Error("no tunnel is found by its id")
		}
	})
}

func TestSubscriptionEnds(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		s, stop := w.relayWith()
		closed, ends := s.Subscribe(1), s.Subscribe(1)
		closed.Close()
		closed.Close()
		if _, ok := <-closed.C(); ok {
			t.Error("a closed subscription still sends")
		}
		start := time.Now()
		stop()
		testkit.Took(t, "stopping with everything open", time.Since(start), 3*time.Second)
		for range ends.C() { // the relay's own record may have been sent
		}
		ends.Close()
		if _, ok := <-s.Subscribe(1).C(); ok {
			t.Error("a subscription to a stopped store sends")
		}
		if _, err := s.UpdateAgent(t.Context(), gpu1, add); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("a change in a stopped store gave %v, expected ErrUnavailable", err)
		}
		if err := s.CatchUp(t.Context()); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("catching up with a stopped store gave %v, expected ErrUnavailable", err)
		}
	})
}

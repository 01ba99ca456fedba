package store_test

import (
	"context"
	"errors"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/testkit"
)

// A relay that is cut off stops serving before the others see it gone; back again
// it has a new lease, and its agents' presences are to be put again.
func TestFencingComesFirst(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		a := w.relay()
		cable := newWire()
		b := w.relay(on(cable), withTTL(3*time.Second))
		setEpoch(t, b, gpu1, 1)
		if err := b.PutPresence(t.Context(), presenceOf(gpu1, 1)); err != nil {
			t.Fatal(err)
		}
		if err := a.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, ok := a.Relay("relay-2"); !ok || !b.Serving() {
			t.Fatal("the relay is not known to the other one")
		}
		gone := make(chan time.Time, 1)
		wctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		watch := w.raw().Watch(wctx, store.RelayKey("relay-2"))
		go func() {
			defer close(gone)
			for r := range watch {
				for _, ev := range r.Events {
					if ev.Type == clientv3.EventTypeDelete {
						gone <- time.Now()
						return
					}
				}
			}
		}()

		fenced := b.Fenced()
		select {
		case <-fenced:
			t.Fatal("fenced without a reason")
		default:
		}
		cable.cut()
		var fencedAt time.Time
		select {
		case <-fenced:
			fencedAt = time.Now()
		case <-time.After(testkit.Patience):
			t.Fatal("a relay that is cut off is never fenced")
		}
		if b.Serving() {
			t.Error("a fenced relay says that it serves")
		}
		if err := b.PutPresence(t.Context(), presenceOf(gpu1, 1)); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("putting a presence while fenced gave %v, expected ErrUnavailable", err)
		}
		if _, err := b.UpdateAgent(t.Context(), gpu1, add); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("a change while fenced gave %v, expected ErrUnavailable", err)
		}
		select {
		case at := <-gone:
			if !at.After(fencedAt) {
				t.Errorf("the lease was over %s before the relay was fenced", fencedAt.Sub(at))
			}
			t.Logf("fenced %s before the lease was over", at.Sub(fencedAt).Round(time.Millisecond))
		case <-time.After(testkit.Patience):
			t.Fatal("the relay's record outlives its lease")
		}
		testkit.Eventually(t, "the other relay sees neither the relay nor its agents", func() bool {
			_, relay := a.Relay("relay-2")
			_, agent := a.Presence(gpu1)
			return !relay && !agent
		})

		cable.mend()
		ctx, cancelWait := context.WithTimeout(t.Context(), testkit.Patience)
		defer cancelWait()
		if err := b.WaitServing(ctx); err != nil {
			t.Fatalf("the relay does not recover: %v", err)
		}
		select {
		case <-b.Fenced():
			t.Error("after recovery the relay is still fenced")
		default:
		}
		testkit.Eventually(t, "the relay's agents can be put again", func() bool {
			return b.PutPresence(t.Context(), presenceOf(gpu1, 1)) == nil
		})
		testkit.Eventually(t, "the other relay sees them again", func() bool {
			_, relay := a.Relay("relay-2")
			_, agent := a.Presence(gpu1)
			return relay && agent
		})
	})
}

// A lease that somebody took away fences at the next renewal.
func TestLostLease(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		s := w.relay(withTTL(3 * time.Second))
		fenced := s.Fenced()
		leases, err := s.Client().Leases(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range leases.Leases {
			if _, err := s.Client().Revoke(t.Context(), l.ID); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case <-fenced:
		case <-time.After(testkit.Patience):
			t.Fatal("a relay without its lease goes on serving")
		}
		testkit.Eventually(t, "it gets a new one", func() bool {
			_, ok := s.Relay("relay-1")
			return s.Serving() && ok
		})
	})
}

// Without a fault a lease holds far beyond its TTL.
func TestLeaseIsKept(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		s := w.relay(withTTL(2 * time.Second))
		other := w.relay()
		select {
		case <-s.Fenced():
			t.Error("fenced without a fault")
		case <-time.After(5 * time.Second):
		}
		if _, ok := other.Relay("relay-1"); !ok || !s.Serving() {
			t.Error("the relay is gone without a fault")
		}
	})
}

func TestDrainingAndLeaving(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		a := w.relay()
		b, stop := w.relayWith()
		setEpoch(t, b, gpu1, 1)
		if err := b.PutPresence(t.Context(), presenceOf(gpu1, 1)); err != nil {
			t.Fatal(err)
		}
		if err := b.SetDraining(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		if err := a.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if r, ok := a.Relay("relay-2"); !ok || !r.Draining {
			t.Errorf("the draining relay is %+v, %v", r, ok)
		}
		if n := len(a.Relays()); n != 2 {
			t.Errorf("there are %d relays, expected 2", n)
		}
		fenced := b.Fenced()
		stop()
		select {
		case <-fenced:
		default:
			t.Error("a stopped relay is not fenced")
		}
		if err := a.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, ok := a.Relay("relay-2"); ok {
			t.Error("a relay that left is still there")
		}
		if _, ok := a.Presence(gpu1); !ok {
			t.Error("the agents of a relay that left vanish at once, expected them to stay for the lease's time")
		}
	})
}

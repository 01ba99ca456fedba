package store_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Who waits at a tunnel is known at every relay, with the answer, and ends by itself.
func TestKnocksInTheMirror(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		a, b := w.relay(), w.relay()
		sub := b.Subscribe(100)
		defer sub.Close()
		one, other := ident.NewSessionID(), ident.NewSessionID()
		for i, s := range []ident.SessionID{one, one, other} {
			if err := a.CreateKnock(t.Context(), store.KnockRecord{ID: fmt.Sprint("k", i), Session: s, Name: "Alice", ExpiresAt: time.Now().Add(time.Hour)}); err != nil {
				t.Fatal(err)
			}
		}
		upToDate(t, b)
		if n, m := len(b.Knocks(one)), len(b.Knocks(other)); n != 2 || m != 1 {
			t.Errorf("%d and %d wait at the tunnels, want 2 and 1", n, m)
		}
		c := <-sub.C()
		for c.Kind != store.KindKnock { // the relays' own records
			c = <-sub.C()
		}
		if c.Session != one || c.Name != string(one)+"/k0" || c.Deleted {
			t.Errorf("the first change is %+v", c)
		}
		if _, err := b.ChangeKnock(t.Context(), one, "k1", func(k *store.KnockRecord) error { k.Answer = "admitted"; return nil }); err != nil {
			t.Fatal(err)
		}
		upToDate(t, a)
		if k, ok := a.Knock(one, "k1"); !ok || k.Answer != "admitted" || k.Name != "Alice" || k.Session != one {
			t.Errorf("the answered one is %+v, %v", k, ok)
		}
		if _, err := b.ChangeKnock(t.Context(), other, "k1", func(*store.KnockRecord) error { return nil }); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("a knock of another tunnel is changed: %v", err)
		}
	})
}

// No number of relays at once loses a wrong PIN, and the count ends by itself.
func TestPINTriesAreCountedOnce(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		relays := []*store.Store{w.relay(), w.relay()}
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				insist(t, "count a wrong PIN", func() error {
					_, err := relays[i%2].ChangePINTries(t.Context(), "tunnel/x", func(r *store.PINTriesRecord) error { r.Version = 7; r.Wrong++; return nil })
					return err
				})
			})
		}
		wg.Wait()
		got, err := relays[0].ChangePINTries(t.Context(), "tunnel/x", func(*store.PINTriesRecord) error { return store.ErrUnchanged })
		// One whose answer did not come in time may have been counted, and is again.
		if err != nil || got.Wrong < 10 || got.Version != 7 {
			t.Errorf("10 wrong PINs are counted as %+v, %v", got, err)
		}
		if other, err := relays[1].ChangePINTries(t.Context(), "link/x", func(*store.PINTriesRecord) error { return store.ErrUnchanged }); err != nil || other.Wrong != 0 {
			t.Errorf("a link shares the count of a tunnel: %+v, %v", other, err)
		}
	})
}

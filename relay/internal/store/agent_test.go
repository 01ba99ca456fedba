package store_test

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
)

func TestUpdateAgent(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		s := w.relay()
		r, err := s.UpdateAgent(t.Context(), gpu1, add)
		if err != nil {
			t.Fatal(err)
		}
		if r.N != 1 || r.Fencing != 1 || len(r.Nonce) != 32 {
			t.Errorf("the first change gave %+v, expected N and Fencing 1 and a nonce", r)
		}
		older := tunnelOf(gpu1, time.Now().Add(-time.Minute))
		newer := tunnelOf(gpu1, time.Now())
		for _, tu := range []store.TunnelRecord{newer, older} {
			if _, err := s.UpdateAgent(t.Context(), gpu1, open(tu)); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, ok := s.Tunnel(older.Session); !ok || got.AdminHash != older.AdminHash || !got.OpenedAt.Equal(older.OpenedAt) {
			t.Errorf("the tunnel reads as %+v, expected what was opened: %+v", got, older)
		}
		if got := s.AgentTunnels(gpu1); len(got) != 2 || got[0].Session != newer.Session {
			t.Errorf("the agent's tunnels are %v, expected the newest first", got)
		}
		if got, ok := s.Agent(gpu1); !ok || len(got.Tunnels) != 2 || got.N != 3 {
			t.Errorf("the agent's record is %+v, expected two tunnels after three changes", got)
		}

		if _, err := s.UpdateAgent(t.Context(), gpu1, shut(older.Session)); err != nil {
			t.Fatal(err)
		}
		if err := s.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, ok := s.Tunnel(older.Session); ok {
			t.Error("a removed tunnel is still there")
		}
		if got := s.AgentTunnels(gpu1); len(got) != 1 || got[0].Session != newer.Session {
			t.Errorf("the agent's tunnels are %v, expected only the other one", got)
		}
		// The empty record stays: its epoch must survive.
		if r, err := s.UpdateAgent(t.Context(), gpu1, shut(newer.Session)); err != nil || r.N != 5 {
			t.Fatalf("closing the last tunnel: %+v, %v", r, err)
		}
		if err := s.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, ok := s.Agent(gpu1); !ok || got.Fencing != 1 {
			t.Errorf("the record of an agent without tunnels is %+v, %v; expected it kept", got, ok)
		}
	})
}

func TestUpdateAgentRefusals(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		s := w.relay()
		if _, err := s.UpdateAgent(t.Context(), gpu1, add); err != nil {
			t.Fatal(err)
		}
		no := errors.New("no")
		r, err := s.UpdateAgent(t.Context(), gpu1, func(_ time.Time, r *store.AgentRecord) (store.Effects, error) {
			r.Fencing = 99
			r.Tunnels["x"] = store.TunnelState{}
			return store.Effects{}, no
		})
		if err != no || r.Fencing != 1 || len(r.Tunnels) != 0 {
			t.Errorf("a change that refuses gave %+v, %v; expected its own error and the record as it was", r, err)
		}
		r, err = s.UpdateAgent(t.Context(), gpu1, func(_ time.Time, r *store.AgentRecord) (store.Effects, error) {
			r.Fencing = 99
			return store.Effects{}, store.ErrUnchanged
		})
		if err != nil || r.Fencing != 1 || r.N != 1 {
			t.Errorf("a change with nothing to change gave %+v, %v; expected success and the record as it was", r, err)
		}
		missing := tunnelOf(gpu1, time.Now()).Session
		_, err = s.UpdateAgent(t.Context(), gpu1, func(_ time.Time, r *store.AgentRecord) (store.Effects, error) {
			return store.Effects{EditTunnels: edits(missing, func(*store.TunnelRecord) {})}, nil
		})
		if !errors.Is(err, store.ErrNotFound) {
			t.Errorf("editing a tunnel that is gone gave %v, expected ErrNotFound", err)
		}
	})
}

// Extending a tunnel must not undo what probing found meanwhile.
func TestEditTunnels(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		s := w.relay()
		tu := tunnelOf(gpu1, time.Now())
		if _, err := s.UpdateAgent(t.Context(), gpu1, open(tu)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.UpdateTunnel(t.Context(), tu.Session, func(r *store.TunnelRecord) error { r.App = "comfyui"; return nil }); err != nil {
			t.Fatal(err)
		}
		later := tu.ExpiresAt.Add(time.Hour)
		_, err := s.UpdateAgent(t.Context(), gpu1, func(_ time.Time, r *store.AgentRecord) (store.Effects, error) {
			return store.Effects{EditTunnels: edits(tu.Session, func(r *store.TunnelRecord) { r.ExpiresAt = later; r.Agent = "other" })}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		got, _ := s.Tunnel(tu.Session)
		if got.App != "comfyui" || !got.ExpiresAt.Equal(later) || got.Agent != gpu1.Agent {
			t.Errorf("the tunnel is %+v, expected both changes and its own names", got)
		}
		if _, err := s.UpdateTunnel(t.Context(), "0123", func(*store.TunnelRecord) error { return nil }); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("changing a tunnel that is gone gave %v, expected ErrNotFound", err)
		}
	})
}

// No change of anybody is lost or done twice, however many relays and callers
// change one agent at once.
func TestConcurrentChanges(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		stores := []*store.Store{w.relay(), w.relay()}
		const callers, each = 6, 10
		var wg sync.WaitGroup
		for _, s := range stores {
			for range callers {
				wg.Go(func() {
					for range each {
						if _, err := s.UpdateAgent(t.Context(), gpu1, add); err != nil {
							t.Errorf("change: %v", err)
						}
					}
				})
			}
		}
		wg.Wait()
		want := uint64(len(stores) * callers * each)
		for i, s := range stores {
			if err := s.CatchUp(t.Context()); err != nil {
				t.Fatal(err)
			}
			if r, _ := s.Agent(gpu1); r.Fencing != want || r.N != want {
				t.Errorf("relay %d sees %d changes counted and N %d, expected %d", i, r.Fencing, r.N, want)
			}
		}
	})
}

func TestOnce(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		shift := time.Duration(0)
		s := w.relay(withNow(func() time.Time { return time.Now().Add(shift) }))
		once := func(value string, err error) (store.AgentRecord, error) {
			return s.UpdateAgent(t.Context(), gpu1, func(_ time.Time, r *store.AgentRecord) (store.Effects, error) {
				r.Fencing++
				return store.Effects{Once: &store.Once{Key: "caller/key", Value: value, TTL: time.Minute}}, err
			})
		}
		if _, err := once("first", nil); err != nil {
			t.Fatal(err)
		}
		for _, refusal := range []error{nil, errors.New("limit reached")} {
			var again *store.OnceError
			if _, err := once("second", refusal); !errors.As(err, &again) || again.Value != "first" {
				t.Errorf("the second time (own error %v) gave %v, expected the first value", refusal, err)
			}
		}
		if v, ok, err := s.OnceValue(t.Context(), "caller/key"); v != "first" || !ok || err != nil {
			t.Errorf("the value reads as %q, %v, %v", v, ok, err)
		}
		if err := s.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if r, _ := s.Agent(gpu1); r.Fencing != 1 {
			t.Errorf("%d changes were made, expected one", r.Fencing)
		}
		leases, err := s.Client().Leases(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(leases.Leases) > 2 { // the relay's and that of the first value
			t.Errorf("%d leases are left, expected those of repetitions given back", len(leases.Leases))
		}
		shift = 2 * time.Minute
		if _, err := once("later", nil); err != nil {
			t.Errorf("after its time a key gave %v, expected it to be free", err)
		}
	})
}

package store_test

import (
	"sync"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
)

func always(time.Time, store.AgentRecord) bool { return true }

// However removals and returns of agents race, through two relays: no generation and
// no fencing token is given twice.
func TestRemovedAgentsCountOn(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		relays := []*store.Store{w.relay(), w.relay()}
		const rounds = 60
		gpu2 := ident.AgentKey{Team: teamA, Agent: "gpu-2"}
		var mu sync.Mutex
		type counts map[ident.AgentKey]map[uint64]int
		epochs, tokens, changes := counts{gpu1: {}, gpu2: {}}, counts{gpu1: {}, gpu2: {}}, counts{gpu1: {}, gpu2: {}}
		var wg sync.WaitGroup
		for i, s := range relays {
			for _, key := range []ident.AgentKey{gpu1, gpu2} {
				wg.Go(func() {
					for range rounds {
						var r store.AgentRecord
						if !insist(t, "an agent that comes back while it is removed", func() (err error) {
							r, err = s.UpdateAgent(t.Context(), key, func(_ time.Time, r *store.AgentRecord) (store.Effects, error) {
								r.Epoch++
								r.Fencing++
								return store.Effects{}, nil
							})
							return err
						}) {
							return
						}
						mu.Lock()
						epochs[key][r.Epoch]++
						tokens[key][r.Fencing]++
						changes[key][r.N]++
						mu.Unlock()
					}
				})
				if i == 0 {
					wg.Go(func() {
						for range rounds {
							insist(t, "remove an agent", func() error { return s.RemoveAgent(t.Context(), key, always) })
						}
					})
				}
			}
		}
		wg.Wait()
		for key := range epochs {
			if a, b, c := len(epochs[key]), len(tokens[key]), len(changes[key]); a != 2*rounds || b != 2*rounds || c != 2*rounds {
				t.Errorf("%d connects of %s got %d generations, %d fencing tokens, %d numbers of changes", 2*rounds, key, a, b, c)
			}
		}
		if err := relays[0].RemoveAgent(t.Context(), gpu1, always); err != nil {
			t.Fatal(err)
		}
		if err := relays[1].CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, ok := relays[1].Agent(gpu1); ok {
			t.Error("a removed agent is still known to the other relay")
		}
	})
}

// A team's removal is no way to fencing tokens that were given before.
func TestDeletedAgentsCountOn(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		s := w.relay()
		count := func() store.AgentRecord {
			r, err := s.UpdateAgent(t.Context(), gpu1, func(_ time.Time, r *store.AgentRecord) (store.Effects, error) {
				r.Epoch++
				r.Fencing += 7
				return store.Effects{}, nil
			})
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		before := count()
		if err := s.DeleteAgent(t.Context(), gpu1); err != nil {
			t.Fatal(err)
		}
		if after := count(); after.Fencing != before.Fencing+7 || after.Epoch != before.Epoch+1 || after.N <= before.N {
			t.Errorf("it had %+v and comes back with %+v", before, after)
		}
	})
}

func TestWhoIsNotRemoved(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		s := w.relay()
		there := func() bool {
			if err := s.CatchUp(t.Context()); err != nil {
				t.Fatal(err)
			}
			_, ok := s.Agent(gpu1)
			return ok
		}
		setEpoch(t, s, gpu1, 1)
		if err := s.RemoveAgent(t.Context(), gpu1, func(time.Time, store.AgentRecord) bool { return false }); err != nil || !there() {
			t.Errorf("an agent that is not to go is there: %v, %v", there(), err)
		}
		if err := s.PutPresence(t.Context(), store.Presence{Team: gpu1.Team, Agent: gpu1.Agent, Epoch: 1}); err != nil {
			t.Fatal(err)
		}
		if err := s.RemoveAgent(t.Context(), gpu1, always); err != nil || !there() {
			t.Errorf("a connected agent is there: %v, %v", there(), err)
		}
		raw := w.raw()
		if _, err := raw.Delete(t.Context(), store.PresenceKey(gpu1)); err != nil {
			t.Fatal(err)
		}
		// A relay of the last release would begin the next record at nothing.
		if _, err := raw.Put(t.Context(), store.RelayKey("relay-of-the-last-release"), `{"id":"relay-of-the-last-release","version":"v1"}`); err != nil {
			t.Fatal(err)
		}
		if err := s.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.RemoveAgent(t.Context(), gpu1, always); err != nil || !there() {
			t.Errorf("beside a relay of the last release, the agent is there: %v, %v", there(), err)
		}
		if _, err := raw.Delete(t.Context(), store.RelayKey("relay-of-the-last-release")); err != nil {
			t.Fatal(err)
		}
		if err := s.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := s.AgentCount(teamA); n != 1 {
			t.Errorf("the team has %d agents, should have 1", n)
		}
		if err := s.RemoveAgent(t.Context(), gpu1, always); err != nil || there() {
			t.Errorf("an agent that is gone is there: %v, %v", there(), err)
		}
		if n := s.AgentCount(teamA); n != 0 {
			t.Errorf("the team has %d agents, should have none", n)
		}
	})
}

package link

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

// ownedFlow is a stream as the ledger sees it.
type ownedFlow struct {
	account  *account
	promised int64
}

// What is promised adds up, at every level, to what its streams were promised; nobody
// gets more than a part of what is free; and who is gone leaves nothing.
func TestPromisesAddUpAndAreShared(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := NewBudget(64 << 20)
		var flows []*ownedFlow
		sums := func() map[*account]int64 {
			m := map[*account]int64{}
			for _, f := range flows {
				for a := f.account; a != nil; a = a.up {
					m[a] += f.promised
				}
			}
			return m
		}
		t.Repeat(map[string]func(*rapid.T){
			"open": func(t *rapid.T) {
				name := func(what string) string { return fmt.Sprint(rapid.IntRange(0, 2).Draw(t, what)) }
				flows = append(flows, &ownedFlow{account: b.addStream(Owner{name("tenant"), name("agent"), name("tunnel")})})
			},
			"grow": func(t *rapid.T) {
				if len(flows) == 0 {
					t.Skip("there is no stream")
				}
				f := rapid.SampledFrom(flows).Draw(t, "stream")
				least := rapid.Int64Range(0, f.promised).Draw(t, "on its way")
				wanted := rapid.Int64Range(0, 8<<20).Draw(t, "wanted")
				tenant, before := f.account.up.up, b.all.promised.Load()-f.promised
				f.promised = b.promise(f.account, f.promised, least, wanted, 1)
				if f.promised > max(wanted, least) || f.promised < least {
					t.Fatalf("wanted %d, at least %d, got %d", wanted, least, f.promised)
				}
				if free := b.limit - before; f.promised > least && tenant.promised.Load() > free {
					t.Fatalf("a tenant has %d where others left %d", tenant.promised.Load(), free)
				}
			},
			"close": func(t *rapid.T) {
				if len(flows) == 0 {
					t.Skip("there is no stream")
				}
				i := rapid.IntRange(0, len(flows)-1).Draw(t, "stream")
				f := flows[i]
				f.promised = b.promise(f.account, f.promised, 0, 0, 1)
				b.removeStream(f.account)
				flows = append(flows[:i], flows[i+1:]...)
			},
			"": func(t *rapid.T) {
				want := sums()
				for a, n := range want {
					if got := a.promised.Load(); got != n {
						t.Fatalf("an account has %d, its streams %d", got, n)
					}
				}
				if len(flows) == 0 && (b.all.promised.Load() != 0 || len(b.all.under) != 0) {
					t.Fatalf("nobody is left, and %d are promised to %d tenants", b.all.promised.Load(), len(b.all.under))
				}
			},
		})
	})
}

// Who takes the most leaves some for others, however many streams they open.
func TestWhoTakesAllLeavesHalf(t *testing.T) {
	b := NewBudget(1 << 30)
	greedy := func(o Owner) (sum int64) {
		for range 1000 {
			sum += b.promise(b.addStream(o), 0, 0, 8<<20, 1)
		}
		return sum
	}
	tunnel := greedy(Owner{"hostile", "gpu-1", "0"})
	if tunnel > b.limit/5+8<<20 {
		t.Errorf("one tunnel is promised %d MiB; want a fifth and a stream at most", tunnel>>20)
	}
	for i := range 100 {
		greedy(Owner{"hostile", fmt.Sprint("gpu-", i%10), fmt.Sprint(i)})
	}
	if all := b.all.promised.Load(); all > b.limit/2+8<<20 {
		t.Errorf("one tenant is promised %d MiB; want half and a stream at most", all>>20)
	}
	if n := b.promise(b.addStream(Owner{"other", "gpu-1", "1"}), 0, 0, 8<<20, 1); n != 8<<20 {
		t.Errorf("another tenant's stream is promised %d bytes of 8 MiB", n)
	}
}

// Whoever is given up held at least what everybody may, was of the heaviest tenant at
// that moment, there of the heaviest agent and tunnel that had one to give, and was the
// heaviest of those. It goes on until there is enough, or nobody is left.
func TestTheHeaviestIsChosen(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := NewBudget(64 << 20)
		s := &survey{held: map[*account]int64{}}
		for range rapid.IntRange(1, 60).Draw(t, "streams") {
			name := func(what string) string { return fmt.Sprint(rapid.IntRange(0, 2).Draw(t, what)) }
			h := &holding{
				owner: b.addStream(Owner{name("tenant"), name("agent"), name("tunnel")}),
				held:  rapid.Int64Range(1, 2<<20).Draw(t, "held"), stalled: rapid.Bool().Draw(t, "stuck"),
			}
			s.streams = append(s.streams, h)
			s.used += h.held
			for a := h.owner; a.up != nil; a = a.up {
				s.held[a] += h.held
			}
		}
		before := s.used
		until := rapid.Int64Range(0, before).Draw(t, "until")
		stuckOnly := rapid.Bool().Draw(t, "stuck only")
		eligible := func(h *holding) bool { return h.held >= protected && (h.stalled || !stuckOnly) }
		s.choose(until, eligible)
		given := int64(0)
		for _, h := range s.streams {
			if !h.chosen {
				continue
			}
			given += h.held
			if !eligible(h) {
				t.Fatalf("a stream of %d bytes was given up, stalled: %v", h.held, h.stalled)
			}
			for _, other := range s.streams { // of the same tunnel, the heaviest go first
				if other.owner == h.owner && !other.chosen && eligible(other) && other.held > h.held {
					t.Fatalf("%d bytes were given up, and %d of the same tunnel were not", h.held, other.held)
				}
			}
			// It was the heaviest tenant's turn: before its last stream went, it had at least
			// what the others have now.
			tenant := h.owner.up.up
			for a, n := range s.held {
				if a.up.up == nil && s.held[tenant]+heaviestGiven(s, tenant) < n {
					t.Fatalf("a tenant was left %d and gave %d at most at once; another has %d", s.held[tenant], heaviestGiven(s, tenant), n)
				}
			}
		}
		if s.used != before-given {
			t.Fatalf("%d given of %d leave %d", given, before, s.used)
		}
		if s.used > until {
			for _, h := range s.streams {
				if !h.chosen && eligible(h) && h.owner.up.up == s.tenant() {
					t.Fatalf("%d are in use, more than %d, and the heaviest tenant has a stream to give", s.used, until)
				}
			}
		}
	})
}

func heaviestGiven(s *survey, tenant *account) (most int64) {
	for _, h := range s.streams {
		if h.chosen && h.owner.up.up == tenant {
			most = max(most, h.held)
		}
	}
	return most
}

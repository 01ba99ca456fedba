package store_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
)

// faulty loses the answers of some writes.
type faulty struct {
	store.Doer
	mu   *sync.Mutex
	plan *[]fault
}

// fault is what happens to one transaction.
type fault struct {
	land  bool   // it reaches etcd, only the answer is lost
	after func() // runs before the loss is noticed
}

func (f faulty) Do(ctx context.Context, op clientv3.Op) (clientv3.OpResponse, error) {
	if !op.IsTxn() {
		return f.Doer.Do(ctx, op)
	}
	f.mu.Lock()
	if len(*f.plan) == 0 {
		f.mu.Unlock()
		return f.Doer.Do(ctx, op)
	}
	next := (*f.plan)[0]
	*f.plan = (*f.plan)[1:]
	f.mu.Unlock()
	if next.land {
		if _, err := f.Doer.Do(ctx, op); err != nil {
			return clientv3.OpResponse{}, err
		}
	}
	if next.after != nil {
		next.after()
	}
	return clientv3.OpResponse{}, context.DeadlineExceeded
}

// faults returns an option and the plan that it follows.
func faults() (option, func(...fault)) {
	var mu sync.Mutex
	var plan []fault
	return through(func(d store.Doer) store.Doer { return faulty{d, &mu, &plan} }), func(fs ...fault) {
		mu.Lock()
		defer mu.Unlock()
		plan = fs
	}
}

// A write whose answer is lost is neither forgotten nor done twice.
func TestLostAnswers(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		opt, plan := faults()
		s := w.relay(opt)
		other := w.relay()
		change := func() (store.AgentRecord, error) { return s.UpdateAgent(t.Context(), gpu1, add) }
		overwrite := func() {
			for range 3 {
				if _, err := other.UpdateAgent(t.Context(), gpu1, func(_ time.Time, r *store.AgentRecord) (store.Effects, error) {
					r.Completed++
					return store.Effects{}, nil
				}); err != nil {
					t.Errorf("the other relay's change: %v", err)
				}
			}
		}
		var want uint64
		for _, c := range []struct {
			what string
			plan []fault
		}{
			{"the write landed", []fault{{land: true}}},
			{"the write was lost", []fault{{land: false}}},
			{"the first two were lost, the third landed", []fault{{}, {}, {land: true}}},
			{"the write landed and others changed the record since", []fault{{land: true, after: overwrite}}},
			{"the write was lost and others changed the record since", []fault{{land: false, after: overwrite}}},
			{"one was lost, the next landed and was overwritten", []fault{{}, {land: true, after: overwrite}}},
		} {
			plan(c.plan...)
			if _, err := change(); err != nil {
				t.Errorf("%s: %v", c.what, err)
			}
			want++
			if err := s.CatchUp(t.Context()); err != nil {
				t.Fatal(err)
			}
			if r, _ := s.Agent(gpu1); r.Fencing != want {
				t.Fatalf("%s: the change was made %d times, expected once", c.what, r.Fencing-want+1)
			}
		}
	})
}

// When the history that would tell the outcome is gone, the answer is that
// nobody knows.
func TestLostAnswerAndHistory(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		opt, plan := faults()
		s := w.relay(opt)
		other := w.relay()
		plan(fault{land: true, after: func() {
			if _, err := other.UpdateAgent(t.Context(), gpu1, add); err != nil {
				t.Errorf("the other relay's change: %v", err)
			}
			g, err := other.Client().Get(t.Context(), "x")
			if err == nil {
				_, err = other.Client().Compact(t.Context(), g.Header.Revision, clientv3.WithCompactPhysical())
			}
			if err != nil {
				t.Errorf("compact: %v", err)
			}
		}})
		if _, err := s.UpdateAgent(t.Context(), gpu1, add); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("an outcome that cannot be known gave %v, expected ErrUnavailable", err)
		}
	})
}

// While a write may still be on its way a refusal is not the truth either.
func TestRefusalAfterLostAnswer(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		opt, plan := faults()
		s := w.relay(opt)
		for _, refusal := range []error{errors.New("too late"), store.ErrUnchanged} {
			plan(fault{land: false})
			calls := 0
			_, err := s.UpdateAgent(t.Context(), gpu1, func(_ time.Time, r *store.AgentRecord) (store.Effects, error) {
				if calls++; calls > 1 {
					return store.Effects{}, refusal
				}
				return store.Effects{}, nil
			})
			if !errors.Is(err, store.ErrUnavailable) {
				t.Errorf("refusing (%v) after a lost answer gave %v, expected ErrUnavailable", refusal, err)
			}
		}
	})
}

// One's own landed write is not an earlier time.
func TestOnceAfterLostAnswer(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		opt, plan := faults()
		s := w.relay(opt)
		for name, p := range map[string][]fault{"landed": {{land: true}}, "lost": {{land: false}}} {
			plan(p...)
			_, err := s.UpdateAgent(t.Context(), gpu1, func(_ time.Time, r *store.AgentRecord) (store.Effects, error) {
				r.Fencing++
				return store.Effects{Once: &store.Once{Key: name, Value: name, TTL: time.Minute}}, nil
			})
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if v, ok, err := s.OnceValue(t.Context(), name); v != name || !ok || err != nil {
				t.Errorf("%s: the key holds %q, %v, %v", name, v, ok, err)
			}
		}
		if err := s.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if r, _ := s.Agent(gpu1); r.Fencing != 2 {
			t.Errorf("%d changes were made, expected 2", r.Fencing)
		}
	})
}

// The other operations survive lost answers too.
func TestLostAnswersElsewhere(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		opt, plan := faults()
		s := w.relay(opt)
		ctx := t.Context()
		tu := tunnelOf(gpu1, time.Now())
		if _, err := s.UpdateAgent(ctx, gpu1, func(_ time.Time, r *store.AgentRecord) (store.Effects, error) {
			r.Epoch = 1
			return store.Effects{PutTunnels: []store.TunnelRecord{tu}}, nil
		}); err != nil {
			t.Fatal(err)
		}
		cred := store.CredentialRecord{ID: ident.NewCredentialID(), Team: teamA, Hash: "h"}
		enroll := store.EnrollmentRecord{Hash: "e", Team: teamA, ExpiresAt: time.Now().Add(time.Hour)}
		for _, land := range []bool{true, false} {
			for what, do := range map[string]func() error{
				"update tunnel": func() error {
					_, err := s.UpdateTunnel(ctx, tu.Session, func(r *store.TunnelRecord) error { r.Label += "x"; return nil })
					return err
				},
				"put presence":    func() error { return s.PutPresence(ctx, presenceOf(gpu1, 1)) },
				"delete presence": func() error { return s.DeletePresence(ctx, gpu1, 1) },
				"cluster key":     func() error { return s.CheckClusterKey(ctx, "fp") },
			} {
				plan(fault{land: land})
				if err := do(); err != nil {
					t.Errorf("%s (landed %v): %v", what, land, err)
				}
			}
			// These follow one another.
			cred.ID, enroll.Hash = ident.NewCredentialID(), ident.NewNonce()
			plan(fault{land: land})
			if err := s.CreateCredential(ctx, cred); err != nil {
				t.Errorf("create credential (landed %v): %v", land, err)
			}
			plan(fault{land: land})
			if r, err := s.RevokeCredential(ctx, teamA, cred.ID, time.Now(), false); err != nil || r.RevokedAt.IsZero() {
				t.Errorf("revoke credential (landed %v): %+v, %v", land, r, err)
			}
			plan(fault{land: land})
			if err := s.CreateEnrollment(ctx, enroll); err != nil {
				t.Errorf("create enrollment (landed %v): %v", land, err)
			}
			plan(fault{land: land})
			if r, err := s.TakeEnrollment(ctx, enroll.Hash); err != nil || r.Team != teamA {
				t.Errorf("take enrollment (landed %v): %+v, %v", land, r, err)
			}
		}
		if err := s.CatchUp(ctx); err != nil {
			t.Fatal(err)
		}
		if r, _ := s.Tunnel(tu.Session); r.Label != "xx" {
			t.Errorf("the label is %q, expected each of two changes once", r.Label)
		}
	})
}

// A change whose answer never came is found later, if it landed, and not if it did
// not.
func TestDoubtIsSettled(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		opt, plan := faults()
		s := w.relay(opt)
		other := w.relay()
		for _, land := range []bool{true, false} {
			ctx, cancel := context.WithCancel(t.Context())
			plan(fault{land: land, after: cancel})
			_, err := s.UpdateAgent(ctx, gpu1, add)
			doubt, ok := errors.AsType[*store.DoubtError](err)
			if !ok || !errors.Is(err, store.ErrUnavailable) {
				t.Fatalf("a write without an answer: %v, expected a doubt", err)
			}
			cancel()
			if _, err := other.UpdateAgent(t.Context(), gpu1, add); err != nil { // what overtakes it settles it
				t.Fatal(err)
			}
			rec, landed, err := doubt.Settle(t.Context())
			if err != nil || landed != land {
				t.Errorf("it landed: %v; found: %v, %v", land, landed, err)
			}
			if land && rec.Fencing != 1 {
				t.Errorf("the record as the change made it has %d, expected 1", rec.Fencing)
			}
		}
	})
}

package creds_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// login returns the principal of a new credential.
func login(t testing.TB, a *creds.Authenticator, m *memory, kind api.CredentialKind, f func(*store.CredentialRecord)) creds.Principal {
	t.Helper()
	return wantAccepted(t, a, request(t, bearer(m.add(kind, f).Reveal())))
}

func ended(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	default:
		return nil
	}
}

func TestRevocationEndsWhatIsOpen(t *testing.T) {
	for _, told := range []bool{true, false} {
		t.Run(fmt.Sprint("told of changes=", told), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemory()
				cfg := creds.Config{Store: m}
				if told {
					cfg.Changes = m.changes
				}
				a := newAuth(t, cfg)
				stop := start(t, a)
				defer stop()
				p, other := login(t, a, m, api.KindAgent, nil), login(t, a, m, api.KindAgent, nil)
				ctx1, stop1 := a.Watch(t.Context(), p)
				defer stop1()
				ctx2, stop2 := a.Watch(t.Context(), p)
				defer stop2()
				ctx3, stop3 := a.Watch(t.Context(), other)
				defer stop3()
				time.Sleep(time.Hour)
				if ended(ctx1) != nil || !a.Valid(p) {
					t.Fatal("ended by itself")
				}

				// Another relay revokes it: this one only sees the store change.
				if _, err := m.RevokeCredential(t.Context(), teamA, p.Credential, time.Now(), false); err != nil {
					t.Fatal(err)
				}
				if told {
					synctest.Wait()
				} else {
					time.Sleep(2100 * time.Millisecond)
				}
				for _, ctx := range []context.Context{ctx1, ctx2} {
					if err := ended(ctx); !errors.Is(err, creds.ErrRevoked) {
						t.Errorf("cause is %v, want revoked", err)
					}
				}
				if ended(ctx3) != nil || a.Valid(p) || !a.Valid(other) {
					t.Error("the wrong one ended")
				}
				late, stopLate := a.Watch(t.Context(), p)
				defer stopLate()
				if err := ended(late); !errors.Is(err, creds.ErrRevoked) {
					t.Errorf("what is opened after the revocation has cause %v", err)
				}
			})
		})
	}
}

func TestRevokingHereEndsWhatIsOpenAtOnce(t *testing.T) {
	m := newMemory()
	a := newAuth(t, creds.Config{Store: m})
	p := login(t, a, m, api.KindIntegration, nil)
	ctx, stop := a.Watch(t.Context(), p)
	defer stop()
	if _, err := a.Revoke(t.Context(), creds.Operator("root"), teamA, p.Credential, false); err != nil {
		t.Fatal(err)
	}
	if err := ended(ctx); !errors.Is(err, creds.ErrRevoked) {
		t.Errorf("cause is %v, want revoked", err)
	}
}

func TestExpiryEndsWhatIsOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		a := newAuth(t, creds.Config{Store: m})
		stop := start(t, a)
		defer stop()
		soon := time.Now().Add(time.Minute)
		credential := login(t, a, m, api.KindAgent, func(r *store.CredentialRecord) { r.ExpiresAt = soon })
		m.member(store.MemberRecord{Team: teamA, User: "alice", Role: api.RoleMember, Source: store.SourceInvite})
		session := creds.Principal{Kind: creds.KindUser, Team: teamA, User: "alice", ExpiresAt: soon}
		for _, p := range []creds.Principal{credential, session} {
			ctx, stop := a.Watch(t.Context(), p)
			defer stop()
			defer func() {
				if err := ended(ctx); !errors.Is(err, creds.ErrExpired) {
					t.Errorf("%s: cause is %v, want expired", p.Kind, err)
				}
			}()
			if ended(ctx) != nil {
				t.Errorf("%s ended too early", p.Kind)
			}
		}
		time.Sleep(59 * time.Second)
		if !a.Valid(credential) || !a.Valid(session) {
			t.Error("not valid any more before the end")
		}
		time.Sleep(3500 * time.Millisecond)
		if a.Valid(credential) || a.Valid(session) {
			t.Error("valid after the end")
		}
	})
}

func TestARemovedRecordCountsAsRevoked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		a := newAuth(t, creds.Config{Store: m})
		stop := start(t, a)
		defer stop()
		p := login(t, a, m, api.KindAgent, nil)
		ctx, stopWatch := a.Watch(t.Context(), p)
		defer stopWatch()
		m.set(func(m *memory) { clear(m.records) })
		time.Sleep(3 * time.Second)
		if err := ended(ctx); !errors.Is(err, creds.ErrRevoked) {
			t.Errorf("cause is %v", err)
		}
	})
}

func TestWatchEndsWithItsParentAndLeavesNothing(t *testing.T) {
	m, reg := newMemory(), prometheus.NewRegistry()
	a := newAuth(t, creds.Config{Store: m, Registerer: reg})
	p := login(t, a, m, api.KindAgent, nil)
	gone := errors.New("the link is gone")
	parent, cancel := context.WithCancelCause(t.Context())
	ctx, stop := a.Watch(parent, p)
	watched := func() float64 { return gauge(t, reg, "adit_relay_auth_watched") }
	if watched() != 1 {
		t.Errorf("%v watched, want 1", watched())
	}
	cancel(gone)
	if err := ended(ctx); !errors.Is(err, gone) {
		t.Errorf("cause is %v, want the parent's", err)
	}
	stop()
	stop()
	if watched() != 0 {
		t.Errorf("%v watched after stop", watched())
	}
	op, stop := a.Watch(t.Context(), creds.Operator("root"))
	if ended(op) != nil || !a.Valid(creds.Operator("root")) {
		t.Error("the operator ended")
	}
	stop()
	if ended(op) == nil {
		t.Error("stop does not end the context")
	}
	if a.Valid(creds.Principal{}) {
		t.Error("nobody is valid")
	}
}

func gauge(t testing.TB, reg *prometheus.Registry, name string) float64 {
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	return -1
}

func TestAFailedFeedEndsRun(t *testing.T) {
	broken := errors.New("no feed")
	a := newAuth(t, creds.Config{Changes: func(context.Context, func(store.Change)) error { return broken }})
	if err := a.Run(t.Context()); !errors.Is(err, broken) {
		t.Errorf("run: %v, want the feed's error", err)
	}
}

func TestMetricNames(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := newMemory()
	a := newAuth(t, creds.Config{Store: m, Registerer: reg})
	login(t, a, m, api.KindAgent, nil)
	wantRefused(t, a, request(t), 401, "unauthenticated")
	wantRefused(t, a, request(t, bearer("whatever")), 401, "unauthenticated")
	if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		if f.GetName() == "adit_relay_auth_total" {
			for _, one := range f.GetMetric() {
				got[one.GetLabel()[0].GetValue()+" "+one.GetLabel()[1].GetValue()] = one.GetCounter().GetValue()
			}
		}
	}
	want := map[string]float64{"agent ok": 1, "none missing": 1, "unknown malformed": 1}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("counted %v, want %v", got, want)
	}
}

// BenchmarkWatched is the cost of one look at 10,000 agents' credentials, which
// happens every two seconds, and of one change among them.
func BenchmarkWatched(b *testing.B) {
	m := newMemory()
	a := newAuth(b, creds.Config{Store: m, Changes: m.changes})
	stop := start(b, a)
	defer stop()
	for i := range 10_000 {
		id := ident.CredentialID(fmt.Sprint(i))
		m.set(func(m *memory) { m.records[id] = store.CredentialRecord{ID: id, Kind: api.KindAgent} })
		_, stop := a.Watch(b.Context(), creds.Principal{Kind: creds.KindAgent, Team: teamA, Credential: id})
		defer stop()
	}
	for {
		m.mu.Lock()
		changed := m.listener
		m.mu.Unlock()
		if changed == nil {
			continue
		}
		b.Run("sweep", func(b *testing.B) {
			for b.Loop() {
				changed(store.Change{})
			}
		})
		b.Run("one", func(b *testing.B) {
			for b.Loop() {
				changed(store.Change{Kind: store.KindCredential, Credential: "77"})
			}
		})
		return
	}
}

package gate_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/gate"
	"github.com/adit-tunnel/adit/relay/internal/gate/gatetest"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/testkit"
)

// The same rule on the real store, embedded: callers that race, then the audit.
func TestRealStore(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	st, err := store.New(store.Config{DataDir: t.TempDir(), QuotaBytes: 2 << 30, Relay: store.RelayRecord{ID: "r"}, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	sctx, stopStore := context.WithCancel(context.Background())
	gctx, stopGate := context.WithCancel(context.Background())
	wg.Go(func() {
		if err := st.Run(sctx); err != nil {
			t.Errorf("run the store: %v", err)
		}
	})
	defer func() { stopGate(); stopStore(); wg.Wait() }()
	ready, cancel := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancel()
	if err := st.Ready(ready); err != nil {
		t.Fatal(err)
	}
	local, records := gatetest.NewLocal(), &gatetest.Audit{}
	g, err := gate.New(gate.Config{
		Store: gate.Shared{Store: st}, Local: local, Audit: records, Relay: "r", Logger: log,
		Limits: gatetest.Limits(gate.Limits{OpensPerSecond: 1e6, OpensBurst: 1e6}),
	})
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() {
		if err := g.Run(gctx); err != nil {
			t.Errorf("run the gate: %v", err)
		}
	})
	epoch, _, err := g.Connect(t.Context(), box, gate.Claim{Instance: "i", Capacity: 4})
	if err != nil {
		t.Fatal(err)
	}
	if err := st.PutPresence(t.Context(), store.Presence{Team: box.Team, Agent: box.Agent, Relay: "r", Epoch: epoch, ConnectedAt: time.Now(), Heartbeat: time.Now()}); err != nil {
		t.Fatal(err)
	}
	start, calls := time.Now(), 0
	var mu sync.Mutex
	var callers sync.WaitGroup
	for i := range 8 {
		callers.Go(func() {
			for j := range 12 {
				mu.Lock()
				calls++
				mu.Unlock()
				if (i+j)%3 > 0 {
					l, err := g.Admit(t.Context(), user, box, ident.TaskID(fmt.Sprintf("t-%d-%d", i, j)), time.Minute, "")
					if err != nil {
						continue
					}
					if err := g.Release(t.Context(), "x", box, l.TaskID, ident.Secret(l.LeaseToken), true); err != nil {
						t.Errorf("release: %v", err)
					}
					continue
				}
				o, err := g.Open(t.Context(), user, box, gate.OpenSpec{Port: 1, IdempotencyKey: fmt.Sprint(i, j), WhenBusy: api.BusyWait})
				if err != nil {
					t.Errorf("open: %v", err)
					continue
				}
				again, err := g.Open(t.Context(), user, box, gate.OpenSpec{Port: 1, IdempotencyKey: fmt.Sprint(i, j)})
				if err != nil || again.Tunnel.Session != o.Tunnel.Session {
					t.Errorf("repetition: %v, %v", again.Tunnel.Session, err)
				}
				if end, err := g.Extend(t.Context(), "x", box, o.Tunnel.Session, 48*time.Hour); err != nil || !end.After(o.Tunnel.ExpiresAt) {
					t.Errorf("extend: %v, %v", end, err)
				}
				if _, err := g.Close(t.Context(), "x", box, []ident.SessionID{o.Tunnel.Session}, false, "x"); err != nil {
					t.Errorf("close: %v", err)
				}
			}
		})
	}
	callers.Wait()
	// Whether a task came between the tunnels is for chance; that one comes after them
	// is not.
	if l, err := g.Admit(t.Context(), user, box, "after", time.Minute, ""); err != nil {
		t.Errorf("admit after the last close: %v", err)
	} else if err := g.Release(t.Context(), "x", box, l.TaskID, ident.Secret(l.LeaseToken), true); err != nil {
		t.Errorf("release: %v", err)
	}
	counts := check(t, records.Records())
	t.Logf("%d turns of 8 callers in %v: %v", calls, time.Since(start).Round(time.Millisecond), counts)
	if counts[audit.TunnelOpened] != 32 || counts[audit.TaskAdmitted] == 0 {
		t.Errorf("opened %d, want 32; admitted %d", counts[audit.TunnelOpened], counts[audit.TaskAdmitted])
	}
	if err := st.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if rec, _ := st.Agent(box); len(rec.Tunnels) != 0 || len(rec.Leases) != 0 {
		t.Errorf("left: %+v", rec)
	}
	_, err = g.Extend(t.Context(), "x", box, ident.NewSessionID(), time.Hour)
	var p *api.Problem
	if !errors.As(err, &p) || p.Status != 404 {
		t.Errorf("extend what is not there: %v", err)
	}
}

package gate_test

import (
	"cmp"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/gate"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// 32 callers at random through two relays whose clocks are 2 s apart; then the
// audit proves that no task was admitted within a tunnel's life.
func TestStormThroughTwoRelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t)
		limits := gate.Limits{OpensPerSecond: 1e6, OpensBurst: 1e6}
		relays := []*relay{p.relay("a", -time.Second, limits), p.relay("b", time.Second, limits)}
		p.connect(relays[0], "a", 3)
		var wg sync.WaitGroup
		for i := range 32 {
			rng := rand.New(rand.NewPCG(1, uint64(i)))
			wg.Go(func() { caller(t, p, relays, rng) })
		}
		for i := range 5 { // the agent moves from relay to relay
			time.Sleep(20 * time.Second)
			p.connect(relays[(i+1)%2], ident.RelayID([]string{"b", "a"}[i%2]), 3)
		}
		wg.Wait()
		counts := check(t, p.audit.Records())
		t.Logf("audit: %v", counts)
		for _, e := range []audit.Event{audit.TunnelOpened, audit.TunnelWaiting, audit.TunnelClosed, audit.TaskAdmitted, audit.TaskRefused, audit.TaskExpired} {
			if counts[e] == 0 {
				t.Errorf("the storm had no %s: it shows nothing about it", e)
			}
		}
	})
}

func caller(t *testing.T, p *pool, relays []*relay, rng *rand.Rand) {
	for range 100 {
		r := relays[rng.IntN(2)]
		time.Sleep(time.Duration(rng.IntN(4000)) * time.Millisecond)
		if rng.IntN(30) > 0 {
			lease, err := r.admit(t, ident.NewTaskID(), 5*time.Second)
			if err != nil {
				continue
			}
			time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
			if rng.IntN(3) == 0 {
				continue // it dies without a word
			}
			if _, err := relays[rng.IntN(2)].Renew(t.Context(), "x", box, lease.TaskID, ident.Secret(lease.LeaseToken), 5*time.Second); err != nil {
				var prob *api.Problem
				if !errors.As(err, &prob) || prob.Code != "lease_expired" {
					t.Errorf("renew: %v", err)
				}
			}
			_ = relays[rng.IntN(2)].Release(t.Context(), "x", box, lease.TaskID, ident.Secret(lease.LeaseToken), true)
			continue
		}
		o, err := r.Open(t.Context(), user, box, gate.OpenSpec{
			Port: 1, ExpiresIn: time.Duration(1+rng.IntN(5)) * time.Second,
			WhenBusy: []api.WhenBusy{api.BusyAllow, api.BusyReject, api.BusyWait}[rng.IntN(3)], WaitTimeout: 4 * time.Second,
		})
		if err != nil {
			continue
		}
		if time.Sleep(time.Duration(rng.IntN(1000)) * time.Millisecond); rng.IntN(3) == 0 {
			continue // it runs to its end
		}
		if _, err := relays[rng.IntN(2)].Close(t.Context(), "x", box, []ident.SessionID{o.Tunnel.Session}, false, "x"); err != nil {
			t.Errorf("close: %v", err)
		}
	}
}

// check replays the audit of one agent in the order of its changes.
func check(t *testing.T, records []audit.Record) map[audit.Event]int {
	t.Helper()
	counts := map[audit.Event]int{}
	slices.SortStableFunc(records, func(a, b audit.Record) int { return cmp.Compare(a.Revision, b.Revision) })
	alive := map[ident.SessionID]bool{}
	fencing := map[uint64]bool{}
	var last uint64
	for _, r := range records {
		counts[r.Event]++
		switch r.Event {
		case audit.TunnelWaiting, audit.TunnelOpened:
			alive[r.Session] = true
		case audit.TunnelClosed, audit.TunnelExpired:
			if !alive[r.Session] {
				t.Errorf("revision %d: %s ends and never began", r.Revision, r.Session)
			}
			delete(alive, r.Session)
		case audit.TaskAdmitted:
			if len(alive) > 0 {
				t.Errorf("revision %d: %s was admitted within the life of %d tunnels", r.Revision, r.Task, len(alive))
			}
			if fencing[r.Fencing] || r.Fencing <= last {
				t.Errorf("revision %d: fencing token %d after %d", r.Revision, r.Fencing, last)
			}
			fencing[r.Fencing], last = true, r.Fencing
		}
	}
	return counts
}

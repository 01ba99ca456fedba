package e2e

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/e2e/checker"
	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// TestTheGateHoldsThroughChaos is the gate's promise as a whole: 32 callers open,
// extend, close, admit, renew and release at random through two relays whose clocks
// are 2 s apart, while relays, agents and etcd's leader are killed. Then the
// checker reads what is left. The long form kills fifty times instead of eight.
func TestTheGateHoldsThroughChaos(t *testing.T) {
	kills := 8
	if long() {
		kills = 50
	}
	w := world.New(t)
	p := startPool(w, 3)
	var boxes []box
	for _, a := range p.agents {
		boxes = append(boxes, box{a.ID, fmt.Sprintf("127.0.0.1:%d", a.Local)})
	}
	c := newCallers(p.relays, boxes, p.secret)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	for n := range 32 {
		wg.Go(func() { c.run(ctx, n) })
	}
	wg.Go(func() { c.operator(ctx) })

	began := time.Now()
	p.kill(t, kills)
	<-time.After(2 * time.Second) // of peace, with everybody calling
	stop()
	wg.Wait()
	t.Logf("%d calls in %s", len(c.journal), time.Since(began).Round(time.Second))
	p.whole()

	var left past
	w.Eventually(60*time.Second, "what ran out is dropped and what closes is closed", func() bool {
		left = p.etcd.past(t)
		return left.quiet()
	})
	p.compareLists(t, left)
	p.compareCredentials(t, c.made)
	for _, r := range p.relays {
		if err := r.Stop(30 * time.Second); err != nil {
			t.Errorf("a relay stops when asked to: %v", err)
		}
	}
	records, err := checker.ReadAudit(p.auditDirs()...)
	if err != nil {
		t.Fatalf("the audit survives kills undamaged: %v", err)
	}
	left = p.etcd.past(t)
	report := checker.Check(checker.Input{
		Audit: records, History: left.versions, Journal: c.journal, Capacity: 2, Skew: poolSkew + time.Second,
	})
	t.Logf("the checker found:\n%s", report)
	for _, code := range slices.Sorted(maps.Keys(c.codes)) {
		t.Logf("refused or unanswered: %-40s %d", code, c.codes[code])
	}
	if len(report.Violations) > 0 {
		t.Errorf("%d violations", len(report.Violations))
	}
	for _, name := range []string{"tunnels", "tasks admitted", "acknowledged: leases renewed", "tunnels that waited for tasks", "admissions refused as agent_in_tunnel"} {
		if report.Count(name) == 0 {
			t.Errorf("%s: none at all, so nothing was shown", name)
		}
	}
	for label, sessions := range left.labels {
		if label != "" && len(sessions) > 1 {
			t.Errorf("one idempotency key (%s) opened %d tunnels", label, len(sessions))
		}
	}
	t.Logf("opened under an idempotency key: %d, none of them twice", c.keyed)
}

// kill kills relays and agents n times in all, and etcd's leader now and then.
func (p *pool) kill(t *testing.T, n int) {
	rnd := rand.New(rand.NewPCG(uint64(n), 3))
	began := time.Now()
	for i := range n {
		<-time.After(2*time.Second + rand.N(2*time.Second)) // let them work
		what := ""
		switch r := rnd.IntN(len(p.relays)); {
		case i%4 == 2:
			what = "leader " + p.etcd.killLeader()
			fallthrough
		case i%2 == 0:
			p.relays[r].Kill()
			<-time.After(rand.N(time.Second)) // the outage
			p.starts[r]()
			what += fmt.Sprintf(" relay %d", r)
			if i%4 == 0 { // the other one may be next, at once
				p.relays[r].WaitReady(60 * time.Second)
			}
		default:
			a := p.agents[rnd.IntN(len(p.agents))]
			a.Kill()
			<-time.After(rand.N(time.Second))
			a.Start()
			what = "agent " + a.ID
		}
		t.Logf("kill %d of %d after %s: %s", i+1, n, time.Since(began).Round(time.Second), what)
	}
}

// compareLists wants both relays to list what the store has.
func (p *pool) compareLists(t *testing.T, left past) {
	t.Helper()
	for _, a := range p.agents {
		want := map[ident.SessionID]bool{}
		for id, tun := range left.agents[box{id: a.ID}.key()].Tunnels {
			if tun.State == store.TunnelOpen {
				want[id] = true
			}
		}
		for i, r := range p.relays {
			p.w.Eventually(10*time.Second, fmt.Sprintf("relay %d lists the %d tunnels of %s that the store has", i, len(want), a.ID), func() bool {
				var st api.TunnelStatus
				if status, _ := r.API(p.secret, http.MethodGet, "/agents/"+a.ID+"/tunnel", nil, &st); status != http.StatusOK {
					return false
				}
				got := map[ident.SessionID]bool{}
				for _, s := range st.Sessions {
					got[s.SessionID] = true
				}
				return maps.Equal(got, want)
			})
		}
	}
}

// compareCredentials wants each acknowledged credential to be there, and each
// acknowledged revocation to be in force, on both relays.
func (p *pool) compareCredentials(t *testing.T, made []madeCredential) {
	t.Helper()
	revoked := 0
	for _, c := range made {
		yes, no := p.works(c.secret)
		switch {
		case c.revoked && no != len(p.relays):
			t.Errorf("credential %s was revoked, and %d of %d relays refuse it", c.id, no, len(p.relays))
		case !c.revoked && !c.unsure && yes != len(p.relays):
			t.Errorf("credential %s was acknowledged, and %d of %d relays know it", c.id, yes, len(p.relays))
		}
		if c.revoked {
			revoked++
		}
	}
	t.Logf("acknowledged: %d credentials made, %d revoked; none lost", len(made), revoked)
}

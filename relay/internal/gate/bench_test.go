package gate_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/gate"
	"github.com/adit-tunnel/adit/relay/internal/gate/gatetest"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// BenchmarkGate is what the gate itself costs, over a store in memory: a task admitted
// and given back, and a tunnel opened and closed, on an agent with so many tunnels.
func BenchmarkGate(b *testing.B) {
	g, _ := benchGate(b)
	b.Run("task", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			lease, err := g.Admit(b.Context(), user, box, "job", time.Minute, "")
			if err != nil {
				b.Fatal(err)
			}
			if err := g.Release(b.Context(), user.Name, box, "job", ident.Secret(lease.LeaseToken), true); err != nil {
				b.Fatal(err)
			}
		}
	})
	for _, open := range []int{0, 40} {
		g, mem := benchGate(b)
		spec := gate.OpenSpec{Port: 8188, Protocol: api.ProtocolHTTP, WhenBusy: api.BusyAllow, HostHeader: api.HostPublic}
		for range open {
			if _, err := g.Open(b.Context(), user, box, spec); err != nil {
				b.Fatal(err)
			}
		}
		b.Run(fmt.Sprintf("tunnel/tunnels=%d", open), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				o, err := g.Open(b.Context(), user, box, spec)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := g.Close(b.Context(), user.Name, box, []ident.SessionID{o.Tunnel.Session}, false, "user"); err != nil {
					b.Fatal(err)
				}
			}
		})
		if got := len(mem.AgentTunnels(box)); got != open {
			b.Errorf("%d tunnels should be left, there are %d", open, got)
		}
	}
}

// quietAudit keeps nothing, however long a benchmark runs.
type quietAudit struct{}

// Append implements gate.Auditor.
func (quietAudit) Append(context.Context, audit.Record) error { return nil }

// benchGate returns the gate of an agent that is linked, and its store. The gate follows its store while Run runs, which ends with the benchmark.
func benchGate(b *testing.B) (*gate.Gate, *gatetest.Store) {
	b.Helper()
	mem := gatetest.NewStore()
	g, err := gate.New(gate.Config{
		Store: gatetest.View{Store: mem}, Local: gatetest.NewLocal(), Audit: quietAudit{}, Relay: "relay-1", Key: ident.ClusterKey{1},
		Limits: gatetest.Limits(gate.Limits{PerTeam: 1 << 20, OpensPerSecond: 1e9, OpensBurst: 1 << 30}), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	mem.SetRelay("relay-1", true)
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	})
	epoch, _, err := g.Connect(b.Context(), box, gate.Claim{Instance: "i", Capacity: 1})
	if err != nil {
		b.Fatal(err)
	}
	mem.SetPresence(store.Presence{Team: box.Team, Agent: box.Agent, Relay: "relay-1", Epoch: epoch})
	return g, mem
}

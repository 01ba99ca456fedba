package gate_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/gate"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
)

// An agent that has been gone for long leaves nothing behind, and if it comes back
// after all, neither a generation nor a fencing token is given twice.
func TestAgentsLongGoneAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t)
		r := p.relay("r1", 0, gate.Limits{AgentRetention: 30 * 24 * time.Hour})
		defer r.stop()
		other := p.relay("r2", 2*time.Second, gate.Limits{AgentRetention: 30 * 24 * time.Hour})
		defer other.stop()
		p.connect(r, "r1", 1)
		lease, err := r.admit(t, "task", time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		here := ident.AgentKey{Team: box.Team, Agent: "gpu-2"}
		if _, _, err := r.Connect(t.Context(), here, gate.Claim{}); err != nil {
			t.Fatal(err)
		}
		p.store.SetPresence(store.Presence{Team: here.Team, Agent: here.Agent, Relay: "r1", Epoch: 1})
		before, _ := p.store.Agent(box)

		time.Sleep(24 * time.Hour)
		p.store.DropPresence(box)
		time.Sleep(29 * 24 * time.Hour)
		if _, ok := p.store.Agent(box); !ok {
			t.Fatal("an agent that has been gone for 29 days is forgotten")
		}
		time.Sleep(2 * 24 * time.Hour)
		if _, ok := p.store.Agent(box); ok {
			t.Fatal("an agent that has been gone for 31 days is still there")
		}
		if _, ok := p.store.Agent(here); !ok {
			t.Fatal("an agent that is connected is forgotten")
		}
		_, err = r.Open(t.Context(), user, box, gate.OpenSpec{Port: 8188})
		wantCode(t, err, "agent_not_found")

		p.connect(other, "r2", 1)
		after, _ := p.store.Agent(box)
		if after.Epoch <= before.Epoch || after.N <= before.N {
			t.Errorf("the agent came back as generation %d, change %d after %d, %d", after.Epoch, after.N, before.Epoch, before.N)
		}
		again, err := other.admit(t, "task", time.Minute)
		if err != nil || again.FencingToken <= lease.FencingToken {
			t.Errorf("the fencing token after %d is %d, %v", lease.FencingToken, again.FencingToken, err)
		}
	})
}

// What is away now and then is not away for long.
func TestAgentsThatComeBackAreNotForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t)
		r := p.relay("r1", 0, gate.Limits{AgentRetention: 30 * 24 * time.Hour})
		defer r.stop()
		for range 3 {
			p.connect(r, "r1", 1)
			time.Sleep(24 * time.Hour)
			p.store.DropPresence(box)
			time.Sleep(20 * 24 * time.Hour)
		}
		if _, ok := p.store.Agent(box); !ok {
			t.Error("an agent that was here three weeks ago is forgotten")
		}
	})
}

func TestTeamsHaveSoManyAgents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t)
		r := p.relay("r1", 0, gate.Limits{AgentsPerTeam: 3})
		defer r.stop()
		connect := func(team ident.TeamID, n int) error {
			_, _, err := r.Connect(t.Context(), ident.AgentKey{Team: team, Agent: ident.AgentID(fmt.Sprintf("gpu-%d", n))}, gate.Claim{})
			return err
		}
		for n := range 3 {
			if err := connect(box.Team, n); err != nil {
				t.Fatal(err)
			}
		}
		wantCode(t, connect(box.Team, 3), "team_agent_limit")
		wantCode(t, r.MayAppear(ident.AgentKey{Team: box.Team, Agent: "gpu-3"}), "team_agent_limit")
		if err := connect(box.Team, 0); err != nil {
			t.Errorf("an agent that is known is refused: %v", err)
		}
		if err := connect("0b9d3d9e-64cf-4d2b-9f3c-0e1a3a5b0002", 0); err != nil {
			t.Errorf("an agent of another team is refused: %v", err)
		}
		p.store.SetFull(true)
		wantCode(t, connect("0b9d3d9e-64cf-4d2b-9f3c-0e1a3a5b0002", 1), "store_full")
		if err := connect(box.Team, 0); err != nil {
			t.Errorf("an agent that is known is refused by a store that is nearly full: %v", err)
		}
	})
}

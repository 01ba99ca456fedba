package creds_test

import (
	"testing"

	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/shared/ident"
)

func TestWhatAPrincipalMayDo(t *testing.T) {
	gpu1, gpu2 := ident.AgentKey{Team: teamA, Agent: "gpu-1"}, ident.AgentKey{Team: teamA, Agent: "gpu-2"}
	foreign := ident.AgentKey{Team: teamB, Agent: "gpu-1"}
	user := creds.Principal{Kind: creds.KindUser, Team: teamA, User: "alice"}
	device := creds.Principal{Kind: creds.KindDevice, Team: teamA, User: "alice", Credential: "c"}
	integration := creds.Principal{Kind: creds.KindIntegration, Team: teamA, Credential: "c"}
	agent := creds.Principal{Kind: creds.KindAgent, Team: teamA, Agent: "gpu-1", Credential: "c"}
	anyAgent := creds.Principal{Kind: creds.KindAgent, Team: teamA, Credential: "c"}
	for _, c := range []struct {
		name                                            string
		p                                               creds.Principal
		team, other, manage, link1, link2, gate1, gate2 bool
	}{
		{"nobody", creds.Principal{}, false, false, false, false, false, false, false},
		{"kind nobody knows", creds.Principal{Kind: "root", Team: teamA, User: "x"}, false, false, false, false, false, false, false},
		{"user", user, true, false, true, false, false, true, true},
		{"device", device, true, false, true, false, false, true, true},
		{"device of nobody", creds.Principal{Kind: creds.KindDevice, Team: teamA}, true, false, false, false, false, true, true},
		{"integration", integration, true, false, false, false, false, true, true},
		{"agent", agent, false, false, false, true, false, true, false},
		{"any agent", anyAgent, false, false, false, true, true, false, false},
		{"any agent, linked as gpu-2", anyAgent.BoundTo("gpu-2"), false, false, false, false, true, false, true},
		{"operator", creds.Operator("root"), true, true, true, false, false, true, true},
		{"operator in the team", creds.Operator("root").InTeam(teamA), true, false, true, false, false, true, true},
		{"user cannot choose a team", user.InTeam(teamB), true, false, true, false, false, true, true},
		{"user cannot become an agent", user.BoundTo("gpu-1"), true, false, true, false, false, true, true},
	} {
		for _, check := range []struct {
			what      string
			got, want bool
		}{
			{"use the team", c.p.MayUseTeam(teamA), c.team},
			{"use another team", c.p.MayUseTeam(teamB), c.other},
			{"use no team", c.p.MayUseTeam(""), false},
			{"manage credentials", c.p.MayManageCredentials(), c.manage},
			{"link as gpu-1", c.p.MayLink(gpu1), c.link1},
			{"link as gpu-2", c.p.MayLink(gpu2), c.link2},
			{"link in another team", c.p.MayLink(foreign), false},
			{"gate of gpu-1", c.p.MayUseGate(gpu1), c.gate1},
			{"gate of gpu-2", c.p.MayUseGate(gpu2), c.gate2},
			{"gate in another team", c.p.MayUseGate(foreign), c.other},
			{"link as no agent", c.p.MayLink(ident.AgentKey{Team: teamA}), false},
		} {
			if check.got != check.want {
				t.Errorf("%s may %s: %v, want %v", c.name, check.what, check.got, check.want)
			}
		}
	}
}

func TestCallersAreToldApart(t *testing.T) {
	seen := map[string]creds.Principal{}
	for _, p := range []creds.Principal{
		{Kind: creds.KindUser, Team: teamA, User: "alice", Name: "user:alice"},
		{Kind: creds.KindUser, Team: teamB, User: "alice", Name: "user:alice"},
		{Kind: creds.KindUser, Team: teamA, User: "bob", Name: "user:bob"},
		{Kind: creds.KindIntegration, Team: teamA, Credential: "cred_1", Name: "sk:ci"},
		{Kind: creds.KindIntegration, Team: teamA, Credential: "cred_2", Name: "sk:ci"},
		{Kind: creds.KindDevice, Team: teamA, User: "alice", Credential: "cred_3", Name: "dk:alice/x"},
		creds.Operator("root"),
	} {
		if other, ok := seen[p.Caller()]; ok || p.Caller() == "" {
			t.Errorf("%+v and %+v are both %q", p, other, p.Caller())
		}
		seen[p.Caller()] = p
	}
}

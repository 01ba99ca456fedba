package gatetest

import (
	"cmp"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/gate"
)

// Limits returns limits that are in no test's way, but for those that are given.
func Limits(l gate.Limits) gate.Limits {
	return gate.Limits{
		IdleTimeout: cmp.Or(l.IdleTimeout, 30*time.Minute), MaxIdleTimeout: cmp.Or(l.MaxIdleTimeout, 24*time.Hour),
		ExpiresIn: cmp.Or(l.ExpiresIn, 24*time.Hour), MaxExpiresIn: cmp.Or(l.MaxExpiresIn, 7*24*time.Hour),
		PerAgent: cmp.Or(l.PerAgent, 64), PerTeam: cmp.Or(l.PerTeam, 1000),
		OpensPerSecond: cmp.Or(l.OpensPerSecond, 1), OpensBurst: cmp.Or(l.OpensBurst, 60),
		AgentsPerTeam: cmp.Or(l.AgentsPerTeam, 5000), AgentRetention: cmp.Or(l.AgentRetention, 30*24*time.Hour),
	}
}

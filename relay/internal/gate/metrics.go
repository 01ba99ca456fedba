package gate

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/shared/metric"
)

type metrics struct {
	decisions *prometheus.CounterVec
	closes    *prometheus.CounterVec
	tunnels   prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) *metrics {
	f := metric.In(r)
	return &metrics{
		decisions: f.Counters("adit_relay_gate_decisions_total", "Decisions of the gate, by operation and outcome (ok, refused, unavailable, error).", "operation", "outcome"),
		closes:    f.Counters("adit_relay_gate_closes_total", "Tunnels that this relay closed by itself, by reason (idle, expired, revoked, removed, other).", "reason"),
		tunnels:   f.Gauge("adit_relay_gate_tunnels", "Tunnels of the pool that this relay knows."),
	}
}

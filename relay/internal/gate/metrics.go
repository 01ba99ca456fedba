package gate

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	decisions *prometheus.CounterVec
	closes    *prometheus.CounterVec
	tunnels   prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "adit_relay_gate_decisions_total", Help: "Decisions of the gate, by operation and outcome (ok, refused, unavailable, error).",
		}, []string{"operation", "outcome"}),
		closes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "adit_relay_gate_closes_total", Help: "Tunnels that this relay closed by itself, by reason (idle, expired, revoked).",
		}, []string{"reason"}),
		tunnels: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "adit_relay_gate_tunnels", Help: "Tunnels of the pool that this relay knows.",
		}),
	}
	if r != nil {
		r.MustRegister(m.decisions, m.closes, m.tunnels)
	}
	return m
}

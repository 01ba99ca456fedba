package uplink

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	up, extra  prometheus.Gauge
	reconnects *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		up: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "adit_agent_link_up",
			Help: "Links to relays that are up, without the extra ones.",
		}),
		extra: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "adit_agent_extra_links",
			Help: "Extra links that are up: they go beside the others while a tunnel is open.",
		}),
		reconnects: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "adit_agent_reconnects_total",
			Help: "Links that ended and attempts that came to nothing, by reason.",
		}, []string{"reason"}),
	}
	for _, why := range reasons {
		m.reconnects.WithLabelValues(string(why)) // alerts need the zero before the first
	}
	if r != nil {
		r.MustRegister(m.up, m.extra, m.reconnects)
	}
	return m
}

package uplink

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/shared/metric"
)

type metrics struct {
	up, extra  prometheus.Gauge
	reconnects *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	f := metric.In(r)
	m := &metrics{
		up:         f.Gauge("adit_agent_link_up", "Links to relays that are up, without the extra ones."),
		extra:      f.Gauge("adit_agent_extra_links", "Extra links that are up: they go beside the others while a tunnel is open."),
		reconnects: f.Counters("adit_agent_reconnects_total", "Links that ended and attempts that came to nothing, by reason.", "reason"),
	}
	for _, why := range reasons {
		m.reconnects.WithLabelValues(string(why)) // alerts need the zero before the first
	}
	return m
}

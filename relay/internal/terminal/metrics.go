package terminal

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/shared/metric"
)

type metrics struct {
	active  prometheus.Gauge
	opened  prometheus.Counter
	refused *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	f := metric.In(r)
	return &metrics{
		active:  f.Gauge("adit_relay_terminal_viewers", "Viewers attached to terminals now."),
		opened:  f.Counter("adit_relay_terminal_opened_total", "Attachments to terminals."),
		refused: f.Counters("adit_relay_terminal_refused_total", "Attachments that were refused, by reason.", "reason"), // origin, rate, store, limit, token, late, agent, closed
	}
}

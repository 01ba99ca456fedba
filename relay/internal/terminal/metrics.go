package terminal

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	active  prometheus.Gauge
	opened  prometheus.Counter
	refused *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		active: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "adit_relay_terminal_viewers", Help: "Viewers attached to terminals now.",
		}),
		opened: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "adit_relay_terminal_opened_total", Help: "Attachments to terminals.",
		}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "adit_relay_terminal_refused_total", Help: "Attachments that were refused, by reason.",
		}, []string{"reason"}), // origin, rate, store, limit, token, late, agent, closed
	}
	if r != nil {
		r.MustRegister(m.active, m.opened, m.refused)
	}
	return m
}

package peers

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	links   prometheus.Gauge
	passing prometheus.Gauge
	opens   *prometheus.CounterVec // outcome: ok, away, refused
	asks    *prometheus.CounterVec // outcome: ok, error
	refused prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		links: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "adit_relay_peer_links", Help: "Links from this relay to others of its pool.",
		}),
		passing: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "adit_relay_peer_streams", Help: "Streams that other relays have through this one to its agents.",
		}),
		opens: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "adit_relay_peer_opens_total", Help: "Streams opened to agents through another relay, by outcome.",
		}, []string{"outcome"}),
		asks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "adit_relay_peer_questions_total", Help: "Questions to other relays, by outcome.",
		}, []string{"outcome"}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "adit_relay_peer_refused_total", Help: "Connections to the peer listener that proved to be no relay's.",
		}),
	}
	if r != nil {
		r.MustRegister(m.links, m.passing, m.opens, m.asks, m.refused)
	}
	return m
}

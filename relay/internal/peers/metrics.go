package peers

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/shared/metric"
)

type metrics struct {
	links   prometheus.Gauge
	passing prometheus.Gauge
	opens   *prometheus.CounterVec // outcome: ok, away, refused
	asks    *prometheus.CounterVec // outcome: ok, error
	refused prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	f := metric.In(r)
	return &metrics{
		links:   f.Gauge("adit_relay_peer_links", "Links from this relay to others of its pool."),
		passing: f.Gauge("adit_relay_peer_streams", "Streams that other relays have through this one to its agents."),
		opens:   f.Counters("adit_relay_peer_opens_total", "Streams opened to agents through another relay, by outcome.", "outcome"),
		asks:    f.Counters("adit_relay_peer_questions_total", "Questions to other relays, by outcome.", "outcome"),
		refused: f.Counter("adit_relay_peer_refused_total", "Connections to the peer listener that proved to be no relay's."),
	}
}

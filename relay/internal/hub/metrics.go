package hub

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/shared/link"
)

type metrics struct {
	sessions    prometheus.Gauge
	connects    *prometheus.CounterVec // outcome: ok, joined, superseded, refused, error
	disconnects *prometheus.CounterVec // reason: a goodbye's, or lost
	opens       *prometheus.CounterVec // outcome: ok, away, cut, limit, error
	rtt         prometheus.Histogram
	queue       prometheus.Histogram
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		sessions: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "adit_relay_agent_sessions", Help: "Agents linked to this relay.",
		}),
		connects: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "adit_relay_link_connects_total", Help: "Links that agents opened, by outcome.",
		}, []string{"outcome"}),
		disconnects: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "adit_relay_link_disconnects_total", Help: "Links that ended, by reason.",
		}, []string{"reason"}),
		opens: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "adit_relay_stream_opens_total", Help: "Streams opened to agents, by outcome.",
		}, []string{"outcome"}),
		rtt: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "adit_relay_link_rtt_seconds", Help: "Round trips of pings over the agents' links.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}),
		queue: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "adit_relay_link_queue_seconds", Help: "How long the oldest frame of each write to an agent's link had waited.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9),
		}),
	}
	m.disconnects.WithLabelValues("lost") // alerts need the zero before the first
	if r != nil {
		r.MustRegister(m.sessions, m.connects, m.disconnects, m.opens, m.rtt, m.queue)
	}
	return m
}

// hooks measure what links do with frames.
func (m *metrics) hooks() link.Hooks {
	return link.Hooks{Sent: func(_, _ int, queued time.Duration) { m.queue.Observe(queued.Seconds()) }}
}

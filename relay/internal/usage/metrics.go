package usage

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	in, out atomic.Int64 // read by the registry when it is scraped
	uses    [Terminal + 1]prometheus.Gauge
	kicked  prometheus.Counter
	refused prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{}
	bytes := func(direction string, n *atomic.Int64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "adit_relay_usage_bytes_total", Help: "Bytes moved through tunnels, by direction: in is from users to apps.",
			ConstLabels: prometheus.Labels{"direction": direction},
		}, func() float64 { return float64(n.Load()) })
	}
	uses := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "adit_relay_usage_active", Help: "Requests and connections under way, by kind.",
	}, []string{"kind"})
	for kind, name := range map[Kind]string{HTTP: "http", WebSocket: "websocket", TCP: "tcp", Terminal: "terminal"} {
		m.uses[kind] = uses.WithLabelValues(name)
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m.kicked = counter("adit_relay_usage_kicked_total", "Viewers disconnected by a tunnel's owner.")
	m.refused = counter("adit_relay_usage_refused_total", "Uses refused because their viewer was disconnected before.")
	if reg != nil {
		reg.MustRegister(bytes("in", &m.in), bytes("out", &m.out), uses, m.kicked, m.refused)
	}
	return m
}

func (m *metrics) open(kind Kind, n float64) {
	if int(kind) < len(m.uses) && m.uses[kind] != nil {
		m.uses[kind].Add(n)
	}
}

package usage

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/shared/metric"
)

type metrics struct {
	in, out atomic.Int64 // read by the registry when it is scraped
	uses    [Terminal + 1]prometheus.Gauge
	kicked  prometheus.Counter
	refused prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := metric.In(reg)
	m := &metrics{
		kicked:  f.Counter("adit_relay_usage_kicked_total", "Viewers disconnected by a tunnel's owner."),
		refused: f.Counter("adit_relay_usage_refused_total", "Uses refused because their viewer was disconnected before."),
	}
	for direction, n := range map[string]*atomic.Int64{"in": &m.in, "out": &m.out} {
		f.NewCounterFunc(prometheus.CounterOpts{
			Name: "adit_relay_usage_bytes_total", Help: "Bytes moved through tunnels, by direction: in is from users to apps.",
			ConstLabels: prometheus.Labels{"direction": direction},
		}, func() float64 { return float64(n.Load()) })
	}
	uses := f.Gauges("adit_relay_usage_active", "Requests and connections under way, by kind.", "kind")
	for kind, name := range map[Kind]string{HTTP: "http", WebSocket: "websocket", TCP: "tcp", Terminal: "terminal"} {
		m.uses[kind] = uses.WithLabelValues(name)
	}
	return m
}

func (m *metrics) open(kind Kind, n float64) {
	if int(kind) < len(m.uses) && m.uses[kind] != nil {
		m.uses[kind].Add(n)
	}
}

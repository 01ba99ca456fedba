package desk

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/shared/wire"
)

type metrics struct {
	active            prometheus.Gauge
	streams           *prometheus.CounterVec
	bytesIn, bytesOut prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	bytes := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "adit_agent_bytes_total",
		Help: "Bytes copied between the link and local ports: in is from users to the app.",
	}, []string{"direction"})
	m := &metrics{
		active: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "adit_agent_streams_active",
			Help: "Streams from relays that live now.",
		}),
		streams: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "adit_agent_streams_total",
			Help: "Streams from relays that ended, by kind and outcome.",
		}, []string{"kind", "outcome"}),
		bytesIn:  bytes.WithLabelValues("in"),
		bytesOut: bytes.WithLabelValues("out"),
	}
	if r != nil {
		r.MustRegister(m.active, m.streams, bytes)
	}
	return m
}

// Labels of streams_total; the list is closed.
const (
	kindUnknown = "unknown"

	outcomeOK         = "ok"
	outcomeCut        = "cut" // either side was lost or the tunnel was closed
	outcomePanic      = "panic"
	outcomeOverloaded = "overloaded"
)

func kindLabel(k wire.Kind) string {
	switch k {
	case wire.KindTCP, wire.KindTerminal:
		return k.String()
	}
	return kindUnknown
}

func outcomeLabel(c wire.Code) string {
	switch c {
	case wire.CodeOK:
		return outcomeOK
	case wire.CodeBadHello:
		return "bad_hello"
	case wire.CodePortNotAllowed:
		return "port_not_allowed"
	case wire.CodeAppRefused:
		return "app_refused"
	case wire.CodeAppTimeout:
		return "app_timeout"
	case wire.CodeStaleEpoch:
		return "stale_epoch"
	case wire.CodePaused:
		return "paused"
	case wire.CodeTerminalDisabled:
		return "terminal_disabled"
	case wire.CodeOverloaded:
		return outcomeOverloaded
	case wire.CodeUnknownTunnel:
		return "unknown_tunnel"
	case wire.CodeNoTerminal:
		return "no_terminal"
	}
	return "internal"
}

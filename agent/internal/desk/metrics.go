package desk

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/shared/metric"
	"github.com/adit-tunnel/adit/shared/wire"
)

type metrics struct {
	active            prometheus.Gauge
	streams           *prometheus.CounterVec
	bytesIn, bytesOut prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	f := metric.In(r)
	bytes := f.Counters("adit_agent_bytes_total", "Bytes copied between the link and local ports: in is from users to the app.", "direction")
	return &metrics{
		active:   f.Gauge("adit_agent_streams_active", "Streams from relays that live now."),
		streams:  f.Counters("adit_agent_streams_total", "Streams from relays that ended, by kind and outcome.", "kind", "outcome"),
		bytesIn:  bytes.WithLabelValues("in"),
		bytesOut: bytes.WithLabelValues("out"),
	}
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

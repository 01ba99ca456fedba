package install

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/shared/metric"
)

// kind is what somebody asked for.
type kind string

const (
	kindScript  kind = "script"
	kindSums    kind = "checksums"
	kindPackage kind = "package"
	kindNone    kind = "none" // what is not there
)

type metrics struct{ fetches *prometheus.CounterVec }

func newMetrics(r prometheus.Registerer) *metrics {
	f := metric.In(r)
	m := &metrics{fetches: f.Counters("adit_relay_install_requests_total", "Requests of new machines for the install script and packages, by what was served.", "file")}
	for _, k := range [...]kind{kindScript, kindSums, kindPackage, kindNone} {
		m.fetches.WithLabelValues(string(k))
	}
	return m
}

func (m *metrics) count(k kind) { m.fetches.WithLabelValues(string(k)).Inc() }

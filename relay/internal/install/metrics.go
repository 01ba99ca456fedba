package install

import "github.com/prometheus/client_golang/prometheus"

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
	m := &metrics{fetches: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "adit_relay_install_requests_total", Help: "Requests of new machines for the install script and packages, by what was served.",
	}, []string{"file"})}
	for _, k := range [...]kind{kindScript, kindSums, kindPackage, kindNone} {
		m.fetches.WithLabelValues(string(k))
	}
	if r != nil {
		r.MustRegister(m.fetches)
	}
	return m
}

func (m *metrics) count(k kind) { m.fetches.WithLabelValues(string(k)).Inc() }

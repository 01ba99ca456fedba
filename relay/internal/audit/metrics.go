package audit

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	records *prometheus.CounterVec // event, outcome: written, limited, error
	sync    prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		records: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "adit_relay_audit_records_total",
			Help: "Audit records, by event and whether they were written, left out because the caller had caused too many, or not written for an error.",
		}, []string{"event", "outcome"}),
		sync: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "adit_relay_audit_write_seconds",
			Help:    "Time to write and sync one batch of audit records.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1, 5},
		}),
	}
	if reg != nil {
		reg.MustRegister(m.records, m.sync)
	}
	return m
}

package audit

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/shared/metric"
)

type metrics struct {
	records *prometheus.CounterVec // event, outcome: written, limited, error
	sync    prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := metric.In(reg)
	return &metrics{
		records: f.Counters("adit_relay_audit_records_total", "Audit records, by event and whether they were written, left out because the caller had caused too many, or not written for an error.", "event", "outcome"),
		sync:    f.Histogram("adit_relay_audit_write_seconds", "Time to write and sync one batch of audit records.", []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1, 5}),
	}
}

// Package metric makes Prometheus metrics and registers them in the same step. It
// owns the short forms that every package's metrics are made with. It names no metric
// itself and has no registry of its own.
package metric

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Factory makes metrics for one registry. A name that is taken already is a mistake in
// the program, so it panics.
type Factory struct{ promauto.Factory }

// In returns the factory for a registry; without one (nil) metrics count and nobody
// reads them.
func In(r prometheus.Registerer) Factory { return Factory{promauto.With(r)} }

// Counter makes a counter.
func (f Factory) Counter(name, help string) prometheus.Counter {
	return f.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
}

// Counters makes a counter for each combination of labels.
func (f Factory) Counters(name, help string, labels ...string) *prometheus.CounterVec {
	return f.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
}

// Gauge makes a gauge.
func (f Factory) Gauge(name, help string) prometheus.Gauge {
	return f.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
}

// Gauges makes a gauge for each combination of labels.
func (f Factory) Gauges(name, help string, labels ...string) *prometheus.GaugeVec {
	return f.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
}

// Read makes a gauge that is read when it is scraped.
func (f Factory) Read(name, help string, read func() float64) {
	f.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, read)
}

// Says makes a gauge that is 1 while something is so, and 0 otherwise.
func (f Factory) Says(name, help string, is func() bool) {
	f.Read(name, help, func() float64 {
		if is() {
			return 1
		}
		return 0
	})
}

// Histogram makes a histogram.
func (f Factory) Histogram(name, help string, buckets []float64) prometheus.Histogram {
	return f.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
}

// Histograms makes a histogram for each combination of labels.
func (f Factory) Histograms(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	return f.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
}

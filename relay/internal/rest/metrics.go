package rest

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/shared/metric"
)

type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	watchers prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) *metrics {
	f := metric.In(r)
	return &metrics{
		requests: f.Counters("adit_relay_api_requests_total", "Calls of the HTTP interface, by operation and status code.", "operation", "code"),
		seconds:  f.Histograms("adit_relay_api_request_seconds", "Time to answer a call, by operation; calls that wait or stream are not in it.", []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10}, "operation"),
		watchers: f.Gauge("adit_relay_api_watchers", "Event streams that are open."),
	}
}

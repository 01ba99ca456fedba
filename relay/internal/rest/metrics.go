package rest

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	watchers prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "adit_relay_api_requests_total", Help: "Calls of the HTTP interface, by operation and status code.",
		}, []string{"operation", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "adit_relay_api_request_seconds", Help: "Time to answer a call, by operation; calls that wait or stream are not in it.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10},
		}, []string{"operation"}),
		watchers: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "adit_relay_api_watchers", Help: "Event streams that are open.",
		}),
	}
	if r != nil {
		r.MustRegister(m.requests, m.seconds, m.watchers)
	}
	return m
}

package edge

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/metric"
)

type metrics struct {
	requests   map[string]map[string]prometheus.Counter // form, class
	problems   *prometheus.CounterVec
	firstByte  prometheus.Histogram
	websockets prometheus.Gauge
	tcp        prometheus.Gauge
	held       prometheus.Gauge
	retries    prometheus.Counter
	redirects  prometheus.Counter
	origins    prometheus.Counter
	previews   prometheus.Counter
}

// classes are the values of the label code_class; an answer that was cut off
// counts as aborted, whatever its status.
var classes = [...]string{"aborted", "1xx", "2xx", "3xx", "4xx", "5xx"}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := metric.In(reg)
	requests := f.Counters("adit_relay_edge_requests_total", "Requests to tunnels, by form of address and class of the answer.", "code_class", "form")
	m := &metrics{
		requests:   map[string]map[string]prometheus.Counter{},
		problems:   f.Counters("adit_relay_edge_problems_total", "Requests that the relay answered itself with an error, by the hop that failed.", "hop"),
		firstByte:  f.Histogram("adit_relay_edge_first_byte_seconds", "Time from a request's header to its answer's.", []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60, 300}),
		websockets: f.Gauge("adit_relay_edge_websockets", "WebSockets through tunnels open now."),
		tcp:        f.Gauge("adit_relay_edge_tcp_connections", "TCP connections through tunnels open now."),
		held:       f.Gauge("adit_relay_edge_held_requests", "Requests waiting for an agent that is away."),
		retries:    f.Counter("adit_relay_edge_retries_total", "Requests sent again on another stream."),
		redirects:  f.Counter("adit_relay_edge_referer_redirects_total", "Absolute paths redirected under the tunnel of their Referer."),
		origins:    f.Counter("adit_relay_edge_origin_refused_total", "Requests refused for coming from another origin."),
		previews:   f.Counter("adit_relay_edge_link_previews_total", "Previews of named links, which are no uses."),
	}
	for _, form := range []string{"path", "subdomain", "none"} {
		m.requests[form] = map[string]prometheus.Counter{}
		for _, class := range classes {
			m.requests[form][class] = requests.WithLabelValues(class, form)
		}
	}
	for _, hop := range []api.Hop{api.HopRelay, api.HopLink, api.HopAgent, api.HopApp} {
		m.problems.WithLabelValues(string(hop))
	}
	return m
}

// waiting counts a request that waits for an agent, until it does not.
func (m *metrics) waiting(begins bool) {
	if begins {
		m.held.Inc()
	} else {
		m.held.Dec()
	}
}

func (m *metrics) request(status int, form string, aborted bool) {
	class := classes[0]
	if !aborted && status >= 100 && status < 600 {
		class = classes[status/100]
	}
	m.requests[form][class].Inc()
}

func (m *metrics) problem(p *api.Problem) {
	if p.Hop != "" {
		m.problems.WithLabelValues(string(p.Hop)).Inc()
	}
}

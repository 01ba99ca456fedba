package access

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/metric"
)

type metrics struct {
	refused *prometheus.CounterVec
	given   *prometheus.CounterVec
	watched prometheus.Gauge
	cut     prometheus.Counter
}

// refusals are the codes that are counted by their name.
var refusals = []api.Code{
	api.CodeAccessRequired, api.CodeAccessDenied, api.CodeReadOnly, api.CodePINRequired, api.CodeKnockWaiting, api.CodeUnauthenticated,
}

func newMetrics(r prometheus.Registerer) *metrics {
	f := metric.In(r)
	m := &metrics{
		refused: f.Counters("adit_relay_access_refused_total", "Requests to tunnels with a rule of access that were not let in, by the code of the refusal.", "code"),
		given:   f.Counters("adit_relay_access_passes_total", "Passes given to browsers, by what they were given for.", "for"),
		watched: f.Gauge("adit_relay_access_watched", "Requests and connections under way through tunnels with a rule of access."),
		cut:     f.Counter("adit_relay_access_cut_total", "Requests and connections ended because their viewer may not use the tunnel any more."),
	}
	for _, c := range refusals {
		m.refused.WithLabelValues(string(c))
	}
	m.refused.WithLabelValues("other")
	for _, how := range []How{BySignIn, ByPIN, ByKnock} {
		m.given.WithLabelValues(string(how))
	}
	return m
}

func (m *metrics) refuse(err error) {
	label := "other"
	if p, ok := errors.AsType[*api.Problem](err); ok {
		for _, c := range refusals {
			if p.Code == c {
				label = string(c)
			}
		}
	}
	m.refused.WithLabelValues(label).Inc()
}

func (m *metrics) pass(how How) { m.given.WithLabelValues(string(how)).Inc() }

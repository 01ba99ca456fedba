package enroll

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/metric"
)

type outcome string

const (
	outcomeTaken       outcome = "taken"
	outcomeRefused     outcome = "refused"
	outcomeInvalid     outcome = "invalid"
	outcomeLimited     outcome = "rate_limited"
	outcomeUnavailable outcome = "unavailable"
)

var outcomes = [...]outcome{outcomeTaken, outcomeRefused, outcomeInvalid, outcomeLimited, outcomeUnavailable}

func outcomeOf(p *api.Problem) outcome {
	switch {
	case p.Code == api.CodeTooManyTries:
		return outcomeLimited
	case p.Status == http.StatusUnauthorized || p.Status == http.StatusForbidden:
		return outcomeRefused
	case p.Status >= http.StatusInternalServerError:
		return outcomeUnavailable
	}
	return outcomeInvalid
}

type metrics struct{ enrollments *prometheus.CounterVec }

func newMetrics(r prometheus.Registerer) *metrics {
	f := metric.In(r)
	m := &metrics{enrollments: f.Counters("adit_relay_enrolments_total", "Attempts to turn an enrollment token into a credential, by outcome.", "outcome")}
	for _, o := range outcomes {
		m.enrollments.WithLabelValues(string(o))
	}
	return m
}

func (m *metrics) count(o outcome) { m.enrollments.WithLabelValues(string(o)).Inc() }

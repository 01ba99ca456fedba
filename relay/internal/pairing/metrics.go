package pairing

import (
	"errors"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/metric"
)

// step is what was asked of a pairing. Polls that wait are not counted.
type step string

const (
	stepStart   step = "start"
	stepShow    step = "show"
	stepConfirm step = "confirm"
	stepTake    step = "take"
)

var steps = [...]step{stepStart, stepShow, stepConfirm, stepTake}

type outcome string

const (
	outcomeDone        outcome = "done"
	outcomeUnknown     outcome = "unknown" // a code that is wrong, expired or used
	outcomeLimited     outcome = "rate_limited"
	outcomeRefused     outcome = "refused"
	outcomeUnavailable outcome = "unavailable"
)

var outcomes = [...]outcome{outcomeDone, outcomeUnknown, outcomeLimited, outcomeRefused, outcomeUnavailable}

func outcomeOf(err error) outcome {
	p, ok := errors.AsType[*api.Problem](err)
	switch {
	case err == nil:
		return outcomeDone
	case !ok || p.Status >= http.StatusInternalServerError:
		return outcomeUnavailable
	case p.Code == api.CodePairingNotFound:
		return outcomeUnknown
	case p.Code == api.CodeTooManyTries:
		return outcomeLimited
	}
	return outcomeRefused
}

type metrics struct{ pairings *prometheus.CounterVec }

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{pairings: metric.In(r).Counters("adit_relay_pairings_total", "Steps of pairings, by what was asked and how it ended; polls that wait are not counted.", "step", "outcome")}
	for _, s := range steps {
		for _, o := range outcomes {
			m.pairings.WithLabelValues(string(s), string(o))
		}
	}
	return m
}

func (m *metrics) count(s step, err error) {
	m.pairings.WithLabelValues(string(s), string(outcomeOf(err))).Inc()
}

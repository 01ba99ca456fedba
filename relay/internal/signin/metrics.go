package signin

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/metric"
)

// method is how somebody signs in; empty: it is no signing in.
type method string

const (
	methodIssuer  method = "issuer"
	methodInvite  method = "invite"
	methodPasskey method = "passkey"
)

// result is how that ended.
type result string

const (
	resultOK          result = "ok"
	resultRefused     result = "refused"
	resultInvalid     result = "invalid"
	resultLimited     result = "rate_limited"
	resultUnavailable result = "unavailable"
)

func resultOf(p *api.Problem) result {
	switch {
	case p.Code == api.CodeTooManyTries:
		return resultLimited
	case p.Status == http.StatusUnauthorized || p.Status == http.StatusForbidden:
		return resultRefused
	case p.Status >= http.StatusInternalServerError:
		return resultUnavailable
	}
	return resultInvalid
}

type metrics struct{ signIns *prometheus.CounterVec }

func newMetrics(r prometheus.Registerer) *metrics {
	f := metric.In(r)
	m := &metrics{signIns: f.Counters("adit_relay_sign_ins_total", "Attempts of people to sign in with a browser, by how and by result.", "method", "result")}
	for _, by := range []method{methodIssuer, methodInvite, methodPasskey} {
		for _, res := range []result{resultOK, resultRefused, resultInvalid, resultLimited, resultUnavailable} {
			m.signIns.WithLabelValues(string(by), string(res))
		}
	}
	return m
}

func (m *metrics) count(by method, res result) {
	if by != "" {
		m.signIns.WithLabelValues(string(by), string(res)).Inc()
	}
}

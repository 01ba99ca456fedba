package certs

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/shared/metric"
)

const (
	resultOK     = "ok"
	resultFailed = "failed"
)

type metrics struct {
	changes *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, c *Certs) *metrics {
	f := metric.In(reg)
	m := &metrics{changes: f.Counters("adit_relay_certificate_changes_total", "Certificates of the public listener taken on (ok), and attempts that left the old one in place (failed), by source.", "source", "result")}
	for _, source := range []Source{FromFile, FromACME} {
		for _, result := range []string{resultOK, resultFailed} {
			m.changes.WithLabelValues(string(source), result)
		}
	}
	f.Read("adit_relay_certificate_expiry_timestamp_seconds", "When the first certificate of the public listener expires, as a Unix time; 0 while one that ACME shall issue is missing.", func() float64 { return expiry(c.Status()) })
	remaining(reg, func() float64 { return left(c.Status(), time.Now()) })
	return m
}

// expiry is the first end of all certificates; one that is missing has ended.
func expiry(all []Status) float64 {
	var first time.Time
	for _, st := range all {
		if st.NotAfter.IsZero() {
			return 0
		}
		if first.IsZero() || st.NotAfter.Before(first) {
			first = st.NotAfter
		}
	}
	return float64(first.Unix())
}

// NoTLS registers what a relay says that has no certificate, and so none that ends.
func NoTLS(reg prometheus.Registerer) { remaining(reg, func() float64 { return 1 }) }

func remaining(reg prometheus.Registerer, value func() float64) {
	metric.In(reg).Read("adit_relay_certificate_remaining_ratio", "How much of its life the public listener's certificate with the least left has before it; 0 while one that ACME shall issue is missing, 1 without TLS.", value)
}

// left is the least share of its life that a certificate has before it.
func left(all []Status, now time.Time) float64 {
	least := 1.0
	for _, st := range all {
		if st.NotAfter.IsZero() {
			return 0
		}
		if st.Lifetime > 0 {
			least = min(least, float64(st.NotAfter.Sub(now))/float64(st.Lifetime))
		}
	}
	return max(0, least)
}

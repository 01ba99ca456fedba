package namedlinks

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	created, revoked, uses, refused prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "adit_relay_links_" + name, Help: help})
	}
	m := &metrics{
		created: counter("created_total", "Named links made."),
		revoked: counter("revoked_total", "Named links taken back."),
		uses:    counter("uses_total", "New viewers admitted by named links."),
		refused: counter("refused_total", "Viewers refused since a named link was used up."),
	}
	if reg != nil {
		reg.MustRegister(m.created, m.revoked, m.uses, m.refused)
	}
	return m
}

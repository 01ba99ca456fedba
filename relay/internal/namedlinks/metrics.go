package namedlinks

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/shared/metric"
)

type metrics struct {
	created, revoked, uses, refused prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := metric.In(reg)
	return &metrics{
		created: f.Counter("adit_relay_links_created_total", "Named links made."),
		revoked: f.Counter("adit_relay_links_revoked_total", "Named links taken back."),
		uses:    f.Counter("adit_relay_links_uses_total", "New viewers admitted by named links."),
		refused: f.Counter("adit_relay_links_refused_total", "Viewers refused since a named link was used up."),
	}
}

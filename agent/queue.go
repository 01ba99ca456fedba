package agent

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/shared/link"
)

// queueHooks measures how long frames wait on the links of this machine: when that
// grows while round trips do not, the machine's way out is full.
func queueHooks(reg prometheus.Registerer) link.Hooks {
	wait := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "adit_agent_link_queue_seconds", Help: "How long the oldest frame of each write to a link had waited.",
		Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9),
	})
	if reg != nil {
		reg.MustRegister(wait)
	}
	return link.Hooks{Sent: func(_, _ int, queued time.Duration) { wait.Observe(queued.Seconds()) }}
}

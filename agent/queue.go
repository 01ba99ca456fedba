package agent

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/metric"
)

// unreadBudget bounds the memory for data that waits for slow programs, over all
// links of this machine.
const unreadBudget = 256 << 20

// linkHooks measure what the links of this machine carry, and how long frames wait:
// when that grows while round trips do not, the machine's way out is full.
func linkHooks(reg prometheus.Registerer, unread *link.Budget) link.Hooks {
	f := metric.In(reg)
	counter := func(name, help string) prometheus.Counter { return f.Counter("adit_agent_link_"+name, help) }
	wait := f.Histogram("adit_agent_link_queue_seconds", "How long the oldest frame of each write to a link had waited.", prometheus.ExponentialBuckets(0.0001, 4, 9))
	rtt := f.Histogram("adit_agent_link_rtt_seconds", "Round trips of the links, queues at both ends included.", []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10})
	f.Read("adit_agent_link_unread_bytes", "Bytes received on links that wait for slow programs.", func() float64 { return float64(unread.Used()) })
	sent := counter("sent_bytes_total", "Bytes written to links, frame headers included.")
	received := counter("received_bytes_total", "Bytes read from links, frame headers included.")
	frames := counter("frames_total", "Frames written to links.")
	writes := counter("writes_total", "Writes that these frames were combined into.")
	stalled := counter("write_seconds_total", "Time that writes to links took: more than a little is time in which the line took nothing.")
	slowed := counter("slowdowns_total", "Times that bulk was sent more slowly because the line lost too much of it.")
	return link.Hooks{
		Sent: func(w link.Written) {
			wait.Observe(w.Queued.Seconds())
			sent.Add(float64(w.Bytes))
			frames.Add(float64(w.Frames))
			writes.Inc()
			stalled.Add(w.Stalled.Seconds())
		},
		Measured: func(d time.Duration) { rtt.Observe(d.Seconds()) },
		Received: func(n int) { received.Add(float64(n)) },
		Slowed:   slowed.Inc,
	}
}

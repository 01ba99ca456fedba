package hub

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/metric"
)

type metrics struct {
	sessions    prometheus.Gauge
	connects    *prometheus.CounterVec // outcome: ok, joined, superseded, refused, error
	disconnects *prometheus.CounterVec // reason: a goodbye's, or lost
	opens       *prometheus.CounterVec // outcome: ok, away, cut, limit, memory, error
	rtt         prometheus.Histogram
	queue       prometheus.Histogram
	sent        prometheus.Counter
	received    prometheus.Counter
	frames      prometheus.Counter
	writes      prometheus.Counter
	stalled     prometheus.Counter
	slowed      prometheus.Counter
	putOff      prometheus.Counter
	givenUp     *prometheus.CounterVec // reason: stuck, full
	deferred    prometheus.Counter
}

func newMetrics(r prometheus.Registerer, unread *link.Budget) *metrics {
	f := metric.In(r)
	m := &metrics{
		sessions:    f.Gauge("adit_relay_agent_sessions", "Agents linked to this relay."),
		connects:    f.Counters("adit_relay_link_connects_total", "Links that agents opened, by outcome.", "outcome"),
		disconnects: f.Counters("adit_relay_link_disconnects_total", "Links that ended, by reason.", "reason"),
		opens:       f.Counters("adit_relay_stream_opens_total", "Streams opened to agents, by outcome.", "outcome"),
		rtt:         f.Histogram("adit_relay_link_rtt_seconds", "Round trips of the agents' links, queues at both ends included.", prometheus.ExponentialBuckets(0.0005, 2, 14)),
		queue:       f.Histogram("adit_relay_link_queue_seconds", "How long the oldest frame of each write to an agent's link had waited.", prometheus.ExponentialBuckets(0.0001, 4, 9)),
		sent:        f.Counter("adit_relay_link_sent_bytes_total", "Bytes written to agents' links, frame headers included."),
		received:    f.Counter("adit_relay_link_received_bytes_total", "Bytes read from agents' links, frame headers included."),
		frames:      f.Counter("adit_relay_link_frames_total", "Frames written to agents' links."),
		writes:      f.Counter("adit_relay_link_writes_total", "Writes that these frames were combined into."),
		stalled:     f.Counter("adit_relay_link_write_seconds_total", "Time that writes to agents' links took: more than a little is time in which the line took nothing."),
		slowed:      f.Counter("adit_relay_link_slowdowns_total", "Times that bulk was sent to an agent more slowly because the line lost too much of it."),
		givenUp:     f.Counters("adit_relay_streams_given_up_total", "Connections ended because memory was short: stuck ones from which nothing was taken, or the heaviest when it was full.", "reason"),
		putOff:      f.Counter("adit_relay_heartbeats_put_off_total", "Heartbeats that said nothing new and were not written to the store, which was busy writing others."),
		deferred:    f.Counter("adit_relay_agent_changes_deferred_total", "Changes of what agents say of themselves that came too fast to be written at once."),
	}
	// Alerts need the zero before the first.
	m.disconnects.WithLabelValues("lost")
	for _, reason := range []string{"stuck", "full"} {
		m.givenUp.WithLabelValues(reason)
	}
	f.Read("adit_relay_link_unread_bytes", "Bytes of received data, and of buffers, that wait to be taken by users, agents and other relays.", func() float64 { return float64(unread.Used()) })
	return m
}

// relieved notes that streams were given up for their memory. It is rare, and whoever
// looks after the relay wants to know whose they were.
func (h *Hub) relieved(r link.Relief) {
	reason := "stuck"
	if r.Full {
		reason = "full"
	}
	h.metrics.givenUp.WithLabelValues(reason).Add(float64(r.Streams))
	h.log.Warn("memory is short: ended connections from which too little was taken", "reason", reason, "team", r.Owner.Tenant, "agent", r.Owner.Agent, "session_id", r.Owner.Tunnel, "connections", r.Streams, "bytes", r.Bytes)
}

// hooks measure what links do with frames.
func (m *metrics) hooks() link.Hooks {
	return link.Hooks{
		Sent: func(w link.Written) {
			m.queue.Observe(w.Queued.Seconds())
			m.sent.Add(float64(w.Bytes))
			m.frames.Add(float64(w.Frames))
			m.writes.Inc()
			m.stalled.Add(w.Stalled.Seconds())
		},
		Measured: func(d time.Duration) { m.rtt.Observe(d.Seconds()) },
		Received: func(n int) { m.received.Add(float64(n)) },
		Slowed:   m.slowed.Inc,
	}
}

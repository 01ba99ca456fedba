package store

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/shared/metric"
)

// op names an operation in the metrics: a closed list.
type op string

const (
	opUpdateAgent    op = "update_agent"
	opUpdateTunnel   op = "update_tunnel"
	opPutPresence    op = "put_presence"
	opDeletePresence op = "delete_presence"
	opCredential     op = "credential"
	opEnrollment     op = "enrolment"
	opCode           op = "code"
	opLink           op = "link"
	opFile           op = "file"
	opPeople         op = "people"
	opCatchUp        op = "catch_up"
	opRenew          op = "renew"
	opList           op = "list"
	opProbe          op = "probe"
)

var allOps = []op{
	opUpdateAgent, opUpdateTunnel, opPutPresence, opDeletePresence, opCredential,
	opEnrollment, opCode, opLink, opFile, opPeople, opCatchUp, opRenew, opList, opProbe,
}

type metrics struct {
	duration  *prometheus.HistogramVec
	conflicts prometheus.Counter
	unknown   prometheus.Counter
	renewals  *prometheus.CounterVec
	fenced    prometheus.Counter
	lists     prometheus.Counter
	lost      prometheus.Counter
}

// newMetrics registers the store's metrics; figures that are read when scraped
// come from s.
func newMetrics(reg prometheus.Registerer, s *Store) *metrics {
	f := metric.In(reg)
	m := &metrics{
		duration:  f.Histograms("adit_relay_store_op_duration_seconds", "Time of a store operation with its retries.", []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5}, "op"),
		conflicts: f.Counter("adit_relay_store_conflicts_total", "Compare-and-set attempts that lost against another change."),
		unknown:   f.Counter("adit_relay_store_unknown_outcomes_total", "Writes whose answer did not come, so that their outcome was read back."),
		renewals:  f.Counters("adit_relay_store_lease_renewals_total", "Renewals of the relay's lease by result.", "result"),
		fenced:    f.Counter("adit_relay_store_fenced_total", "Times the relay stopped serving because its lease could not be renewed."),
		lists:     f.Counter("adit_relay_store_lists_total", "Times the mirror was rebuilt from a full list."),
		lost:      f.Counter("adit_relay_store_subscription_losses_total", "Times a subscriber was too slow and had to read again."),
	}
	for _, o := range allOps {
		m.duration.WithLabelValues(string(o))
	}
	for _, r := range []string{"ok", "failed"} {
		m.renewals.WithLabelValues(r)
	}
	f.Read("adit_relay_store_mirror_revision", "Revision up to which the mirror has applied the store's changes.", func() float64 { return float64(s.mirror.revision()) })
	f.Read("adit_relay_store_mirror_silence_seconds", "Time since the mirror heard of the store.", func() float64 { return s.silence().Seconds() })
	f.Says("adit_relay_store_stale", "1 while the mirror may be out of date.", s.stale)
	f.Says("adit_relay_store_serving", "1 while the relay's lease is valid.", s.Serving)
	f.Read("adit_relay_store_size_bytes", "Size of the store's database.", func() float64 { return float64(s.Status().SizeBytes) })
	f.Read("adit_relay_store_quota_bytes", "Size at which the store is full; 0 where it is not known.", func() float64 { return float64(s.Status().QuotaBytes) })
	f.Says("adit_relay_store_full", "1 while the store takes nothing new for lack of room.", func() bool { return !s.Room() })
	f.Read("adit_relay_store_mirror_tunnels", "Tunnels in the mirror.", func() float64 { return float64(s.mirror.counts().tunnels) })
	f.Read("adit_relay_store_mirror_agents", "Agents in the mirror.", func() float64 { return float64(s.mirror.counts().agents) })
	return m
}

// took observes an operation's time when its function ends:
//
//	defer m.took(opList)()
func (m *metrics) took(o op) func() {
	start := time.Now()
	return func() { m.duration.WithLabelValues(string(o)).Observe(time.Since(start).Seconds()) }
}

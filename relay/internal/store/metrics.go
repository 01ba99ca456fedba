package store

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// op names an operation in the metrics: a closed list.
type op string

const (
	opUpdateAgent    op = "update_agent"
	opUpdateTunnel   op = "update_tunnel"
	opPutPresence    op = "put_presence"
	opDeletePresence op = "delete_presence"
	opCredential     op = "credential"
	opEnrolment      op = "enrolment"
	opCode           op = "code"
	opLink           op = "link"
	opFile           op = "file"
	opCatchUp        op = "catch_up"
	opRenew          op = "renew"
	opList           op = "list"
	opProbe          op = "probe"
)

var allOps = []op{
	opUpdateAgent, opUpdateTunnel, opPutPresence, opDeletePresence, opCredential,
	opEnrolment, opCode, opLink, opFile, opCatchUp, opRenew, opList, opProbe,
}

type metrics struct {
	duration  *prometheus.HistogramVec
	conflicts prometheus.Counter
	unknown   prometheus.Counter
	renewals  *prometheus.CounterVec
	fenced    prometheus.Counter
	lists     prometheus.Counter
	lost      prometheus.Counter
	collect   []prometheus.Collector
}

// newMetrics registers the store's metrics; figures that are read when scraped
// come from s.
func newMetrics(reg prometheus.Registerer, s *Store) (*metrics, error) {
	m := &metrics{
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "adit_relay_store_op_duration_seconds",
			Help:    "Time of a store operation with its retries.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}, []string{"op"}),
		conflicts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "adit_relay_store_conflicts_total",
			Help: "Compare-and-set attempts that lost against another change.",
		}),
		unknown: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "adit_relay_store_unknown_outcomes_total",
			Help: "Writes whose answer did not come, so that their outcome was read back.",
		}),
		renewals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "adit_relay_store_lease_renewals_total",
			Help: "Renewals of the relay's lease by result.",
		}, []string{"result"}),
		fenced: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "adit_relay_store_fenced_total",
			Help: "Times the relay stopped serving because its lease could not be renewed.",
		}),
		lists: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "adit_relay_store_lists_total",
			Help: "Times the mirror was rebuilt from a full list.",
		}),
		lost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "adit_relay_store_subscription_losses_total",
			Help: "Times a subscriber was too slow and had to read again.",
		}),
	}
	for _, o := range allOps {
		m.duration.WithLabelValues(string(o))
	}
	for _, r := range []string{"ok", "failed"} {
		m.renewals.WithLabelValues(r)
	}
	m.collect = []prometheus.Collector{m.duration, m.conflicts, m.unknown, m.renewals, m.fenced, m.lists, m.lost}
	gauge := func(name, help string, read func() float64) {
		m.collect = append(m.collect, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, read))
	}
	gauge("adit_relay_store_mirror_revision", "Revision up to which the mirror has applied the store's changes.",
		func() float64 { return float64(s.mirror.revision()) })
	gauge("adit_relay_store_mirror_silence_seconds", "Time since the mirror heard of the store.",
		func() float64 { return s.silence().Seconds() })
	gauge("adit_relay_store_stale", "1 while the mirror may be out of date.", func() float64 { return oneIf(s.stale()) })
	gauge("adit_relay_store_serving", "1 while the relay's lease is valid.", func() float64 { return oneIf(s.Serving()) })
	gauge("adit_relay_store_size_bytes", "Size of the store's database.",
		func() float64 { return float64(s.Status().SizeBytes) })
	gauge("adit_relay_store_quota_bytes", "Size at which the store is full; 0 where it is not known.",
		func() float64 { return float64(s.Status().QuotaBytes) })
	gauge("adit_relay_store_full", "1 while the store takes nothing new for lack of room.", func() float64 { return oneIf(!s.Room()) })
	gauge("adit_relay_store_mirror_tunnels", "Tunnels in the mirror.",
		func() float64 { return float64(s.mirror.counts().tunnels) })
	gauge("adit_relay_store_mirror_agents", "Agents in the mirror.",
		func() float64 { return float64(s.mirror.counts().agents) })
	if reg == nil {
		return m, nil
	}
	var errs []error
	for _, c := range m.collect {
		errs = append(errs, reg.Register(c))
	}
	return m, errors.Join(errs...)
}

// took observes an operation's time when its function ends:
//
//	defer m.took(opList)()
func (m *metrics) took(o op) func() {
	start := time.Now()
	return func() { m.duration.WithLabelValues(string(o)).Observe(time.Since(start).Seconds()) }
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

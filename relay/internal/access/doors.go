package access

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/caller"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/metric"
)

// Where browsers send what the relay's own pages ask for, on the tunnel's address.
const (
	PINPath   = "/_adit/pin"
	KnockPath = "/_adit/knock"
)

// DoorStore is what Doors keep.
type DoorStore interface {
	Knock(id ident.SessionID, knock string) (store.KnockRecord, bool)
	Knocks(id ident.SessionID) []store.KnockRecord
	CreateKnock(ctx context.Context, r store.KnockRecord) error
	ChangeKnock(ctx context.Context, id ident.SessionID, knock string, change func(*store.KnockRecord) error) (store.KnockRecord, error)
	ChangePINTries(ctx context.Context, name string, change func(*store.PINTriesRecord) error) (store.PINTriesRecord, error)
	UseTicket(ctx context.Context, hash string, ends time.Time) error
	CatchUp(ctx context.Context) error
}

// Auditor writes the audit log.
type Auditor interface {
	Append(ctx context.Context, r audit.Record) error
}

// DoorsConfig is what Doors need; all of it but Registerer.
type DoorsConfig struct {
	Access     *Access // makes the passes
	Store      DoorStore
	Audit      Auditor
	Now        func() time.Time
	Registerer prometheus.Registerer
}

// Doors let in who is not known: by the tunnel's PIN, or because a member of the team
// admits who knocks. They are safe for concurrent use.
type Doors struct {
	cfg     DoorsConfig
	metrics *doorMetrics
	work    chan struct{} // a place for each PIN that is worked on
	queue   chan struct{} // and for each that waits for one
	tries   *caller.Limits
	knocks  *caller.Limits

	mu     sync.Mutex
	locked map[string]uint64            // by name of the tries: the version that is locked
	coming map[ident.SessionID][]string // addresses of knocks that are being written
}

// Bounds over all tunnels.
const (
	pinWork      = 2  // at once: each takes a core and pinMemory for a while
	pinQueue     = 16 // that wait
	pinEvery     = 12 * time.Second
	pinBurst     = 5 // five a minute
	knockEvery   = 10 * time.Second
	knockBurst   = 6
	doorsTracked = 8192 // addresses that are kept in mind
)

// NewDoors returns Doors.
func NewDoors(cfg DoorsConfig) *Doors {
	return &Doors{
		cfg: cfg, metrics: newDoorMetrics(cfg.Registerer),
		work: make(chan struct{}, pinWork), queue: make(chan struct{}, pinWork+pinQueue),
		tries: caller.NewLimits(pinEvery, pinBurst, doorsTracked), knocks: caller.NewLimits(knockEvery, knockBurst, doorsTracked),
		locked: map[string]uint64{}, coming: map[ident.SessionID][]string{},
	}
}

// rule is the rule at a door, if it is one of this mode and the address may come to it.
// A nil rule without an error: the tunnel does not ask for this any more.
func (d *Doors) rule(req Request, mode api.AccessMode) (*store.AccessRule, error) {
	rule := RuleOf(req.Tunnel, req.Link)
	if rule == nil || rule.Mode != mode {
		return nil, nil
	}
	if !FromAllows(rule, req.Remote) {
		return nil, notFrom()
	}
	return rule, nil
}

// pass lets somebody in.
func (d *Doors) pass(req Request, v Viewer) (ident.Secret, time.Time) {
	return d.cfg.Access.Seal(v, req.Browser, req.Tunnel, req.Link, time.Time{})
}

func (d *Doors) audit(ctx context.Context, req Request, event audit.Event, detail string) error {
	err := d.cfg.Audit.Append(context.WithoutCancel(ctx), audit.Record{
		Event: event, Team: req.Tunnel.Team, Agent: req.Tunnel.Agent, Session: req.Tunnel.Session, RemoteAddr: req.Remote.String(), Detail: detail,
	})
	if err != nil {
		return api.Internal(err)
	}
	return nil
}

func doorProblem(err error) error {
	if p, ok := errors.AsType[*api.Problem](err); ok {
		return p
	}
	if p := store.Refusal(err); p != nil {
		return p
	}
	return api.Internal(err)
}

type doorMetrics struct {
	pins   *prometheus.CounterVec
	knocks *prometheus.CounterVec
}

// Outcomes of what is done at a door.
const (
	pinRight     = "right"
	pinWrong     = "wrong"
	pinIsLocked  = "locked"
	pinLimited   = "limited"
	knockTaken   = "taken"
	knockLimited = "limited"
	answerAdmit  = "admitted"
	answerRefuse = "refused"
)

func newDoorMetrics(r prometheus.Registerer) *doorMetrics {
	f := metric.In(r)
	m := &doorMetrics{
		pins:   f.Counters("adit_relay_access_pins_total", "PINs that were tried, by outcome.", "outcome"),
		knocks: f.Counters("adit_relay_access_knocks_total", "Knocks at tunnels and answers to them, by outcome.", "outcome"),
	}
	for _, o := range []string{pinRight, pinWrong, pinIsLocked, pinLimited} {
		m.pins.WithLabelValues(o)
	}
	for _, o := range []string{knockTaken, knockLimited, answerAdmit, answerRefuse} {
		m.knocks.WithLabelValues(o)
	}
	return m
}

package relay

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/relay/internal/admin"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/enrol"
)

// enrolment makes what turns enrolment tokens into credentials.
func (r *Relay) enrolment(p *parts, reg *prometheus.Registry) error {
	p.enrol = enrol.New(enrol.Config{
		Store: p.store, Credentials: p.creds, Audit: p.audit, Key: p.key, Remote: r.remote, Now: now, MayAppear: p.gate.MayAppear,
		Logger: r.log.With("part", "enrol"), Registerer: reg,
	})
	return nil
}

// enrolments is enrol for the admin socket.
type enrolments struct{ r *Relay }

func (e enrolments) CreateEnrolment(ctx context.Context, req admin.CreateEnrolment) (admin.CreatedEnrolment, error) {
	by := creds.Operator("admin-socket").InTeam(req.Team)
	rec, token, err := e.r.p.enrol.Create(ctx, by, req.Team, req.Agent, req.ExpiresIn.D())
	if err != nil {
		return admin.CreatedEnrolment{}, err
	}
	return admin.CreatedEnrolment{
		Token: token.Reveal(), Agent: rec.Agent, ExpiresAt: rec.ExpiresAt,
		// Not agent_url: what the machine is told must outlive any one relay of a pool.
		RelayURL: e.r.cfg.PublicURL, Install: e.r.p.install.Offered(),
	}, nil
}

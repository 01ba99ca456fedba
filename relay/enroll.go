package relay

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/relay/internal/admin"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/enroll"
)

// enrollment makes what turns enrollment tokens into credentials.
func (r *Relay) enrollment(p *parts, reg *prometheus.Registry) error {
	p.enroll = enroll.New(enroll.Config{
		Store: p.store, Credentials: p.creds, Audit: p.audit, Key: p.key, Remote: r.remote, Now: now, MayAppear: p.gate.MayAppear,
		Logger: r.log.With("part", "enroll"), Registerer: reg,
	})
	return nil
}

// enrollments is enroll for the admin socket.
type enrollments struct{ r *Relay }

func (e enrollments) CreateEnrollment(ctx context.Context, req admin.CreateEnrollment) (admin.CreatedEnrollment, error) {
	by := creds.Operator("admin-socket").InTeam(req.Team)
	rec, token, err := e.r.p.enroll.Create(ctx, by, req.Team, req.Agent, req.ExpiresIn.D())
	if err != nil {
		return admin.CreatedEnrollment{}, err
	}
	return admin.CreatedEnrollment{
		Token: token.Reveal(), Agent: rec.Agent, ExpiresAt: rec.ExpiresAt,
		// Not agent_url: what the machine is told must outlive any one relay of a pool.
		RelayURL: e.r.cfg.PublicURL, Install: e.r.p.install.Offered(),
	}, nil
}

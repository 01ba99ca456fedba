package relay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/admin"
	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/rights"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/relay/internal/usage"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

// local is what carries tunnels on this relay, as the gate needs it.
type local struct{ p *parts }

func (l local) Cut(key ident.AgentKey, id ident.SessionID, reason store.Reason) {
	// Uses first, so that WebSockets get their goodbye; then what is left of streams.
	l.p.edge.Drop(id, &usage.Over{Of: usage.ErrClosed, Text: l.p.gate.Because(id, reason).String()})
	l.p.fleet.Cut(key, id, string(reason))
}

func (l local) Opened(key ident.AgentKey, t store.TunnelRecord) { l.p.hub.Opened(key, t) }

func (l local) Closed(key ident.AgentKey, id ident.SessionID, reason store.Reason) {
	l.p.hub.Closed(key, id, string(reason))
}

func (l local) Changed(key ident.AgentKey, rec store.AgentRecord) { l.p.hub.Changed(key, rec) }

func (l local) LastUsed(id ident.SessionID) time.Time { return l.p.meter.Totals(id).LastUsed }

// why says to a terminal's viewers why their tunnel is over.
func (p *parts) why(id ident.SessionID) (string, bool) {
	e, ok := p.gate.Why(id)
	return e.String(), ok
}

// whyTCP says to programs why the tunnel of protocol tcp, or the named link of one,
// whose address they have is over. Browsers get one page for whatever is not there.
func (p *parts) whyTCP(id ident.SessionID) (string, bool) {
	text := ""
	if session, why, ok := p.links.Why(ident.LinkID(id)); ok {
		id, text = session, why
	}
	if e, ok := p.gate.Why(id); ok {
		return e.String(), e.Protocol == api.ProtocolTCP
	}
	t, ok := p.store.Tunnel(id)
	return text, ok && text != "" && t.Protocol == api.ProtocolTCP
}

// terminals are the terminal's codes for the API, which is made before it.
type terminals struct{ p *parts }

func (t terminals) Mint(ctx context.Context, r store.TunnelRecord, by creds.Principal, lives time.Duration, readOnly bool) (string, time.Time, error) {
	return t.p.terminal.Mint(ctx, r, by, lives, readOnly)
}

// prober asks agents about the apps behind tunnels and keeps what they found in
// the tunnel's record, for every relay and every list.
type prober struct{ p *parts }

// ProbeHost asks once, for the Host that the app wants.
func (b prober) ProbeHost(ctx context.Context, t store.TunnelRecord, publicHost string) (api.HostHeader, error) {
	found, err := b.p.fleet.Probe(ctx, t.Key(), wire.Probe{Port: t.Port, Protocol: string(t.Protocol), PublicHost: publicHost})
	if err == nil {
		_, err = b.p.store.UpdateTunnel(ctx, t.Session, func(r *store.TunnelRecord) error { return r.Found(found) })
	}
	if errors.Is(err, store.ErrNotFound) { // closed meanwhile
		err = nil
	}
	return api.HostHeader(found.HostHeader), err
}

// operator manages credentials, tunnels and teams for the admin socket.
type operator struct{ p *parts }

func (o operator) principal() creds.Principal { return creds.Operator("admin-socket") }

func (o operator) CreateCredential(ctx context.Context, req admin.CreateCredential) (api.CreatedCredential, error) {
	rec, secret, err := o.p.creds.Create(ctx, o.principal().InTeam(req.Team), req.Team, req.User, api.CreateCredentialRequest{
		Kind: req.Kind, Name: req.Name, ExpiresIn: req.ExpiresIn, AgentID: req.Agent,
		Role: req.Role, Scopes: req.Scopes, Agents: req.Agents, Ports: req.Ports,
	})
	if err == nil {
		err = o.note(ctx, audit.CredentialCreated, rec)
	}
	if err != nil {
		return api.CreatedCredential{}, err
	}
	return api.CreatedCredential{Credential: creds.Public(rec), Secret: secret.Reveal()}, nil
}

func (o operator) ListCredentials(_ context.Context, team ident.TeamID) ([]api.Credential, error) {
	return o.p.creds.List(o.principal().InTeam(team), team)
}

func (o operator) RevokeCredential(ctx context.Context, id ident.CredentialID, keepTunnels bool) (api.Revoked, error) {
	rec, ok := o.p.store.Credential(id)
	if !ok {
		return api.Revoked{}, api.Problemf(api.CodeCredentialNotFound, "there is no credential %s", id)
	}
	return o.p.rights.Revoke(ctx, o.principal().InTeam(rec.Team), rec.Team, id, keepTunnels)
}

func (o operator) Tunnels(f rights.Filter) []store.TunnelRecord { return o.p.rights.Tunnels(f) }

func (o operator) CloseTunnels(ctx context.Context, f rights.Filter) ([]store.TunnelRecord, error) {
	return o.p.rights.Close(ctx, o.principal(), f)
}

// note records what the operator did, before it is acknowledged.
func (o operator) note(ctx context.Context, event audit.Event, rec store.CredentialRecord) error {
	err := o.p.audit.Append(ctx, audit.Record{
		Event: event, Actor: o.principal().Name, Team: rec.Team, Agent: rec.Agent,
		Detail: fmt.Sprintf("%s %s %q", rec.Kind, rec.ID, rec.Name),
	})
	if err != nil {
		return fmt.Errorf("the credential %s was changed, but the audit log could not be written: %w", rec.ID, err)
	}
	return nil
}

package relay

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/adit-tunnel/adit/relay/internal/access"
	"github.com/adit-tunnel/adit/relay/internal/admin"
	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/certs"
	"github.com/adit-tunnel/adit/relay/internal/console"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/edge"
	"github.com/adit-tunnel/adit/relay/internal/enroll"
	"github.com/adit-tunnel/adit/relay/internal/fleet"
	"github.com/adit-tunnel/adit/relay/internal/front"
	"github.com/adit-tunnel/adit/relay/internal/gate"
	"github.com/adit-tunnel/adit/relay/internal/hub"
	"github.com/adit-tunnel/adit/relay/internal/identity"
	"github.com/adit-tunnel/adit/relay/internal/install"
	"github.com/adit-tunnel/adit/relay/internal/namedlinks"
	"github.com/adit-tunnel/adit/relay/internal/pairing"
	"github.com/adit-tunnel/adit/relay/internal/paths"
	"github.com/adit-tunnel/adit/relay/internal/peers"
	"github.com/adit-tunnel/adit/relay/internal/people"
	"github.com/adit-tunnel/adit/relay/internal/rest"
	"github.com/adit-tunnel/adit/relay/internal/rights"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/relay/internal/terminal"
	"github.com/adit-tunnel/adit/relay/internal/tunnels"
	"github.com/adit-tunnel/adit/relay/internal/usage"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/lifecycle"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/traces"
)

// parts are a relay's, from the bottom up.
type parts struct {
	key      ident.ClusterKey
	store    *store.Store
	audit    *audit.Log
	creds    *creds.Authenticator
	enroll   *enroll.Enrollment
	meter    *usage.Meter
	gate     *gate.Gate
	budget   *link.Budget // of memory for data that waits
	hub      *hub.Hub
	peers    *peers.Peers // nil: this relay is alone
	fleet    *fleet.Fleet
	links    *namedlinks.Links
	rights   *rights.Rights
	pairing  *pairing.Pairing
	people   *people.People
	resolver *tunnels.Resolver
	access   *access.Access
	identity *identity.Identity
	doors    *access.Doors
	edge     *edge.Edge
	api      *rest.API
	admin    *admin.Server
	front    *front.Server
	certs    *certs.Certs // nil: the public listener speaks plain HTTP
	terminal *terminal.Terminal
	install  *install.Files
	metrics  http.Handler   // nil: no metrics listener
	traces   *traces.Traces // nil: none
}

// assemble makes every part and connects them. The order is that of the layers:
// what a part needs is made before it, but for the gate's view of what carries
// tunnels, which leans on the gate itself and is reached through parts.
func (r *Relay) assemble() (*parts, error) {
	p := &parts{}
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, step := range []func(*parts, *prometheus.Registry) error{r.state, r.rules, r.enrollment, r.pool, r.doors} {
		if err := step(p, reg); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// state makes what is durable: the key, the store and the audit log.
func (r *Relay) state(p *parts, reg *prometheus.Registry) (err error) {
	if p.key, err = loadClusterKey(r.cfg.ClusterKeyFile, len(r.cfg.Store.Endpoints) == 0); err != nil {
		return err
	}
	storeTLS, err := clientTLS(r.cfg.Store.TLS.CAFile, r.cfg.Store.TLS.CertFile, r.cfg.Store.TLS.KeyFile)
	if err != nil {
		return fmt.Errorf("store.tls: %w", err)
	}
	p.store, err = store.New(store.Config{
		DataDir: r.cfg.DataDir, Endpoints: r.cfg.Store.Endpoints, TLS: storeTLS, QuotaBytes: r.cfg.Store.Quota,
		Relay:  store.RelayRecord{ID: r.id(), PeerURL: r.cfg.Peer.URL, URL: r.cfg.AgentURL, Version: lifecycle.Version(), Started: r.started},
		Logger: r.log.With("part", "store"), Registerer: reg, Now: now,
	})
	if err != nil {
		return err
	}
	p.audit, err = audit.Open(audit.Config{Dir: r.auditDir(), Relay: r.id(), Logger: r.log.With("part", "audit"), Registerer: reg})
	return err
}

// lostGrace is how long an agent whose link was lost stays in lists.
const lostGrace = 30 * time.Second

// rules makes what decides: credentials, usage, the gate, the hub, the fleet and the API.
func (r *Relay) rules(p *parts, reg *prometheus.Registry) (err error) {
	o, j, t, l := r.cfg.Auth.OIDC, r.cfg.Auth.JWT, r.cfg.Tunnel, r.cfg.Limits
	p.creds, err = creds.New(creds.Config{
		OIDC:  creds.OIDC{Issuer: o.Issuer, Audience: o.Audience, TeamsClaim: o.TeamsClaim, RolesClaim: o.RolesClaim, Roles: roles(o.Roles)},
		JWT:   creds.JWT{PublicKeyFile: j.PublicKeyFile, Issuer: j.Issuer, Audience: j.Audience, TeamsClaim: j.TeamsClaim, RolesClaim: j.RolesClaim, Roles: roles(j.Roles)},
		Store: p.store, Key: p.key, Changes: creds.StoreChanges(p.store), ClientAddr: r.remote,
		Logger: r.log.With("part", "creds"), Registerer: reg,
	})
	if err != nil {
		return err
	}
	p.meter = usage.New(usage.Config{Viewed: r.viewed, Registerer: reg})
	p.gate, err = gate.New(gate.Config{
		Store: gate.Shared{Store: p.store}, Local: local{p}, Audit: p.audit, Relay: r.id(), Key: p.key,
		Limits: gate.Limits{
			IdleTimeout: t.IdleTimeout.D(), MaxIdleTimeout: t.MaxIdleTimeout.D(), ExpiresIn: t.ExpiresIn.D(), MaxExpiresIn: t.MaxExpiresIn.D(),
			PerAgent: l.TunnelsPerAgent, PerTeam: l.TunnelsPerTeam, OpensPerSecond: l.OpensPerMinute / 60, OpensBurst: max(1, int(l.OpensPerMinute)),
			AgentsPerTeam: l.AgentsPerTeam, AgentRetention: l.AgentRetention.D(),
		},
		Logger: r.log.With("part", "gate"), Registerer: reg, Now: now,
	})
	if err != nil {
		return err
	}
	p.budget = link.NewBudget(int64(l.MemoryBytes))
	var pool hub.Pool
	if len(r.cfg.Store.Endpoints) > 0 {
		pool = p.gate
	}
	p.hub, err = hub.New(hub.Config{
		Relay: r.id(), Version: lifecycle.Version(), PublicURL: r.cfg.PublicURL,
		Gate: p.gate, Pool: pool, Store: p.store, Creds: p.creds, GateHTTP: r.agentAPI, Relays: r.otherRelays,
		Budget: p.budget, MaxStreams: l.StreamsPerAgent, MaxAgents: l.Agents, AgentsPerTeam: l.AgentsPerTeam, Grace: lostGrace, Event: r.agentEvent,
		Logger: r.log.With("part", "hub"), Registerer: reg,
	})
	if err != nil {
		return err
	}
	if p.traces, err = r.tracing(); err != nil {
		return err
	}
	p.fleet = fleet.New(fleet.Config{
		Relay: r.id(), Hub: p.hub, Store: p.store, Meter: p.meter, Traces: p.traces, Logger: r.log.With("part", "fleet"),
	})
	p.resolver, err = tunnels.New(tunnels.Config{
		Store: p.store, Key: p.key, PublicURL: r.cfg.Public(), WildcardDomain: r.cfg.WildcardDomain,
		PathForm: r.cfg.ServesPathForm(), ConsoleURL: r.cfg.Console(),
	})
	if err != nil {
		return err
	}
	p.links, err = namedlinks.New(namedlinks.Config{
		Store: gate.Shared{Store: p.store}, Usage: p.meter, Audit: p.audit, Key: p.key, Logger: r.log.With("part", "links"), Registerer: reg,
	})
	if err != nil {
		return err
	}
	p.access = access.New(access.Config{
		Store: p.store, Creds: p.creds, Key: p.key, Changes: access.StoreChanges(p.store), CutUnwatched: p.meter.CutUnwatched, Now: now, Registerer: reg,
	})
	if p.identity, err = identity.New(identity.Config{Key: p.key, Issuer: p.resolver.PublicOrigin(), Now: now, Registerer: reg}); err != nil {
		return err
	}
	p.doors = access.NewDoors(access.DoorsConfig{Access: p.access, Store: p.store, Audit: p.audit, Now: now, Registerer: reg})
	p.rights = rights.New(rights.Config{Creds: p.creds, Gate: p.gate, Links: p.links, Store: p.store, Audit: p.audit})
	p.pairing = pairing.New(pairing.Config{
		Store: p.store, Credentials: p.creds, Audit: p.audit, Key: p.key, Origin: p.resolver.ConsoleOrigin(), MayAppear: p.gate.MayAppear, Now: now, Registerer: reg,
	})
	if p.people, err = r.people(p); err != nil {
		return err
	}
	p.api, err = rest.New(rest.Config{
		Auth: p.creds, Rights: p.rights, People: p.people, Pairing: p.pairing, Gate: p.gate, Store: gate.Shared{Store: p.store}, Addresses: p.resolver, Usage: p.fleet, Links: p.links, Terminals: terminals{p},
		Doors: p.doors, AppliesAccess: p.store.AllApplyAccess, SignInOff: r.cfg.SignInOff(), Access: access.Floor{Minimum: api.AccessMode(r.cfg.Access.Minimum), Default: api.AccessMode(r.cfg.Access.Default)},
		Prober: p.fleet, Heartbeats: p.hub, Audit: p.audit, Remote: r.remote, Grace: lostGrace,
		Logger: r.log.With("part", "rest"), Registerer: reg,
	})
	return err
}

// roles are the roles behind an issuer's values, which the configuration has checked.
func roles(of map[string]string) map[string]api.Role {
	out := make(map[string]api.Role, len(of))
	for value, role := range of {
		out[value] = api.Role(role)
	}
	return out
}

// pool makes the links to the other relays, if this relay is one of several.
func (r *Relay) pool(p *parts, reg *prometheus.Registry) (err error) {
	c := r.cfg.Peer
	if c.Listen == "" {
		return nil
	}
	p.peers, err = peers.New(peers.Config{
		Relay: r.id(), Listen: c.Listen, TLS: peers.Files{CA: c.TLS.CAFile, Cert: c.TLS.CertFile, Key: c.TLS.KeyFile},
		Pool: p.store, Subscribe: func(n int) peers.Changes { return p.store.Subscribe(n) },
		Open: p.fleet.OpenHere, Answers: p.fleet.Answers(), Budget: p.budget, Leaving: func() { p.edge.Yield(); p.terminal.Yield() },
		Logger: r.log.With("part", "peers"), Registerer: reg,
	})
	if err != nil {
		return err
	}
	p.fleet.SetPeers(p.peers)
	return nil
}

// doors makes what listens: the edge, the public listener, metrics and the admin
// socket.
func (r *Relay) doors(p *parts, reg *prometheus.Registry) (err error) {
	pages, err := r.pages(p, reg)
	if err != nil {
		return err
	}
	own := paths.New(paths.Config{
		API: p.api, Link: http.HandlerFunc(r.serveLink), Enroll: p.enroll, Ready: r.ready, More: pages,
		Home: p.resolver.ConsoleOrigin() + console.Path,
	})
	fallback := r.cfg.PathFallback
	if fallback == "none" {
		fallback = ""
	}
	p.edge, err = edge.New(edge.Config{
		Resolver: p.resolver, Fleet: p.fleet, Meter: p.meter, Links: p.links, Access: p.access, Identity: p.identity, Doors: p.doors, SignIn: r.signInOrigin(p), Why: p.whyTCP, Stopping: r.draining.Load, Prober: prober{p}, Own: own.Find, Else: http.HandlerFunc(own.Else),
		Hold: r.cfg.Tunnel.Hold.D(), HeaderTimeout: r.cfg.Tunnel.HeaderTimeout.D(), TrustedProxies: r.proxies,
		PathFallback: fallback, MaxStreams: r.cfg.Limits.StreamsPerTunnel,
		Logger: r.log.With("part", "edge"), Registerer: reg,
	})
	if err != nil {
		return err
	}
	if p.certs, err = r.certificates(p, reg); err != nil {
		return err
	}
	public := front.Config{
		Listen: r.cfg.Listen, ConnsPerAddress: r.cfg.Limits.ConnsPerAddress, Exempt: r.trusted, Handler: p.edge,
		Logger: r.log.With("part", "front"),
	}
	if p.traces != nil {
		public.Handler = p.traces.Handler(r.describe, p.edge)
	}
	if p.certs != nil {
		public.TLS = p.certs.TLS()
	}
	p.front = front.New(public)
	p.metrics = r.metricsHandler(reg)
	p.admin = admin.New(admin.Config{
		Socket: r.cfg.AdminSocket(), Credentials: operator{p}, Rights: operator{p}, People: operator{p}, Enrollments: enrollments{r}, Status: r.status,
		Drain: func() {
			select {
			case r.drainNow <- struct{}{}:
			default: // asked already
			}
		},
		Backup: func(ctx context.Context, w io.Writer) error {
			_, err := p.store.Backup(ctx, w)
			return err
		},
		Diag: r.diag(reg), Audit: r.auditDir(), Logger: r.log.With("part", "admin"),
	})
	return nil
}

// clientTLS returns nil without files.
func clientTLS(caFile, certFile, keyFile string) (*tls.Config, error) {
	if caFile == "" && certFile == "" {
		return nil, nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, fmt.Errorf("read ca_file: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca_file %s holds no certificate", caFile)
		}
	}
	if certFile != "" {
		cert, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return nil, fmt.Errorf("read cert_file and key_file: %w", err)
		}
		cfg.Certificates = []tls.Certificate{cert}
	}
	return cfg, nil
}

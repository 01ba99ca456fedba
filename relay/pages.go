package relay

import (
	"maps"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/relay/internal/console"
	"github.com/adit-tunnel/adit/relay/internal/install"
	"github.com/adit-tunnel/adit/relay/internal/terminal"
	"github.com/adit-tunnel/adit/relay/internal/web"
)

// pages makes what the relay serves to people in browsers and to new machines, by
// pattern.
func (r *Relay) pages(p *parts, reg *prometheus.Registry) (map[string]http.Handler, error) {
	at := r.cfg.Console()
	if at == nil {
		at = r.cfg.Public()
	}
	assets, err := web.New(at)
	if err != nil {
		return nil, err
	}
	if r.cfg.ConsoleURL != "" {
		assets = assets.Alone(p.resolver.AtConsole)
	}
	if !assets.Built() {
		r.log.Warn("this build has no web pages: scripts/build makes them, with npm")
	}
	p.terminal, err = terminal.New(terminal.Config{
		Page: assets.Page("terminal"), Origin: p.resolver.ConsoleOrigin(), Store: p.store, Key: p.key, AdminToken: p.gate.AdminToken,
		Fleet: p.fleet, Meter: p.meter, Audit: p.audit, Remote: r.remote, Hold: r.cfg.Tunnel.Hold.D(), Why: p.why, Stopping: r.draining.Load,
		Logger: r.log.With("part", "terminal"), Registerer: reg,
	})
	if err != nil {
		return nil, err
	}
	routes := p.terminal.Routes()
	routes["GET "+web.Path] = assets.Files()
	maps.Copy(routes, console.Routes(assets))
	door, err := r.signIn(p, reg)
	if err != nil {
		return nil, err
	}
	maps.Copy(routes, door.Routes())
	maps.Copy(routes, p.identity.Routes())
	p.install = install.New(install.Config{
		Dir: r.cfg.ReleaseDir, URL: r.cfg.PublicURL, Logger: r.log.With("part", "install"), Registerer: reg,
	})
	maps.Copy(routes, p.install.Routes())
	return routes, nil
}

package relay

import (
	"maps"
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/relay/internal/console"
	"github.com/adit-tunnel/adit/relay/internal/install"
	"github.com/adit-tunnel/adit/relay/internal/terminal"
	"github.com/adit-tunnel/adit/relay/internal/tunnels"
	"github.com/adit-tunnel/adit/relay/internal/web"
	"github.com/adit-tunnel/adit/shared/wire"
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
	if !assets.Built() {
		r.log.Warn("this build has no web pages: scripts/build makes them, with npm")
	}
	p.terminal, err = terminal.New(terminal.Config{
		Page: assets.Page("terminal"), Origin: p.resolver.ConsoleOrigin(), Store: p.store, AdminToken: p.gate.AdminToken,
		Dialer: dialer{p}, Meter: p.meter, Audit: p.audit, Remote: r.remote, Hold: r.cfg.Tunnel.Hold.D(),
		Logger: r.log.With("part", "terminal"), Registerer: reg,
	})
	if err != nil {
		return nil, err
	}
	routes := p.terminal.Routes()
	maps.Copy(routes, console.Routes(assets))
	if r.cfg.ConsoleURL != "" {
		for pattern, page := range routes {
			// The WebSocket stays on both hosts: programs use the public one, and of
			// pages the terminal takes only those of the console's origin.
			if !strings.HasSuffix(pattern, wire.TerminalSocket) {
				routes[pattern] = atConsole(p.resolver, page)
			}
		}
	}
	routes["GET "+web.Path] = assets.Files()
	p.install = install.New(install.Config{
		Dir: r.cfg.ReleaseDir, URL: r.cfg.PublicURL, Logger: r.log.With("part", "install"), Registerer: reg,
	})
	maps.Copy(routes, p.install.Routes())
	return routes, nil
}

// atConsole serves a page on the console's own host, and leads there from every other.
func atConsole(resolver *tunnels.Resolver, page http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if resolver.AtConsole(r.Host) {
			page.ServeHTTP(w, r)
			return
		}
		// The path is one of our own pages', and so begins with a single slash: what
		// stands before it is the configuration's alone.
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Referrer-Policy", "no-referrer")
		http.Redirect(w, r, resolver.ConsoleOrigin()+r.URL.RequestURI(), http.StatusTemporaryRedirect)
	})
}

package relay

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/relay/internal/signin"
)

// signIn makes the door by which people come in with a browser.
func (r *Relay) signIn(p *parts, reg *prometheus.Registry) (*signin.Door, error) {
	o := r.cfg.Auth.OIDC
	return signin.New(signin.Config{
		Off: r.cfg.SignInOff(), Origin: p.resolver.ConsoleOrigin(), Alone: r.cfg.ConsoleURL != "",
		Issuer: signin.Issuer{URL: o.Issuer, ClientID: o.ClientID, SecretFile: o.ClientSecretFile, Scopes: o.Scopes, Groups: o.GroupsClaim},
		People: p.people, Creds: p.creds, Store: p.store, Passes: p.access, Audit: p.audit, Key: p.key, Remote: r.remote, Now: now,
		Logger: r.log.With("part", "signin"), Registerer: reg,
	})
}

// signInOrigin is where people sign in for a tunnel; empty: they cannot.
func (r *Relay) signInOrigin(p *parts) string {
	if r.cfg.SignInOff() != "" {
		return ""
	}
	return p.resolver.ConsoleOrigin()
}

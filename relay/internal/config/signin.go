package config

import (
	"net/url"
	"slices"
	"strings"
)

// SignInOff says why people cannot sign in with a browser, as this is configured; empty:
// they can. What signs them in is a cookie of the host that the console is on.
func (c *Relay) SignInOff() string {
	at := c.Console()
	if at == nil {
		at = c.Public()
	}
	switch {
	case c.ServesPathForm() && c.ConsoleURL == "":
		return "nobody signs in at this relay, where apps share an origin with its console: set wildcard_domain or console_url"
	case at.Scheme != "https" && !loopback(strings.ToLower(at.Hostname())):
		return "nobody signs in at this relay, whose console is at " + at.Scheme + "://" + at.Host + ": that must be https, or on this machine"
	}
	return ""
}

// validateSignIn checks what lets people sign in at an issuer.
func (c *Relay) validateSignIn(fault faultFunc) {
	o := c.Auth.OIDC
	if o.ClientID == "" {
		if o.ClientSecretFile != "" {
			fault("auth.oidc.client_id", "it is required with client_secret_file")
		}
		return
	}
	if o.Issuer == "" {
		fault("auth.oidc.issuer", "it is required with client_id")
	} else if u, err := url.Parse(o.Issuer); err == nil && u.Scheme == "http" && !loopback(strings.ToLower(u.Hostname())) {
		fault("auth.oidc.issuer", "%q must begin with https://: people are sent there to type their secrets", o.Issuer)
	}
	if !slices.Contains(o.Scopes, "openid") {
		fault("auth.oidc.scopes", "openid must be among them")
	}
	if off := c.SignInOff(); off != "" {
		fault("auth.oidc.client_id", "%s", off)
	}
}

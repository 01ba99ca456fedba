package config

import (
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// CertificateNames are the names for which ACME is asked: the public one, the
// console's, this relay's own for agents, and, where DNS can be changed, the wildcard. There is none
// for each tunnel: authorities publish all names they sign for, and a tunnel's name
// is the key to it.
func (c *Relay) CertificateNames() []string {
	names := []string{c.Public().Hostname()}
	if u, err := url.Parse(c.AgentURL); err == nil && u.Scheme == "https" && !slices.Contains(names, u.Hostname()) {
		names = append(names, u.Hostname())
	}
	if u := c.Console(); u != nil && u.Scheme == "https" && !slices.Contains(names, u.Hostname()) {
		names = append(names, u.Hostname())
	}
	if len(c.TLS.ACME.DNSHook) > 0 && c.WildcardDomain != "" {
		names = append(names, "*."+c.WildcardDomain)
	}
	return names
}

func (c *Relay) validateACME(fault faultFunc, address func(key, v string, optional bool)) {
	a := c.TLS.ACME
	address("tls.acme.http_listen", a.HTTPListen, true)
	if u, err := url.Parse(a.DirectoryURL); err != nil || u.Scheme != "https" || u.Host == "" {
		fault("tls.acme.directory_url", "%q is no https URL", a.DirectoryURL)
	}
	if !a.Enabled {
		return
	}
	if c.Public().Scheme != "https" {
		fault("tls.acme.enabled", "public_url must begin with https://: certificates are for its name")
	}
	for _, name := range c.CertificateNames() {
		if _, err := netip.ParseAddr(name); err == nil || !strings.Contains(name, ".") {
			fault("tls.acme.enabled", "no authority signs for %q: public_url, console_url and agent_url need public names", name)
		}
	}
	if !strings.Contains(a.Email, "@") {
		fault("tls.acme.email", "%q is no address; the authority writes there when something is wrong", a.Email)
	}
	if slices.Contains(a.DNSHook, "") {
		fault("tls.acme.dns_hook", "it has an empty part")
	}
}

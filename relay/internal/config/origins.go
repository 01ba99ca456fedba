package config

import (
	"net/netip"
	"net/url"
	"strings"
)

// The values of path_form.
const (
	PathFormAuto = "auto"
	PathFormOn   = "on"
	PathFormOff  = "off"
)

// validateOrigins checks what keeps apps' scripts and the relay's pages apart.
func (c *Relay) validateOrigins(fault faultFunc) {
	switch {
	case c.PathForm != PathFormAuto && c.PathForm != PathFormOn && c.PathForm != PathFormOff:
		fault("path_form", "%q is none of auto, on and off", c.PathForm)
	case c.PathForm == PathFormOff && c.WildcardDomain == "":
		fault("path_form", "without wildcard_domain it is the only form of address that tunnels have; set wildcard_domain, or leave path_form out")
	case c.PathFallback != "none" && c.PathFallback != "cookie":
		fault("path_fallback", "%q is neither none nor cookie", c.PathFallback)
	case c.PathFallback == "cookie" && !c.ServesPathForm():
		fault("path_fallback", "it is for absolute paths in path form, which is off with wildcard_domain: leave path_fallback out, or set path_form: on")
	}
	if c.ConsoleURL == "" {
		return
	}
	u, err := url.Parse(c.ConsoleURL)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
		fault("console_url", "%q is no URL of scheme and host only, as https://console.example.com", c.ConsoleURL)
		return
	}
	host := strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
	switch {
	case u.Scheme != "https" && !loopback(host):
		fault("console_url", "%q must begin with https://: secrets are typed there", c.ConsoleURL)
	case host == strings.ToLower(strings.TrimSuffix(c.Public().Hostname(), ".")):
		fault("console_url", "%s is the host of public_url; it must be another, or be left out", host)
	case c.WildcardDomain != "" && strings.HasSuffix("."+host, "."+c.WildcardDomain):
		fault("console_url", "%s belongs to wildcard_domain, whose names are the tunnels'", host)
	}
}

func loopback(host string) bool {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

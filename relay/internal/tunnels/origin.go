package tunnels

import (
	"net/netip"
	"strings"
)

// CanonicalOrigin returns an origin ("scheme://host[:port]", RFC 6454) in one
// spelling: lower case, no default port, no trailing dot. It reports false for
// what is no http(s) origin: "null", a URL with a path, user information, an
// empty host. WebSocket schemes count as their HTTP ones.
func CanonicalOrigin(s string) (string, bool) {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return "", false
	}
	var standard string
	switch strings.ToLower(scheme) {
	case "http", "ws":
		scheme, standard = "http", "80"
	case "https", "wss":
		scheme, standard = "https", "443"
	default:
		return "", false
	}
	host, port, ok := SplitHost(rest)
	if !ok {
		return "", false
	}
	if port == "" || port == standard {
		return scheme + "://" + host, true
	}
	return scheme + "://" + host + ":" + port, true
}

// SplitHost splits an authority without user information into a lower-case host
// (IPv6 in brackets, no trailing dot) and a port that may be empty. It reports
// false for what cannot be an authority.
func SplitHost(s string) (host, port string, ok bool) {
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return "", "", false
		}
		if _, err := netip.ParseAddr(s[1:end]); err != nil {
			return "", "", false
		}
		host = s[:end+1]
		switch rest := s[end+1:]; {
		case rest == "":
		case rest[0] == ':':
			port = rest[1:]
		default:
			return "", "", false
		}
	} else {
		host, port, _ = strings.Cut(s, ":")
		host = strings.TrimSuffix(host, ".")
		for i := range len(host) {
			if !hostByte(host[i]) {
				return "", "", false
			}
		}
	}
	if host == "" || len(host) > 255 || len(port) > 5 {
		return "", "", false
	}
	for i := range len(port) {
		if port[i] < '0' || port[i] > '9' {
			return "", "", false
		}
	}
	return strings.ToLower(host), port, true
}

// hostByte admits what names in DNS and their usual misuses are made of. What
// could end a host in some parser ('/', '@', '\', …) is not among them.
func hostByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_'
}

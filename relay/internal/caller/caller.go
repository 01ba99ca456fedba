// Package caller owns what the relay makes of the address on the other side: whose
// it is behind proxies, which addresses count as one, and how often one may try
// something. It authenticates nobody, and an address is never more than a hint.
package caller

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// Network counts an IPv6 network of 64 bits as one address: one host has all of it.
func Network(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

// Key is Network for an address as text; what is none stays as it is.
func Key(addr string) string {
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return addr
	}
	return Network(a).String()
}

// Peer is the other end of a request's connection.
func Peer(r *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

// User is who asks: the peer, or who a trusted proxy says it asks for. It reads
// X-Forwarded-For from its end: the first address there that is no trusted proxy's
// was seen by one. What is left of it anybody may have written.
func User(r *http.Request, trusted func(netip.Addr) bool) netip.Addr {
	user := Peer(r)
	if !trusted(user) {
		return user
	}
	for _, list := range slices.Backward(r.Header["X-Forwarded-For"]) {
		for _, s := range slices.Backward(strings.Split(list, ",")) {
			a, ok := parse(strings.TrimSpace(s))
			if !ok {
				return user
			}
			user = a
			if !trusted(user) {
				return user
			}
		}
	}
	return user
}

// parse reads an address as proxies write it: alone, in brackets, or with a port.
func parse(s string) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return a.Unmap(), true
	}
	ap, err := netip.ParseAddrPort(s)
	return ap.Addr().Unmap(), err == nil
}

package main

import (
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// originOnly refuses what ComfyUI's origin_only_middleware (server.py) refuses:
// requests that a browser marks cross-site, and those whose Host is loopback while
// their Origin is another host.
func originOnly(log *slog.Logger, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Sec-Fetch-Site") == "cross-site" || !sameOrigin(r.Host, r.Header.Get("Origin")) {
			log.Info("request refused", "method", r.Method, "path", r.URL.Path, "host", r.Host, "origin", r.Header.Get("Origin"), "sec_fetch_site", r.Header.Get("Sec-Fetch-Site"))
			w.WriteHeader(http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func sameOrigin(host, origin string) bool {
	if host == "" || origin == "" {
		return true
	}
	h := &url.URL{Host: strings.ToLower(host)}
	o, err := url.Parse(strings.ToLower(origin))
	if err != nil || o.Host == "" {
		return true // "null" has no host, and passes in ComfyUI as well
	}
	if !isLoopback(h.Hostname()) {
		return true
	}
	hostDomain, originDomain := h.Host, o.Host
	if o.Port() == "" {
		hostDomain = h.Hostname()
	}
	if h.Port() == "" {
		originDomain = o.Hostname()
	}
	return hostDomain == originDomain
}

// isLoopback takes names under localhost without asking a resolver, as most
// resolvers answer (RFC 6761, section 6.3).
func isLoopback(host string) bool {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

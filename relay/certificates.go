package relay

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/relay/internal/certs"
	"github.com/adit-tunnel/adit/relay/internal/front"
)

// certificates makes those of the public listener; nil when it speaks plain HTTP.
func (r *Relay) certificates(p *parts, reg *prometheus.Registry) (*certs.Certs, error) {
	t := r.cfg.TLS
	if t.CertFile == "" && !t.ACME.Enabled {
		certs.NoTLS(reg)
		return nil, nil
	}
	cfg := certs.Config{CertFile: t.CertFile, KeyFile: t.KeyFile, Logger: r.log.With("part", "certs"), Registerer: reg}
	if t.ACME.Enabled {
		cfg.ACME = &certs.ACME{
			Names: r.cfg.CertificateNames(), Email: t.ACME.Email, Directory: t.ACME.DirectoryURL, CAFile: t.ACME.CAFile,
			Listen: r.cfg.Listen, HTTPListen: t.ACME.HTTPListen, Hook: t.ACME.DNSHook,
			Dir: t.ACME.CacheDir, Files: p.store, Key: p.key,
		}
	}
	return certs.New(cfg)
}

// servePlain answers on port 80: an ACME server's challenges, and for everybody else
// the way to https.
func (r *Relay) servePlain(ctx context.Context) error {
	err := front.ServePlain(ctx, front.Config{
		Listen: r.cfg.TLS.ACME.HTTPListen, ConnsPerAddress: r.cfg.Limits.ConnsPerAddress, Exempt: r.trusted,
		Handler: r.p.certs.HTTP(http.HandlerFunc(r.toHTTPS)), Logger: r.log.With("part", "front"),
	})
	if err != nil {
		return fmt.Errorf("tls.acme.http_listen: %w", err)
	}
	return nil
}

// toHTTPS sends a browser to the same address over https. Names that are none of
// ours are sent to the public URL.
func (r *Relay) toHTTPS(w http.ResponseWriter, req *http.Request) {
	public := r.cfg.Public()
	base := public.Scheme + "://" + public.Host
	host := strings.ToLower(req.Host)
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if r.cfg.WildcardDomain != "" && strings.HasSuffix(host, "."+r.cfg.WildcardDomain) {
		if port := public.Port(); port != "" {
			host = net.JoinHostPort(host, port)
		}
		base = "https://" + host
	}
	if r.p.resolver.AtConsole(req.Host) {
		base = r.p.resolver.ConsoleOrigin()
	}
	w.Header().Set("Connection", "close")
	w.Header().Set("Cache-Control", "no-store")
	http.Redirect(w, req, base+req.URL.RequestURI(), http.StatusPermanentRedirect)
}

// certificateWarnings says what is wrong with the certificates, for the status.
func (r *Relay) certificateWarnings(all []certs.Status) []string {
	var out []string
	for _, st := range all {
		names := strings.Join(st.Names, ", ")
		switch {
		case st.NotAfter.IsZero():
			out = append(out, fmt.Sprintf("no certificate for %s yet: %s", names, orElse(st.Fault, "it is being asked for")))
		case st.Fault != "":
			out = append(out, fmt.Sprintf("no newer certificate for %s: %s", names, st.Fault))
		}
		if left := time.Until(st.NotAfter); !st.NotAfter.IsZero() && left < 7*24*time.Hour && left < st.Lifetime/4 {
			out = append(out, fmt.Sprintf("the certificate for %s ends in %s", names, left.Round(time.Minute)))
		}
	}
	if d := r.cfg.WildcardDomain; d != "" && !r.p.certs.Covers("x."+d) {
		out = append(out, fmt.Sprintf("no certificate for *.%s: tunnels' own hosts do not work over https; see tls.acme.dns_hook and tls.cert_file in relay.yaml", d))
	}
	if u := r.cfg.Console(); u != nil && u.Scheme == "https" && !r.p.certs.Covers(u.Hostname()) {
		out = append(out, fmt.Sprintf("no certificate for %s: console_url does not work over https; see tls in relay.yaml", u.Hostname()))
	}
	return out
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

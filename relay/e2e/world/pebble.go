package world

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// Pebble is Let's Encrypt's ACME server for tests, with a DNS of its own that
// leads every name to loopback.
type Pebble struct {
	*Process
	W         *World
	Directory string // its ACME directory
	CAFile    string // that signs its https
	dns       int
	management,
	names int // ports of its management, and of the DNS's
	args []string
}

// PebbleConfig says where the names that it checks are served.
type PebbleConfig struct {
	HTTPPort int // in place of port 80
	TLSPort  int // in place of port 443
	Validity time.Duration
	// Cert, Key and CA are the PEM files of its own https, on 127.0.0.1.
	Cert, Key, CA string
}

// NewPebble prepares a Pebble and starts its DNS, but not Pebble itself.
func (w *World) NewPebble(c PebbleConfig) *Pebble {
	w.T.Helper()
	p := &Pebble{W: w, CAFile: c.CA, dns: w.FreePort(), management: w.FreePort(), names: w.FreePort()}
	port := w.FreePort()
	p.Directory = fmt.Sprintf("https://127.0.0.1:%d/dir", port)
	config, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": fmt.Sprintf("127.0.0.1:%d", port), "managementListenAddress": fmt.Sprintf("127.0.0.1:%d", p.management),
		"certificate": c.Cert, "privateKey": c.Key, "httpPort": c.HTTPPort, "tlsPort": c.TLSPort, "ocspResponderURL": "",
		"externalAccountBindingRequired": false, "domainBlocklist": []string{}, "retryAfter": map[string]int{"authz": 1, "order": 1},
		"keyAlgorithm": "ecdsa",
		"profiles":     map[string]any{"default": map[string]any{"description": "for tests", "validityPeriod": int(c.Validity.Seconds())}},
	}})
	if err != nil {
		w.T.Fatal(err)
	}
	w.Start("dns", nil, w.Tool("pebble-challtestsrv"), "-defaultIPv6", "", "-defaultIPv4", "127.0.0.1", "-dnsserver", fmt.Sprintf("127.0.0.1:%d", p.dns),
		"-management", fmt.Sprintf("127.0.0.1:%d", p.names), "-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", "")
	w.WaitPort(p.names, 20*time.Second)
	p.args = []string{"-config", w.WriteFile(fmt.Sprintf("pebble-%d.json", port), string(config)), "-strict", "-dnsserver", fmt.Sprintf("127.0.0.1:%d", p.dns)}
	return p
}

// Start starts Pebble, also again after Kill: it then has other roots, and knows no
// account.
func (p *Pebble) Start() {
	p.W.T.Helper()
	p.Process = p.W.Start("pebble", []string{"PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=10"}, p.W.Tool("pebble"), p.args...)
	p.W.WaitPort(p.management, 20*time.Second)
}

// Roots are the certificates that sign what it issues.
func (p *Pebble) Roots() *x509.CertPool {
	p.W.T.Helper()
	ca, err := os.ReadFile(p.CAFile)
	if err != nil {
		p.W.T.Fatal(err)
	}
	own := x509.NewCertPool()
	own.AppendCertsFromPEM(ca)
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: own}}
	defer tr.CloseIdleConnections()
	status, root := Get(&http.Client{Transport: tr}, fmt.Sprintf("https://127.0.0.1:%d/roots/0", p.management))
	if status != http.StatusOK {
		p.W.T.Fatalf("pebble's root: %d %s", status, root)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(root))
	return roots
}

// DNSHook writes a program that sets TXT records in Pebble's DNS, as an operator's
// does in theirs, and returns its path and the file in which it notes its calls.
func (p *Pebble) DNSHook() (program, calls string) {
	p.W.T.Helper()
	calls = filepath.Join(p.W.Dir, "dns-calls")
	program = p.W.WriteFile("dns-hook", fmt.Sprintf(`#!/bin/sh -eu
echo "$@" >>%[1]s
case $1 in
set) body="{\"host\": \"$2.\", \"value\": \"$3\"}" path=set-txt ;;
clear) body="{\"host\": \"$2.\"}" path=clear-txt ;;
esac
exec curl -sS --fail -d "$body" http://127.0.0.1:%[2]d/$path
`, calls, p.names))
	if err := os.Chmod(program, 0o755); err != nil {
		p.W.T.Fatal(err)
	}
	return program, calls
}

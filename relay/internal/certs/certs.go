// Package certs owns the certificates of the public listener: files that are read
// again when they change, and what an ACME authority issues. It decides which one a
// connection gets. It listens nowhere and never gives up a certificate that is good
// for one that is not.
package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Config is what a Certs is made of. CertFile or ACME is required.
type Config struct {
	CertFile string // PEM chain
	KeyFile  string
	ACME     *ACME         // nil: none
	Interval time.Duration // between looks at the files; default 5 s
	Logger   *slog.Logger  // required
	// Registerer may be nil: metrics are kept, not registered.
	Registerer prometheus.Registerer
}

// Source is where a certificate comes from.
type Source string

// The sources of certificates.
const (
	FromFile Source = "file"
	FromACME Source = "acme"
)

// Status is one certificate, or the want of one.
type Status struct {
	Source   Source    `json:"source"`
	Names    []string  `json:"names"`
	NotAfter time.Time `json:"not_after,omitzero"` // zero: there is none yet
	// Lifetime is for how long it was issued.
	Lifetime time.Duration `json:"-"`
	// Fault says why there is no certificate, or no newer one.
	Fault string `json:"fault,omitempty"`
}

// Certs are the certificates of one listener. Its methods are safe for concurrent use.
type Certs struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	file    *pair
	acme    *authority

	mu     sync.RWMutex
	issued map[string]*tls.Certificate // by ACME, by name
	faults map[string]string           // of ACME, by name
}

// New checks the configuration and reads the files. Nothing runs until Run.
func New(cfg Config) (*Certs, error) {
	if cfg.Interval == 0 {
		cfg.Interval = 5 * time.Second
	}
	c := &Certs{cfg: cfg, log: cfg.Logger, issued: map[string]*tls.Certificate{}, faults: map[string]string{}}
	if cfg.CertFile == "" && cfg.ACME == nil {
		return nil, errors.New("a certificate file or ACME is needed")
	}
	if cfg.CertFile != "" {
		c.file = &pair{cert: cfg.CertFile, key: cfg.KeyFile}
		if _, err := c.file.read(); err != nil {
			return nil, err
		}
	}
	var err error
	if cfg.ACME != nil {
		if c.acme, err = newAuthority(*cfg.ACME, cfg.Logger); err != nil {
			return nil, fmt.Errorf("tls.acme: %w", err)
		}
	}
	c.metrics = newMetrics(cfg.Registerer, c)
	return c, nil
}

// TLS returns the configuration of a listener that serves the certificates.
func (c *Certs) TLS() *tls.Config {
	t := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, GetCertificate: c.certificate}
	if c.acme != nil && c.acme.tlsALPN() {
		t.NextProtos = append(t.NextProtos, challengeProtocol)
	}
	return t
}

// certificate is the one for a handshake: the file's where it covers the name, else
// what ACME issued for it. A name that neither covers gets what there is, so that a
// browser shows whose door it stands at rather than a broken connection.
func (c *Certs) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c.acme != nil && slices.Equal(hello.SupportedProtos, []string{challengeProtocol}) {
		return c.acme.challenge(hello)
	}
	name := strings.ToLower(strings.TrimSuffix(hello.ServerName, "."))
	var file *tls.Certificate
	if c.file != nil {
		file = c.file.current.Load()
		if c.acme == nil || name == "" || file.Leaf.VerifyHostname(name) == nil {
			return file, nil
		}
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	if cert := c.issued[name]; cert != nil {
		return cert, nil
	}
	if _, below, ok := strings.Cut(name, "."); ok {
		if cert := c.issued["*."+below]; cert != nil {
			return cert, nil
		}
	}
	if c.acme != nil {
		for _, name := range c.acme.cfg.Names {
			if cert := c.issued[name]; cert != nil {
				return cert, nil
			}
		}
	}
	if file != nil {
		return file, nil
	}
	return nil, errors.New("there is no certificate yet: the ACME authority has issued none")
}

// Reload reads the files again and lets ACME try at once. On an error the old
// certificate stays.
func (c *Certs) Reload() error {
	if c.acme != nil {
		c.acme.again()
	}
	if c.file == nil {
		return nil
	}
	return c.look(true)
}

// Run keeps the certificates fresh until ctx ends.
func (c *Certs) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	if c.file != nil {
		wg.Go(func() { c.watch(ctx) })
	}
	if c.acme != nil {
		wg.Go(func() { c.acme.run(ctx, c.keep) })
	}
	<-ctx.Done()
	return nil
}

// watch looks at the files from time to time: whoever renews them (certbot, lego,
// cert-manager) needs no hook. Looking, not asking the kernel: a directory that is
// swapped by a symbolic link is only seen so.
func (c *Certs) watch(ctx context.Context) {
	t := time.NewTicker(c.cfg.Interval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			_ = c.look(false) // said where it was found
		}
	}
}

// look reads the files again when they changed, or in any case.
func (c *Certs) look(always bool) error {
	changed, err := c.file.refresh(always)
	switch {
	case err != nil && changed:
		c.metrics.changes.WithLabelValues(string(FromFile), resultFailed).Inc()
		c.log.Error("the certificate files are of no use; the old certificate stays", "cert_file", c.cfg.CertFile, "error", err)
	case err != nil:
	case changed:
		leaf := c.file.current.Load().Leaf
		c.metrics.changes.WithLabelValues(string(FromFile), resultOK).Inc()
		c.log.Info("new certificate from file", "names", leaf.DNSNames, "not_after", leaf.NotAfter)
	}
	return err
}

// keep takes what an ACME attempt for a name came to; cert is nil when there is none.
func (c *Certs) keep(name string, cert *tls.Certificate, err error) {
	c.mu.Lock()
	old := c.issued[name]
	fresh := cert != nil && (old == nil || !old.Leaf.Equal(cert.Leaf))
	if fresh {
		c.issued[name] = cert
	}
	delete(c.faults, name)
	if err != nil {
		c.faults[name] = err.Error()
	}
	c.mu.Unlock()
	if fresh {
		c.metrics.changes.WithLabelValues(string(FromACME), resultOK).Inc()
		c.log.Info("new certificate from acme", "name", name, "not_after", cert.Leaf.NotAfter)
	}
	if err != nil {
		c.metrics.changes.WithLabelValues(string(FromACME), resultFailed).Inc()
		c.log.Warn("no new certificate from acme", "name", name, "directory", c.acme.cfg.Directory, "has_old", old != nil || cert != nil, "error", err)
	}
}

// Status lists all certificates.
func (c *Certs) Status() []Status {
	var out []Status
	if c.file != nil {
		leaf, fault := c.file.current.Load().Leaf, c.file.fault()
		out = append(out, Status{Source: FromFile, Names: leaf.DNSNames, NotAfter: leaf.NotAfter, Lifetime: leaf.NotAfter.Sub(leaf.NotBefore), Fault: fault})
	}
	if c.acme == nil {
		return out
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, name := range c.acme.cfg.Names {
		st := Status{Source: FromACME, Names: []string{name}, Fault: c.faults[name]}
		if cert := c.issued[name]; cert != nil {
			st.NotAfter, st.Lifetime = cert.Leaf.NotAfter, cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore)
		}
		out = append(out, st)
	}
	return out
}

// Covers says whether a certificate for the name is there, or shall come by ACME.
func (c *Certs) Covers(name string) bool {
	if c.file != nil && c.file.current.Load().Leaf.VerifyHostname(name) == nil {
		return true
	}
	if c.acme == nil {
		return false
	}
	_, below, _ := strings.Cut(name, ".")
	return slices.Contains(c.acme.cfg.Names, name) || slices.Contains(c.acme.cfg.Names, "*."+below)
}

// HTTP answers an ACME server's HTTP-01 challenges, and leaves the rest to next.
func (c *Certs) HTTP(next http.Handler) http.Handler {
	if c.acme == nil {
		return next
	}
	return c.acme.http(next)
}

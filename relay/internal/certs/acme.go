package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"
	"go.uber.org/zap/zapcore"

	"github.com/adit-tunnel/adit/relay/internal/zaplog"
	"github.com/adit-tunnel/adit/shared/ident"
)

// challengeProtocol is the ALPN name of the TLS-ALPN-01 challenge (RFC 8737).
const challengeProtocol = "acme-tls/1"

// ACME says from whom certificates are asked, for which names, and how it is proved
// that the names lead here.
type ACME struct {
	Names     []string
	Email     string
	Directory string // URL of the authority's directory
	CAFile    string // PEM roots of the authority's own https; "": the system's
	// Listen and HTTPListen are where this relay answers TLS-ALPN-01 and HTTP-01; no
	// HTTPListen: HTTP-01 is not offered.
	Listen     string
	HTTPListen string
	// Hook proves names by DNS-01 instead, which wildcards need.
	Hook []string
	// Dir keeps the account and the certificates in files; "": in Files, sealed.
	Dir   string
	Files Files
	Key   ident.ClusterKey
}

// authority asks an ACME authority for certificates.
type authority struct {
	cfg   ACME
	log   *slog.Logger
	magic atomic.Pointer[certmagic.Config] // nil until run
	iss   atomic.Pointer[certmagic.ACMEIssuer]
	roots *x509.CertPool
	retry chan struct{}
}

func newAuthority(cfg ACME, log *slog.Logger) (*authority, error) {
	a := &authority{cfg: cfg, log: log, retry: make(chan struct{}, 1)}
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		a.roots = x509.NewCertPool()
		if !a.roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca_file: %s holds no certificate", cfg.CAFile)
		}
	}
	return a, nil
}

// tlsALPN says whether TLS-ALPN-01 is offered.
func (a *authority) tlsALPN() bool { return len(a.cfg.Hook) == 0 }

// start makes certmagic's parts. The cache's own goroutine renews nothing, since it
// gets no configuration: run does, which knows when, and what came of it.
func (a *authority) start() *certmagic.Cache {
	log := zaplog.New(a.log, func(l zapcore.Level, message string) slog.Level {
		if l < zapcore.ErrorLevel || strings.HasPrefix(message, "unable to get configuration") {
			return slog.LevelDebug
		}
		return slog.LevelInfo // what an attempt came to is said by keep, as a warning
	})
	cache := certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) {
			return nil, errors.New("this cache renews nothing")
		},
		// How close to its end a certificate is renewed whatever the authority advises.
		RenewCheckInterval: checkEvery,
		Logger:             log,
	})
	magic := certmagic.New(cache, certmagic.Config{
		Storage: a.storage(), Logger: log,
		// Staples would have to be kept fresh, and the authorities give up OCSP.
		OCSP: certmagic.OCSPConfig{DisableStapling: true},
	})
	template := certmagic.ACMEIssuer{
		CA: a.cfg.Directory, TestCA: a.cfg.Directory, Email: a.cfg.Email, Agreed: true, TrustedRoots: a.roots, Logger: log,
		DisableHTTPChallenge: a.cfg.HTTPListen == "", DisableTLSALPNChallenge: !a.tlsALPN(),
		// certmagic listens there itself unless somebody does: this relay does.
		AltHTTPPort: port(a.cfg.HTTPListen), AltTLSALPNPort: port(a.cfg.Listen), ListenHost: host(a.cfg.Listen),
	}
	if len(a.cfg.Hook) > 0 {
		template.DNS01Solver = hook{line: a.cfg.Hook, log: a.log}
	}
	iss := certmagic.NewACMEIssuer(magic, template)
	magic.Issuers = []certmagic.Issuer{iss}
	a.iss.Store(iss)
	a.magic.Store(magic)
	return cache
}

func (a *authority) storage() certmagic.Storage {
	if a.cfg.Dir != "" {
		return &certmagic.FileStorage{Path: a.cfg.Dir}
	}
	return newStorage(a.cfg.Files, a.cfg.Key)
}

func port(address string) int {
	_, p, _ := net.SplitHostPort(address)
	n, _ := strconv.Atoi(p)
	return n
}

func host(address string) string {
	h, _, _ := net.SplitHostPort(address)
	return h
}

// challenge is the certificate that proves a name by TLS-ALPN-01, also for an order
// that another relay of the pool placed.
func (a *authority) challenge(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	magic := a.magic.Load()
	if magic == nil || !a.tlsALPN() {
		return nil, errors.New("no ACME challenge is under way")
	}
	return magic.GetCertificate(hello)
}

// http answers HTTP-01, also for an order that another relay of the pool placed.
func (a *authority) http(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if iss := a.iss.Load(); iss != nil && iss.HandleHTTPChallenge(w, r) {
			return
		}
		next.ServeHTTP(w, r)
	})
}

// again makes run try at once.
func (a *authority) again() {
	select {
	case a.retry <- struct{}{}:
	default: // asked already
	}
}

// issueTime bounds one attempt for one name, with the wait for another relay's.
const issueTime = 5 * time.Minute

// run obtains and renews until ctx ends, and tells keep what came of each attempt.
func (a *authority) run(ctx context.Context, keep func(name string, cert *tls.Certificate, err error)) {
	cache := a.start()
	defer cache.Stop()
	failures := 0
	for {
		next, failed := checkEvery, error(nil)
		for _, name := range a.cfg.Names {
			cert, renewAt, err := a.ensure(ctx, cache, name)
			if ctx.Err() != nil {
				return
			}
			keep(name, cert, err)
			if err != nil {
				failed = err
			} else {
				next = min(next, max(time.Second, time.Until(renewAt)))
			}
		}
		failures++
		if failed == nil {
			failures = 0
		} else {
			next = pauseAfter(failed, failures)
		}
		t := time.NewTimer(next)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-a.retry:
			t.Stop()
		case <-t.C:
		}
	}
}

// checkEvery is how often the store is asked for what another relay renewed, and the
// authority for its advice (ARI).
const checkEvery = 10 * time.Minute

// pauseAfter is the wait after a failure. An authority that could not be reached is
// asked again soon; one that said no counts refusals, a handful an hour.
func pauseAfter(err error, failures int) time.Duration {
	first, last := 5*time.Second, 2*time.Minute
	if _, refused := errors.AsType[acme.Problem](err); refused {
		first, last = time.Minute, time.Hour
	}
	d := min(first<<min(failures-1, 10), last)
	return d + rand.N(d/4+1)
}

// ensure makes sure that a certificate for the name is there and not due for renewal,
// and returns it with the time when it is due. With an error it returns the old one.
func (a *authority) ensure(ctx context.Context, cache *certmagic.Cache, name string) (*tls.Certificate, time.Time, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, issueTime, errors.New("it took longer than "+issueTime.String()))
	defer cancel()
	// What is in the cache counts as managed and is not looked at again.
	cache.RemoveManaged([]certmagic.SubjectIssuer{{Subject: name}})
	err := a.magic.Load().ManageSync(ctx, []string{name})
	if err != nil && context.Cause(ctx) != nil {
		err = errors.Join(context.Cause(ctx), err)
	}
	var newest *certmagic.Certificate
	for _, c := range cache.AllMatchingCertificates(name) {
		if c.Leaf != nil && (newest == nil || c.Leaf.NotAfter.After(newest.Leaf.NotAfter)) {
			newest = &c
		}
	}
	if newest == nil {
		return nil, time.Time{}, err
	}
	life := newest.Leaf.NotAfter.Sub(newest.Leaf.NotBefore)
	return &newest.Certificate, newest.Leaf.NotAfter.Add(-life / 3).Add(rand.N(life/100 + 1)), err
}

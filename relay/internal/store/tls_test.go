package store_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
)

// authority is a certificate authority of one test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{cert: cert, key: key, pool: x509.NewCertPool()}
	a.pool.AddCert(cert)
	return a
}

// issue returns a certificate for 127.0.0.1, good for both sides.
func (a *authority) issue(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "leaf"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func writePEM(t *testing.T, name, kind string, der []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// An external store is reached by mutual TLS, and not without it.
func TestMutualTLS(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	server := a.issue(t)
	keyDER, err := x509.MarshalECPrivateKey(server.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	cfg := externalConfig(t, "https")
	cfg.ClientTLSInfo.CertFile = writePEM(t, "cert", "CERTIFICATE", server.Certificate[0])
	cfg.ClientTLSInfo.KeyFile = writePEM(t, "key", "EC PRIVATE KEY", keyDER)
	cfg.ClientTLSInfo.TrustedCAFile = writePEM(t, "ca", "CERTIFICATE", a.cert.Raw)
	cfg.ClientTLSInfo.ClientCertAuth = true
	m := startMember(t, cfg)

	w := &world{t: t, external: true, endpoints: []string{m.url}}
	good := &tls.Config{RootCAs: a.pool, Certificates: []tls.Certificate{a.issue(t)}, MinVersion: tls.VersionTLS12}
	s := w.relay(func(c *store.Config, _ *[]func(*store.Store)) { c.TLS = good })
	if _, err := s.UpdateAgent(t.Context(), gpu1, open(tunnelOf(gpu1, time.Now()))); err != nil {
		t.Fatal(err)
	}
	for what, bad := range map[string]*tls.Config{
		"no certificate":      {RootCAs: a.pool, MinVersion: tls.VersionTLS12},
		"a stranger's server": {RootCAs: newAuthority(t).pool, Certificates: good.Certificates, MinVersion: tls.VersionTLS12},
	} {
		other, err := store.New(store.Config{Endpoints: w.endpoints, TLS: bad, Relay: store.RelayRecord{ID: "relay-x"}, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		done := make(chan error, 1)
		go func() { done <- other.Run(ctx) }()
		if err := other.Ready(ctx); err == nil {
			t.Errorf("with %s the store was reached", what)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("with %s: %v", what, err)
		}
	}
	if _, err := store.New(store.Config{Endpoints: []string{"http://127.0.0.1:1"}, TLS: good, Relay: store.RelayRecord{ID: "relay-x"}, Logger: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("an endpoint that would not use the TLS settings was accepted")
	}
}

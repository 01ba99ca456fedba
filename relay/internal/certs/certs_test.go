package certs_test

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
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/adit-tunnel/adit/relay/internal/certs"
	"github.com/adit-tunnel/adit/shared/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// files are a certificate and its key on disk.
type files struct {
	t         *testing.T
	cert, key string
}

func newFiles(t *testing.T, names ...string) files {
	t.Helper()
	dir := t.TempDir()
	f := files{t, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
	chain, key := issue(t, names...)
	f.write(f.cert, chain)
	f.write(f.key, key)
	return f
}

func (f files) write(path, text string) {
	f.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// issue makes a certificate that signs itself.
func issue(t *testing.T, names ...string) (chain, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: names[0]}, DNSNames: names, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
}

// shown is the serial number of the certificate that a handshake for the name gets.
func shown(t *testing.T, c *certs.Certs, name string) string {
	t.Helper()
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	go func() { _ = tls.Server(far, c.TLS()).HandshakeContext(context.Background()) }()
	conn := tls.Client(near, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	if err := conn.HandshakeContext(t.Context()); err != nil {
		t.Fatalf("handshake for %s: %v", name, err)
	}
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

func run(t *testing.T, c *certs.Certs) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run ended with %v", err)
		}
	})
}

func TestFilesAreReadAgainWhenTheyChange(t *testing.T) {
	f := newFiles(t, "gateway.example.com")
	c, err := certs.New(certs.Config{CertFile: f.cert, KeyFile: f.key, Interval: 5 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	run(t, c)
	old := shown(t, c, "gateway.example.com")
	fault := func() string { return c.Status()[0].Fault }

	chain, key := issue(t, "gateway.example.com")
	f.write(f.cert, chain) // the key comes later: for now the two do not belong together
	testkit.Eventually(t, "a certificate without its key is a fault", func() bool { return strings.Contains(fault(), "private key does not match") })
	if got := shown(t, c, "gateway.example.com"); got != old {
		t.Error("meanwhile the old certificate is shown")
	}
	f.write(f.key, key)
	testkit.Eventually(t, "the new certificate is shown", func() bool { return shown(t, c, "gateway.example.com") != old })
	if fault() != "" {
		t.Errorf("nothing is wrong any more: %s", fault())
	}

	good := shown(t, c, "gateway.example.com")
	f.write(f.cert, "no certificate")
	if err := c.Reload(); err == nil || !strings.Contains(err.Error(), f.cert) {
		t.Errorf("a reload names the broken file: %v", err)
	}
	if err := os.Remove(f.key); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "a missing file is a fault", func() bool { return strings.Contains(fault(), "no such file") })
	if got := shown(t, c, "gateway.example.com"); got != good {
		t.Error("files that are of no use leave the old certificate in place")
	}
}

func TestBrokenFilesAtTheStart(t *testing.T) {
	f := newFiles(t, "gateway.example.com")
	f.write(f.key, "no key")
	if _, err := certs.New(certs.Config{CertFile: f.cert, KeyFile: f.key, Logger: slog.New(slog.DiscardHandler)}); err == nil || !strings.Contains(err.Error(), f.key) {
		t.Errorf("a relay does not start without a certificate, and names the files: %v", err)
	}
}

// A file and ACME at once: the file serves what it covers.
func TestFileBesideACME(t *testing.T) {
	f := newFiles(t, "*.tunnels.example.com")
	c, err := certs.New(certs.Config{
		CertFile: f.cert, KeyFile: f.key, Logger: slog.New(slog.DiscardHandler), ACME: &certs.ACME{Names: []string{"gateway.example.com"}, Listen: ":443"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if a, b := shown(t, c, "x.tunnels.example.com"), shown(t, c, "gateway.example.com"); a != b {
		t.Error("what nothing covers yet gets what there is")
	}
	for name, want := range map[string]bool{"x.tunnels.example.com": true, "gateway.example.com": true, "x.y.tunnels.example.com": false, "other.example.com": false} {
		if c.Covers(name) != want {
			t.Errorf("%s covered: %v, want %v", name, !want, want)
		}
	}
	st := c.Status()
	if len(st) != 2 || st[1].Source != certs.FromACME || !st[1].NotAfter.IsZero() {
		t.Errorf("the status shows both, and that one is missing: %+v", st)
	}
}

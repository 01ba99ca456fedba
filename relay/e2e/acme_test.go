package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
)

const acmeName = "gateway.adit-test.example"

// acmeRelay is a relay that gets its certificates from a Pebble that is not running yet.
type acmeRelay struct {
	*world.Relay
	pebble *world.Pebble
	plain  int // port of its plain listener
	base   string
}

// newACMERelay prepares both. What proves names: "http-01" or "tls-alpn-01"; the
// other one leads nowhere.
func newACMERelay(w *world.World, challenge string, validity time.Duration, env ...string) *acmeRelay {
	w.T.Helper()
	r := &acmeRelay{Relay: w.NewRelay(), plain: w.FreePort()}
	ca, cert, key, _ := certificate(w, "pebble.example")
	pc := world.PebbleConfig{HTTPPort: w.FreePort(), TLSPort: w.FreePort(), Validity: validity, CA: ca, Cert: cert, Key: key}
	switch challenge {
	case "http-01":
		pc.HTTPPort = r.plain
	case "tls-alpn-01":
		pc.TLSPort = r.Port
	}
	r.pebble = w.NewPebble(pc)
	r.base = fmt.Sprintf("https://%s:%d", acmeName, r.Port)
	r.Env = append(r.Env, "ADIT_PUBLIC_URL="+r.base, "ADIT_WILDCARD_DOMAIN=tunnels.adit-test.example",
		"ADIT_TLS_ACME_ENABLED=true", "ADIT_TLS_ACME_EMAIL=ops@adit-test.example", "ADIT_TLS_ACME_DIRECTORY_URL="+r.pebble.Directory,
		"ADIT_TLS_ACME_CA_FILE="+ca, fmt.Sprintf("ADIT_TLS_ACME_HTTP_LISTEN=127.0.0.1:%d", r.plain))
	r.Env = append(r.Env, env...)
	return r
}

// leaf is the certificate that the relay shows for a name, and whether it is good for
// it by the roots.
func (r *acmeRelay) leaf(name string, roots *x509.CertPool) (*x509.Certificate, error) {
	d := tls.Dialer{Config: &tls.Config{ServerName: name, RootCAs: roots}}
	c, err := d.DialContext(r.W.T.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", r.Port))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
}

// waitLeaf waits until the relay shows a good certificate that is not the old one.
func (r *acmeRelay) waitLeaf(limit time.Duration, name string, roots *x509.CertPool, old *big.Int) *x509.Certificate {
	r.W.T.Helper()
	var got *x509.Certificate
	r.W.Eventually(limit, "a new certificate of the authority for "+name, func() bool {
		select {
		case <-r.Done():
			r.W.T.Fatalf("the relay ended:\n%s", r.Log())
		default:
		}
		c, err := r.leaf(name, roots)
		if err != nil || (old != nil && c.SerialNumber.Cmp(old) == 0) {
			return false
		}
		got = c
		return true
	})
	return got
}

func (r *acmeRelay) client(roots *x509.CertPool) *http.Client {
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true, DialContext: (&dialTo{addr: fmt.Sprintf("127.0.0.1:%d", r.Port)}).dial}
	r.W.T.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

func (r *acmeRelay) status() string {
	r.W.T.Helper()
	cmd := r.W.Start("status", nil, filepath.Join(r.W.Bin, "adit-relay"), "status", "--socket", filepath.Join(r.DataDir, "admin.sock"))
	<-cmd.Done()
	return cmd.Log()
}

// TestACMEOverHTTP: the authority is away at first, and again later.
func TestACMEOverHTTP(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := newACMERelay(w, "http-01", 2*time.Hour)
	r.Start()
	w.WaitPort(r.Port, 60*time.Second)
	w.Eventually(20*time.Second, "the relay runs without its authority and says why there is no certificate", func() bool {
		s := r.status()
		return strings.Contains(s, "no certificate for "+acmeName+" yet") && strings.Contains(s, "connection refused")
	})
	if !strings.Contains(r.Log(), "no new certificate from acme") {
		t.Error("the log says so too")
	}
	r.pebble.Start()
	roots := r.pebble.Roots()
	// An operator who mended something need not wait for the next try.
	_ = r.Cmd.Process.Signal(syscall.SIGHUP)
	first := r.waitLeaf(40*time.Second, acmeName, roots, nil)
	if !strings.Contains(r.Log(), `"challenge":"http-01"`) || strings.Contains(r.Log(), `"challenge":"tls-alpn-01"`) {
		t.Error("the name was proved over port 80")
	}
	if status, body := world.Get(r.client(roots), r.base+"/readyz"); status != http.StatusOK {
		t.Errorf("over the new certificate /readyz answers %d %s", status, body)
	}
	if s := r.status(); !strings.Contains(s, "tls       "+acmeName+", from acme, until ") || !strings.Contains(s, "no certificate for *.tunnels.adit-test.example") {
		t.Errorf("the status shows the certificate, and that there is none for tunnels' own hosts:\n%s", s)
	}

	// Everybody else on port 80 goes to https.
	plain := w.HTTP()
	for host, want := range map[string]string{
		acmeName: r.base + "/a//b?c", "x.tunnels.adit-test.example": fmt.Sprintf("https://x.tunnels.adit-test.example:%d/a//b?c", r.Port), "other.example": r.base + "/a//b?c",
	} {
		req, err := http.NewRequest(http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/a//b?c", r.plain), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		resp, err := plain.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if got := resp.Header.Get("Location"); resp.StatusCode != http.StatusPermanentRedirect || got != want {
			t.Errorf("%s on port 80 is answered with %d to %q, want 308 to %q", host, resp.StatusCode, got, want)
		}
	}

	// The authority goes away; the relay starts again with what it has.
	r.pebble.Kill()
	if err := r.Stop(60 * time.Second); err != nil {
		t.Errorf("stop: %v", err)
	}
	r.Start()
	again := r.waitLeaf(60*time.Second, acmeName, roots, nil)
	if again.SerialNumber.Cmp(first.SerialNumber) != 0 {
		t.Error("after a restart without the authority it is the same certificate")
	}
	// What keeps it is in the store and gives no key away.
	backup := filepath.Join(w.Dir, "backup")
	w.Run(nil, filepath.Join(w.Bin, "adit-relay"), "store", "backup", backup, "--socket", filepath.Join(r.DataDir, "admin.sock"))
	text, err := os.ReadFile(backup)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), `"file/acme/certificates/`) {
		t.Error("a backup has the certificate")
	}
	if strings.Contains(string(text), "PRIVATE KEY") || strings.Contains(string(text), "UFJJVkFURSBLRVk") { // also in base64
		t.Error("keys in the store are sealed")
	}
}

// TestACMEOverTLSALPNRenews: the certificate lives so short that it is renewed within
// the test, under requests each on a connection of its own.
func TestACMEOverTLSALPNRenews(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := newACMERelay(w, "tls-alpn-01", 14*time.Second)
	r.pebble.Start()
	roots := r.pebble.Roots()
	r.Start()
	first := r.waitLeaf(90*time.Second, acmeName, roots, nil)
	if !strings.Contains(r.Log(), `"challenge":"tls-alpn-01"`) {
		t.Error("the name was proved on the public listener")
	}
	var requests, failed atomic.Int32
	var fault atomic.Pointer[string]
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		c := r.client(roots)
		c.Transport.(*http.Transport).DisableKeepAlives = true
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
			requests.Add(1)
			if status, body := world.Get(c, r.base+"/healthz"); status != http.StatusOK {
				failed.Add(1)
				text := fmt.Sprint(status, " ", body)
				fault.Store(&text)
			}
		}
	}()
	second := r.waitLeaf(60*time.Second, acmeName, roots, first.SerialNumber)
	r.pebble.Kill()
	close(stop)
	<-done
	if failed.Load() > 0 {
		t.Errorf("%d of %d requests failed through the renewal: %s", failed.Load(), requests.Load(), *fault.Load())
	}
	t.Logf("renewed %s after %s; %d requests on new connections, %d failed", acmeName, second.NotBefore.Sub(first.NotBefore), requests.Load(), failed.Load())
	// The next renewal fails: what is there stays, and it is said.
	w.Eventually(60*time.Second, "a failed renewal is said in log and status", func() bool {
		return strings.Contains(r.Log(), `"has_old":true`) && strings.Contains(r.status(), "no newer certificate for "+acmeName)
	})
	if c, err := r.leaf(acmeName, nil); err == nil || c != nil {
		t.Error("the roots of the system do not know Pebble") // the check below would say nothing
	}
	d := tls.Dialer{Config: &tls.Config{ServerName: acmeName, InsecureSkipVerify: true}}
	c, err := d.DialContext(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", r.Port))
	if err != nil {
		t.Fatalf("the old certificate is still shown: %v", err)
	}
	defer c.Close()
	if got := c.(*tls.Conn).ConnectionState().PeerCertificates[0]; got.DNSNames[0] != acmeName {
		t.Errorf("the old certificate is kept, not one for %v", got.DNSNames)
	}
}

// TestACMEWildcardByDNSHook: a tunnel's own host works over https, with an agent that
// links over it too.
func TestACMEWildcardByDNSHook(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := newACMERelay(w, "dns-01", 2*time.Hour)
	hook, calls := r.pebble.DNSHook()
	r.Env = append(r.Env, "ADIT_TLS_ACME_DNS_HOOK="+hook)
	r.pebble.Start()
	roots := r.pebble.Roots()
	r.Start()
	r.waitLeaf(90*time.Second, acmeName, roots, nil)
	wild := r.waitLeaf(60*time.Second, "x.tunnels.adit-test.example", roots, nil)
	if len(wild.DNSNames) != 1 || wild.DNSNames[0] != "*.tunnels.adit-test.example" {
		t.Errorf("one certificate for all tunnels, not %v", wild.DNSNames)
	}
	if s := r.status(); strings.Contains(s, "warning") {
		t.Errorf("nothing is wrong with the certificates:\n%s", s)
	}
	text, err := os.ReadFile(calls)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"set _acme-challenge." + acmeName + " ", "set _acme-challenge.tunnels.adit-test.example ", "clear _acme-challenge.tunnels.adit-test.example "} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the hook was called as %q:\n%s", want, text)
		}
	}

	ca := w.WriteFile("roots.pem", rootsPEM(t, r))
	proxy, _ := connectProxy(t, r.Port)
	a := w.NewAgent(r.Relay, "gpu-1", "ADIT_RELAY_URL="+r.base, "ADIT_TLS_CA_FILE="+ca, "HTTPS_PROXY="+proxy)
	a.Start()
	sk := r.Credential("integration", world.Team)
	c := r.client(roots)
	var tun api.Tunnel
	w.Eventually(30*time.Second, "the agent is linked and a tunnel opens", func() bool {
		tun = api.Tunnel{}
		return callAPI(t, c, r.base, sk, http.MethodPost, "/agents/gpu-1/tunnel", map[string]any{"target_port": app(t, hello), "host_header": "public"}, &tun) == http.StatusCreated
	})
	if !strings.Contains(tun.TunnelURL, ".tunnels.adit-test.example:") {
		t.Errorf("the tunnel has a host of its own")
	}
	if status, body := world.Get(c, tun.TunnelURL); status != http.StatusOK {
		t.Errorf("the tunnel's own host over https: %d %s", status, body)
	}
}

// rootsPEM is the chain's last certificate as the relay shows it: Pebble's issuer is
// enough for an agent.
func rootsPEM(t *testing.T, r *acmeRelay) string {
	t.Helper()
	d := tls.Dialer{Config: &tls.Config{ServerName: acmeName, InsecureSkipVerify: true}}
	c, err := d.DialContext(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", r.Port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	chain := c.(*tls.Conn).ConnectionState().PeerCertificates
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: chain[len(chain)-1].Raw}))
}

package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
)

// certificate makes a CA and a certificate for the names, and returns the files.
func certificate(w *world.World, names ...string) (ca, cert, key string, pool *x509.CertPool) {
	w.T.Helper()
	must := func(err error) {
		w.T.Helper()
		if err != nil {
			w.T.Fatal(err)
		}
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "company CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, &caKey.PublicKey, caKey)
	must(err)
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: names[0]}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: names, IPAddresses: []net.IP{net.ParseIP("127.0.0.1")}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, root, &leafKey.PublicKey, caKey)
	must(err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(leafKey)
	must(err)
	block := func(typ string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}))
	}
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(block("CERTIFICATE", rootDER)))
	return w.WriteFile("tls/ca.pem", block("CERTIFICATE", rootDER)), w.WriteFile("tls/cert.pem", block("CERTIFICATE", leafDER)), w.WriteFile("tls/key.pem", block("PRIVATE KEY", keyDER)), pool
}

// connectProxy is a company's proxy: it knows CONNECT only, and sends what goes to
// the relay's name there.
func connectProxy(t *testing.T, relayPort int) (url string, used *atomic.Int32) {
	t.Helper()
	used = new(atomic.Int32)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect {
			http.Error(w, "CONNECT only", http.StatusMethodNotAllowed)
			return
		}
		used.Add(1)
		far, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", relayPort))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer far.Close()
		near, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer near.Close()
		_, _ = io.WriteString(near, "HTTP/1.1 200 Connection established\r\n\r\n")
		go func() { _, _ = io.Copy(far, buf) }()
		_, _ = io.Copy(near, far)
	}))
	t.Cleanup(s.CloseClientConnections)
	return s.URL, used
}

func TestTLSWithACompanyCAAndProxy(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	ca, cert, key, pool := certificate(w, "relay.example.test", "*.tunnels.example.test")
	r := w.NewRelay()
	base := fmt.Sprintf("https://relay.example.test:%d", r.Port)
	r.Env = append(r.Env, "ADIT_TLS_CERT_FILE="+cert, "ADIT_TLS_KEY_FILE="+key, "ADIT_PUBLIC_URL="+base, "ADIT_WILDCARD_DOMAIN=tunnels.example.test")
	r.Start()
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: pool},
		ForceAttemptHTTP2: true,
		DialContext:       (&dialTo{addr: fmt.Sprintf("127.0.0.1:%d", r.Port)}).dial,
	}}
	defer client.CloseIdleConnections()
	w.Eventually(20*time.Second, "the relay is ready over TLS", func() bool { s, _ := world.Get(client, base+"/readyz"); return s == http.StatusOK })

	proxy, used := connectProxy(t, r.Port)
	// The name resolves nowhere: only the proxy knows the way.
	a := w.NewAgent(r, "gpu-1", "ADIT_RELAY_URL="+base, "ADIT_TLS_CA_FILE="+ca, "HTTPS_PROXY="+proxy)
	a.Start()
	sk := r.Credential("integration", world.Team)
	api := func(method, path, body string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), method, base+"/api/v1"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+sk)
		req.Header.Set("Content-Type", "application/json")
		resp, err := client.Do(req)
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	w.Eventually(15*time.Second, "the agent is there, through the proxy", func() bool { s, _ := api("GET", "/agents/gpu-1", ""); return s == http.StatusOK })
	if used.Load() == 0 {
		t.Error("the agent used HTTPS_PROXY")
	}
	port := app(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s", r.Header.Get("X-Forwarded-Proto"), r.Proto)
	})
	status, body := api("POST", "/agents/gpu-1/tunnel", fmt.Sprintf(`{"target_port": %d, "host_header": "public"}`, port))
	if status != http.StatusCreated {
		t.Fatalf("open: %d %s", status, body)
	}
	_, rest, _ := strings.Cut(body, `"tunnel_url":"`)
	url, _, _ := strings.Cut(rest, `"`)
	if !strings.HasPrefix(url, "https://") || !strings.Contains(url, ".tunnels.example.test:") {
		t.Errorf("the tunnel has a host of its own on the wildcard domain: %s", strings.Split(url, "-")[0])
	}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, _ := io.ReadAll(resp.Body)
	if resp.ProtoMajor != 2 || string(got) != "https HTTP/1.1" {
		t.Errorf("the browser speaks HTTP/2, the app hears %q over HTTP/1.1 (front: %s)", got, resp.Proto)
	}
}

type dialTo struct{ addr string }

func (d *dialTo) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, network, d.addr)
}

// callAPI calls the interface at a base URL, as Relay.API does on loopback.
func callAPI(t *testing.T, c *http.Client, base, secret, method, path string, in, out any) int {
	t.Helper()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, base+api.Base+path, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+secret)
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	if out != nil && resp.StatusCode < 300 {
		if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
			t.Fatalf("%s %s answers no JSON: %v", method, path, err)
		}
	}
	return resp.StatusCode
}

package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
)

// TestCertificateSwapUnderLoad replaces the certificate's files while requests, each
// on a connection of its own, a WebSocket and an agent's link go on. None may fail.
func TestCertificateSwapUnderLoad(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	caA, cert, key, poolA := certificate(w, "relay.example.test", "*.tunnels.example.test")
	certA := read(t, cert)
	// Another authority's certificate, so that each client proves which one it saw.
	_, otherCert, otherKey, poolB := certificate(&world.World{T: t, Dir: t.TempDir()}, "relay.example.test", "*.tunnels.example.test")
	r := w.NewRelay()
	base := fmt.Sprintf("https://relay.example.test:%d", r.Port)
	r.Env = append(r.Env, "ADIT_TLS_CERT_FILE="+cert, "ADIT_TLS_KEY_FILE="+key, "ADIT_PUBLIC_URL="+base, "ADIT_WILDCARD_DOMAIN=tunnels.example.test")
	r.Start()
	client := func(keep bool, roots *x509.CertPool) *http.Client {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, InsecureSkipVerify: roots == nil}, DialContext: (&dialTo{addr: fmt.Sprintf("127.0.0.1:%d", r.Port)}).dial, DisableKeepAlives: !keep}
		t.Cleanup(tr.CloseIdleConnections)
		return &http.Client{Transport: tr, Timeout: 30 * time.Second}
	}
	w.Eventually(60*time.Second, "the relay is ready over TLS", func() bool {
		s, _ := world.Get(client(false, poolA), base+"/readyz")
		return s == http.StatusOK
	})
	proxy, _ := connectProxy(t, r.Port)
	a := w.NewAgent(r, "gpu-1", "ADIT_RELAY_URL="+base, "ADIT_TLS_CA_FILE="+caA, "HTTPS_PROXY="+proxy)
	a.Start()
	sk := r.Credential("integration", world.Team)
	port := app(t, func(rw http.ResponseWriter, req *http.Request) {
		if req.URL.Path != "/ws" {
			fmt.Fprint(rw, "hello")
			return
		}
		c, err := websocket.Accept(rw, req, &websocket.AcceptOptions{InsecureSkipVerify: true})
		if err != nil {
			return
		}
		defer func() { _ = c.CloseNow() }()
		for {
			kind, b, err := c.Read(req.Context())
			if err != nil || c.Write(req.Context(), kind, b) != nil {
				return
			}
		}
	})
	var tun api.Tunnel
	w.Eventually(30*time.Second, "a tunnel opens", func() bool {
		return callAPI(t, client(true, nil), base, sk, http.MethodPost, "/agents/gpu-1/tunnel", map[string]any{"target_port": port, "host_header": "public"}, &tun) == http.StatusCreated
	})

	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer func() { stop(); wg.Wait() }()
	var requests, failed, echoes, wsFailed atomic.Int64
	var fault atomic.Value
	for range 4 {
		c := client(false, nil)
		wg.Go(func() {
			for ctx.Err() == nil {
				status, body := world.Get(c, tun.TunnelURL)
				requests.Add(1)
				if status != http.StatusOK || body != "hello" {
					failed.Add(1)
					fault.Store(fmt.Sprint(status, " ", body))
				}
			}
		})
	}
	ws, _, err := websocket.Dial(ctx, strings.Replace(tun.TunnelURL, "https", "wss", 1)+"ws", &websocket.DialOptions{HTTPClient: &http.Client{Transport: client(true, nil).Transport}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ws.CloseNow() }()
	wg.Go(func() {
		for ctx.Err() == nil {
			text := fmt.Sprint(echoes.Load())
			err := ws.Write(ctx, websocket.MessageText, []byte(text))
			var got []byte
			if err == nil {
				_, got, err = ws.Read(ctx)
			}
			if ctx.Err() != nil {
				return
			}
			if err != nil || string(got) != text {
				wsFailed.Add(1)
				fault.Store(fmt.Sprint("WebSocket: ", err))
				return
			}
			echoes.Add(1)
		}
	})
	sees := func(roots *x509.CertPool) bool {
		s, _ := world.Get(client(false, roots), base+"/healthz")
		return s == http.StatusOK
	}
	more := func(n int64) {
		began := requests.Load()
		w.Eventually(30*time.Second, "requests go on", func() bool { return requests.Load() > began+n })
	}

	more(50)
	// As certbot does it: one file, then the other.
	swap := func(chain, secret string) {
		for path, text := range map[string]string{cert: chain, key: secret} {
			if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(path+".new", path); err != nil {
				t.Fatal(err)
			}
		}
	}
	swap(read(t, otherCert), read(t, otherKey))
	w.Eventually(30*time.Second, "new connections see the new certificate, without a signal", func() bool { return sees(poolB) })
	if sees(poolA) {
		t.Error("no new connection sees the old certificate any more")
	}
	more(50)
	// A broken file keeps it, and is said.
	swap(certA[:len(certA)/2], "no key")
	w.Eventually(30*time.Second, "the broken files are said", func() bool {
		return strings.Contains(r.Log(), "the certificate files are of no use; the old certificate stays")
	})
	if !sees(poolB) {
		t.Error("broken files leave the certificate in place")
	}
	more(50)
	stop()
	wg.Wait()
	if failed.Load()+wsFailed.Load() > 0 {
		t.Errorf("%d of %d requests and %d of %d echoes failed: %v", failed.Load(), requests.Load(), wsFailed.Load(), echoes.Load(), fault.Load())
	}
	if n := strings.Count(a.Log(), `"msg":"link up"`); n != 1 {
		t.Errorf("the agent's link went through it, but it linked %d times", n)
	}
	t.Logf("certificate swapped under load: %d requests on new connections, %d failed; %d WebSocket echoes on one connection, %d failed; one agent link throughout",
		requests.Load(), failed.Load(), echoes.Load(), wsFailed.Load())
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

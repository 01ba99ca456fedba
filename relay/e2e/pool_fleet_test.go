package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/agent"
	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// fleet is a pool as it is run: relays that reach each other, on an etcd of three,
// behind a load balancer, with agents that know all relays.
type fleet struct {
	t      *testing.T
	w      *world.World
	net    *world.Net // nil: all is on loopback
	etcd   *etcd
	ca     *poolCA
	relays []*world.Relay
	names  []string
	lb     *balancer
	secret string
	person string // the secret of a person's device; see people
	app    *url.URL
	echo   int // the port of an app that echoes TCP

	stop  context.CancelFunc
	wg    sync.WaitGroup
	agent ident.Secret
}

// newFleet starts relays; more may give one of them further settings.
func newFleet(t *testing.T, relays int, more func(f *fleet, i int) []string) *fleet {
	t.Helper()
	return newFleetOn(t, relays, nil, more)
}

// newFleetOn starts each relay, and a member of etcd, on a host of the network that
// make returns, or all on loopback.
func newFleetOn(t *testing.T, relays int, network func(w *world.World) *world.Net, more func(f *fleet, i int) []string) *fleet {
	t.Helper()
	w := world.New(t)
	f := &fleet{t: t, w: w, app: ownApp(t), echo: tcpEcho(t)}
	if network != nil {
		f.net = network(w)
	}
	f.etcd = startEtcdOn(w, 3, f.net)
	f.lb = newBalancer(t)
	key := w.WriteFile("cluster.key", strings.Repeat("5a", 32)+"\n")
	ca := newPoolCA(t)
	f.ca = ca
	for i := range relays {
		name := fmt.Sprintf("relay-%c", 'a'+i)
		cert, certKey := ca.issue(t, name)
		port, back := w.FreePort(), "127.0.0.1"
		r := w.NewRelay(
			"ADIT_STORE_ENDPOINTS="+f.etcd.endpoints(), "ADIT_RELAY_ID="+name, "ADIT_CLUSTER_KEY_FILE="+key,
			"ADIT_PEER_TLS_CA_FILE="+ca.file, "ADIT_PEER_TLS_CERT_FILE="+cert, "ADIT_PEER_TLS_KEY_FILE="+certKey,
			"ADIT_LIMITS_OPENS_PER_MINUTE=1000000", "ADIT_TRUSTED_PROXIES=127.0.0.1",
			"ADIT_LIMITS_TUNNELS_PER_TEAM=20000", "ADIT_DRAIN_DELAY=500ms",
			world.PathForm, // any relay is asked for any tunnel, by its address
		)
		if f.net != nil {
			r.Host, r.On, back = f.net.Users(i), f.net.On(i), f.net.Back(i)
			r.Env = append(r.Env, "ADIT_LISTEN="+r.Addr(), fmt.Sprintf("ADIT_METRICS_LISTEN=%s:%d", r.Host, r.Metrics))
		}
		r.Env = append(r.Env, fmt.Sprintf("ADIT_PEER_LISTEN=%s:%d", back, port), fmt.Sprintf("ADIT_PEER_URL=https://%s:%d", back, port),
			"ADIT_PUBLIC_URL="+f.lb.url, "ADIT_AGENT_URL=http://"+r.Addr(), "ADIT_LOG_LEVEL=info")
		if more != nil {
			r.Env = append(r.Env, more(f, i)...)
		}
		r.StartAs(name)
		f.relays, f.names = append(f.relays, r), append(f.names, name)
	}
	for _, r := range f.relays {
		r.WaitReady(60 * time.Second)
	}
	f.lb.start(f.relays)
	f.secret = f.relays[0].Credential("integration", world.Team, "--name", "fleet")
	f.agent = ident.Secret(f.relays[0].Credential("agent", world.Team, "--name", "fleet-agents"))
	return f
}

// start starts a relay again.
func (f *fleet) start(i int) {
	f.t.Helper()
	f.relays[i].StartAs(f.names[i])
}

func agentName(i int) string { return fmt.Sprintf("gpu-%03d", i) }

// run runs agents of real agent code in this process, whose relay lists begin at
// different relays, and waits until all relays list them.
func (f *fleet) run(n, links int) {
	f.t.Helper()
	dir, err := os.MkdirTemp("", "adit-fleet-") // short: sockets have short names
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	f.t.Cleanup(func() {
		cancel()
		f.wg.Wait()
		_ = os.RemoveAll(dir)
	})
	f.stop = cancel
	for i := range n {
		c := agent.DefaultConfig()
		c.AgentID, c.Credential, c.StateDir = agentName(i), f.agent, filepath.Join(dir, agentName(i))
		c.Local.Socket, c.Metrics.Listen, c.Facts.ComfyUI = filepath.Join(c.StateDir, "s"), "", nil
		c.Links, c.StopGrace, c.RelayURL, c.Tasks.Capacity = links, 0, nil, 1000
		for k := range f.relays {
			c.RelayURL = append(c.RelayURL, "http://"+f.relays[(i+k)%len(f.relays)].Addr())
		}
		a, err := agent.New(c, agent.Options{Version: "fleet", Logger: slog.New(slog.DiscardHandler), Proxy: func(*http.Request) (*url.URL, error) { return nil, nil }})
		if err != nil {
			f.t.Fatal(err)
		}
		f.wg.Go(func() {
			if err := a.Run(ctx); err != nil && ctx.Err() == nil {
				f.t.Errorf("agent %s ended: %v", agentName(i), err)
			}
		})
	}
	for _, r := range f.relays {
		f.w.Eventually(60*time.Second, fmt.Sprintf("all %d agents are listed", n), func() bool {
			var list api.AgentList
			_, p := r.API(f.secret, http.MethodGet, "/agents?per_page=1", nil, &list)
			return p == nil && list.PageMeta.TotalCount == n
		})
	}
}

// open opens one tunnel to the app on each of n agents, each through another relay.
func (f *fleet) open(n int, protocol string) []api.Tunnel {
	f.t.Helper()
	port := f.port()
	if protocol == "tcp" {
		port = f.echo
	}
	var out []api.Tunnel
	for i := range n {
		out = append(out, f.relays[i%len(f.relays)].Open(f.secret, agentName(i), map[string]any{"target_port": port, "tunnel_protocol": protocol}))
	}
	return out
}

func (f *fleet) port() int { return int(portOf(f.app)) }

func portOf(u *url.URL) uint16 {
	var n uint16
	_, _ = fmt.Sscan(u.Port(), &n)
	return n
}

// through is a tunnel's address at one relay, past the load balancer.
func (f *fleet) through(r *world.Relay, t api.Tunnel, rest string) string {
	u, err := url.Parse(f.relays[0].PathURL(t))
	if err != nil {
		f.t.Fatal(err)
	}
	return "http://" + r.Addr() + u.Path + rest
}

// holder is the relay that an agent's presence names.
func (f *fleet) holder(id string) int {
	f.t.Helper()
	var a api.Agent
	f.relays[0].API(f.secret, http.MethodGet, "/agents/"+id, nil, &a)
	for i, n := range f.names {
		if string(a.RelayID) == n {
			return i
		}
	}
	return -1
}

// socket opens a WebSocket to the app and checks that it echoes.
func (f *fleet) socket(ctx context.Context, address string) (*websocket.Conn, error) {
	host := strings.TrimPrefix(f.lb.url, "http://")
	c, resp, err := websocket.Dial(ctx, address, &websocket.DialOptions{Host: host})
	if err != nil {
		if resp != nil && resp.Body != nil {
			b, _ := io.ReadAll(resp.Body)
			err = fmt.Errorf("%w: %s", err, b)
		}
		return nil, err
	}
	if err = c.Write(ctx, websocket.MessageText, []byte("hi")); err == nil {
		_, _, err = c.Read(ctx)
	}
	if err != nil {
		_ = c.CloseNow()
		return nil, err
	}
	return c, nil
}

// get asks for a tunnel's page through one relay, as the load balancer would.
func (f *fleet) get(c *http.Client, address string) (int, string) {
	req, err := http.NewRequest(http.MethodGet, address, nil)
	if err != nil {
		return 0, err.Error()
	}
	req.Host = strings.TrimPrefix(f.lb.url, "http://")
	resp, err := c.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(b)
}

// balancer is a load balancer that honours /readyz, and no more.
type balancer struct {
	t     *testing.T
	url   string
	ln    net.Listener
	mu    sync.Mutex
	ready []*url.URL
	next  atomic.Uint64
	tr    *http.Transport
}

func newBalancer(t *testing.T) *balancer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return &balancer{t: t, ln: ln, url: fmt.Sprintf("http://localhost:%d", ln.Addr().(*net.TCPAddr).Port), tr: &http.Transport{MaxIdleConnsPerHost: 64, IdleConnTimeout: 20 * time.Second}}
}

func (b *balancer) start(relays []*world.Relay) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	check := func() {
		var now []*url.URL
		for _, r := range relays {
			u := &url.URL{Scheme: "http", Host: r.Addr()}
			c := &http.Client{Timeout: 300 * time.Millisecond, Transport: b.tr}
			if resp, err := c.Get(u.String() + "/readyz"); err == nil {
				_ = resp.Body.Close()
				if resp.StatusCode == http.StatusOK {
					now = append(now, u)
				}
			}
		}
		b.mu.Lock()
		b.ready = now
		b.mu.Unlock()
	}
	check()
	wg.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				check()
			}
		}
	})
	srv := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: &httputil.ReverseProxy{
		Transport: b.tr,
		Rewrite: func(r *httputil.ProxyRequest) {
			b.mu.Lock()
			if len(b.ready) > 0 {
				r.SetURL(b.ready[b.next.Add(1)%uint64(len(b.ready))])
			}
			b.mu.Unlock()
			r.SetXForwarded()
			r.Out.Host = r.In.Host
		},
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			w.WriteHeader(http.StatusBadGateway)
			_, _ = io.WriteString(w, "the load balancer says: "+err.Error())
		},
	}}
	wg.Go(func() { _ = srv.Serve(b.ln) })
	b.t.Cleanup(func() {
		cancel()
		_ = srv.Close()
		b.tr.CloseIdleConnections()
		wg.Wait()
	})
}

// poolCA is the authority of a pool's certificates.
type poolCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	dir  string
	file string
}

func newPoolCA(t *testing.T) *poolCA {
	t.Helper()
	ca := &poolCA{dir: t.TempDir()}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "pool"}, NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if ca.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	ca.key, ca.file = key, filepath.Join(ca.dir, "ca.pem")
	writePEM(t, ca.file, "CERTIFICATE", der)
	return ca
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (ca *poolCA) issue(t *testing.T, name string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(24 * time.Hour),
		DNSNames: []string{name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, k.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(ca.dir, name+".pem"), filepath.Join(ca.dir, name+".key")
	writePEM(t, cert, "CERTIFICATE", der)
	writePEM(t, key, "PRIVATE KEY", keyDER)
	return cert, key
}

func decode[T any](t *testing.T, raw []byte) (out T) {
	t.Helper()
	if err := json.Unmarshal(raw, &out); err != nil {
		t.Fatalf("%v: %s", err, raw)
	}
	return out
}

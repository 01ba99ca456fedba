package world

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/rest/resttest"
	"github.com/adit-tunnel/adit/shared/api"
)

// Relay is one relay process. Its port and data survive Kill and Start.
type Relay struct {
	*Process
	W       *World
	Host    string // where it listens, if not on loopback
	Port    int
	Metrics int
	DataDir string
	URL     string
	Env     []string
	On      []string // the beginning of its command line, if it runs on another host

	started string // the directory of the programs that it was last started from
	once    sync.Once
	client  *http.Client // compares every answer of the API with its description
}

// Relay starts a relay on loopback with its own data and waits until it is ready.
// The environment entries given are its configuration, over the world's.
func (w *World) Relay(env ...string) *Relay {
	w.T.Helper()
	r := w.NewRelay(env...)
	r.Start()
	r.WaitReady(30 * time.Second)
	return r
}

// NewRelay prepares a relay without starting it.
func (w *World) NewRelay(env ...string) *Relay {
	w.T.Helper()
	r := &Relay{W: w, Port: w.FreePort(), Metrics: w.FreePort()}
	r.DataDir = filepath.Join(w.Dir, fmt.Sprintf("relay-%d", r.Port))
	r.URL = fmt.Sprintf("http://localhost:%d", r.Port)
	r.Env = append([]string{
		fmt.Sprintf("ADIT_LISTEN=127.0.0.1:%d", r.Port),
		"ADIT_PUBLIC_URL=" + r.URL,
		"ADIT_DATA_DIR=" + r.DataDir,
		fmt.Sprintf("ADIT_METRICS_LISTEN=127.0.0.1:%d", r.Metrics),
		"ADIT_LOG_LEVEL=debug", "ADIT_LOG_FORMAT=json",
	}, env...)
	return r
}

// Start starts the relay's process, also again after Kill or Stop.
func (r *Relay) Start() {
	r.W.T.Helper()
	r.StartAs("relay")
}

// StartAs is Start under another name in what the test prints.
func (r *Relay) StartAs(name string) {
	r.W.T.Helper()
	if r.started != r.W.Bin { // another version has another description
		r.started, r.once = r.W.Bin, sync.Once{}
	}
	line := append(slices.Clone(r.On), filepath.Join(r.W.Bin, "adit-relay"), "serve")
	r.Process = r.W.Start(name, r.Env, line[0], line[1:]...)
}

// Addr is where it listens.
func (r *Relay) Addr() string {
	return net.JoinHostPort(cmp.Or(r.Host, "127.0.0.1"), strconv.Itoa(r.Port))
}

// WaitReady waits for /readyz.
func (r *Relay) WaitReady(limit time.Duration) {
	r.W.T.Helper()
	c := &http.Client{Timeout: time.Second}
	defer c.CloseIdleConnections()
	r.W.Eventually(limit, "the relay is ready", func() bool {
		select {
		case <-r.Done():
			r.W.T.Fatalf("the relay ended: %v", r.err)
		default:
		}
		status, _ := Get(c, "http://"+r.Addr()+"/readyz")
		return status == http.StatusOK
	})
}

// Credential makes a credential over the admin socket and returns its secret.
func (r *Relay) Credential(kind, team string, more ...string) string {
	r.W.T.Helper()
	args := append([]string{"credential", "create", "--kind", kind, "--team", team, "--socket", filepath.Join(r.DataDir, "admin.sock")}, more...)
	return strings.TrimSpace(r.W.Run(nil, filepath.Join(r.W.Bin, "adit-relay"), args...))
}

// API calls the interface and decodes the answer into out (nil: ignored). It
// returns the status and, for a problem, the problem.
func (r *Relay) API(secret, method, path string, body, out any, header ...string) (int, *api.Problem) {
	r.W.T.Helper()
	status, raw := r.Raw(secret, method, path, body, header...)
	if status >= 400 {
		var p api.Problem
		if err := json.Unmarshal(raw, &p); err != nil {
			r.W.T.Fatalf("%s %s answered %d with no problem document: %s", method, path, status, raw)
		}
		return status, &p
	}
	if out != nil && status > 0 {
		if err := json.Unmarshal(raw, out); err != nil {
			r.W.T.Fatalf("%s %s answered %d with %s: %v", method, path, status, raw, err)
		}
	}
	return status, nil
}

// Raw is API without decoding; status 0 means that no answer came.
func (r *Relay) Raw(secret, method, path string, body any, header ...string) (int, []byte) {
	r.W.T.Helper()
	var rd io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			r.W.T.Fatal(err)
		}
		rd = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(r.W.T.Context(), method, "http://"+r.Addr()+api.Base+path, rd)
	if err != nil {
		r.W.T.Fatal(err)
	}
	if secret != "" {
		req.Header.Set("Authorization", "Bearer "+secret)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := r.checked().Do(req)
	if err != nil {
		return 0, []byte(err.Error())
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, []byte(err.Error())
	}
	return resp.StatusCode, raw
}

// checked returns the client of Raw: an answer that is not as the relay's own
// OpenAPI description says fails the test.
func (r *Relay) checked() *http.Client {
	r.W.T.Helper()
	r.once.Do(func() {
		tr := &http.Transport{}
		r.W.T.Cleanup(tr.CloseIdleConnections)
		r.client = &http.Client{Transport: tr}
		status, spec := Get(r.client, "http://"+r.Addr()+api.Base+"/openapi.json")
		if status != http.StatusOK {
			r.client = nil
			r.W.T.Fatalf("the API's description answers %d: %s", status, spec)
		}
		d, err := resttest.Load([]byte(spec))
		if err != nil {
			r.W.T.Fatal(err)
		}
		r.client.Transport = d.For(r.W.T).Wrap(tr)
	})
	return r.client
}

// Open opens a tunnel and fails the test when it cannot.
func (r *Relay) Open(secret, agent string, req map[string]any) api.Tunnel {
	r.W.T.Helper()
	var t api.Tunnel
	if status, p := r.API(secret, http.MethodPost, "/agents/"+agent+"/tunnel", req, &t); status != http.StatusCreated {
		r.W.T.Fatalf("open a tunnel on %s: %d %v", agent, status, p)
	}
	return t
}

// PathForm is the configuration of a relay whose tunnels have URLs in path form too: a
// world has a wildcard domain, beside which they are off.
const PathForm = "ADIT_PATH_FORM=on"

// Segment is the secret part of the tunnel's URL.
func Segment(t api.Tunnel) string {
	_, rest, inPath := strings.Cut(t.TunnelURL, "/tunnel/")
	if inPath {
		return strings.TrimSuffix(rest, "/")
	}
	_, rest, _ = strings.Cut(t.TunnelURL, "://")
	label, _, _ := strings.Cut(rest, ".")
	return label
}

// PathURL is the tunnel's URL in path form, whatever form tunnel_url has. The relay
// was started with PathForm, or has no wildcard domain.
func (r *Relay) PathURL(t api.Tunnel) string {
	for _, u := range append([]string{t.TunnelURL}, t.AlternateURLs...) {
		if strings.Contains(u, "/tunnel/") {
			return u
		}
	}
	r.W.T.Fatalf("tunnel %s has no path form: %s %v", t.SessionID, t.TunnelURL, t.AlternateURLs)
	return ""
}

// HostURL is the tunnel's URL in subdomain form.
func (r *Relay) HostURL(t api.Tunnel) string {
	for _, u := range append([]string{t.TunnelURL}, t.AlternateURLs...) {
		if !strings.Contains(u, "/tunnel/") {
			return u
		}
	}
	r.W.T.Fatalf("tunnel %s has no subdomain form: %s %v", t.SessionID, t.TunnelURL, t.AlternateURLs)
	return ""
}

// Agent is one agent process.
type Agent struct {
	*Process
	W        *World
	ID       string
	StateDir string
	Metrics  int
	Local    int
	Env      []string
}

// Agent starts an agent against a relay and waits until the relay lists it.
func (w *World) Agent(r *Relay, id string, env ...string) *Agent {
	w.T.Helper()
	a := w.NewAgent(r, id, env...)
	a.Start()
	secret := r.Credential("integration", Team, "--name", "world-"+id)
	a.WaitOnline(r, secret, 15*time.Second)
	return a
}

// NewAgent prepares an agent with a credential of its own, without starting it.
func (w *World) NewAgent(r *Relay, id string, env ...string) *Agent {
	w.T.Helper()
	a := &Agent{W: w, ID: id, Metrics: w.FreePort(), Local: w.FreePort()}
	a.StateDir = filepath.Join(w.Dir, fmt.Sprintf("agent-%s-%d", id, a.Metrics))
	if err := os.MkdirAll(a.StateDir, 0o700); err != nil {
		w.T.Fatal(err)
	}
	file := filepath.Join(a.StateDir, "credential")
	if err := os.WriteFile(file, []byte(r.Credential("agent", Team, "--agent", id, "--name", "agent-"+id)+"\n"), 0o600); err != nil {
		w.T.Fatal(err)
	}
	a.Env = append([]string{
		"ADIT_RELAY_URL=" + fmt.Sprintf("http://127.0.0.1:%d", r.Port), "ADIT_AGENT_ID=" + id, "ADIT_CREDENTIAL_FILE=" + file,
		"ADIT_STATE_DIR=" + a.StateDir, "ADIT_LOCAL_SOCKET=" + filepath.Join(a.StateDir, "agent.sock"),
		fmt.Sprintf("ADIT_LOCAL_LISTEN=127.0.0.1:%d", a.Local), fmt.Sprintf("ADIT_METRICS_LISTEN=127.0.0.1:%d", a.Metrics),
		"ADIT_LOG_LEVEL=debug", "ADIT_LOG_FORMAT=json",
	}, env...)
	return a
}

// Start starts the agent's process, also again after Kill or Stop.
func (a *Agent) Start() {
	a.W.T.Helper()
	a.Process = a.W.Start("agent "+a.ID, a.Env, filepath.Join(a.W.Bin, "adit-agent"), "run")
}

// WaitOnline waits until the relay lists the agent.
func (a *Agent) WaitOnline(r *Relay, secret string, limit time.Duration) {
	a.W.T.Helper()
	a.W.Eventually(limit, "the relay lists agent "+a.ID, func() bool {
		select {
		case <-a.Done():
			a.W.T.Fatalf("the agent ended: %v", a.err)
		default:
		}
		status, _ := r.Raw(secret, http.MethodGet, "/agents/"+a.ID, nil)
		return status == http.StatusOK
	})
}

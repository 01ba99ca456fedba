package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/e2e/checker"
	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
)

// testProgram returns a program that only tests need: from ADIT_E2E_BIN, where
// scripts/test builds it once, or built now.
func testProgram(w *world.World, name string, build ...string) string {
	w.T.Helper()
	path := filepath.Join(w.Bin, name)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	path = filepath.Join(w.Dir, name)
	cmd := exec.Command("go", append([]string{"build", "-o", path}, build...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		w.T.Fatalf("build %s: %v\n%s", name, err, out)
	}
	return path
}

// member is one process of an etcd cluster.
type member struct {
	*world.Process
	name, client string
	start        func() *world.Process
}

// etcd is a cluster of member processes on loopback.
type etcd struct {
	w       *world.World
	program string
	on      []string // the beginning of a command line that reaches the members
	members []*member
}

func startEtcd(w *world.World, n int) *etcd {
	w.T.Helper()
	return startEtcdOn(w, n, nil)
}

// startEtcdOn starts one member on each host of a network, or all on loopback.
func startEtcdOn(w *world.World, n int, net *world.Net) *etcd {
	w.T.Helper()
	e := &etcd{w: w, program: testProgram(w, "etcdmember", "github.com/adit-tunnel/adit/relay/e2e/etcdmember")}
	at := func(int) (addr string, on []string) { return "127.0.0.1", nil }
	if net != nil {
		at = func(i int) (string, []string) { return net.Back(i), net.On(i) }
		e.on = net.On(n - 1)
	}
	var cluster []string
	var peers []string
	for i := range n {
		addr, _ := at(i)
		peers = append(peers, fmt.Sprintf("http://%s:%d", addr, w.FreePort()))
		cluster = append(cluster, fmt.Sprintf("etcd-%d=%s", i, peers[i]))
	}
	for i := range n {
		addr, on := at(i)
		m := &member{name: fmt.Sprintf("etcd-%d", i), client: fmt.Sprintf("http://%s:%d", addr, w.FreePort())}
		m.start = func() *world.Process {
			line := append(slices.Clone(on), e.program, "run", m.name, filepath.Join(w.Dir, m.name), m.client, peers[i], strings.Join(cluster, ","))
			return w.Start(m.name, nil, line[0], line[1:]...)
		}
		m.Process = m.start()
		e.members = append(e.members, m)
	}
	w.Eventually(60*time.Second, "the etcd cluster has a leader", func() bool { return e.leader() != nil })
	return e
}

func (e *etcd) endpoints() string {
	var list []string
	for _, m := range e.members {
		list = append(list, m.client)
	}
	return strings.Join(list, ",")
}

// leader returns nil while there is none.
func (e *etcd) leader() *member {
	line := append(slices.Clone(e.on), e.program, "leader", e.endpoints())
	out, err := e.w.Try(nil, line[0], line[1:]...)
	if err != nil {
		return nil
	}
	for _, m := range e.members {
		if m.name == strings.TrimSpace(out) {
			return m
		}
	}
	return nil
}

// killLeader kills the leader with SIGKILL and starts it again when another one
// has been elected.
func (e *etcd) killLeader() string {
	e.w.T.Helper()
	var m *member
	e.w.Eventually(60*time.Second, "etcd has a leader to kill", func() bool { m = e.leader(); return m != nil })
	m.Kill()
	began := time.Now()
	e.w.Eventually(60*time.Second, "etcd elects another leader", func() bool { l := e.leader(); return l != nil && l != m })
	took := time.Since(began)
	m.Process = m.start()
	return fmt.Sprintf("%s, another one led %s later", m.name, took.Round(10*time.Millisecond))
}

// past is everything that was ever in the store.
type past struct {
	versions []checker.Version
	agents   map[ident.AgentKey]store.AgentRecord // as they are now
	// labels counts the tunnels that were ever opened under a label.
	labels map[string]map[ident.SessionID]bool
}

// past reads the whole history.
func (e *etcd) past(t *testing.T) past {
	t.Helper()
	line := append(slices.Clone(e.on), e.program, "history", e.endpoints(), "/adit/v1/")
	out := e.w.Run(nil, line[0], line[1:]...)
	p := past{agents: map[ident.AgentKey]store.AgentRecord{}, labels: map[string]map[ident.SessionID]bool{}}
	lines := bufio.NewScanner(strings.NewReader(out))
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		var line struct {
			Key   string
			Value json.RawMessage
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Fatalf("the history has a line that is none: %v", err)
		}
		kind, rest, _ := strings.Cut(strings.TrimPrefix(line.Key, "/adit/v1/"), "/")
		switch kind {
		case "agent":
			team, agent, _ := strings.Cut(rest, "/")
			v := checker.Version{Key: ident.AgentKey{Team: ident.TeamID(team), Agent: ident.AgentID(agent)}, Deleted: len(line.Value) == 0}
			if !v.Deleted {
				decodeStrict(t, line.Key, line.Value, &v.Record)
			}
			p.versions = append(p.versions, v)
			p.agents[v.Key] = v.Record
		case "tunnel":
			if len(line.Value) == 0 {
				continue
			}
			var r store.TunnelRecord
			decodeStrict(t, line.Key, line.Value, &r)
			if p.labels[r.Label] == nil {
				p.labels[r.Label] = map[ident.SessionID]bool{}
			}
			p.labels[r.Label][r.Session] = true
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return p
}

func decodeStrict(t *testing.T, key string, value []byte, into any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(value))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		t.Fatalf("read %s: %v", key, err)
	}
}

// quiet says whether nothing is under way any more: no tunnel waits or closes, and
// what ran out has been dropped.
func (p past) quiet() bool {
	for _, r := range p.agents {
		if len(r.Leases) > 0 {
			return false
		}
		for _, t := range r.Tunnels {
			if t.State != store.TunnelOpen || time.Until(t.Expires) < time.Minute {
				return false
			}
		}
	}
	return true
}

// pool is relays and agents on one etcd.
type pool struct {
	w      *world.World
	etcd   *etcd
	relays []*world.Relay
	starts []func() // each relay's
	agents []*world.Agent
	secret string
}

// poolSkew is how far the clocks of the pool's relays are apart.
const poolSkew = 2 * time.Second

// startPool starts two relays, whose clocks disagree, on a cluster of three, and
// agents that know both.
func startPool(w *world.World, agents int) *pool {
	w.T.Helper()
	p := &pool{w: w, etcd: startEtcd(w, 3)}
	shifted := testProgram(w, "adit-relay-shifted", "-tags", "adit_testclock", "github.com/adit-tunnel/adit/relay/cmd/adit-relay")
	key := w.WriteFile("cluster.key", strings.Repeat("5a", 32)+"\n")
	programs := []string{filepath.Join(w.Bin, "adit-relay"), shifted}
	for i, program := range programs {
		name := fmt.Sprintf("relay-%c", 'a'+i)
		r := w.NewRelay("ADIT_STORE_ENDPOINTS="+p.etcd.endpoints(), "ADIT_RELAY_ID="+name, "ADIT_CLUSTER_KEY_FILE="+key,
			"ADIT_LIMITS_OPENS_PER_MINUTE=1000000", "ADIT_LOG_LEVEL=info")
		if program == shifted {
			r.Env = append(r.Env, "ADIT_TEST_CLOCK_OFFSET="+poolSkew.String())
		}
		start := func() { r.Process = w.Start(name, r.Env, program, "serve") }
		start()
		p.relays, p.starts = append(p.relays, r), append(p.starts, start)
	}
	urls := ""
	for _, r := range p.relays {
		r.WaitReady(60 * time.Second)
		urls += fmt.Sprintf(",http://127.0.0.1:%d", r.Port)
	}
	p.secret = p.relays[0].Credential("integration", world.Team, "--name", "chaos")
	for i := range agents {
		a := w.NewAgent(p.relays[i%2], fmt.Sprintf("gpu-%d", i), "ADIT_TASKS_CAPACITY=2", "ADIT_RELAY_URL="+urls[1:], "ADIT_LOG_LEVEL=info")
		a.Start()
		p.agents = append(p.agents, a)
	}
	for i := range p.agents {
		p.waitOnline(i)
	}
	return p
}

// waitOnline waits until both relays list an agent.
func (p *pool) waitOnline(i int) {
	p.w.T.Helper()
	for _, r := range p.relays {
		p.agents[i].WaitOnline(r, p.secret, 60*time.Second)
	}
}

// whole waits until everything is up.
func (p *pool) whole() {
	p.w.T.Helper()
	for _, r := range p.relays {
		r.WaitReady(60 * time.Second)
	}
	for i := range p.agents {
		p.waitOnline(i)
	}
}

func (p *pool) auditDirs() []string {
	var dirs []string
	for _, r := range p.relays {
		dirs = append(dirs, filepath.Join(r.DataDir, "audit"))
	}
	return dirs
}

// works says whether a secret is accepted by each relay.
func (p *pool) works(secret string) (yes, no int) {
	for _, r := range p.relays {
		switch status, _ := r.Raw(secret, http.MethodGet, "/agents", nil); status {
		case http.StatusOK:
			yes++
		case http.StatusUnauthorized:
			no++
		}
	}
	return yes, no
}

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/relay/internal/admin"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/carrier"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/wire"
)

const hostileTeam = "0e5f1c7a-1111-4c1e-9d3b-2f6a1e0c9b99"

// invented is what an invented agent says, each time something else: as much as a
// message holds.
func invented(n int64) (labels map[string]string, facts wire.Facts) {
	text := strings.Repeat(fmt.Sprintf("%d ", n), 20000)[:30000]
	labels = map[string]string{"label": text}
	facts = wire.Facts{Tool: text, Unhealthy: text}
	for i := range 200 {
		labels[fmt.Sprint(i)+text[:250]] = text[:250]
		facts.GPUs = append(facts.GPUs, wire.GPU{Name: text[:200], Type: text[:20]})
	}
	return labels, facts
}

// invention is a tenant that invents agents, with texts as long as a message holds.
type invention struct {
	relay *world.Relay
	token ident.Secret
	id    string // of the credential
	next  atomic.Int64
	wg    sync.WaitGroup

	linked, news atomic.Int64 // agents that were welcomed; changes that were sent
	mu           sync.Mutex
	refused      map[string]int
}

// invent begins, with so many at a time, and goes on until ctx ends. Each agent stays,
// until there are that many, and each tenth has something new to say all the time.
func invent(ctx context.Context, r *world.Relay, workers, stay int) *invention {
	r.W.T.Helper()
	a := &invention{relay: r, token: ident.Secret(r.Credential("agent", hostileTeam, "--name", "stolen")), refused: map[string]int{}}
	var list api.CredentialList
	socket := filepath.Join(r.DataDir, "admin.sock")
	out := r.W.Run(nil, r.W.Bin+"/adit-relay", "credential", "list", "--team", hostileTeam, "--json", "--socket", socket)
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list.Credentials) != 1 {
		r.W.T.Fatalf("list the credentials: %v %s", err, out)
	}
	a.id = string(list.Credentials[0].ID)
	places := make(chan struct{}, stay)
	for range workers {
		a.wg.Go(func() {
			for ctx.Err() == nil {
				a.one(ctx, places)
			}
		})
	}
	r.W.T.Cleanup(a.wg.Wait)
	return a
}

func (a *invention) say(what string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refused[what]++
}

// heard is how often the relay said something with this text in it.
func (a *invention) heard(text string) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for what, times := range a.refused {
		if strings.Contains(what, text) {
			n += times
		}
	}
	return n
}

// one invents one agent. It is left alone once it has a place.
func (a *invention) one(ctx context.Context, places chan struct{}) {
	n := a.next.Add(1)
	dial, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	l, err := link.Dial(dial, carrier.DialOptions{URL: fmt.Sprintf("http://127.0.0.1:%d", a.relay.Port), Token: a.token}, link.Config{})
	if err != nil {
		what := "no link"
		if p, ok := errors.AsType[*api.Problem](err); ok {
			what = string(p.Code)
		}
		a.say(what)
		rest(ctx, 50*time.Millisecond)
		return
	}
	labels, facts := invented(n)
	control, err := link.OpenHello(dial, l, wire.Hello{Kind: wire.KindControl})
	if err != nil {
		_ = l.Close(nil)
		return
	}
	out, in := wire.NewEncoder(control), wire.NewDecoder(control)
	err = out.Write(wire.Message{Type: wire.TypeHello, Hello: &wire.AgentHello{
		Agent: ident.AgentID(fmt.Sprintf("invented-%d", n)), Instance: ident.NewNonce(), Version: "0", Platform: "test/test",
		Labels: labels, Facts: facts, State: wire.State{SyncPhase: facts.Tool[:2000]},
	}})
	m, rerr := in.Read()
	switch {
	case err != nil || rerr != nil:
		a.say("the link ended")
	case m.Goodbye != nil:
		a.say(m.Goodbye.Detail)
	case m.Welcome != nil:
		a.linked.Add(1)
		select {
		case places <- struct{}{}:
			a.wg.Go(func() {
				defer func() { <-places }()
				a.live(ctx, l, n, out, in)
			})
			return
		default:
		}
	}
	_ = l.Close(nil)
}

// live keeps an agent linked.
func (a *invention) live(ctx context.Context, l *link.Link, n int64, out *wire.Encoder, in *wire.Decoder) {
	defer context.AfterFunc(ctx, func() { _ = l.Close(nil) })()
	a.wg.Go(func() { pinging(ctx, out) })
	if n%10 == 0 {
		a.wg.Go(func() {
			for i := n; l.Err() == nil; i++ {
				_, facts := invented(i)
				if out.Write(wire.Message{Type: wire.TypeFacts, Facts: &facts}) != nil {
					return
				}
				a.news.Add(1)
				rest(ctx, 200*time.Millisecond)
			}
		})
	}
	for {
		m, err := in.Read()
		switch {
		case err != nil:
			_ = l.Close(nil)
			return
		case m.Goodbye != nil:
			a.say(m.Goodbye.Detail)
		}
	}
}

func rest(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// tenantsDay is what a tenant does: a task, a tunnel, a link, a credential, and back
// with all of them. It returns what went wrong.
func tenantsDay(n *neighbour) (faults []string) {
	r := n.relay
	check := func(what string, status, want int, p *api.Problem) bool {
		if status != want {
			faults = append(faults, fmt.Sprintf("%s: %d %v", what, status, p))
		}
		return status == want
	}
	var lease api.TaskLease
	status, p := r.API(n.sk, http.MethodPost, "/agents/gpu-2/tasks", map[string]any{"ttl": "30s"}, &lease)
	if check("admit a task", status, http.StatusCreated, p) {
		path := "/agents/gpu-2/tasks/" + string(lease.TaskID)
		status, p = r.API(n.sk, http.MethodPut, path, map[string]any{"lease_token": lease.LeaseToken}, nil)
		check("renew its lease", status, http.StatusOK, p)
		status, p = r.API(n.sk, http.MethodDelete, path, nil, nil, "X-Lease-Token", lease.LeaseToken)
		check("release it", status, http.StatusNoContent, p)
	}
	var t api.Tunnel
	status, p = r.API(n.sk, http.MethodPost, "/agents/gpu-1/tunnel", map[string]any{"target_port": n.port}, &t)
	if check("open a tunnel", status, http.StatusCreated, p) {
		if got, body := world.Get(n.c, t.TunnelURL+"y"); got != http.StatusOK || body != "hello from /y" {
			faults = append(faults, fmt.Sprintf("use the tunnel: %d %s", got, body))
		}
		status, p = r.API(n.sk, http.MethodPost, "/tunnels/"+string(t.SessionID)+"/links", map[string]any{"name": "guest"}, nil)
		check("make a link", status, http.StatusCreated, p)
		status, p = r.API(n.sk, http.MethodDelete, "/agents/gpu-1/tunnel?session_id="+string(t.SessionID), nil, nil)
		check("close the tunnel", status, http.StatusOK, p)
	}
	socket := filepath.Join(r.DataDir, "admin.sock")
	for _, line := range []string{"create --kind integration --name day --team ", "list --json --team "} {
		out, err := r.W.Try(nil, r.W.Bin+"/adit-relay", append([]string{"credential"}, strings.Fields(line+world.Team+" --socket "+socket)...)...)
		var list api.CredentialList
		switch {
		case err != nil:
			faults = append(faults, err.Error())
		case json.Unmarshal([]byte(out), &list) == nil: // the newest comes first
			if _, err := r.W.Try(nil, r.W.Bin+"/adit-relay", "credential", "revoke", string(list.Credentials[0].ID), "--socket", socket); err != nil {
				faults = append(faults, err.Error())
			}
		}
	}
	return faults
}

// storeOf is what the relay says of its store.
func storeOf(r *world.Relay) admin.Status {
	var st admin.Status
	out := r.W.Run(nil, r.W.Bin+"/adit-relay", "status", "--json", "--socket", filepath.Join(r.DataDir, "admin.sock"))
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		r.W.T.Fatal(err)
	}
	return st
}

func (a *invention) revoke() error {
	_, err := a.relay.W.Try(nil, a.relay.W.Bin+"/adit-relay", "credential", "revoke", a.id, "--socket", filepath.Join(a.relay.DataDir, "admin.sock"))
	return err
}

// TestAStoreFullOfOneTenantServesOthers lets one team-wide credential invent agents
// with 240 kB of text each. What it may take of the store is bounded; the other tenant
// works on, the credential can be revoked, and the relay starts again.
func TestAStoreFullOfOneTenantServesOthers(t *testing.T) {
	together(t)
	w := world.New(t)
	// Less than the defaults, to be at the limits soon.
	env, rounds := []string{"ADIT_STORE_QUOTA_BYTES=268435456", "ADIT_LIMITS_AGENTS_PER_TEAM=200"}, 8
	if long() {
		env, rounds = nil, 40
	}
	n := newNeighbour(w, append(env, "ADIT_LIMITS_OPENS_PER_MINUTE=6000")...)
	w.Agent(n.relay, "gpu-2", quiet...)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	asking, stop := context.WithCancel(ctx)
	var user sync.WaitGroup
	user.Go(func() { n.ask(asking) })
	attack := invent(ctx, n.relay, 16, 300)

	var faults []string
	most := int64(0)
	limited := func() bool {
		return attack.heard("too_many_links") > 0 && attack.heard("as many as one team may have") > 0
	}
	end := time.Now().Add(3 * time.Minute)
	for day := 0; day < rounds || !limited() && time.Now().Before(end); day++ {
		faults = append(faults, tenantsDay(n)...)
		most = max(most, storeOf(n.relay).Store.SizeBytes)
		if len(faults) > 0 {
			break
		}
	}
	if !limited() {
		faults = append(faults, "no limit of the inventor's team or credential was reached")
	}
	status, body := world.Get(http.DefaultClient, fmt.Sprintf("http://127.0.0.1:%d/readyz", n.relay.Port))
	if status != http.StatusOK {
		faults = append(faults, fmt.Sprintf("/readyz: %d %s", status, body))
	}
	if err := attack.revoke(); err != nil {
		faults = append(faults, err.Error())
	}
	stop()
	user.Wait()
	times, failed := n.take()
	faults = append(faults, failed...)
	if len(faults) > 0 {
		t.Errorf("beside a tenant that invents agents, the other one's work failed %d times: %v", len(faults), faults[:min(len(faults), 10)])
	}
	w.Eventually(30*time.Second, "a revoked credential ends the invented agents' links", func() bool {
		return gauge(t, n.relay.Metrics, "adit_relay_agent_sessions") <= 2
	})
	attack.mu.Lock()
	testkit.Figure(t, "%d invented agents were linked and said %d times something new; the store had %d MiB at most; refusals %v", attack.linked.Load(), attack.news.Load(), most>>20, attack.refused)
	attack.mu.Unlock()
	testkit.Figure(t, "the other tenant's user asked %d times, p50 %s, p99 %s, failed %d", len(times), percentile(times, 0.5), percentile(times, 0.99), len(failed))
	cancel()
	attack.wg.Wait()

	n.relay.Kill()
	n.relay.Start()
	n.relay.WaitReady(30 * time.Second)
	for _, id := range []string{"gpu-1", "gpu-2"} {
		n.agent.W.Eventually(15*time.Second, id+" is back", func() bool {
			status, _ := n.relay.Raw(n.sk, http.MethodGet, "/agents/"+id, nil)
			return status == http.StatusOK
		})
	}
	if faults := tenantsDay(n); len(faults) > 0 {
		t.Errorf("after a restart the tenant's work failed: %v", faults)
	}
}

// beside runs f with the store of a relay that runs.
func beside(r *world.Relay, f func(ctx context.Context, s *store.Store)) {
	t := r.W.T
	t.Helper()
	s, err := store.New(store.Config{
		Endpoints: []string{"unix://" + filepath.Join(r.DataDir, "run", "etcd.sock")}, Relay: store.RelayRecord{ID: "beside"},
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	f(ctx, s)
}

// ballast puts files into a relay's store until it is full: for good, and not only
// until what is free within its file is given back.
func ballast(r *world.Relay, full func() bool) {
	r.W.T.Helper()
	beside(r, func(ctx context.Context, s *store.Store) {
		if err := s.Ready(ctx); err != nil {
			r.W.T.Fatal(err)
		}
		var was time.Time
		end := time.Now().Add(3 * time.Minute)
		for was.IsZero() || time.Since(was) < 4*time.Second {
			rest(ctx, 10*time.Millisecond)
			if full() {
				if was.IsZero() {
					was = time.Now()
				}
				continue
			}
			if was = (time.Time{}); time.Now().After(end) {
				r.W.T.Fatal("expected within 3m: the relay says that its store is full")
			}
			for range 4 { // a store at its quota refuses it: then it is full
				_ = s.PutFile(ctx, "ballast/"+ident.NewNonce(), make([]byte, 96<<10))
			}
		}
	})
}

// TestAFullStoreSaysSoAndMendsItself: whatever it was that took the room, nothing new
// is made then, and whoever asks is told; what must always be possible is. A relay that
// is killed when nothing at all can be written starts again.
func TestAFullStoreSaysSoAndMendsItself(t *testing.T) {
	together(t)
	w := world.New(t)
	n := newNeighbour(w, "ADIT_STORE_QUOTA_BYTES=67108864")
	r := n.relay
	w.Agent(r, "gpu-2", quiet...)
	socket := filepath.Join(r.DataDir, "admin.sock")
	readyz := func() (int, string) {
		return world.Get(http.DefaultClient, fmt.Sprintf("http://127.0.0.1:%d/readyz", r.Port))
	}
	var lease api.TaskLease
	if status, p := r.API(n.sk, http.MethodPost, "/agents/gpu-2/tasks", map[string]any{"ttl": "10m"}, &lease); status != http.StatusCreated {
		t.Fatalf("admit a task: %d %v", status, p)
	}
	goesOn := func(when string) {
		t.Helper()
		if status, p := r.API(n.sk, http.MethodPut, "/agents/gpu-2/tasks/"+string(lease.TaskID), map[string]any{"lease_token": lease.LeaseToken}, nil); status != http.StatusOK {
			t.Errorf("%s: renewing a lease answers %d %v", when, status, p)
		}
		if status, body := world.Get(n.c, n.url+"x"); status != http.StatusOK || body != "hello from /x" {
			t.Errorf("%s: the tunnel answers %d %s", when, status, body)
		}
	}
	nothingNew := func(when string) {
		t.Helper()
		if status, p := r.API(n.sk, http.MethodPost, "/agents/gpu-1/tunnel", map[string]any{"target_port": n.port}, nil); status != http.StatusServiceUnavailable || p.Code != "store_full" {
			t.Errorf("%s: a new tunnel is answered %d %v", when, status, p)
		}
		if _, err := w.Try(nil, w.Bin+"/adit-relay", "credential", "create", "--kind", "agent", "--team", world.Team, "--socket", socket); err == nil || !strings.Contains(err.Error(), "store_full") {
			t.Errorf("%s: a new credential is answered %v", when, err)
		}
	}
	revoke := func(when string) {
		t.Helper()
		out := w.Run(nil, w.Bin+"/adit-relay", "credential", "list", "--team", world.Team, "--json", "--socket", socket)
		var list api.CredentialList
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(list.Credentials, func(c api.Credential) bool { return c.Name == "stolen" && !c.Revoked })
		if _, err := w.Try(nil, w.Bin+"/adit-relay", "credential", "revoke", string(list.Credentials[i].ID), "--socket", socket); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	for range 2 {
		r.Credential("agent", world.Team, "--name", "stolen")
	}
	spare := []api.Tunnel{r.Open(n.sk, "gpu-1", map[string]any{"target_port": n.port}), r.Open(n.sk, "gpu-1", map[string]any{"target_port": n.port})}
	shut := func(when string, t2 api.Tunnel) {
		t.Helper()
		if status, p := r.API(n.sk, http.MethodDelete, "/agents/gpu-1/tunnel?session_id="+string(t2.SessionID), nil, nil); status != http.StatusOK {
			t.Errorf("%s: closing a tunnel answers %d %v", when, status, p)
		}
	}

	ballast(r, func() bool { // until /readyz says so
		status, body := readyz()
		if strings.Contains(body, "bytes") {
			t.Fatalf("strangers are told how much there is: %s", body)
		}
		return status == http.StatusOK && strings.Contains(body, "nearly full")
	})
	if full := gauge(t, r.Metrics, "adit_relay_store_full"); full != 1 {
		t.Errorf("the metric of the full store is %v", full)
	}
	if st := w.Run(nil, w.Bin+"/adit-relay", "status", "--socket", socket); !strings.Contains(st, "FULL") || !strings.Contains(st, "nothing new is made") {
		t.Errorf("the status says nothing of it:\n%s", st)
	}
	goesOn("nearly full")
	nothingNew("nearly full")
	shut("nearly full", spare[0])
	revoke("nearly full")

	ballast(r, func() bool { // until nothing can be written
		status, body := readyz()
		return status == http.StatusServiceUnavailable && strings.Contains(body, "store_full")
	})
	if status, body := world.Get(n.c, n.url+"x"); status != http.StatusOK || body != "hello from /x" {
		t.Errorf("with nothing to be written, the tunnel answers %d %s", status, body)
	}
	r.Kill()
	r.Start()
	r.WaitReady(60 * time.Second)
	for _, id := range []string{"gpu-1", "gpu-2"} {
		w.Eventually(30*time.Second, id+" is back", func() bool {
			status, _ := r.Raw(n.sk, http.MethodGet, "/agents/"+id, nil)
			return status == http.StatusOK
		})
	}
	// What it found to give back may have made room for something new as well, or not.
	goesOn("started again")
	shut("started again", spare[1])
	revoke("started again")

	beside(r, func(ctx context.Context, s *store.Store) {
		w.Eventually(30*time.Second, "the ballast is taken out", func() bool { return s.DeleteFiles(ctx, "ballast") == nil })
	})
	w.Eventually(2*time.Minute, "the store has room again", func() bool { return !storeOf(r).Store.Full })
	r.Open(n.sk, "gpu-1", map[string]any{"target_port": n.port})
}

package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/testkit/wan"
)

// TestPoolStoreMove carries a large store inside a relay to an etcd of three.
func TestPoolStoreMove(t *testing.T) {
	together(t)
	const agents, each = 200, 50
	credentials := 1000
	if long() {
		credentials = 10000
	}
	w := world.New(t)
	r := w.NewRelay()
	r.Start()
	r.WaitReady(60 * time.Second)
	secret := r.Credential("integration", world.Team, "--name", "kept")
	if err := r.Stop(30 * time.Second); err != nil {
		t.Fatal(err)
	}
	tunnels := fillStore(t, r.DataDir, agents, each, credentials)

	e := startEtcd(w, 3)
	r.Env = append(r.Env, "ADIT_STORE_ENDPOINTS="+e.endpoints(), "ADIT_CLUSTER_KEY_FILE="+r.DataDir+"/cluster.key")
	began := time.Now()
	w.Run(r.Env, w.Bin+"/adit-relay", "store", "move")
	took := time.Since(began)
	r.Start()
	r.WaitReady(60 * time.Second)
	if status, p := r.API(secret, http.MethodGet, "/agents", nil, nil); p != nil {
		t.Errorf("the credential of before the move is refused: %d %v", status, p)
	}
	lost := 0
	past := e.past(t)
	for id := range tunnels {
		if !past.labels["moved"][id] {
			lost++
		}
	}
	list := decode[api.CredentialList](t, []byte(w.Run(nil, w.Bin+"/adit-relay", "credential", "list", "--team", world.Team, "--json", "--socket", r.DataDir+"/admin.sock")))
	if lost > 0 || len(list.Credentials) != credentials+1 {
		t.Errorf("%d of %d tunnels lost; %d of %d credentials there", lost, len(tunnels), len(list.Credentials), credentials+1)
	}
	if _, err := w.Try(r.Env, w.Bin+"/adit-relay", "store", "move"); err == nil {
		t.Error("a second move should be refused: the old store was put aside")
	}
	t.Logf("store move: %d tunnels and %d credentials in %s, none lost", len(tunnels), len(list.Credentials), took.Round(time.Millisecond))
}

// fillStore writes tunnels and credentials into the store inside a stopped relay.
func fillStore(t *testing.T, dir string, agents, each, credentials int) map[ident.SessionID]bool {
	t.Helper()
	s, err := store.New(store.Config{DataDir: dir, QuotaBytes: 2 << 30, Relay: store.RelayRecord{ID: "filler"}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	if err := s.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	made := map[ident.SessionID]bool{}
	var all [][]store.TunnelRecord
	now := time.Now().UTC()
	for i := range agents {
		var of []store.TunnelRecord
		for range each {
			id := ident.NewSessionID()
			made[id] = true
			of = append(of, store.TunnelRecord{
				Session: id, Team: world.Team, Agent: ident.AgentID(agentName(i)), Port: 8188, Protocol: api.ProtocolHTTP,
				Label: "moved", OpenedBy: "sk:filler", OpenedAt: now, ExpiresAt: now.Add(24 * time.Hour), IdleTimeout: api.Duration(24 * time.Hour),
			})
		}
		all = append(all, of)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(32)
	for _, of := range all {
		g.Go(func() error {
			_, err := s.UpdateAgent(gctx, of[0].Key(), func(_ time.Time, r *store.AgentRecord) (store.Effects, error) {
				for _, x := range of {
					r.Tunnels[x.Session] = store.TunnelState{State: store.TunnelOpen, Expires: x.ExpiresAt}
				}
				return store.Effects{PutTunnels: of}, nil
			})
			return err
		})
	}
	for i := range credentials {
		g.Go(func() error {
			return s.CreateCredential(gctx, store.CredentialRecord{
				ID: ident.NewCredentialID(), Kind: api.KindIntegration, Team: world.Team, Name: fmt.Sprintf("moved-%d", i),
				Hash: ident.Secret(fmt.Sprintf("secret-%d", i)).Hash(), CreatedBy: "filler", CreatedAt: now,
			})
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	return made
}

// TestPoolRelayCutOff cuts one relay off from etcd: it grants nothing, says why, keeps
// what runs until its lease is over, and comes back by itself.
func TestPoolRelayCutOff(t *testing.T) {
	var paths []*wan.Link
	f := newFleet(t, 3, func(f *fleet, i int) []string {
		if i != 0 {
			return nil
		}
		var endpoints []string
		for _, m := range f.etcd.members {
			p := wan.Start(t, strings.TrimPrefix(m.client, "http://"), wan.Options{})
			paths = append(paths, p)
			endpoints = append(endpoints, "http://"+p.Addr())
		}
		return []string{"ADIT_STORE_ENDPOINTS=" + strings.Join(endpoints, ",")}
	})
	f.run(6, 1)
	tunnels := f.open(6, "http")
	cut := f.relays[0]
	mine := -1
	for i := range tunnels {
		if f.holder(agentName(i)) == 0 {
			mine = i
			break
		}
	}
	if mine < 0 {
		t.Fatal("the relay to be cut off holds no agent")
	}
	c := f.w.HTTP()
	l := f.load([]string{f.through(f.relays[1], tunnels[mine], "")}, 50*time.Millisecond)
	began := time.Now()
	for _, p := range paths {
		p.Freeze()
	}
	// Asked all the time: what is refused below takes until the relay gives its store up,
	// and its lease, of which a part has passed at the cut, may be over by then.
	type stint struct {
		served time.Duration // when the last request that was served began
		status int           // of the first that was not
	}
	over := make(chan stint, 1)
	go func() {
		var s stint
		for asked := time.Since(began); asked < 15*time.Second; asked = time.Since(began) {
			if s.status, _ = f.get(c, f.through(cut, tunnels[mine], "")); s.status != http.StatusOK {
				break
			}
			s.served = asked
			<-time.After(50 * time.Millisecond)
		}
		over <- s
	}()
	// What runs goes on, nothing new is granted.
	status, raw := cut.Raw(f.secret, http.MethodPost, "/agents/"+agentName(mine)+"/tunnel", map[string]any{"target_port": f.port()})
	if status != http.StatusServiceUnavailable {
		t.Errorf("cut off from etcd, an open was answered %d: %s", status, raw)
	}
	refused := time.Since(began)
	status, raw = cut.Raw(f.secret, http.MethodPost, "/agents/"+agentName(mine)+"/tasks", map[string]any{"task_id": "x"})
	if status == http.StatusCreated {
		t.Errorf("cut off from etcd, a task was admitted: %s", raw)
	}
	s := <-over
	if s.served == 0 || s.served > 10*time.Second {
		t.Errorf("the relay that was cut off served its tunnel for %s, then answered %d; its lease is 10s", s.served, s.status)
	}
	resp, body := world.Get(c, "http://"+cut.Addr()+"/readyz")
	if resp != http.StatusServiceUnavailable || !strings.Contains(body, "store") {
		t.Errorf("readyz does not say why: %d %s", resp, body)
	}
	// The agent is at another relay by itself; its tunnel works there.
	f.w.Eventually(20*time.Second, "the tunnel works through the other relays", func() bool {
		status, _ := f.get(c, f.through(f.relays[1], tunnels[mine], ""))
		return status == http.StatusOK
	})
	l.end()
	if l.longest > 5*time.Second {
		t.Errorf("through another relay the tunnel was away for %s\n%s", l.longest, strings.Join(l.faults, "\n"))
	}
	for _, p := range paths {
		p.Heal()
	}
	healed := time.Now()
	cut.WaitReady(30 * time.Second)
	back := time.Since(healed)
	f.w.Eventually(20*time.Second, "the relay serves again", func() bool {
		status, _ := f.get(c, f.through(cut, tunnels[mine], ""))
		return status == http.StatusOK
	})
	t.Logf("cut off from etcd: an open refused after %s, its tunnel served for %s, through another relay: %s; ready %s after the path was back. readyz: %s",
		refused.Round(time.Millisecond), s.served.Round(time.Millisecond), l, back.Round(time.Millisecond), strings.TrimSpace(body))
}

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/e2e/checker"
	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/shared/api"
)

// books are what callers were told by any relay. Whatever is killed, all of it must
// be so: on every relay at once, and in the relays' audit.
type books struct {
	f   *fleet
	dev string // a person's credential
	mu  sync.Mutex

	tunnels, leases, creds []*entry
	unanswered             int // calls of which nobody knows what became
}

// entry is one thing that was acknowledged.
type entry struct {
	agent, id, token string
	fencing          uint64
	ended            bool // its end was acknowledged
	unsure           bool // its end was asked for, and no answer came
}

// keepBooks has callers open and close tunnels, take and release leases and make
// and revoke credentials through all relays until ctx ends. Tunnels are opened on
// the first n agents, and tasks run on the next m, which nobody tunnels to.
func (f *fleet) keepBooks(ctx context.Context, n, m int) (b *books, wait func()) {
	b = &books{f: f, dev: f.relays[0].Credential("device", world.Team, "--user", "alice", "--name", fmt.Sprint("books-", rand.Uint32()))}
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() { b.loop(ctx, i, func(rnd *rand.Rand) { b.tunnel(rnd, agentName(rnd.IntN(n))) }) })
		wg.Go(func() { b.loop(ctx, 10+i, func(rnd *rand.Rand) { b.lease(rnd, agentName(n+rnd.IntN(m))) }) })
	}
	wg.Go(func() { b.loop(ctx, 20, b.credential) })
	return b, wg.Wait
}

func (b *books) loop(ctx context.Context, seed int, one func(rnd *rand.Rand)) {
	rnd := rand.New(rand.NewPCG(uint64(seed), 5))
	for ctx.Err() == nil {
		one(rnd)
		pause(rnd, 80*time.Millisecond)
	}
}

// ask asks any relay. What has no answer is unanswered.
func (b *books) ask(rnd *rand.Rand, secret, method, path string, body any) (status int, raw []byte) {
	status, raw = b.f.relays[rnd.IntN(len(b.f.relays))].Raw(secret, method, path, body)
	if status == 0 || status >= 500 {
		b.mu.Lock()
		b.unanswered++
		b.mu.Unlock()
	}
	return status, raw
}

// keep writes down what was acknowledged, and half of the time has it ended.
func (b *books) keep(rnd *rand.Rand, in *[]*entry, e *entry, end func() int) {
	b.mu.Lock()
	*in = append(*in, e)
	b.mu.Unlock()
	if rnd.IntN(2) == 0 {
		return
	}
	status := end()
	b.mu.Lock()
	defer b.mu.Unlock()
	e.ended = status >= 200 && status < 300
	e.unsure = !e.ended
}

func (b *books) tunnel(rnd *rand.Rand, agent string) {
	path := "/agents/" + agent + "/tunnel"
	status, raw := b.ask(rnd, b.f.secret, http.MethodPost, path, map[string]any{"target_port": b.f.port(), "idle_timeout": "2h", "label": "books"})
	if status != http.StatusCreated {
		return
	}
	id := string(decode[api.Tunnel](b.f.t, raw).SessionID)
	b.keep(rnd, &b.tunnels, &entry{agent: agent, id: id}, func() int {
		status, _ := b.ask(rnd, b.f.secret, http.MethodDelete, path+"?session_id="+id, nil)
		return status
	})
}

func (b *books) lease(rnd *rand.Rand, agent string) {
	path := "/agents/" + agent + "/tasks"
	status, raw := b.ask(rnd, b.f.secret, http.MethodPost, path, map[string]any{"ttl": "30m"})
	if status != http.StatusCreated {
		return
	}
	l := decode[api.TaskLease](b.f.t, raw)
	e := &entry{agent: agent, id: string(l.TaskID), token: l.LeaseToken, fencing: l.FencingToken}
	b.keep(rnd, &b.leases, e, func() int {
		status, _ := b.ask(rnd, b.f.secret, http.MethodDelete, path+"/"+e.id, map[string]any{"lease_token": e.token})
		return status
	})
}

func (b *books) credential(rnd *rand.Rand) {
	status, raw := b.ask(rnd, b.dev, http.MethodPost, "/credentials", map[string]any{"kind": "integration", "name": "books", "expires_in": "24h"})
	if status != http.StatusCreated {
		return
	}
	c := decode[api.CreatedCredential](b.f.t, raw)
	b.keep(rnd, &b.creds, &entry{id: string(c.ID), token: c.Secret}, func() int {
		status, _ := b.ask(rnd, b.dev, http.MethodDelete, "/credentials/"+string(c.ID), nil)
		return status
	})
}

// audit compares the books with one relay's answers. A record that has just been
// written may need a moment to be in a list.
func (b *books) audit(t *testing.T, r *world.Relay, name string) {
	t.Helper()
	open := map[string]bool{}
	agents := map[string]bool{}
	for _, e := range b.tunnels {
		agents[e.agent] = true
	}
	for id := range agents {
		var st api.TunnelStatus
		if status, p := r.API(b.f.secret, http.MethodGet, "/agents/"+id+"/tunnel", nil, &st); p != nil {
			t.Errorf("%s: the tunnels of %s: %d %v", name, id, status, p)
		}
		for _, s := range st.Sessions {
			open[string(s.SessionID)] = true
		}
	}
	for _, e := range b.tunnels {
		if !e.unsure && open[e.id] == e.ended {
			t.Errorf("%s: tunnel %s on %s: its end was acknowledged: %v; it is open: %v", name, e.id, e.agent, e.ended, open[e.id])
		}
	}
	for _, e := range b.leases {
		if e.unsure {
			continue
		}
		status, raw := r.Raw(b.f.secret, http.MethodPut, "/agents/"+e.agent+"/tasks/"+e.id, map[string]any{"lease_token": e.token, "ttl": "30m"})
		if (status == http.StatusOK) == e.ended || status != http.StatusOK && status != http.StatusGone {
			t.Errorf("%s: the lease of %s on %s: its end was acknowledged: %v; a renewal is answered %d %s", name, e.id, e.agent, e.ended, status, raw)
		}
	}
	for _, e := range b.creds {
		if e.unsure {
			continue
		}
		status, raw := r.Raw(e.token, http.MethodGet, "/agents?per_page=1", nil)
		if (status == http.StatusOK) == e.ended || status != http.StatusOK && status != http.StatusUnauthorized {
			t.Errorf("%s: credential %s: its revocation was acknowledged: %v; it is answered %d %.200s", name, e.id, e.ended, status, raw)
		}
	}
}

// recorded wants a record of each acknowledged deed in the relays' audit.
func (b *books) recorded(t *testing.T) (records int) {
	t.Helper()
	var dirs []string
	for _, r := range b.f.relays {
		dirs = append(dirs, filepath.Join(r.DataDir, "audit"))
	}
	all, err := checker.ReadAudit(dirs...)
	if err != nil {
		t.Errorf("the audit survives a kill undamaged: %v", err)
	}
	has := map[string]bool{}
	for _, r := range all {
		what := string(r.Session)
		switch r.Event {
		case audit.TaskAdmitted, audit.TaskReleased:
			what = fmt.Sprint(r.Fencing, " ", r.Task)
		case audit.CredentialCreated, audit.CredentialRevoked:
			_, what, _ = strings.Cut(r.Detail, " ") // "device cred_…, role admin"
			what, _, _ = strings.Cut(what, ",")
		}
		has[string(r.Event)+" "+what] = true
	}
	want := func(event audit.Event, what string) {
		records++
		if !has[string(event)+" "+what] {
			t.Errorf("%s of %s was acknowledged and is in no audit", event, what)
		}
	}
	for _, e := range b.tunnels {
		want(audit.TunnelOpened, e.id)
		if e.ended {
			want(audit.TunnelClosing, e.id)
		}
	}
	for _, e := range b.leases {
		want(audit.TaskAdmitted, fmt.Sprint(e.fencing, " ", e.id))
		if e.ended {
			want(audit.TaskReleased, fmt.Sprint(e.fencing, " ", e.id))
		}
	}
	for _, e := range b.creds {
		want(audit.CredentialCreated, e.id)
		if e.ended {
			want(audit.CredentialRevoked, e.id)
		}
	}
	return records
}

func (b *books) String() string {
	count := func(list []*entry) (made, ended int) {
		for _, e := range list {
			if e.ended {
				ended++
			}
		}
		return len(list), ended
	}
	tm, te := count(b.tunnels)
	lm, le := count(b.leases)
	cm, ce := count(b.creds)
	return fmt.Sprintf("acknowledged: %d tunnels opened, %d closed; %d leases given, %d released; %d credentials made, %d revoked; %d calls without an answer",
		tm, te, lm, le, cm, ce, b.unanswered)
}

// check wants some of everything.
func (b *books) check(t *testing.T) {
	t.Helper()
	if len(b.tunnels) == 0 || len(b.leases) == 0 || len(b.creds) == 0 {
		t.Errorf("too little was done to show anything: %s", b)
	}
}

// end closes and releases what is left.
func (b *books) end(r *world.Relay) {
	for _, e := range b.tunnels {
		r.Raw(b.f.secret, http.MethodDelete, "/agents/"+e.agent+"/tunnel?session_id="+e.id, nil)
	}
	for _, e := range b.leases {
		r.Raw(b.f.secret, http.MethodDelete, "/agents/"+e.agent+"/tasks/"+e.id, map[string]any{"lease_token": e.token})
	}
}

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/adit-tunnel/adit/relay/e2e/checker"
	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/relay/internal/admin"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// season is for how long an agent is mostly wanted by tasks, then by people: with
// both at once hardly a task would ever be admitted.
const season = 3 * time.Second

// callers are everybody who uses a pool, and what they were told.
type callers struct {
	relays []*world.Relay
	agents []box
	secret string
	http   *http.Client
	began  time.Time
	told   func(relay *world.Relay, got checker.Call) // hears of every call to a relay; may be nil

	mu      sync.Mutex
	journal []checker.Call
	keyed   int              // labels of opens under an idempotency key
	codes   map[string]int   // refusals
	made    []madeCredential // acknowledged
}

// madeCredential is a credential that was acknowledged.
type madeCredential struct {
	id      ident.CredentialID
	secret  string
	revoked bool // acknowledged
	unsure  bool // asked to be revoked, no answer
}

// box is an agent, and where it can be asked itself, if anywhere.
type box struct{ id, local string }

func (b box) key() ident.AgentKey {
	return ident.AgentKey{Team: world.Team, Agent: ident.AgentID(b.id)}
}

func newCallers(relays []*world.Relay, agents []box, secret string) *callers {
	return &callers{relays: relays, agents: agents, secret: secret, began: time.Now(), codes: map[string]int{}, http: &http.Client{
		Timeout:   30 * time.Second, // more than a relay takes for anything asked here
		Transport: &http.Transport{MaxIdleConnsPerHost: 64},
	}}
}

// told is what any of the calls answers.
type told struct {
	SessionID    ident.SessionID   `json:"session_id"`
	TaskID       ident.TaskID      `json:"task_id"`
	LeaseToken   string            `json:"lease_token"`
	FencingToken uint64            `json:"fencing_token"`
	ExpiresAt    time.Time         `json:"expires_at"`
	Closed       []ident.SessionID `json:"closed"`
	Code         string            `json:"code"`
}

// call makes one call and writes it into the journal. A call that was begun is not
// given up when the run ends.
func (c *callers) call(base, method, path string, body any, note checker.Call, header ...string) (told, checker.Call) {
	var out told
	b, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	req, err := http.NewRequestWithContext(context.Background(), method, base+path, bytes.NewReader(b))
	if err != nil {
		panic(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+c.secret)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	note.Sent = time.Now()
	resp, err := c.http.Do(req)
	if err == nil {
		raw, rerr := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if rerr == nil && (len(raw) == 0 || json.Unmarshal(raw, &out) == nil) {
			note.Status = resp.StatusCode
		}
	}
	note.Got = time.Now()
	note.Code = out.Code
	if note.OK() {
		if out.SessionID != "" {
			note.Session = out.SessionID
		}
		if note.Op == checker.OpAdmit {
			note.Fencing = out.FencingToken
		}
		note.Expires = out.ExpiresAt
	}
	if c.told != nil {
		for _, r := range c.relays {
			if strings.HasPrefix(base, "http://"+r.Addr()+"/") {
				c.told(r, note)
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.journal = append(c.journal, note)
	if !note.OK() {
		c.codes[fmt.Sprintf("%s %d %s", note.Op, note.Status, note.Code)]++
	}
	return out, note
}

func pause(rnd *rand.Rand, most time.Duration) {
	<-time.After(rand.N(most) + time.Duration(rnd.IntN(2)))
}

// run is one caller, until ctx ends.
func (c *callers) run(ctx context.Context, n int) {
	rnd := rand.New(rand.NewPCG(uint64(n), 42))
	for ctx.Err() == nil {
		i := rnd.IntN(len(c.agents))
		people := (int(time.Since(c.began)/season)+i)%2 == 0
		if rnd.IntN(10) == 0 {
			people = !people
		}
		if people {
			c.tunnel(rnd, c.agents[i])
		} else {
			c.task(rnd, c.agents[i])
		}
		pause(rnd, 150*time.Millisecond)
	}
}

func (c *callers) relay(rnd *rand.Rand) string {
	return "http://" + c.relays[rnd.IntN(len(c.relays))].Addr() + api.Base
}

// tunnel is somebody who opens a tunnel, may extend it, and closes it, each through
// any relay.
func (c *callers) tunnel(rnd *rand.Rand, a box) {
	path := "/agents/" + a.id + "/tunnel"
	note := checker.Call{Op: checker.OpOpen, Key: a.key()}
	ask := map[string]any{"target_port": 8188, "expires_in": "1h", "when_busy": []string{"allow", "allow", "reject", "wait", "wait"}[rnd.IntN(5)], "wait_timeout": "3s"}
	if rnd.IntN(10) == 0 {
		ask["expires_in"] = fmt.Sprint(1+rnd.IntN(3), "s")
	}
	var header []string
	tries := 1
	if rnd.IntN(4) == 0 { // a careful caller asks again, wherever, when no answer came
		c.mu.Lock()
		c.keyed++
		key := fmt.Sprint("key-", c.keyed)
		c.mu.Unlock()
		ask["label"], header, tries = key, []string{api.HeaderIdempotencyKey, key}, 3
	}
	var out told
	var got checker.Call
	for range tries {
		if out, got = c.call(c.relay(rnd), http.MethodPost, path, ask, note, header...); got.Status > 0 && got.Status < 500 {
			break
		}
		pause(rnd, time.Second)
	}
	if !got.OK() {
		return
	}
	pause(rnd, 400*time.Millisecond)
	if rnd.IntN(3) == 0 {
		c.call(c.relay(rnd), http.MethodPost, "/tunnels/"+string(out.SessionID)+"/extend", map[string]any{"expires_in": "2h"},
			checker.Call{Op: checker.OpExtend, Key: note.Key, Session: out.SessionID})
	}
	end := checker.Call{Op: checker.OpClose, Key: note.Key, Session: out.SessionID}
	query := "?session_id=" + url.QueryEscape(string(out.SessionID))
	switch rnd.IntN(20) {
	case 0:
		return // left to its end, or to whoever closes all
	case 1:
		end.Session, query = "", ""
	}
	for range 5 { // somebody who is not answered asks again
		if _, got := c.call(c.relay(rnd), http.MethodDelete, path+query, nil, end); got.Status > 0 && got.Status < 500 {
			return
		}
		pause(rnd, time.Second)
	}
}

// task is a worker that asks a relay, or the box, for a lease, renews it, and gives
// it back or forgets it.
func (c *callers) task(rnd *rand.Rand, a box) {
	remote := func() (string, string) { return c.relay(rnd), "/agents/" + a.id + "/tasks" }
	where := remote
	if a.local != "" && rnd.IntN(4) == 0 {
		where = func() (string, string) { return "http://" + a.local, "/v1/tasks" }
	}
	base, path := where()
	note := checker.Call{Op: checker.OpAdmit, Key: a.key(), Task: ident.NewTaskID()}
	out, got := c.call(base, http.MethodPost, path, map[string]any{"task_id": note.Task, "ttl": "5s"}, note)
	if got.Code == "agent_in_tunnel" && rnd.IntN(15) == 0 { // an operator clears the machine
		base, _ := remote()
		c.call(base, http.MethodDelete, "/agents/"+a.id+"/tunnel", nil, checker.Call{Op: checker.OpClose, Key: note.Key})
	}
	if !got.OK() {
		return
	}
	mine := checker.Call{Op: checker.OpRenew, Key: note.Key, Task: note.Task, Fencing: out.FencingToken}
	for range rnd.IntN(3) {
		pause(rnd, 100*time.Millisecond)
		base, path := where()
		c.call(base, http.MethodPut, path+"/"+string(note.Task), map[string]any{"lease_token": out.LeaseToken, "ttl": "5s"}, mine)
	}
	pause(rnd, 100*time.Millisecond)
	if rnd.IntN(20) == 0 {
		return // it died: the lease runs out
	}
	mine.Op = checker.OpRelease
	for range 3 {
		base, path := where()
		if _, got := c.call(base, http.MethodDelete, path+"/"+string(note.Task), map[string]any{"lease_token": out.LeaseToken}, mine); got.Status > 0 && got.Status < 500 {
			return
		}
		pause(rnd, time.Second)
	}
}

// operator makes and revokes credentials through the relays' admin sockets.
func (c *callers) operator(ctx context.Context) {
	rnd := rand.New(rand.NewPCG(7, 7))
	for n := 0; ctx.Err() == nil; n++ {
		pause(rnd, 800*time.Millisecond)
		r := c.relays[rnd.IntN(len(c.relays))]
		socket := admin.Dial(r.DataDir + "/admin.sock")
		callCtx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		if i := rnd.IntN(max(1, 3*len(c.made))); i < len(c.made) && !c.made[i].revoked {
			err := socket.Call(callCtx, http.MethodDelete, "/v1/credentials/"+string(c.made[i].id), nil, nil, nil)
			c.made[i].revoked, c.made[i].unsure = err == nil, err != nil
		} else {
			var out api.CreatedCredential
			err := socket.Call(callCtx, http.MethodPost, "/v1/credentials", nil,
				admin.CreateCredential{Kind: api.CredentialKind("integration"), Team: world.Team, Name: fmt.Sprint("made-", n)}, &out)
			if err == nil {
				c.made = append(c.made, madeCredential{id: out.ID, secret: out.Secret})
			}
		}
		cancel()
	}
}

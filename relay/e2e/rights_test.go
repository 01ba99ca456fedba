package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/wire"
)

// operate runs adit-relay against a relay's admin socket and returns what it printed:
// results, and what it says of itself.
func operate(t *testing.T, r *world.Relay, args ...string) (stdout string, err error) {
	t.Helper()
	return r.W.Try(nil, filepath.Join(r.W.Bin, "adit-relay"), append(args, "--socket", filepath.Join(r.DataDir, "admin.sock"))...)
}

// credentialID finds a credential by its secret.
func credentialID(t *testing.T, r *world.Relay, team, secret string) string {
	t.Helper()
	out, err := operate(t, r, "credential", "list", "--team", team, "--json")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range decode[api.CredentialList](t, []byte(out)).Credentials {
		if strings.HasPrefix(secret, c.Prefix) {
			return string(c.ID)
		}
	}
	t.Fatalf("no credential begins like the secret: %s", out)
	return ""
}

// stolen is what a thief has of a team: a device's key, a key made with it, and what
// both opened.
type stolen struct {
	device, key string // secrets
	deviceID    string
	byDevice    api.Tunnel
	byKey       api.Tunnel
	theirs      api.Tunnel    // opened by somebody else
	link        api.NamedLink // of that one, made with the key
	kept        api.NamedLink // of that one, made by somebody else
}

// steal makes it all, through the relays in turn.
func (f *fleet) steal(t *testing.T, agent string) stolen {
	t.Helper()
	r, open := f.relays[0], map[string]any{"target_port": f.port()}
	s := stolen{device: r.Credential("device", world.Team, "--user", "mallory", "--name", "laptop")}
	s.deviceID = credentialID(t, r, world.Team, s.device)
	var made api.CreatedCredential
	if status, p := f.relays[1].API(s.device, http.MethodPost, "/credentials", map[string]any{"kind": "integration", "name": "copy"}, &made); status != http.StatusCreated {
		t.Fatalf("a device makes a key: %d %v", status, p)
	}
	if string(made.MadeBy) != s.deviceID {
		t.Errorf("the key was made by %q, want %q", made.MadeBy, s.deviceID)
	}
	s.key = made.Secret
	s.byDevice, s.byKey, s.theirs = f.relays[1].Open(s.device, agent, open), r.Open(s.key, agent, open), r.Open(f.secret, agent, open)
	s.link = makeLink(f.relays[1], s.key, s.theirs, map[string]any{"name": "the thief's"})
	s.kept = makeLink(r, f.secret, s.theirs, map[string]any{"name": "the team's"})
	return s
}

// over waits until nothing of the thief's works on any relay, and tells what does.
func (f *fleet) over(t *testing.T, s stolen, limit time.Duration) {
	t.Helper()
	c := f.w.HTTP()
	left := ""
	deadline := time.Now().Add(testkit.Limit(limit))
	for {
		left = ""
		for i, r := range f.relays {
			for what, tun := range map[string]api.Tunnel{"the device's tunnel": s.byDevice, "the key's tunnel": s.byKey} {
				if status, _ := f.get(c, f.through(r, tun, "")); status != http.StatusNotFound {
					left += fmt.Sprintf("%s is answered %d by %s; ", what, status, f.names[i])
				}
				if status, _ := r.API(tun.AdminToken, http.MethodGet, "/tunnels/"+string(tun.SessionID)+"/viewers", nil, nil); status != http.StatusNotFound {
					left += fmt.Sprintf("the admin token of %s is answered %d by %s; ", what, status, f.names[i])
				}
			}
			for what, secret := range map[string]string{"the device": s.device, "the key": s.key} {
				if status, _ := r.API(secret, http.MethodGet, "/agents", nil, nil); status != http.StatusUnauthorized {
					left += fmt.Sprintf("%s is answered %d by %s; ", what, status, f.names[i])
				}
			}
			if status, _ := f.get(c, "http://"+r.Addr()+"/tunnel/"+s.link.Segment+"/"); status != http.StatusNotFound {
				left += fmt.Sprintf("the named link is answered %d by %s; ", status, f.names[i])
			}
		}
		if left == "" || time.Now().After(deadline) {
			break
		}
		<-time.After(50 * time.Millisecond)
	}
	if left != "" {
		t.Errorf("%s after the revocation: %s", limit, left)
	}
	for i, r := range f.relays { // and nothing else ended
		if status, _ := f.get(c, f.through(r, s.theirs, "")); status != http.StatusOK {
			t.Errorf("another's tunnel is answered %d by %s", status, f.names[i])
		}
		if status, _ := f.get(c, "http://"+r.Addr()+"/tunnel/"+s.kept.Segment+"/"); status != http.StatusOK {
			t.Errorf("another's named link is answered %d by %s", status, f.names[i])
		}
	}
}

// TestAThiefsRightEndsWithTheCredential revokes a stolen device's key while what it
// opened, and what a key that it made opened, is in use through every relay.
func TestAThiefsRightEndsWithTheCredential(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2, nil)
	f.run(4, 1)

	t.Run("revoked through another relay, in the middle of streams", func(t *testing.T) {
		s := f.steal(t, agentName(0))
		var ended []func(time.Duration) time.Duration
		for _, r := range f.relays {
			ended = append(ended, f.watchSocket(f.through(r, s.byDevice, "ws")), f.watchSocket(f.through(r, s.byKey, "ws")))
		}
		stays, err := f.socket(t.Context(), f.through(f.relays[1], s.theirs, "ws"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = stays.CloseNow() }()
		began := time.Now()
		var out api.Revoked
		if status, p := f.relays[1].API(f.people(t), http.MethodDelete, "/credentials/"+s.deviceID+"?keep_tunnels=false", nil, &out); status != http.StatusOK {
			t.Fatalf("revoke: %d %v", status, p)
		}
		if want := (api.Revoked{Credentials: 2, Tunnels: 2, Links: 1}); out != want {
			t.Errorf("the answer says that %+v ended, want %+v", out, want)
		}
		revoked := time.Now()
		for _, wait := range ended {
			wait(5 * time.Second)
		}
		testkit.Took(t, "a revocation ends WebSockets", time.Since(revoked), 5*time.Second)
		testkit.Figure(t, "answered after %s, the last of %d WebSockets ended %s later", revoked.Sub(began).Round(time.Millisecond), len(ended), time.Since(revoked).Round(time.Millisecond))
		f.over(t, s, 5*time.Second)
		if err := stays.Write(t.Context(), websocket.MessageText, []byte("still there?")); err == nil {
			_, _, err = stays.Read(t.Context())
			if err != nil {
				t.Errorf("a WebSocket on another's tunnel ended: %v", err)
			}
		}
		for _, r := range f.relays { // again is no error, and ends nothing more
			if status, p := r.API(f.people(t), http.MethodDelete, "/credentials/"+s.deviceID+"?keep_tunnels=false", nil, &out); status != http.StatusOK || out.Tunnels != 0 || out.Links != 0 {
				t.Errorf("revoked again: %d %v %+v", status, p, out)
			}
		}
	})

	t.Run("the relay that revoked it died right after", func(t *testing.T) {
		s := f.steal(t, agentName(1))
		ended := f.watchSocket(f.through(f.relays[1], s.byKey, "ws"))
		f.etcd.entomb(t, s.deviceID)
		began := time.Now()
		ended(10 * time.Second)
		testkit.Took(t, "a revocation in the store ends a WebSocket", time.Since(began), 10*time.Second)
		f.over(t, s, 10*time.Second)
	})

	t.Run("tunnels are kept on request", func(t *testing.T) {
		s := f.steal(t, agentName(2))
		if out, err := operate(t, f.relays[0], "credential", "revoke", "--keep-tunnels", s.deviceID); err != nil {
			t.Fatal(out, err)
		}
		for i, r := range f.relays {
			f.w.Eventually(5*time.Second, "the device and its key are refused", func() bool {
				a, _ := r.API(s.device, http.MethodGet, "/agents", nil, nil)
				b, _ := r.API(s.key, http.MethodGet, "/agents", nil, nil)
				return a == 401 && b == 401
			})
			for _, url := range []string{f.through(r, s.byDevice, ""), f.through(r, s.byKey, ""), "http://" + r.Addr() + "/tunnel/" + s.link.Segment + "/"} {
				if status, _ := f.get(f.w.HTTP(), url); status != http.StatusOK {
					t.Errorf("what was to be kept is answered %d by %s", status, f.names[i])
				}
			}
		}
		// On second thoughts.
		if _, err := operate(t, f.relays[1], "credential", "revoke", s.deviceID); err != nil {
			t.Fatal(err)
		}
		f.over(t, s, 5*time.Second)
	})
}

// people is a device of a person's, by which the team's credentials are managed.
func (f *fleet) people(t *testing.T) string {
	t.Helper()
	if f.person == "" {
		f.person = f.relays[0].Credential("device", world.Team, "--user", "alice", "--name", "alice")
	}
	return f.person
}

// entomb writes the revocation of a credential and nothing else, as a relay does that
// dies then.
func (e *etcd) entomb(t *testing.T, id string) {
	t.Helper()
	rewrite(t, strings.Split(e.endpoints(), ","), id, func(record string) string {
		return strings.Replace(record, "{", fmt.Sprintf(`{"revoked_at":%q,`, time.Now().UTC().Format(time.RFC3339Nano)), 1)
	})
}

// TestARevocationWhileARelayIsCutOff revokes a key while one relay's host has lost its
// cable. What goes through the others ends within five seconds; the one that is cut off
// grants nothing to the key from when its index is stale, and ends what it carries when
// its lease is over. When the cable is back it knows.
func TestARevocationWhileARelayIsCutOff(t *testing.T) {
	f := newFleetOn(t, 3, func(w *world.World) *world.Net { return w.NewNet(3) }, nil)
	f.run(3, 1)
	held := f.holder(agentName(0)) // relay 0 holds an agent
	if held != 0 {
		t.Fatalf("%s is held by relay %d", agentName(0), held)
	}
	s, alice := f.steal(t, agentName(1)), f.people(t)
	mine := f.relays[0].Open(s.key, agentName(0), map[string]any{"target_port": f.port()}) // through the one that is cut off
	elsewhere, here := f.watchSocket(f.through(f.relays[2], s.byKey, "ws")), f.watchSocket(f.through(f.relays[0], mine, "ws"))
	f.net.Pull(0)
	began := time.Now()
	for { // the API, with the relay's own patience for the relay that does not answer
		status, p := f.relays[1].API(alice, http.MethodDelete, "/credentials/"+s.deviceID, nil, nil)
		if status == http.StatusNoContent {
			break
		}
		if time.Since(began) > testkit.Limit(30*time.Second) {
			t.Fatalf("revoke while a relay is cut off: %d %v", status, p)
		}
	}
	revoked := time.Now()
	elsewhere(5 * time.Second)
	testkit.Took(t, "a revocation ends what goes through a relay that is not cut off", time.Since(revoked), 5*time.Second)
	f.w.Eventually(15*time.Second, "the relay that is cut off answers the key with 503", func() bool {
		status, raw := f.relays[0].Raw(s.key, http.MethodGet, "/agents", nil)
		return status == http.StatusServiceUnavailable && strings.Contains(string(raw), "store_unavailable")
	})
	stale := time.Since(began)
	for range 20 { // and it stays so
		for _, secret := range []string{s.key, s.device, mine.AdminToken} {
			path := "/agents"
			if secret == mine.AdminToken {
				path = "/tunnels/" + string(mine.SessionID) + "/viewers"
			}
			if status, raw := f.relays[0].Raw(secret, http.MethodGet, path, nil); status != http.StatusServiceUnavailable {
				t.Fatalf("cut off, %s is answered %d: %s", path, status, raw)
			}
		}
	}
	carried := here(15 * time.Second)
	// Its lease is over after 10 s.
	testkit.Took(t, "the relay that is cut off ends the thief's WebSocket", carried, 11*time.Second)
	f.net.Plug(0)
	f.relays[0].WaitReady(60 * time.Second)
	f.over(t, s, 10*time.Second)
	f.w.Eventually(10*time.Second, "the tunnel through the relay that was cut off is closed", func() bool {
		status, _ := f.get(f.w.HTTP(), f.through(f.relays[0], mine, ""))
		return status == http.StatusNotFound
	})
	testkit.Figure(t, "cut off: revoked through another relay after %s, its index was stale after %s, its WebSocket ended after %s",
		revoked.Sub(began).Round(time.Millisecond), stale.Round(time.Millisecond), carried.Round(time.Millisecond))
}

// TestTheOperatorClosesTunnelsAndRemovesTeams is a person and then a team that leave.
func TestTheOperatorClosesTunnelsAndRemovesTeams(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay(world.PathForm)
	w.Agent(r, "gpu-1")
	a2 := w.Agent(r, "gpu-2")
	const other = "0b9d3d9e-64cf-4d2b-9f3c-0e1a3a5b0002"
	sk, bob := r.Credential("integration", world.Team), r.Credential("device", world.Team, "--user", "bob")
	stranger := r.Credential("integration", other)
	open := map[string]any{"target_port": app(t, hello), "host_header": "public", "label": "a label"}
	byBob, bySK, second := r.Open(bob, "gpu-1", open), r.Open(sk, "gpu-1", open), r.Open(sk, "gpu-2", open)
	makeLink(r, sk, second, map[string]any{"name": "x"})
	token, err := operate(t, r, "enroll", "create", "--team", world.Team)
	if err != nil {
		t.Fatal(err)
	}
	list := func(args ...string) (ids []string) {
		t.Helper()
		out, err := operate(t, r, append([]string{"tunnels", "list", "--json"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(out, "/tunnel/") || strings.Contains(out, bySK.AdminToken) {
			t.Errorf("a list gives access away: %s", out)
		}
		for _, m := range regexp.MustCompile(`"session_id": "([0-9a-f]+)"`).FindAllStringSubmatch(out, -1) {
			ids = append(ids, m[1])
		}
		return ids
	}
	for filter, want := range map[string][]api.Tunnel{
		"": {byBob, bySK, second}, "--user bob": {byBob}, "--user alice": nil, "--team " + world.Team: {byBob, bySK, second}, "--team " + other: nil,
		"--team " + world.Team + " --agent gpu-1": {byBob, bySK}, "--team " + world.Team + " --agent gpu-1 --user bob": {byBob},
	} {
		var ids []string
		for _, tun := range want {
			ids = append(ids, string(tun.SessionID))
		}
		if got := list(strings.Fields(filter)...); strings.Join(got, " ") != strings.Join(ids, " ") {
			t.Errorf("tunnels list %s: %v, want %v", filter, got, ids)
		}
	}
	for _, args := range [][]string{{"tunnels", "close"}, {"tunnels", "close", "--agent", "gpu-1"}, {"tunnels", "list", "--team", "x"}, {"team", "remove", world.Team}, {"team", "remove", "x", "--yes"}} {
		if _, err := operate(t, r, args...); err == nil || !strings.Contains(err.Error(), "exit status 2") {
			t.Errorf("%v is wrong usage: %v", args, err)
		}
	}
	if out, err := operate(t, r, "tunnels", "close", "--user", "bob"); err != nil || strings.TrimSpace(out) != string(byBob.SessionID) {
		t.Errorf("close bob's: %q %v", out, err)
	}
	c := w.HTTP()
	for tun, want := range map[*api.Tunnel]int{&byBob: 404, &bySK: 200, &second: 200} {
		if status, _ := world.Get(c, r.PathURL(*tun)); status != want {
			t.Errorf("tunnel %s is answered %d, want %d", tun.SessionID, status, want)
		}
	}
	if status, _ := r.API(bob, http.MethodGet, "/agents", nil, nil); status != 200 {
		t.Errorf("closing bob's tunnels takes no key from him: %d", status)
	}

	teams := func() string {
		t.Helper()
		out, err := operate(t, r, "team", "list")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(strings.Fields(out), " ")
	}
	if got := teams(); !regexp.MustCompile(world.Team+` \d+ 2 2`).MatchString(got) || !strings.Contains(got, other+" 1 0 0") {
		t.Errorf("team list: %s", got)
	}
	// A removal that is interrupted at once, and one that is not.
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	_ = exec.CommandContext(ctx, filepath.Join(w.Bin, "adit-relay"), "team", "remove", world.Team, "--yes", "--socket", filepath.Join(r.DataDir, "admin.sock")).Run()
	cancel()
	out, err := operate(t, r, "team", "remove", world.Team, "--yes", "--json")
	if err != nil {
		t.Fatalf("remove the team: %v", err)
	}
	t.Logf("removed: %s", strings.Join(strings.Fields(out), " "))
	if got := teams(); strings.Contains(got, world.Team) || !strings.Contains(got, other+" 1 0 0") {
		t.Errorf("after the removal: %s", got)
	}
	for _, tun := range []api.Tunnel{bySK, second} {
		if status, _ := world.Get(c, r.PathURL(tun)); status != 404 {
			t.Errorf("a tunnel of the team that was removed is answered %d", status)
		}
	}
	for what, secret := range map[string]string{"the key": sk, "bob's device": bob} {
		if status, _ := r.API(secret, http.MethodGet, "/agents", nil, nil); status != 401 {
			t.Errorf("%s of the team that was removed is answered %d", what, status)
		}
	}
	if a := call(r, http.MethodPost, api.EnrollPath, `{"agent_id":"gpu-3"}`, "Authorization", "Bearer "+strings.TrimSpace(token)); a.Status != 401 {
		t.Errorf("an enrollment token of the team that was removed: %s", a)
	}
	w.Eventually(10*time.Second, "the agent is told that its credential was revoked", func() bool { return strings.Contains(a2.Log(), "revoked") })
	if status, _ := r.API(stranger, http.MethodGet, "/agents", nil, nil); status != 200 {
		t.Errorf("another team's key is answered %d", status)
	}
	if out, err := operate(t, r, "team", "remove", world.Team, "--yes", "--json"); err != nil || regexp.MustCompile(`[1-9]`).MatchString(out) {
		t.Errorf("again there is nothing to do: %s %v", out, err)
	}
	log, err := operate(t, r, "audit", "--team", world.Team)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"team_removed"`, `"operator:admin-socket"`, `closed by the operator`, `"credential_revoked"`} {
		if !strings.Contains(log, want) {
			t.Errorf("the audit lacks %s", want)
		}
	}
}

// TestABoundAgentIsNotTakenByATeamWideKey starts a second machine with a key for any
// agent of the team under the name of one that has its own.
func TestABoundAgentIsNotTakenByATeamWideKey(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay(world.PathForm)
	w.Agent(r, "gpu-7")
	sk := r.Credential("integration", world.Team)
	tun := r.Open(sk, "gpu-7", map[string]any{"target_port": app(t, hello), "host_header": "public"})
	wide := r.Credential("agent", world.Team, "--name", "any")
	thief := w.NewAgent(r, "gpu-8")
	thief.Env = append(thief.Env, "ADIT_AGENT_ID=gpu-7", "ADIT_CREDENTIAL_FILE="+w.WriteFile("wide", wide+"\n"))
	thief.Start()
	w.Eventually(20*time.Second, "the thief is told what to do", func() bool {
		return strings.Contains(thief.Log(), "has a credential of its own") && strings.Contains(thief.Log(), "adit-agent enroll")
	})
	if status, _ := world.Get(w.HTTP(), r.PathURL(tun)); status != http.StatusOK {
		t.Errorf("the tunnel to the machine whose name it took is answered %d", status)
	}
	var a api.Agent
	if status, p := r.API(sk, http.MethodGet, "/agents/gpu-7", nil, &a); status != http.StatusOK || a.AgentStatus != "tunnel" {
		t.Errorf("gpu-7: %d %v %+v", status, p, a)
	}
	w.Eventually(10*time.Second, "the audit says who tried", func() bool {
		log, err := operate(t, r, "audit", "--event", "auth_refused")
		return err == nil && strings.Contains(log, "has a credential of its own") && strings.Contains(log, `"agent":"gpu-7"`)
	})
	// Under a name that nobody has it is welcome.
	free := w.NewAgent(r, "gpu-9")
	free.Env = append(free.Env, "ADIT_AGENT_ID=gpu-10", "ADIT_CREDENTIAL_FILE="+w.WriteFile("wide", wide+"\n"))
	free.ID = "gpu-10"
	free.Start()
	free.WaitOnline(r, sk, 20*time.Second)
}

// TestThePeerDoor comes to a relay's door for other relays with certificates of the
// pool's own authority, and then asks, with those of a relay of the pool, for streams
// that no user of that relay may have.
func TestThePeerDoor(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2, nil)
	f.run(2, 1)
	at := f.holder(agentName(0))
	from := f.names[1-at]
	port := f.port()
	tun := f.relays[at].Open(f.secret, agentName(0), map[string]any{"target_port": port})
	other := f.relays[at].Open(f.secret, agentName(0), map[string]any{"target_port": f.echo, "tunnel_protocol": "tcp"})
	closed := f.relays[at].Open(f.secret, agentName(0), map[string]any{"target_port": port})

	for _, id := range []string{"relay-x", "web-1"} { // the authority signs for others, too
		if l, err := f.comeAs(t, at, id); err == nil {
			_ = l.Close(nil)
			t.Errorf("who has a certificate for %s and is no relay of the pool is let in", id)
		} else if !strings.Contains(err.Error(), "the store knows no relay") {
			t.Errorf("%s is refused with %v", id, err)
		}
	}
	l, err := f.comeAs(t, at, from)
	if err != nil {
		t.Fatalf("a relay of the pool: %v", err)
	}
	defer func() { _ = l.Close(nil) }()
	stream := func(h wire.Hello, agent string, kind wire.Kind) error {
		st, err := peerRequest(t, l, h, map[string]any{"op": "stream", "team": world.Team, "agent": agent, "kind": kind})
		if err != nil {
			return err
		}
		defer func() { _ = st.Close() }()
		if kind != wire.KindTCP {
			return nil
		}
		if err := verdictOf(st); err != nil { // the agent's
			return err
		}
		fmt.Fprintf(st, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		_ = st.SetReadDeadline(time.Now().Add(10 * time.Second))
		b, err := io.ReadAll(st)
		if err == nil && !strings.Contains(string(b), "the app") {
			err = fmt.Errorf("the app answers %q", b)
		}
		return err
	}
	hello := func(t api.Tunnel, port int) wire.Hello {
		return wire.Hello{Session: t.SessionID, Port: uint16(port), Request: "peer-door"}
	}
	if err := stream(hello(tun, port), agentName(0), wire.KindTCP); err != nil {
		t.Errorf("a stream for an open tunnel: %v", err)
	}
	if err := stream(hello(closed, port), agentName(0), wire.KindTCP); err != nil {
		t.Errorf("a stream for another open tunnel: %v", err)
	}
	closeAll(f.relays[at], f.secret, agentName(0), closed)
	for what, try := range map[string]func() error{
		"a session that never was": func() error {
			return stream(wire.Hello{Session: "00112233445566778899aabbccddeeff", Port: uint16(port)}, agentName(0), wire.KindTCP)
		},
		"no session":                   func() error { return stream(wire.Hello{Port: uint16(port)}, agentName(0), wire.KindTCP) },
		"another port than its":        func() error { return stream(hello(tun, f.echo), agentName(0), wire.KindTCP) },
		"another tunnel's port":        func() error { return stream(hello(other, port), agentName(0), wire.KindTCP) },
		"another agent":                func() error { return stream(hello(tun, port), agentName(1), wire.KindTCP) },
		"a closed tunnel":              func() error { return stream(hello(closed, port), agentName(0), wire.KindTCP) },
		"a terminal, closed":           func() error { return stream(hello(closed, 0), agentName(0), wire.KindTerminal) },
		"a terminal of another agent":  func() error { return stream(hello(tun, 0), agentName(1), wire.KindTerminal) },
		"a terminal that never was":    func() error { return stream(wire.Hello{}, agentName(0), wire.KindTerminal) },
		"the agent's own gate":         func() error { return stream(hello(tun, 0), agentName(0), wire.KindGate) },
		"a control stream":             func() error { return stream(hello(tun, 0), agentName(0), wire.KindControl) },
		"a stream from relay to relay": func() error { return stream(hello(tun, 0), agentName(0), wire.KindPeer) },
	} {
		if err := try(); err == nil {
			t.Errorf("%s: a relay of the pool gets a stream", what)
		} else if v, ok := errors.AsType[wire.Verdict](err); !ok || v.Code != wire.CodeUnknownTunnel && v.Code != wire.CodeBadHello {
			t.Errorf("%s: it is refused with %v", what, err)
		}
	}
	if err := stream(hello(tun, 0), agentName(0), wire.KindTerminal); err != nil {
		t.Errorf("a terminal of an open tunnel: %v", err)
	}
}

// comeAs links to a relay's door as another one, with a certificate that names that one.
func (f *fleet) comeAs(t *testing.T, at int, id string) (*link.Link, error) {
	t.Helper()
	addr := ""
	for _, kv := range f.relays[at].Env {
		if a, ok := strings.CutPrefix(kv, "ADIT_PEER_LISTEN="); ok {
			addr = a
		}
	}
	certFile, keyFile := f.ca.issue(t, id)
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(f.ca.cert)
	d := tls.Dialer{Config: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}, ServerName: f.names[at], NextProtos: []string{"adit.peer.v1"}, MinVersion: tls.VersionTLS13}}
	conn, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		return nil, err
	}
	l, err := link.NewClient(conn, link.Config{})
	if err != nil {
		return nil, err
	}
	st, err := peerRequest(t, l, wire.Hello{}, map[string]any{"op": "hello", "relay": id})
	if err != nil {
		_ = l.Close(err)
		return nil, err
	}
	_ = st.Close()
	return l, nil
}

// peerRequest asks what relays ask each other, and waits for the yes.
func peerRequest(t *testing.T, l *link.Link, h wire.Hello, request map[string]any) (*link.Stream, error) {
	t.Helper()
	payload, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancel()
	h.Kind, h.Payload = wire.KindPeer, payload
	st, err := link.OpenHello(ctx, l, h)
	if err != nil {
		return nil, err
	}
	if err := st.Verdict(ctx); err != nil {
		_ = st.Reset()
		return nil, err
	}
	return st, nil
}

// verdictOf reads a verdict, byte by byte, from the beginning of a stream.
func verdictOf(st *link.Stream) error {
	v, err := new(wire.VerdictReader).Read(st)
	if err == nil && v.Code != wire.CodeOK {
		err = v
	}
	return err
}

// TestAKickedViewerStaysOut comes back to a tunnel with other user agents, in both
// forms of its address, after the owner sent the viewer away. Who came by a named link
// of their own stays.
func TestAKickedViewerStaysOut(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay(world.PathForm)
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": app(t, hello), "host_header": "public"})
	link := makeLink(r, sk, tun, map[string]any{"name": "for the customer"})
	c := w.HTTP()
	as := func(url, agent string) int {
		status, _ := world.Get(c, url, "User-Agent", agent)
		return status
	}
	if status := as(r.PathURL(tun), "Mallory"); status != http.StatusOK {
		t.Fatalf("before the kick: %d", status)
	}
	var list api.ViewerList
	if status, p := r.API(tun.AdminToken, http.MethodGet, "/tunnels/"+string(tun.SessionID)+"/viewers", nil, &list); status != http.StatusOK || len(list.Viewers) != 1 {
		t.Fatalf("the viewers: %d %v %+v", status, p, list)
	}
	if status, p := r.API(tun.AdminToken, http.MethodDelete, "/tunnels/"+string(tun.SessionID)+"/viewers/"+string(list.Viewers[0].ViewerID), nil, nil); status != http.StatusNoContent {
		t.Fatalf("kick: %d %v", status, p)
	}
	for _, agent := range []string{"Mallory", "Bob", "Mozilla/5.0", ""} {
		for _, url := range []string{r.PathURL(tun), r.HostURL(tun)} {
			if status := as(url, agent); status != http.StatusForbidden {
				t.Errorf("the kicked viewer, now as %q, is answered %d", agent, status)
			}
		}
	}
	if status := as(link.URL, "Customer"); status != http.StatusOK {
		t.Errorf("who has a named link of their own is answered %d", status)
	}
}

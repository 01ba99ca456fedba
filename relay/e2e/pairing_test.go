package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/testkit/issuer"
)

// userCode is what a program shows while it waits.
var userCode = regexp.MustCompile(`code ([A-Z0-9]{4}-[A-Z0-9]{4})`)

// waits starts a program that asks to be let in, and returns it with the code that it
// shows and the page where that is confirmed.
func (m *machine) waits(program string, args ...string) (p *world.Process, code, page string) {
	m.w.T.Helper()
	p = m.w.Start(program, []string{"HOME=" + m.home}, filepath.Join(m.w.Bin, program), args...)
	m.w.Eventually(20*time.Second, program+" shows a code", func() bool {
		found := userCode.FindStringSubmatch(p.Log())
		if found == nil {
			return false
		}
		code = found[1]
		page = regexp.MustCompile(`http\S+/desktop/pair\?user_code=` + code).FindString(p.Log())
		return page != ""
	})
	return p, code, page
}

// done waits until a program has ended well.
func (m *machine) done(p *world.Process) {
	m.w.T.Helper()
	m.w.Eventually(20*time.Second, p.Name+" is let in and ends", func() bool {
		select {
		case <-p.Done():
			return true
		default:
			return false
		}
	})
	if code := p.Cmd.ProcessState.ExitCode(); code != 0 {
		m.w.T.Fatalf("%s: exit code %d\n%s", p.Name, code, p.Log())
	}
}

// adit runs the user's command on the machine.
func (m *machine) adit(args ...string) string {
	m.w.T.Helper()
	return m.w.Run([]string{"HOME=" + m.home}, filepath.Join(m.w.Bin, "adit"), args...)
}

func confirm(r *world.Relay, person, team, code, name string) answer {
	r.W.T.Helper()
	body, _ := json.Marshal(api.PairConfirmRequest{UserCode: code, DeviceName: name}) // two texts
	return asPerson(r, person, team, http.MethodPost, "/desktop/pair/confirm", string(body))
}

// TestFromACleanMachineToATunnelByCodes: a machine and a person's laptop, neither with a
// secret, until the app is seen through the tunnel, and until the laptop is logged out.
func TestFromACleanMachineToATunnelByCodes(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	is := issuer.Start(t)
	r := w.Relay(append(oidcEnv(is), world.PathForm)...)
	alice := is.Token(members(world.Team))
	url := fmt.Sprintf("http://127.0.0.1:%d", r.Port)
	box, laptop := newMachine(w, "box"), newMachine(w, "laptop")
	began := time.Now()

	// Somebody who tires of waiting leaves nothing.
	tired, _, _ := box.waits("adit-agent", "enroll", "--pair", "--config", box.config(), "--relay-url", url, "--agent-id", "gpu-7")
	if err := tired.Stop(10 * time.Second); err == nil || !strings.Contains(tired.Log(), "adit-agent: interrupted") {
		t.Errorf("an enrolment that was interrupted: %v\n%s", err, tired.Log())
	}
	if left, err := os.ReadDir(filepath.Dir(box.config())); err != nil || len(left) != 0 {
		t.Errorf("it leaves %v %v", left, err)
	}
	enrolling, code, page := box.waits("adit-agent", "enroll", "--pair", "--config", box.config(), "--relay-url", url, "--agent-id", "gpu-7")
	if want := r.URL + "/desktop/pair?user_code=" + code; page != want {
		t.Errorf("the page is %s, want %s", page, want)
	}
	asked := asPerson(r, alice, world.Team, http.MethodPost, "/desktop/pair/show", `{"user_code":"`+code+`"}`)
	if got := decode[api.PairAsked](t, []byte(asked.Body)); asked.Status != 200 || got.AgentID != "gpu-7" || got.RemoteAddr != "127.0.0.1" || !slices.Equal(got.Keys, []api.PairKey{api.PairAgent}) || !strings.HasPrefix(got.Client, "adit-agent/") {
		t.Errorf("who asks: %s %+v", asked, got)
	}
	if a := confirm(r, alice, world.Team, code, "the box"); a.Status != 200 {
		t.Fatalf("let the machine in: %s %s", a, a.Body)
	}
	box.done(enrolling)
	secret, err := os.ReadFile(box.credential())
	if info, serr := os.Stat(box.credential()); err != nil || serr != nil || info.Mode().Perm() != 0o600 || !strings.HasPrefix(string(secret), "ak-") {
		t.Fatalf("the machine has its credential, its owner's alone: %v %v", err, serr)
	}
	w.Start("agent", []string{"HOME=" + box.home, fmt.Sprintf("ADIT_METRICS_LISTEN=127.0.0.1:%d", w.FreePort())},
		filepath.Join(w.Bin, "adit-agent"), "run", "--config", box.config(), "--state_dir", filepath.Join(box.dir, "state"))

	login, code, _ := laptop.waits("adit", "login", url)
	// Somebody else's guess, and a person of another team, let nobody in.
	mallory := is.Token(issuer.Claims{"sub": "mallory", "teams": []string{otherTeam}})
	if a := confirm(r, mallory, world.Team, code, "x"); a.code() != "not_a_member" {
		t.Errorf("a person of another team: %s", a)
	}
	if a := confirm(r, alice, world.Team, strings.ToLower(strings.ReplaceAll(code, "-", " ")), "alice's laptop"); a.Status != 200 {
		t.Fatalf("let the laptop in: %s %s", a, a.Body)
	}
	if a := confirm(r, mallory, otherTeam, code, "x"); a.code() != "pairing_not_found" {
		t.Errorf("a code that was used, for another team: %s", a)
	}
	laptop.done(login)
	config := filepath.Join(laptop.home, ".config", "adit", "config.yaml")
	kept, err := os.ReadFile(config)
	if info, serr := os.Stat(config); err != nil || serr != nil || info.Mode().Perm() != 0o600 || !strings.Contains(string(kept), "token: dk-") {
		t.Fatalf("the laptop has its key, its owner's alone: %v %v", err, serr)
	}
	dk := regexp.MustCompile(`dk-[a-z2-7]+`).FindString(string(kept))
	if strings.Contains(login.Log(), "dk-") || strings.Contains(enrolling.Log(), "ak-") {
		t.Error("a program shows its secret")
	}
	w.Eventually(15*time.Second, "the machine is there", func() bool { return strings.Contains(laptop.adit("agents"), "gpu-7") })
	tun := decode[api.Tunnel](t, []byte(laptop.adit("open", "gpu-7", "--port", fmt.Sprint(app(t, hello)), "--json")))
	if status, body := world.Get(w.HTTP(), tun.TunnelURL); status != http.StatusOK || body != "hello from /" {
		t.Errorf("the app through the tunnel: %d %q", status, body)
	}
	if took := time.Since(began); took > time.Minute {
		t.Errorf("from a clean machine to the app took %s, want less than a minute", took)
	}
	if who := decode[api.Me](t, []byte(laptop.adit("whoami", "--json"))); string(who.TeamID) != world.Team || who.UserID != "alice" || who.Kind != "device" {
		t.Errorf("whoami says %+v", who)
	}

	laptop.adit("logout")
	if kept, err := os.ReadFile(config); err != nil || strings.Contains(string(kept), "token:") {
		t.Errorf("after logging out the file holds %s %v", kept, err)
	}
	if status, _ := r.Raw(dk, http.MethodGet, "/agents", nil); status != http.StatusUnauthorized {
		t.Errorf("the key of the laptop that was logged out: %d", status)
	}
	w.Eventually(5*time.Second, "what it opened is closed", func() bool {
		status, _ := world.Get(w.HTTP(), tun.TunnelURL)
		return status == http.StatusGone || status == http.StatusNotFound
	})
	// The machine is no part of the laptop: it stays.
	sk := r.Credential("integration", world.Team)
	if status, _ := r.Raw(sk, http.MethodGet, "/agents/gpu-7", nil); status != http.StatusOK {
		t.Errorf("the machine after that: %d", status)
	}
	log, err := operate(t, r, "audit")
	if err != nil {
		t.Fatal(err)
	}
	for event, n := range map[string]int{"pairing_confirmed": 2, "pairing_taken": 2, "credential_revoked": 1} {
		if got := strings.Count(log, `"event":"`+event+`"`); got != n {
			t.Errorf("the audit log has %s %d times, want %d", event, got, n)
		}
	}
	for _, s := range []string{dk, strings.TrimSpace(string(secret)), code, strings.ReplaceAll(code, "-", "")} {
		if strings.Contains(log, s) || strings.Contains(r.Log(), s) {
			t.Error("a key or a code is in a log")
		}
	}
}

// started begins a pairing with a relay, as a program does.
func started(r *world.Relay, body string) api.PairStarted {
	r.W.T.Helper()
	a := call(r, http.MethodPost, "/api/v1/desktop/pair/start", body)
	if a.Status != 200 {
		r.W.T.Fatalf("begin: %s %s", a, a.Body)
	}
	return decode[api.PairStarted](r.W.T, []byte(a.Body))
}

func polled(r *world.Relay, s api.PairStarted) answer {
	r.W.T.Helper()
	return call(r, http.MethodPost, "/api/v1/desktop/pair/poll", `{"device_code":"`+s.DeviceCode+`"}`)
}

// TestPairingThroughAPool: begun at one relay, confirmed at a second one, and polled at all
// of them at once.
func TestPairingThroughAPool(t *testing.T) {
	t.Parallel()
	is := issuer.Start(t)
	f := newFleet(t, 3, func(*fleet, int) []string { return oidcEnv(is) })
	alice := is.Token(members(world.Team))
	for range 5 {
		s := started(f.relays[0], `{"keys":["device","agent"],"agent_id":"`+agentName(0)+`"}`)
		// Whoever is as quick as this is told so, not that there is nothing.
		if a := polled(f.relays[1], s); a.Status != 200 {
			t.Errorf("a poll at another relay at once: %s", a)
		}
		if a := confirm(f.relays[1], alice, world.Team, s.UserCode, "laptop"); a.Status != 200 {
			t.Fatalf("confirm at another relay: %s", a)
		}
		var mu sync.Mutex
		var got []api.PairPolled
		f.w.Eventually(10*time.Second, "the keys come", func() bool {
			var wg sync.WaitGroup
			for _, r := range append(f.relays, f.relays...) {
				wg.Go(func() {
					a := polled(r, s)
					var out api.PairPolled
					if a.Status == 200 && json.Unmarshal([]byte(a.Body), &out) == nil && out.Status == "approved" {
						mu.Lock()
						got = append(got, out)
						mu.Unlock()
					}
				})
			}
			wg.Wait()
			return len(got) > 0
		})
		for _, r := range f.relays {
			if a := polled(r, s); a.code() != "pairing_not_found" {
				t.Errorf("a poll after the keys were taken: %s", a)
			}
		}
		if len(got) != 1 {
			t.Fatalf("six polls at three relays got keys %d times", len(got))
		}
		for _, r := range f.relays {
			if status, _ := r.Raw(got[0].RawKey, http.MethodGet, "/agents", nil); status != 200 {
				t.Errorf("the device's key at once at each relay: %d", status)
			}
		}
		// The device ends itself, and the machine's key with it.
		id := credentialID(t, f.relays[0], world.Team, got[0].AgentKey)
		var gone api.Revoked
		if status, p := f.relays[2].API(got[0].RawKey, http.MethodPost, "/auth/device/revoke", nil, &gone); status != 200 || gone.Credentials != 2 {
			t.Errorf("the device ends itself and its companion: %d %v %+v", status, p, gone)
		}
		for _, r := range f.relays {
			f.w.Eventually(5*time.Second, "the device is gone everywhere", func() bool {
				status, _ := r.Raw(got[0].RawKey, http.MethodGet, "/agents", nil)
				return status == 401
			})
		}
		list, err := operate(t, f.relays[1], "credential", "list", "--team", world.Team, "--json")
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range decode[api.CredentialList](t, []byte(list)).Credentials {
			if string(c.ID) == id && !c.Revoked {
				t.Error("the machine's key outlives the device")
			}
		}
	}
}

// TestLoginAtThePreviousRelay: this version's programs say what the relay does not know
// yet, and take a token as before.
func TestLoginAtThePreviousRelay(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	old := previous(w)
	r := old.Relay()
	m := newMachine(w, "laptop")
	url := fmt.Sprintf("http://127.0.0.1:%d", r.Port)
	_, err := w.Try([]string{"HOME=" + m.home}, filepath.Join(w.Bin, "adit"), "login", url)
	if err == nil || !strings.Contains(err.Error(), "earlier release") || !strings.Contains(err.Error(), "no token was given") {
		t.Errorf("without a token: %v", err)
	}
	w.Run([]string{"HOME=" + m.home, "ADIT_TOKEN=" + r.Credential("device", world.Team, "--user", "alice")}, filepath.Join(w.Bin, "adit"), "login", url)
	if out := m.adit("agents", "--json"); !strings.Contains(out, "agent_list") {
		t.Errorf("with a token: %s", out)
	}
	if _, err := w.Try([]string{"HOME=" + m.home}, filepath.Join(w.Bin, "adit"), "whoami"); err == nil || !strings.Contains(err.Error(), "earlier release") {
		t.Errorf("whoami: %v", err)
	}
	out, code := m.enroll(nil, "--pair", "--relay-url", url, "--agent-id", "gpu-7")
	if code != 1 || !strings.Contains(out, "earlier release") || !strings.Contains(out, "adit-relay enroll create") {
		t.Errorf("enroll --pair: %d %s", code, out)
	}
}

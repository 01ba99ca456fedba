package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
)

// TestNoSecretOfPeopleLeaks lets people in by every way there is without an issuer, rightly
// and wrongly, and then looks for what they got in by wherever it must not be.
func TestNoSecretOfPeopleLeaks(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay() // at level debug
	c := &canaries{t: t, value: map[string]string{}}
	pages := map[string]string{}
	note := func(what string, a answer, status int) answer {
		t.Helper()
		if a.Status != status {
			t.Errorf("%s: expected %d, got %s %s", what, status, a, a.Body)
		}
		pages[what] = a.Body + fmt.Sprint(a.Header)
		return a
	}
	cookie := func(name string, v *visitor) {
		t.Helper()
		at, err := url.Parse(r.URL)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range v.client.Jar.Cookies(at) {
			if strings.HasPrefix(k.Value, "si-") {
				c.add(name, k.Value)
				return
			}
		}
		t.Fatalf("no browser is signed in for %s: %v", name, v.client.Jar.Cookies(at))
	}
	refused := func(what string, v *visitor, path string, body any) {
		t.Helper()
		status, p := v.door(path, body, nil)
		if status < 400 {
			t.Errorf("%s: %d", what, status)
		}
		text, _ := json.Marshal(p)
		pages[what] = string(text)
	}

	// Alice comes by an invitation, and leaves another one that nobody uses.
	alice := newVisitor(r)
	invite := invited(r, "alice", "owner")
	c.add("invitation that was used", invite)
	if status, p := alice.door("invite", map[string]string{"invite": invite}, nil); status != 200 {
		t.Fatalf("alice accepts: %d %v", status, p)
	}
	refused("an invitation for the second time", newVisitor(r), "invite", map[string]string{"invite": invite})
	c.add("invitation of the operator that nobody used", invited(r, "nobody", "viewer"))
	wrong := "inv-canarycanarycanarycanarycanarycanary7777"
	c.add("invitation that was wrong", wrong)
	refused("a wrong invitation", newVisitor(r), "invite", map[string]string{"invite": wrong})
	refused("an invitation in the wrong place", newVisitor(r), "invite", map[string]string{wrong: "x"})
	cookie("cookie of alice", alice)
	bearer := alice.token()
	c.add("bearer of alice's page", bearer[strings.LastIndexByte(bearer, '-')+1:])
	made := note("an invitation over the API, to whom it is for", call(r, http.MethodPost, api.Base+"/invites", `{"name":"bob"}`, inTeam(bearer)...), 201)
	delete(pages, "an invitation over the API, to whom it is for")
	byAlice := decode[api.CreatedInvite](t, []byte(made.Body))
	_, secret, _ := strings.Cut(byAlice.InviteURL, "#invite=")
	c.add("invitation of alice", secret)
	note("the list of invitations", call(r, http.MethodGet, api.Base+"/invites", "", inTeam(bearer)...), 200)
	note("the members", call(r, http.MethodGet, api.Base+"/members", "", inTeam(bearer)...), 200)
	note("her devices", call(r, http.MethodGet, api.Base+"/devices", "", inTeam(bearer)...), 200)
	note("who she is", call(r, http.MethodGet, api.Base+"/me", "", inTeam(bearer)...), 200)

	// A machine is paired, and a program that waits in vain.
	waits := started(r, `{"client":"adit","machine_name":"laptop"}`)
	c.add("device code that was used", waits.DeviceCode)
	c.add("device code that nobody let in", started(r, `{}`).DeviceCode)
	note("who asks", call(r, http.MethodPost, api.Base+"/desktop/pair/show", fmt.Sprintf(`{"user_code":%q}`, waits.UserCode), inTeam(bearer)...), 200)
	note("a pairing that is confirmed", call(r, http.MethodPost, api.Base+"/desktop/pair/confirm", fmt.Sprintf(`{"user_code":%q,"device_name":"laptop"}`, waits.UserCode), inTeam(bearer)...), 200)
	got := decode[api.PairPolled](t, []byte(polled(r, waits).Body))
	c.add("device credential of alice", got.RawKey)
	note("a poll for the second time", polled(r, waits), 404)

	// What is wrong, and where it does not belong.
	note("a bearer as a query", call(r, http.MethodGet, api.Base+"/agents?access_token="+bearer, ""), 401)
	note("an invitation in a path", call(r, http.MethodDelete, api.Base+"/invites/"+secret, "", inTeam(bearer)...), 404)
	note("a cookie at the API", call(r, http.MethodGet, api.Base+"/me", "", "Cookie", "adit-sign-in=si-"+c.value["cookie of alice"], "X-Team-ID", world.Team), 401)
	forged := bearer[:len(bearer)-20] + "canarycanarycanarycana"
	note("a forged bearer", call(r, http.MethodGet, api.Base+"/me", "", inTeam(forged)...), 401)

	bob := newVisitor(r)
	if status, p := bob.door("invite", map[string]string{"invite": secret}, nil); status != 200 {
		t.Fatalf("bob accepts: %d %v", status, p)
	}
	cookie("cookie of bob, who signs out", bob)
	bobs := bob.token()
	c.add("bearer of bob's page", bobs[strings.LastIndexByte(bobs, '-')+1:])
	if status, p := bob.door("logout", map[string]bool{"everywhere": true}, nil); status != 204 {
		t.Errorf("bob signs out: %d %v", status, p)
	}
	w.Eventually(time.Second, "bob's page is signed out", func() bool {
		return call(r, http.MethodGet, api.Base+"/me", "", inTeam(bobs)...).Status == 401
	})
	for what, list := range map[string][]string{
		"invite list": {"invite", "list", "--team", world.Team, "--json"}, "member list": {"member", "list", "--team", world.Team, "--json"}, "audit": {"audit"},
	} {
		out, err := operate(t, r, list...)
		if err != nil {
			t.Error(err)
		}
		pages["adit-relay "+what] = out
	}
	if len(c.value) < 10 || len(pages) < 14 {
		t.Errorf("only %d secrets and %d answers are looked at", len(c.value), len(pages))
	}

	_, metrics := world.Get(w.HTTP(), fmt.Sprintf("http://127.0.0.1:%d/metrics", r.Metrics))
	c.search("the metrics", []byte(metrics))
	for _, file := range []string{"cmdline", "environ"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", r.Cmd.Process.Pid, file))
		if err != nil {
			t.Fatal(err)
		}
		c.search("/proc/"+file, b)
	}
	if err := r.Stop(30 * time.Second); err != nil {
		t.Errorf("the relay stops: %v", err)
	}
	if len(r.Log()) < 500 {
		t.Errorf("the log has only %d bytes: nothing was tested", len(r.Log()))
	}
	c.search("the log", []byte(r.Log()))
	for what, text := range pages {
		c.search("the answer to "+what, []byte(text))
	}
	c.files(r.DataDir)
}

package e2e

import (
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/testkit/issuer"
)

// exitsWith says whether a command ended with a code and said all of some texts.
func exitsWith(err error, code string, said ...string) bool {
	if err == nil || !strings.Contains(err.Error(), "exit status "+code) {
		return false
	}
	for _, s := range said {
		if !strings.Contains(err.Error(), s) {
			return false
		}
	}
	return true
}

// TestTheOperatorAndTheTeamKeepItsMembers is a team from its name to its end: the operator
// names it, adds its owner by the issuer's name for them, and invites; the owner goes on
// with the user's command.
func TestTheOperatorAndTheTeamKeepItsMembers(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	is := issuer.Start(t)
	r := w.Relay(oidcEnv(is)...)
	must := func(args ...string) string {
		t.Helper()
		out, err := operate(t, r, args...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}

	vision := must("team", "create", "Vision")
	if _, err := ident.ParseTeamID(vision); err != nil {
		t.Fatalf("team create printed %q", vision)
	}
	if _, err := operate(t, r, "team", "create", "vISION"); !exitsWith(err, "1", `there is a team "Vision" already (`+vision+")") || strings.Contains(err.Error(), "hint:") {
		t.Errorf("a second team of that name: %v", err)
	}
	for want, args := range map[string][]string{
		`there is no team named "nobody"; 'adit-relay team create nobody' makes it`: {"invite", "create", "--team", "nobody", "--name", "x"},
		"--team is missing: a team's name or its UUID":                              {"invite", "create", "--name", "x"},
		"--name is missing":       {"invite", "create", "--team", "vision"},
		"a role is one of viewer": {"invite", "create", "--team", "vision", "--name", "x", "--role", "king"},
		"--expires":               {"invite", "create", "--team", "vision", "--name", "x", "--expires", "soon"},
		"needs MEMBER ROLE":       {"member", "role", "--team", "vision", "x"},
		"there is no team named":  {"credential", "create", "--kind", "integration", "--team", "nobody"},
		"--team is missing":       {"credential", "create", "--kind", "integration"},
	} {
		if _, err := operate(t, r, args...); !exitsWith(err, "2", want) {
			t.Errorf("%v is wrong usage, and is told so with %q: %v", args, want, err)
		}
	}
	if _, err := operate(t, r, "invite", "create", "--team", "vision", "--name", "x", "--expires", "25h"); !exitsWith(err, "1", "out_of_range") {
		t.Errorf("an invitation for more than a day: %v", err)
	}

	// The issuer names no team for alice: she is in it by the operator's word.
	must("member", "role", "--team", "vision", "--add", "alice|x/1", "owner")
	if _, err := operate(t, r, "member", "role", "--team", "vision", "nobody", "owner"); !exitsWith(err, "1", `the team has no member "nobody"`) {
		t.Errorf("a role for nobody: %v", err)
	}
	alice := is.Token(issuer.Claims{"sub": "alice|x/1"})
	if a := asPerson(r, alice, vision, http.MethodGet, "/members", ""); a.Status != 200 {
		t.Fatalf("the owner looks at the members: %s %s", a, a.Body)
	}
	if a := asPerson(r, alice, world.Team, http.MethodGet, "/members", ""); a.Status != 403 || !strings.Contains(a.Body, "not_a_member") {
		t.Errorf("…of another team: %s %s", a, a.Body)
	}
	if a := asPerson(r, is.Token(issuer.Claims{"sub": "mallory"}), vision, http.MethodGet, "/members", ""); a.Status != 403 {
		t.Errorf("a person of no team: %s %s", a, a.Body)
	}

	env := []string{"ADIT_URL=" + r.URL, "ADIT_TOKEN=" + alice, "ADIT_TEAM=" + vision, "HOME=" + t.TempDir()}
	adit := func(args ...string) (string, error) { return w.Try(env, filepath.Join(w.Bin, "adit"), args...) }
	url, err := adit("invite", "bob", "--role", "admin", "--expires", "2h")
	if err != nil || !regexp.MustCompile(`^`+regexp.QuoteMeta(r.URL)+`/console#invite=inv-[a-z2-7]{40}\n$`).MatchString(url) {
		t.Fatalf("adit invite printed %q: %v", url, err)
	}
	operators := must("invite", "create", "--team", "VISION", "--name", "carol", "--role", "viewer")
	if !strings.HasPrefix(operators, r.URL+"/console#invite=inv-") || strings.Contains(operators, "\n") {
		t.Errorf("adit-relay invite create printed %q", operators)
	}
	list := decode[api.InviteList](t, []byte(must("invite", "list", "--team", vision, "--json")))
	if len(list.Invites) != 2 || list.Invites[0].Name != "carol" || list.Invites[1].Name != "bob" || list.Invites[1].CreatedBy == "" {
		t.Fatalf("invite list: %+v", list)
	}
	if out, err := adit("invite", "list"); err != nil || !strings.Contains(out, "carol") || strings.Contains(out, "inv-") {
		t.Errorf("adit invite list: %q %v", out, err)
	}
	must("invite", "revoke", "--team", "vision", list.Invites[0].InviteID)
	if _, err := operate(t, r, "invite", "revoke", "--team", "vision", list.Invites[0].InviteID); !exitsWith(err, "1", "invite_not_found") {
		t.Errorf("revoking it again: %v", err)
	}
	if out, err := adit("members"); err != nil || !regexp.MustCompile(`(?m)^- +owner +operator .*alice\|x/1$`).MatchString(out) {
		t.Errorf("adit members: %q %v", out, err)
	}
	if _, err := adit("members", "role", "alice|x/1", "viewer"); !exitsWith(err, "1", "last_owner") {
		t.Errorf("the last owner steps down: %v", err)
	}

	// Whatever takes a team takes its name.
	sk := r.Credential("integration", "vision")
	if status, _ := r.API(sk, http.MethodGet, "/agents", nil, nil); status != 200 {
		t.Errorf("a key made for a team by its name: %d", status)
	}
	dave := r.Credential("device", "Vision", "--user", "dave")
	must("member", "role", "--team", "vision", "--add", "dave", "member")
	for _, args := range [][]string{
		{"enroll", "create", "--team", "vision"}, {"credential", "list", "--team", "vision"}, {"tunnels", "list", "--team", "vision"}, {"member", "list", "--team", "vision"},
	} {
		if out := must(args...); out == "" {
			t.Errorf("%v printed nothing", args)
		}
	}
	if log := must("audit", "--team", "vision", "--event", "member_role"); strings.Count(log, "\n") != 1 || !strings.Contains(log, "dave") {
		t.Errorf("the audit of a team by its name: %s", log)
	}

	// Who is removed is out at once, whatever they hold.
	if status, _ := r.API(dave, http.MethodGet, "/agents", nil, nil); status != 200 {
		t.Fatalf("dave's device: %d", status)
	}
	if out, err := adit("members", "remove", "dave", "--json"); err != nil || decode[api.Revoked](t, []byte(out)).Credentials != 1 {
		t.Errorf("adit members remove: %q %v", out, err)
	}
	if status, _ := r.API(dave, http.MethodGet, "/agents", nil, nil); status != 401 {
		t.Errorf("the device of a removed person: %d", status)
	}
	must("member", "remove", "--team", "vision", "alice|x/1")
	w.Eventually(time.Second, "the owner whom the operator removed is out", func() bool {
		a := asPerson(r, is.Token(issuer.Claims{"sub": "alice|x/1", "teams": []string{vision}}), vision, http.MethodGet, "/members", "")
		return a.Status == 403 && strings.Contains(a.Body, "not_a_member")
	})
	if list := decode[api.InviteList](t, []byte(must("invite", "list", "--team", vision, "--json"))); len(list.Invites) != 0 {
		t.Errorf("invitations of a removed person are open: %+v", list)
	}

	must("team", "rename", vision, "Computer Vision")
	if out := must("team", "list"); !regexp.MustCompile(`(?m)^` + vision + ` +1 +0 +0 +0 +Computer Vision$`).MatchString(out) {
		t.Errorf("team list: %s", out)
	}
	if out := must("team", "remove", "computer vision", "--yes", "--json"); !strings.Contains(out, `"credentials_revoked": 1`) || !strings.Contains(out, `"members_removed": 0`) {
		t.Errorf("team remove: %s", out)
	}
	if out := must("team", "list"); strings.Contains(out, vision) {
		t.Errorf("the team is left: %s", out)
	}
	unknown := string(ident.NewTeamID())
	if _, err := operate(t, r, "team", "remove", unknown, "--yes"); !exitsWith(err, "1", "there is nothing of a team "+unknown) {
		t.Errorf("removing a team that never was: %v", err)
	}
}

// Where an app's script shares the console's origin nobody can sign in, and nobody is
// invited in vain.
func TestNobodyIsInvitedWhereNobodyCanSignIn(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay(world.PathForm)
	if _, err := operate(t, r, "invite", "create", "--team", world.Team, "--name", "x"); !exitsWith(err, "1", "sign_in_off", "wildcard_domain or console_url") {
		t.Errorf("an invitation: %v", err)
	}
}

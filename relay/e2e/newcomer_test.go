package e2e

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/testkit"
)

// hands are what a newcomer does with theirs: commands that they type, and links that they
// open as they were shown. Into pages they type nothing.
type hands struct {
	commands []string
	links    int
}

// types notes a command and returns it, to be run.
func (h *hands) types(line ...string) []string {
	h.commands = append(h.commands, strings.Join(line, " "))
	return line
}

// carried are what nobody should have to carry: secrets of every kind, issuers' tokens,
// and names that nobody reads aloud.
var carried = regexp.MustCompile(`\b(sk|dk|ak|adm|lt|en|tc|tr|si|bt|inv|pc)-[a-z0-9]{8,}|\beyJ[A-Za-z0-9_-]{10,}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|\b[A-Z0-9]{4}-[A-Z0-9]{4}\b`)

// count says how many of those were typed.
func (h *hands) count() (n int) {
	for _, line := range h.commands {
		n += len(carried.FindAllString(line, -1))
	}
	return n
}

// TestTheNewcomerCounts goes the way of the README, from a relay that nobody knows to a
// teammate's browser that shows the app, and counts what was typed for it: nobody carries
// a secret.
func TestTheNewcomerCounts(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay("ADIT_WILDCARD_DOMAIN=localhost")
	box, laptop := newMachine(w, "box"), newMachine(w, "laptop")
	h := &hands{}
	began := time.Now()

	// On the relay's host.
	socket := []string{"--socket", filepath.Join(r.DataDir, "admin.sock")} // of this test's relay; usually it is known
	run := func(line []string) string {
		return strings.TrimSpace(w.Run(nil, filepath.Join(w.Bin, line[0]), append(line[1:], socket...)...))
	}
	run(h.types("adit-relay", "team", "create", "vision"))
	invitation := run(h.types("adit-relay", "invite", "create", "--team", "vision", "--role", "owner", "--name", "alice"))

	// In the newcomer's browser.
	c := newConsole(w, r)
	open := func(link string) { c.do("a link", world.Navigate(link)); h.links++ }
	open(invitation)
	c.do("the newcomer is in", text("You are in the team vision as owner"))

	// On the machine with the GPU. The app is there already.
	port := app(t, hello)
	enroll := h.types("adit-agent", "enroll", "--pair", "--relay-url", r.URL)
	enrolling, first, page := box.waits(enroll[0], append(enroll[1:], "--config", box.config(), "--agent-id", "gpu-7")...)
	open(page)
	c.do("the machine is let in", text("gpu-7"), press("Confirm"))
	box.done(enrolling)
	agent := h.types("adit-agent", "run")
	w.Start("agent", []string{"HOME=" + box.home, fmt.Sprintf("ADIT_METRICS_LISTEN=127.0.0.1:%d", w.FreePort())},
		filepath.Join(w.Bin, agent[0]), append(agent[1:], "--config", box.config(), "--state_dir", filepath.Join(box.dir, "state"))...)

	// On the newcomer's laptop.
	login := h.types("adit", "login", r.URL)
	logging, second, page := laptop.waits(login[0], login[1:]...)
	open(page)
	c.do("the laptop is let in", press("Confirm"))
	laptop.done(logging)
	line := h.types("adit", "agents")
	w.Eventually(20*time.Second, "the machine is listed", func() bool { return strings.Contains(laptop.adit(line[1:]...), "gpu-7") })
	line = h.types("adit", "open", "gpu-7", "--port", fmt.Sprint(port))
	address := strings.TrimSpace(laptop.adit(line[1:]...))

	// In a teammate's browser, which was sent the address.
	mate := w.Browser(2 * time.Minute)
	w.Do(mate, "a teammate sees the app", world.Navigate(address), world.Until(`document.body.innerText.includes("hello from /")`))
	h.links++
	took := time.Since(began)

	if n := h.count(); n != 0 {
		t.Errorf("%d secrets or identifiers were typed or pasted, want none:\n%s", n, strings.Join(h.commands, "\n"))
	}
	if len(h.commands) > 7 || took > testkit.Limit(3*time.Minute) {
		t.Errorf("%d commands, %s: want at most 7 and 3 minutes", len(h.commands), took)
	}
	testkit.Figure(t, "from a bare relay to a teammate's browser: %s, %d commands, %d links opened, %d secrets typed or pasted", took.Round(time.Second), len(h.commands), h.links, h.count())
	for _, code := range []string{first, second, strings.ReplaceAll(first, "-", "")} {
		if strings.Contains(r.Log(), code) {
			t.Error("a code that was confirmed in a browser is in the relay's log")
		}
	}
	if who := decode[api.Me](t, []byte(laptop.adit("whoami", "--json"))); who.UserName != "alice" || who.Role != api.RoleOwner || len(who.Teams) != 1 || who.Teams[0].TeamName != "vision" {
		t.Errorf("whoami says %+v", who)
	}
}

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/webauthn"
	"github.com/chromedp/chromedp"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/wire"
)

// operator runs adit-relay over the relay's admin socket and returns what it prints.
func operator(r *world.Relay, args ...string) string {
	r.W.T.Helper()
	return strings.TrimSpace(r.W.Run(nil, filepath.Join(r.W.Bin, "adit-relay"), append(args, "--socket", filepath.Join(r.DataDir, "admin.sock"))...))
}

// withPasskeys gives a tab a device that makes passkeys, whose owner always agrees.
func withPasskeys() chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		if _, err := cdp.Call(ctx, t, webauthn.Enable, webauthn.EnableParams{}); err != nil {
			return err
		}
		_, err := cdp.Call(ctx, t, webauthn.AddVirtualAuthenticator, webauthn.AddVirtualAuthenticatorParams{Options: &webauthn.VirtualAuthenticatorOptions{
			Protocol: "ctap2", Transport: "internal", HasResidentKey: true, HasUserVerification: true, IsUserVerified: true, AutomaticPresenceSimulation: true,
		}})
		return err
	})
}

// another is the console in a browser of its own.
func (c *consolePage) another() *consolePage {
	return &consolePage{w: c.w, r: c.r, ctx: c.w.Browser(6 * time.Minute), axe: c.axe}
}

// tab is the console in another tab of the same browser.
func (c *consolePage) tab() *consolePage {
	return &consolePage{w: c.w, r: c.r, ctx: c.w.Tab(c.ctx), axe: c.axe}
}

// live waits until the page shows the team's machines, as they are now.
func live() chromedp.Action[chromedp.Void] {
	return world.Until(`document.querySelector(".pulse.live") && document.querySelector(".summary")`)
}

// out waits until the page asks who somebody is.
func out() chromedp.Action[chromedp.Void] {
	return world.Until(`document.querySelector(".signin #secret")`)
}

// A person's first day: an invitation, a passkey, another person, the end of both.
func TestConsoleOfPeople(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay("ADIT_WILDCARD_DOMAIN=localhost")
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	r.Open(sk, "gpu-1", map[string]any{"target_port": 9, "label": "renders"})
	operator(r, "team", "rename", world.Team, "vision")
	invite := operator(r, "invite", "create", "--team", "vision", "--role", "owner", "--name", "Alice")
	_, secret, _ := strings.Cut(invite, "#invite=")

	c := newConsole(w, r)
	c.do("the sign-in view at rest", world.Navigate("about:blank"), world.Navigate(r.URL+"/console"), out(), text("passkey"))
	c.see("people-signin")

	c.do("an invitation lets in", withPasskeys(), world.Navigate(invite), text("You are in the team vision as owner"), live(), text("Alice"))
	if at := c.read(`location.href + " " + JSON.stringify(history.state) + document.referrer`); strings.Contains(at, "invite") {
		t.Errorf("the invitation stays in the address bar: %s", at)
	}
	if kept := c.read(`JSON.stringify(localStorage) + JSON.stringify(sessionStorage) + document.cookie`); strings.Contains(kept, "inv-") || strings.Contains(kept, "bt-") || strings.Contains(kept, "si-") {
		t.Errorf("the page keeps %s", kept)
	}
	if strings.Contains(c.read(`document.body.innerText`), world.Team) {
		t.Error("a person in one team sees its UUID")
	}
	c.see("people-welcome")
	c.do("one that is not made is said so", evaluate(`navigator.credentials.create = async () => { throw new DOMException("no", "NotAllowedError"); }`), press("Add a passkey"), text("no passkey was added"))
	c.do("a passkey is added", evaluate(`delete navigator.credentials.create`), press("Add a passkey"), text("the passkey is there"), world.Until(`!document.querySelector(".welcome")`))
	c.do("a reload keeps signed in", chromedp.Reload(), live(), world.Until(`!document.querySelector(".welcome")`))
	c.do("away and back", world.Navigate("about:blank"), evaluate(`setTimeout(() => history.back())`), live())
	second := c.tab()
	second.do("a second tab is signed in", world.Navigate(r.URL+"/console"), live())

	stranger := c.another()
	stranger.do("the invitation is worth nothing a second time", world.Navigate(invite), out(), text("invite_refused"))

	c.do("a bearer that the relay does not take is renewed, and the call repeated", evaluate(`{ const send = fetch; window.tokens = 0; window.fetch = (to, how) => {
		if (to === "/auth/token") tokens++;
		if (to.startsWith("/api/v1/members") && !window.spoilt) { spoilt = 1; how = { ...how, headers: { ...how.headers, Authorization: "Bearer bt-spoilt" } }; }
		return send(to, how); }; }`),
		press("People"), text("1 member"), text("(you)"), world.Until(`window.spoilt && tokens === 1 && !document.querySelector(".fault")`))
	c.do("and one that is about to end", evaluate(`{ const now = Date.now; Date.now = () => now() + 9.5 * 60_000; }`), press("Devices"), text("(this one)"), world.Until(`tokens === 2`), press("People"), text("1 member"))
	c.do("somebody is invited", fill("#invite-name", "Bob"), fill("#invite-role", "viewer"), press("Invite"), text("Invitation for Bob"), text("not shown again"))
	c.see("people-invited")
	bobs := c.read(`document.querySelector("dialog .share input").value`)
	c.do("the invitation is listed", press("Done"), text("as viewer, by Alice"), press("Take back the invitation for Bob"), text("is taken back"), world.Until(`!document.querySelector("[aria-label=Invitations]")`))
	stranger.do("what was taken back lets nobody in", world.Navigate(bobs), out(), text("invite_refused"))
	c.do("and invited again", fill("#invite-name", "Bob"), press("Invite"), text("not shown again"))
	bobs = c.read(`document.querySelector("dialog .share input").value`)
	c.do("done", press("Done"))

	bob := stranger
	bob.do("a viewer comes in", world.Navigate("about:blank"), world.Navigate(bobs), text("as viewer"), press("Not now"), live(), text("renders"))
	if shown := bob.read(`[...document.querySelectorAll("button")].map((b) => b.textContent).join(",")`); strings.Contains(shown, "Open tunnel") || strings.Contains(shown, "Extend") || strings.Contains(shown, "Terminal") || strings.Contains(shown, "Close") {
		t.Errorf("a viewer sees buttons that refuse: %s", shown)
	}
	bob.see("people-viewer")
	c.do("Bob is there", text("2 members"), fill(`[aria-label="Role of Bob"]`, "member"), text("Bob is member now"))
	c.see("people-list")
	bob.do("a role counts at the next look, for what is not somebody else's", chromedp.Reload(), live(), world.Until(`[...document.querySelectorAll("button")].some((b) => b.textContent === "Open tunnel")`),
		text("renders"), world.Until(`![...document.querySelectorAll(".tunnel button")].some((b) => b.textContent === "Close")`))
	c.do("the last owner stays", fill(`[aria-label="Role of Alice"]`, "viewer"), text("last_owner"), world.Until(`document.querySelector('[aria-label="Role of Alice"]').value === "owner"`))

	c.do("removing asks first", press("Remove Bob"), text("is signed out of this team at once"))
	c.see("people-remove")
	c.do("Bob is removed", press("Remove"), text("Bob is removed"), text("1 member"))
	bob.do("and sees it at once", world.Until(`!document.querySelector(".pulse.live")`), world.Until(`document.querySelector(".signin h1")`))

	c.do("one's devices", press("Devices"), text("(this one)"), text("Chrome on Linux"))
	c.see("people-devices")

	// A program asks to be paired, and a person who signs in on the way confirms it.
	var asked api.PairStarted
	if status, p := r.API("", http.MethodPost, "/desktop/pair/start", map[string]any{"client": "adit e2e", "machine_name": "alices-laptop"}, &asked); status != http.StatusOK {
		t.Fatalf("ask to be paired: %d %v", status, p)
	}
	c.do("signing out in one tab", press("Sign out"), out())
	second.do("ends the others", out(), text("not signed in any more"))
	c.do("the pair page signs in first", world.Navigate(asked.VerificationURI), text("Pair a device"), press("Sign in with a passkey"), text("alices-laptop"), text("adit e2e"), text(asked.UserCode))
	c.see("pair")
	c.do("a device is confirmed", fill("#device-name", "the red laptop"), press("Confirm"), text("the red laptop is paired"), world.Until(`location.search === ""`))
	c.see("paired")
	var taken api.PairPolled
	if status, p := r.API("", http.MethodPost, "/desktop/pair/poll", api.PairPollRequest{DeviceCode: asked.DeviceCode}, &taken); status != http.StatusOK || taken.Status != "approved" || !strings.HasPrefix(taken.RawKey, "dk-") {
		t.Fatalf("the device gets its key: %d %v %+v", status, p, taken.Status)
	}
	c.do("a code that nobody waits with is refused in words", world.Navigate(r.URL+"/desktop/pair"), world.Until(`document.querySelector("#code")`), fill("#code", "abcd efgh"), press("Next"), text("pairing_not_found"))
	c.see("pair-code")
	c.do("the device is listed, and revoked", world.Navigate(r.URL+"/console#devices"), text("the red laptop"), press("Revoke the red laptop"), press("Revoke"), text("is revoked"), text("None. “adit login”"))
	if status, _ := r.API(taken.RawKey, http.MethodGet, "/agents", nil, nil); status != http.StatusUnauthorized {
		t.Errorf("a device that was revoked answers %d", status)
	}

	r.Kill()
	c.do("the relay is lost", world.Until(`document.querySelector(".pulse.lost")`))
	r.Start()
	r.WaitReady(30 * time.Second)
	c.do("and is back by itself, still signed in", world.Until(`document.querySelector(".pulse.live")`), chromedp.Reload(), world.Until(`document.querySelector(".pulse.live")`), text("Your devices"))

	second.do("the other tab is signed in again", world.Navigate("about:blank"), world.Navigate(r.URL+"/console"), live())
	c.do("signing out everywhere asks first", press("Sign out everywhere"), text("this one too"), press("Sign out everywhere"), out())
	second.do("and it is everywhere", out(), text("not signed in any more"))
	for _, s := range []string{secret, bobs[strings.Index(bobs, "inv-"):], asked.DeviceCode, taken.RawKey} {
		if strings.Contains(r.Log(), s) {
			t.Error("a secret is in the relay's log")
		}
	}
}

// Who is in two teams chooses by name; an invitation asks whoever is signed in already.
func TestConsoleOfTwoTeams(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay("ADIT_WILDCARD_DOMAIN=localhost")
	w.Agent(r, "gpu-1")
	operator(r, "team", "rename", world.Team, "vision")
	operator(r, "team", "create", "render farm")
	c := newConsole(w, r)
	operator(r, "team", "create", "new")
	c.do("a team without machines says how to get one", world.Navigate(operator(r, "invite", "create", "--team", "new", "--role", "member", "--name", "Zoe")), text("adit-agent enroll --pair --relay-url "+r.URL))
	c.see("people-empty")
	c.do("signed out", press("Sign out"), out())
	c.do("a first team", world.Navigate(operator(r, "invite", "create", "--team", "vision", "--role", "member", "--name", "Alice")), text("the team vision as member"), live())
	more := operator(r, "invite", "create", "--team", "render farm", "--role", "viewer", "--name", "Somebody")
	// The console is open already: only the fragment of its address changes.
	c.do("another invitation asks first", world.Navigate(more), text("signed in as Alice"))
	c.see("people-join")
	c.do("it is accepted", press("Accept as Alice"), text("the team render farm as viewer"), text("No machine is connected"))
	c.do("a used one offers nothing to accept", world.Navigate(more), press("Accept as Alice"), text("invite_refused"), world.Until(`![...document.querySelectorAll("button")].some((b) => b.textContent.startsWith("Accept"))`))
	c.see("people-join-refused")
	c.do("and leads to the console", press("To the console"), live())
	c.do("the other team is a choice away", fill("#team", world.Team), text("gpu-1"), world.Until(`document.querySelector("#team").selectedOptions[0].textContent === "vision"`))
	c.see("people-teams")
	c.do("and remembered", chromedp.Reload(), text("gpu-1"), world.Until(`document.querySelector("#team").selectedOptions[0].textContent === "vision"`))
	c.do("who is it", evaluate(`fetch("/auth/token", { method: "POST", headers: { "Content-Type": "application/json" }, body: "{}" }).then((r) => r.json()).then((t) => { window.me = t.user_id; }); 0`), world.Until(`window.me`))
	operator(r, "member", "remove", "--team", "vision", c.read(`window.me`))
	c.do("who is removed from one is in the other", world.Until(`!document.querySelector("#team") && document.querySelector(".pulse.live")`), text("No machine is connected"))
}

// Who signs in with an issuer is at once where they wanted to go.
func TestConsoleByAnIssuer(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.NewRelay("ADIT_WILDCARD_DOMAIN=localhost")
	o := w.NewOIDC(r, "alice")
	o.Start()
	o.Control(map[string]any{"teams": map[string][]string{"alice": {world.Team}}})
	r.Start()
	r.WaitReady(30 * time.Second)
	w.Agent(r, "gpu-1")
	c := newConsole(w, r)
	by := press("Sign in with " + strings.TrimPrefix(o.URL, "http://"))
	atIssuer := func() []chromedp.Action[chromedp.Void] {
		return []chromedp.Action[chromedp.Void]{world.Until(`location.pathname.startsWith("/login") && document.querySelector("[name=password]")`),
			fill("[name=username]", "alice"), fill("[name=password]", "alice"), evaluate(`document.querySelector("form").submit()`)}
	}
	c.do("the issuer asks who it is", by)
	c.do("alice tells it, and is in the console", append(atIssuer(), live(), text("gpu-1"), text("alice"))...)
	c.do("a reload keeps signed in", chromedp.Reload(), live())
	if strings.Contains(c.read(`location.href + document.body.innerText`), world.Team) {
		t.Error("a person in one team sees its UUID")
	}

	operator(r, "team", "create", "guests")
	c.do("who is let in by the issuer is offered no passkey, which the relay would refuse", withPasskeys(), world.Navigate(operator(r, "invite", "create", "--team", "guests", "--name", "Alice")),
		press("Accept as alice of the issuer"), text("You are in the team guests as member"), press("All right"), press("Devices"), text("your organisation's sign-in"), world.Until(`!document.querySelector("#passkeys-title")`))
	c.see("people-devices-issuer")

	var asked api.PairStarted
	if status, p := r.API("", http.MethodPost, "/desktop/pair/start", map[string]any{"machine_name": "box", "keys": []string{"agent"}, "agent_id": "gpu-9"}, &asked); status != http.StatusOK {
		t.Fatalf("a machine asks to be paired: %d %v", status, p)
	}
	c.do("a machine is paired by the name that it gets, and the way on leads to the machines", world.Navigate(asked.VerificationURI), world.Until(`document.querySelector("#device-name")?.value === "gpu-9"`), press("Confirm"), text("is paired"))
	c.see("paired-machine")
	c.do("to the machines", press("Your machines"), live())
	if status, p := r.API("", http.MethodPost, "/desktop/pair/start", map[string]any{"machine_name": "alices-laptop"}, &asked); status != http.StatusOK {
		t.Fatalf("ask to be paired: %d %v", status, p)
	}
	c.do("signed out, a device's code leads to the issuer", press("Sign out"), out(), world.Navigate(asked.VerificationURI), by)
	c.do("and back to the code", append(atIssuer(), text("alices-laptop"), text(asked.UserCode), press("This is not me"), text("Nothing was paired"))...)
	if status, p := r.API("", http.MethodPost, "/desktop/pair/poll", api.PairPollRequest{DeviceCode: asked.DeviceCode}, &api.PairPolled{}); status != http.StatusOK {
		t.Errorf("the device goes on waiting until its code ends: %d %v", status, p)
	}
}

// The relay's pages are at one address. By another name of it they say so.
func TestPagesByAnotherName(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay("ADIT_WILDCARD_DOMAIN=localhost")
	terminalAgent(w, r)
	sk := r.Credential("integration", world.Team)
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": 9})
	c := newConsole(w, r)
	other := fmt.Sprintf("http://127.0.0.1:%d", r.Port)

	c.do("the console leads to where people sign in", world.Navigate(other+"/console"), text("another name"), world.Until(fmt.Sprintf(`[...document.querySelectorAll("a")].some((a) => a.href === %q)`, r.URL+"/console")))
	c.see("elsewhere")
	c.do("a token works by any name", withToken())
	c.signIn(sk)

	entry := terminalURL(r, tun, false)
	here := strings.Replace(entry, r.URL, other, 1)
	if here == entry {
		t.Fatalf("a terminal's address is %s", entry)
	}
	c.do("a terminal does not go on reconnecting, and says where it is", world.Navigate(here), text("another address"), world.Until(fmt.Sprintf(`location.hash === "" && document.querySelector("#go").href === %q`, entry)))
	c.see("terminal-elsewhere")
	if hit := c.read(`(() => { const b = document.querySelector("#go").getBoundingClientRect(); return document.elementFromPoint(b.x + b.width / 2, b.y + b.height / 2).id; })()`); hit != "go" {
		t.Errorf("a click on the way there reaches %q", hit)
	}
	c.do("the way there opens it, with the code that was not used up", press("Open it there"), connected())
	if at := c.read(`location.href`); at != r.URL+wire.TerminalPath+string(tun.SessionID) {
		t.Errorf("the terminal is at %s", at)
	}
}

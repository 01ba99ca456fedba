package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/testkit/issuer"
)

// consolePage is the console in a browser.
type consolePage struct {
	w   *world.World
	r   *world.Relay
	ctx context.Context
	axe string
}

// newConsole opens the console of a relay that was built with its pages.
func newConsole(w *world.World, r *world.Relay) *consolePage {
	w.T.Helper()
	status, body := world.Get(w.HTTP(), r.URL+"/console")
	if status != 200 || strings.Contains(body, "built without its web pages") {
		w.T.Skipf("this relay has no pages (%d): scripts/build makes them", status)
	}
	axe, err := os.ReadFile("../internal/web/ui/node_modules/axe-core/axe.min.js")
	if err != nil {
		w.T.Skipf("npm's packages are not installed: %v", err)
	}
	c := &consolePage{w: w, r: r, ctx: w.Browser(6 * time.Minute), axe: string(axe)}
	c.do("the console opens", world.Navigate(r.URL+"/console"), withToken())
	return c
}

// withToken opens the part of the sign-in view that takes a secret.
func withToken() chromedp.Action[chromedp.Void] {
	return func(ctx context.Context, t *chromedp.Target) (chromedp.Void, error) {
		if v, err := world.Until(`document.querySelector(".signin details #secret")`)(ctx, t); err != nil {
			return v, err
		}
		return evaluate(`document.querySelector(".signin details").open = true`)(ctx, t)
	}
}

func (c *consolePage) do(what string, actions ...chromedp.Action[chromedp.Void]) {
	c.w.T.Helper()
	c.w.Do(c.ctx, what, actions...)
}

// text waits until the page shows a text.
func text(s string) chromedp.Action[chromedp.Void] {
	return world.Until(fmt.Sprintf(`document.body.innerText.toLowerCase().includes(%q)`, strings.ToLower(s)))
}

// press clicks the button or link with an accessible name, once it is there.
func press(name string) chromedp.Action[chromedp.Void] {
	find := fmt.Sprintf(`(() => { const within = [...document.querySelectorAll("dialog[open]")].pop() || document;
		return [...within.querySelectorAll("button, a")].find((b) => !b.disabled && (b.getAttribute("aria-label") || b.textContent.trim()) === %q); })()`, name)
	return func(ctx context.Context, t *chromedp.Target) (chromedp.Void, error) {
		if v, err := world.Until(find)(ctx, t); err != nil {
			return v, err
		}
		return evaluate("{ const b = "+find+"; b.focus(); b.click(); }")(ctx, t)
	}
}

// focused waits until no dialog is open and the button with an accessible name has the
// focus, as after a dialog that it opened.
func focused(name string) chromedp.Action[chromedp.Void] {
	return world.Until(fmt.Sprintf(`!document.querySelector("dialog[open]") && (document.activeElement.getAttribute("aria-label") || document.activeElement.textContent.trim()) === %q`, name))
}

// fill sets a field as typing does.
func fill(selector, value string) chromedp.Action[chromedp.Void] {
	return evaluate(fmt.Sprintf(`(() => { const e = document.querySelector(%q); const set = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(e), "value").set;
		set.call(e, %q); e.dispatchEvent(new Event("input", { bubbles: true })); e.dispatchEvent(new Event("change", { bubbles: true })); })()`, selector, value))
}

func (c *consolePage) read(js string) string {
	c.w.T.Helper()
	s, err := chromedp.Run(c.ctx, chromedp.Evaluate[string](js))
	if err != nil {
		c.w.T.Fatalf("%s: %v", js, err)
	}
	return s
}

func (c *consolePage) signIn(secret string) {
	c.w.T.Helper()
	c.do("signing in works", withToken(), chromedp.SendKeys("#secret", secret), chromedp.KeyEvent("\r"), world.Until(`document.querySelector(".pulse.live")`))
}

// looks are how people see the page.
var looks = []struct {
	name          string
	dark          bool
	width, height int64
}{{"light", false, 1280, 900}, {"dark", true, 1280, 900}, {"phone", false, 390, 844}}

// see looks at the page in each way: axe finds no serious fault, nothing is wider than
// the screen, and a screenshot is kept where ADIT_E2E_SHOTS says.
func (c *consolePage) see(name string) {
	t := c.w.T
	t.Helper()
	for _, l := range looks {
		scheme := "light"
		if l.dark {
			scheme = "dark"
		}
		c.do("the page is shown "+l.name, chromedp.EmulateViewport(l.width, l.height), chromedp.Func(func(ctx context.Context, tg *chromedp.Target) error {
			_, err := cdp.Call(ctx, tg, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
				{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"},
			}})
			return err
		}))
		if dir := os.Getenv("ADIT_E2E_SHOTS"); dir != "" {
			png, err := chromedp.Run(c.ctx, chromedp.CaptureScreenshot())
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, fmt.Sprintf("console-%s-%s.png", name, l.name)), png, 0o644)
			}
			if err != nil {
				t.Errorf("keep a screenshot: %v", err)
			}
		}
		if wide := c.read(`String(document.documentElement.scrollWidth - innerWidth)`); wide != "0" && !strings.HasPrefix(wide, "-") {
			t.Errorf("%s, %s: the page is %s pixels wider than the screen", name, l.name, wide)
		}
		c.do("axe runs", evaluate(c.axe+`; 0`), evaluate(`axe.run(document, { resultTypes: ["violations"] }).then((r) => { window.found = JSON.stringify(r.violations.map((v) => ({ id: v.id, impact: v.impact, nodes: v.nodes.map((n) => n.html.slice(0, 160) + " " + n.failureSummary) }))); })`))
		var found []struct {
			ID, Impact string
			Nodes      []string
		}
		if err := json.Unmarshal([]byte(c.read(`window.found`)), &found); err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			if f.Impact == "serious" || f.Impact == "critical" {
				t.Errorf("%s, %s: axe: %s (%s): %s", name, l.name, f.ID, f.Impact, strings.Join(f.Nodes, "\n"))
			} else {
				t.Logf("%s, %s: axe: %s (%s) at %d places", name, l.name, f.ID, f.Impact, len(f.Nodes))
			}
		}
	}
	c.do("back to the desk", chromedp.EmulateViewport(1280, 900))
}

// gpuBox is the environment of an agent on a machine with GPUs.
func gpuBox(w *world.World, labels string) []string {
	w.T.Helper()
	dir := filepath.Join(w.Dir, "smi")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		w.T.Fatal(err)
	}
	script := "#!/bin/sh\necho 'NVIDIA A100-SXM4-80GB, 81920, 30210'\necho 'NVIDIA A100-SXM4-80GB, 81920, 80912'\n"
	if err := os.WriteFile(filepath.Join(dir, "nvidia-smi"), []byte(script), 0o755); err != nil {
		w.T.Fatal(err)
	}
	return []string{"PATH=" + dir + ":" + os.Getenv("PATH"), "ADIT_LABELS=" + labels}
}

func TestConsole(t *testing.T) {
	w := world.New(t)
	r := w.Relay("ADIT_WILDCARD_DOMAIN=localhost", world.PathForm)
	sk := r.Credential("integration", world.Team, "--name", "console")
	port, _ := sharedApp(t)
	c := newConsole(w, r)

	c.do("beside apps of its origin, nobody signs in with a browser, and the page says what the operator can do", text("console_url"))
	c.see("signin")
	c.do("a wrong secret is refused in words", chromedp.SendKeys("#secret", "sk-"+strings.Repeat("a", 40)), chromedp.KeyEvent("\r"), world.Until(`document.querySelector("[role=alert]")`))
	c.do("the field is emptied", fill("#secret", ""))
	c.signIn(sk)

	c.do("without machines the page says how to get one", text("No machine is connected"), text("adit-agent run"))
	c.see("empty")
	w.Agent(r, "gpu-7", gpuBox(w, "rack=b12,pool=render,fast")...)
	c.do("a machine appears by itself, with its facts", text("gpu-7"), text("Idle"), text("rack"), text("fast"), text("a100"), text("NVIDIA A100-SXM4-80GB"), text("of 80.0 GiB"))
	other := w.Agent(r, "gpu-12", gpuBox(w, "pool=train")...)
	c.do("another one, too, in the order people count", text("gpu-12"), world.Until(`document.querySelector(".agent-card h2").textContent === "gpu-7"`))

	c.do("opening a tunnel by keyboard: a preset, a port, a label",
		press("Open tunnel to gpu-7"), world.Until(`document.querySelector("dialog[open]")`),
		evaluate(`document.querySelector("input[value=jupyter]").click()`), world.Until(`document.querySelector("#open-port").value === "8888"`),
		evaluate(`document.querySelector("input[value=ssh]").click()`), world.Until(`document.querySelector("#open-port").value === "22" && document.querySelector("#open-protocol").value === "tcp"`),
		evaluate(`document.querySelector("input[value=gradio]").click()`), world.Until(`document.querySelector("#open-port").value === "7860" && document.querySelector("#open-protocol").value === "http"`),
		evaluate(`document.querySelector("input[value=comfyui]").click()`), world.Until(`document.querySelector("#open-port").value === "8188"`),
		fill("#open-port", fmt.Sprint(port)), world.Until(`document.querySelector("input[value=custom]").checked`),
		fill("#open-label", "the week's renders"), fill("#open-idle", "1h"))
	c.see("open")
	c.do("the tunnel opens and shows its link and a QR code", evaluate(`document.querySelector("#open-label").focus()`), chromedp.KeyEvent("\r"),
		text("is open"), world.Until(`document.querySelector("dialog .share input").value.startsWith("http") && document.querySelector("dialog svg.qr path").getAttribute("d").length > 500`))
	c.see("opened")
	url := c.read(`document.querySelector("dialog .share input").value`)
	if status, _ := world.Get(w.HTTP(), url); status != 200 {
		t.Errorf("the link that is shown answers %d", status)
	}
	c.do("Escape closes the dialog and focus returns", chromedp.KeyEvent("\x1b"), world.Until(`!document.querySelector("dialog") && document.activeElement.getAttribute("aria-label") === "Open tunnel to gpu-7"`))
	c.do("the list shows what the tunnel is for, live", text("the week's renders"), text("http "+fmt.Sprint(port)), text("opened by"), world.Until(`document.querySelector(".state.is-tunnel")`))
	var st api.TunnelStatus
	r.API(sk, http.MethodGet, "/agents/gpu-7/tunnel", nil, &st)
	if len(st.Sessions) != 1 || st.Sessions[0].Label != "the week's renders" || st.Sessions[0].IdleTimeout.D() != time.Hour {
		t.Fatalf("the relay has %+v", st.Sessions)
	}
	session := st.Sessions[0]

	c.do("copying the link", evaluate(`navigator.clipboard.writeText = (s) => { window.copied = s; return Promise.resolve(); }`), press("Copy link of the week's renders"), world.Until(fmt.Sprintf(`window.copied === %q`, url)), text("Copied"))
	c.do("its QR code", press("QR code of the week's renders"), world.Until(`document.querySelector("dialog svg.qr")`), press("Close this dialog"))

	c.do("who may use it is shown, and changed", text("anyone who has the link"), press("Access to the week's renders"), fill("dialog[open] select", "people"), world.Until(`document.querySelector("dialog[open] [id$=-people]")`),
		fill("dialog[open] [id$=-people]", "alice@example.com, *@partner.example"))
	c.see("access")
	c.do("it is saved", press("Save"), text("alice@example.com, *@partner.example"), focused("Access to the week's renders"))
	var now api.Access
	if r.API(sk, http.MethodGet, "/tunnels/"+string(session.SessionID)+"/access", nil, &now); now.Access != api.AccessPeople || len(now.People) != 2 {
		t.Errorf("the relay has %+v", now)
	}
	r.API(sk, http.MethodPut, "/tunnels/"+string(session.SessionID)+"/access", map[string]any{"access": "anyone"}, nil)
	c.do("a change by others is shown", text("anyone who has the link"))

	// Somebody opens the link; then is sent away.
	as(r, api.NamedLink{Segment: hostLabel(url)}, "GET", "Mozilla/5.0 Ann's Firefox")
	c.do("viewers are listed", evaluate(`[...document.querySelectorAll("button")].find((b) => /^Viewers.* of the week/.test(b.getAttribute("aria-label"))).click()`), text("Ann's Firefox"))
	c.do("a viewer is disconnected", evaluate(`[...document.querySelectorAll(".rows li")].find((l) => l.innerText.includes("Ann's Firefox")).querySelector("button").click()`), text("was disconnected"))
	if a := call(r, "GET", "/tunnel/"+hostLabel(url)+"/x", "", "User-Agent", "Mozilla/5.0 Ann's Firefox"); a.Status != 403 {
		t.Errorf("a disconnected viewer is back at once: %s", a)
	}

	c.do("named links: one is made", press("Named links of the week's renders"), text("None yet"), evaluate(`document.querySelector(".line input").focus()`), chromedp.KeyEvent("for the customer"), press("Make link"), text("0 of 1 use"), text("is ready"))
	c.see("links")
	c.do("who may come by one is changed", press("Access by the link for for the customer"), world.Until(`document.querySelector("dialog[open] select").value === "anyone"`),
		evaluate(`document.querySelector("dialog[open] details").open = true`), evaluate(`document.querySelector("dialog[open] input[type=checkbox]").click()`), press("Save"), text("for anyone who has the link, to look only"), world.Until(`!document.querySelector("dialog[open]")`))
	if l := linksOf(r, sk, api.Tunnel{SessionID: session.SessionID})["for the customer"]; l.Access.Access != api.AccessAnyone || !l.ReadOnly {
		t.Errorf("the relay has the link with %+v", l.Access)
	}
	c.do("and given back to the tunnel", press("Access by the link for for the customer"), fill("dialog[open] select", ""), world.Until(`!document.querySelector("dialog[open] details")`), press("Save"), world.Until(`!document.querySelector("dialog[open]") && !document.querySelector(".rows").innerText.includes("to look only")`))
	links := linksOf(r, sk, api.Tunnel{SessionID: session.SessionID})
	if path, _ := as(r, links["for the customer"], "GET", "Customer"); path.Status != 200 {
		t.Errorf("the named link answers %s", path)
	}
	c.do("its use shows by itself", text("1 of 1 use"))
	c.do("it is copied and has a QR code", press("Copy the link for for the customer"), world.Until(fmt.Sprintf(`window.copied === %q`, links["for the customer"].URL)), press("QR code of the link for for the customer"), world.Until(`document.querySelector("dialog svg.qr")`), press("Close this dialog"))
	c.do("it is revoked", press("Revoke the link for for the customer"), text("is revoked"), text("None yet"))
	if path, _ := as(r, links["for the customer"], "GET", "Customer"); path.Status != 404 {
		t.Errorf("a revoked link answers %s", path)
	}

	c.do("extending", press("Extend the week's renders"), fill("#extend-by", "72h"), press("Extend"), text("stays open until"))
	r.API(sk, http.MethodGet, "/agents/gpu-7/tunnel", nil, &st)
	if left := time.Until(st.Sessions[0].ExpiresAt); left < 71*time.Hour {
		t.Errorf("extended to %s from now, asked for 72 h", left)
	}

	// A refusal of the machine is shown with its code.
	c.do("nothing listens, and a wrong port is refused before the relay is asked", press("Open tunnel to gpu-12"), fill("#open-port", "0"), press("Open tunnel"), text("1 to 65535"))
	c.do("a port of the agent's own is refused by the machine", fill("#open-port", fmt.Sprint(other.Local)), press("Open tunnel"), text("port_not_allowed"))
	c.see("refused")
	c.do("the dialog is left", press("Cancel"), focused("Open tunnel to gpu-12"))

	// A task, and when_busy.
	var lease api.TaskLease
	r.API(sk, http.MethodPost, "/agents/gpu-12/tasks", map[string]any{"task_id": "train-7"}, &lease)
	c.do("a running task shows", text("1 task running"), world.Until(`document.querySelector(".state.is-busy")`))
	c.do("a tunnel can wait for it", press("Open tunnel to gpu-12"), fill("#open-port", fmt.Sprint(port)), fill("#open-busy", "wait"), press("Open tunnel"), text("Waiting for the running tasks"))
	if status, p := r.API(lease.LeaseToken, http.MethodGet, "/agents", nil, nil); status != 401 {
		t.Fatalf("a lease token is no credential: %d %v", status, p)
	}
	if a := call(r, "DELETE", "/api/v1/agents/gpu-12/tasks/train-7", fmt.Sprintf(`{"lease_token":%q}`, lease.LeaseToken), "Authorization", "Bearer "+sk); a.Status != 204 {
		t.Fatalf("release: %s", a)
	}
	c.do("and opens when it has ended", text("Tunnel to gpu-12 is open"), press("Done"), focused("Open tunnel to gpu-12"))

	c.do("filtering by a label", chromedp.KeyEvent("/"), world.Until(`document.activeElement.type === "search"`), fill("input[type=search]", "render"), world.Until(`document.querySelectorAll(".agent-card").length === 1`), text("1 shown"))
	c.do("by a label as the API has it", fill("input[type=search]", "pool=train"), world.Until(`document.querySelector(".agent-card h2").textContent === "gpu-12"`))
	c.do("and by one that the relay found", fill("input[type=search]", "a100 comfyui"), text("No machine matches"), fill("input[type=search]", "a100 "+runtime.GOARCH), text("2 shown"))
	c.do("no match is said", fill("input[type=search]", "renderxyz"), text("No machine matches"), press("Clear the filter"), world.Until(`document.querySelectorAll(".agent-card").length === 2`))
	c.see("board")

	c.do("closing asks first", press("Close the week's renders"), text("The link stops working"), press("Close tunnel"), text("is closed"), world.Until(`document.querySelector(".agent-card .state.is-idle")`))
	if status, _ := world.Get(w.HTTP(), url); status != 404 {
		t.Errorf("a closed tunnel's link answers %d", status)
	}

	// What the page may not do.
	if kept := c.read(`JSON.stringify([Object.keys(localStorage), Object.keys(sessionStorage), document.cookie, location.href, history.length > 0 ? performance.getEntries().map((e) => e.name).filter((n) => n.includes("sk-")) : []])`); strings.Contains(kept, "sk-") || !strings.HasPrefix(kept, `[[],[],"",`) {
		t.Errorf("the page keeps %s", kept)
	}
	if strings.Contains(r.Log(), sk[3:]) {
		t.Error("the secret is in the relay's log")
	}

	// The relay goes away and comes back.
	r.Kill()
	c.do("a lost relay is said, with what was known", text("cannot be reached"), world.Until(`document.querySelectorAll(".agent-card").length === 2`))
	c.see("offline")
	r.Start()
	r.WaitReady(30 * time.Second)
	c.do("and found again by itself", world.Until(`document.querySelector(".pulse.live")`), world.Until(`!document.querySelector(".banner")`))
	other.Kill()
	c.do("a machine that is gone leaves", text("gpu-12 is gone"), world.Until(`document.querySelectorAll(".agent-card").length === 1`))

	c.do("signing out forgets the secret", press("Sign out"), world.Until(`document.querySelector("#secret") && document.querySelector("#secret").value === ""`))
}

// hostLabel is the segment of a tunnel's URL in subdomain form.
func hostLabel(url string) string {
	_, host, _ := strings.Cut(url, "://")
	label, _, _ := strings.Cut(host, ".")
	return label
}

func TestConsoleForPeople(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	is := issuer.Start(t)
	r := w.Relay(oidcEnv(is)...)
	w.Agent(r, "gpu-1")
	c := newConsole(w, r)
	c.do("whoever is in no team is told so", chromedp.SendKeys("#secret", is.Token(members())), chromedp.KeyEvent("\r"), world.Until(`document.querySelector("[role=alert]")`), text("in no team"))
	c.do("a member comes in, and types no team", fill("#secret", is.Token(members(world.Team))), press("Sign in with the token"), text("gpu-1"), world.Until(`document.querySelector(".pulse.live") && !document.querySelector("#team")`))

	// A credential that is revoked ends the page's stream, and it says why.
	device := created(r, is.Token(members(world.Team)), world.Team, `{"kind":"device","name":"laptop"}`)
	c.do("another secret", press("Sign out"), world.Until(`document.querySelector("#secret")`))
	c.signIn(device.Secret)
	if a := asPerson(r, is.Token(members(world.Team)), world.Team, http.MethodDelete, "/credentials/"+string(device.ID), ""); a.Status != 204 {
		t.Fatalf("revoke: %s", a)
	}
	c.do("a revoked secret leads back to the sign-in, with the reason", world.Until(`document.querySelector("#secret") && document.querySelector("[role=alert]")`))
}

func TestConsoleObeysItsPolicy(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay("ADIT_WILDCARD_DOMAIN=localhost", world.PathForm)
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	// An app in path form, of the console's own origin, that wants to hold a console.
	hostile := app(t, func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "text/html")
		rw.Header().Set("Cross-Origin-Opener-Policy", "same-origin")
		fmt.Fprint(rw, `<title>hostile</title><iframe src="/console"></iframe>`)
	})
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": hostile})
	c := newConsole(w, r)
	blocked := c.read(`(async () => 0)() && (() => { window.violations = []; addEventListener("securitypolicyviolation", (e) => violations.push(e.violatedDirective)); const s = document.createElement("script"); s.textContent = "window.ran = 1"; document.body.append(s); const i = new Image(); i.src = "http://127.0.0.1:1/x"; return String(window.ran); })()`)
	if blocked != "undefined" {
		t.Error("an inline script ran in the console")
	}
	c.do("foreign images are refused", world.Until(`violations.some((v) => v.startsWith("img-src")) && violations.some((v) => v.startsWith("script-src"))`))
	c.do("a page of a tunnel cannot frame the console", world.Navigate(r.PathURL(tun)), world.Until(`document.title === "hostile"`),
		world.Until(`(() => { try { return !document.querySelector("iframe").contentDocument?.querySelector("#secret"); } catch { return true; } })()`))
	c.do("nor hold one that it opened", evaluate(`window.held = window.open("/console"); 0`), world.Until(`window.held.closed || (() => { try { return !window.held.document.querySelector("#secret") && window.held.document.URL !== "about:blank"; } catch { return true; } })()`))
}

// The console opens a tunnel's terminal in a tab of its own: no secret is carried by
// hand, and none is in the console's own address.
func TestConsoleOpensATerminal(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	terminalAgent(w, r)
	sk := r.Credential("integration", world.Team)
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": 9, "label": "shell"})
	c := newConsole(w, r)
	c.signIn(sk)
	c.do("the terminal of a tunnel is one press away", world.Until(`document.querySelector("[aria-label='Terminal of shell in a new tab']")`), chromedp.Click(`[aria-label="Terminal of shell in a new tab"]`), text("opens in a new tab"))
	w.Eventually(45*time.Second, "its page is attached", func() bool {
		var v api.ViewerList
		r.API(tun.AdminToken, http.MethodGet, "/tunnels/"+string(tun.SessionID)+"/viewers", nil, &v)
		return len(v.Viewers) == 1 && v.Viewers[0].Connections == 1
	})
	if at := c.read(`location.href`); at != r.URL+"/console" {
		t.Errorf("the console is at %s", at)
	}
	r.API(sk, http.MethodDelete, "/agents/gpu-1/tunnel", nil, nil)
	c.do("the tunnel goes, and its button", world.Until(`!document.querySelector(".tunnel")`))
}

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/testkit/wan"
	"github.com/adit-tunnel/adit/shared/wire"
)

// terminalAgent starts an agent whose terminals run as the user of the tests, with a
// plain prompt, in a directory of their own.
func terminalAgent(w *world.World, r *world.Relay, env ...string) *world.Agent {
	w.T.Helper()
	me, err := user.Current()
	if err != nil {
		w.T.Fatal(err)
	}
	home := filepath.Join(w.Dir, "home")
	if err := os.MkdirAll(home, 0o755); err != nil {
		w.T.Fatal(err)
	}
	return w.Agent(r, "gpu-1", append([]string{
		"ADIT_TERMINAL_ENABLED=true", "ADIT_TERMINAL_USER=" + me.Username, "ADIT_TERMINAL_SHELL=/bin/bash", "ADIT_TERMINAL_DIR=" + home,
		// No start files of whoever runs the tests, and nothing that a shell writes at its end,
		// when the directory goes.
		"ADIT_TERMINAL_ENV=HOME=" + home + ",HISTFILE=/dev/null",
	}, env...)...)
}

// screen is a terminal's page in a tab.
type screen struct {
	w   *world.World
	ctx context.Context
}

// terminalURL makes an address that enters a tunnel's terminal once.
func terminalURL(r *world.Relay, t api.Tunnel, readOnly bool) string {
	r.W.T.Helper()
	var made api.TerminalCode
	if status, p := r.API(t.AdminToken, http.MethodPost, "/tunnels/"+string(t.SessionID)+"/terminal", api.TerminalRequest{ReadOnly: readOnly}, &made); status != http.StatusCreated {
		r.W.T.Fatalf("a terminal's address: %d %v", status, p)
	}
	return made.TerminalURL
}

// terminalPage opens a terminal's page and waits until it is attached.
func terminalPage(w *world.World, r *world.Relay, tab context.Context, t api.Tunnel, readOnly bool) *screen {
	w.T.Helper()
	if status, body := world.Get(w.HTTP(), r.URL+wire.TerminalPath+string(t.SessionID)); status != http.StatusOK || strings.Contains(body, "built without its web pages") {
		w.T.Fatalf("this relay has no web pages (%d): build it with scripts/build", status)
	}
	s := &screen{w, tab}
	s.do("the terminal's page attaches", world.Navigate(terminalURL(r, t, readOnly)), connected())
	return s
}

// connected waits until the page is attached and painted: Chromium drops keys that
// come before what it drew first is on the screen.
func connected() chromedp.Action[chromedp.Void] {
	return func(ctx context.Context, t *chromedp.Target) (chromedp.Void, error) {
		if v, err := world.Until(`document.getElementById("state").textContent === "connected" && performance.getEntriesByName("first-contentful-paint").length > 0`)(ctx, t); err != nil {
			return v, err
		}
		return evaluate(`new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))`)(ctx, t)
	}
}

func (s *screen) do(what string, actions ...chromedp.Action[chromedp.Void]) {
	s.w.T.Helper()
	s.w.Do(s.ctx, what, actions...)
}

// keys presses keys in the terminal, as a person does: unlike chromedp.KeyEvent, with
// the text in the event of the key going down, so that a page can keep the browser
// from typing it. Control characters are their letter with Ctrl.
func keys(text string) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		if _, err := evaluate(`terminal.focus()`)(ctx, t); err != nil {
			return err
		}
		for _, r := range text {
			events := kb.Encode(r)
			down, up := *events[0], *events[len(events)-1]
			if len(events) == 3 {
				down.Text, down.UnmodifiedText = events[1].Text, events[1].UnmodifiedText
			}
			if r < ' ' && r != '\r' && r != '\t' && r != '\x1b' {
				letter := kb.Encode(r + 'a' - 1)
				down, up = *letter[0], *letter[2]
				down.Modifiers, up.Modifiers = int64(chromedp.ModifierCtrl), int64(chromedp.ModifierCtrl)
			}
			for _, event := range []input.DispatchKeyEventParams{down, up} {
				if _, err := cdp.Call(ctx, t, input.DispatchKeyEvent, event); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// bufferText is all text of the terminal's buffer, with lines that wrapped joined.
const bufferText = `(() => { const b = terminal.buffer.active; let s = ""; for (let i = 0; i < b.length; i++) { const l = b.getLine(i); s += (l.isWrapped ? "" : "\n") + l.translateToString(true); } return s; })()`

// shows waits until the terminal's buffer holds a text.
func shows(text string) chromedp.Action[chromedp.Void] {
	return world.Until(fmt.Sprintf(`%s.includes(%q)`, bufferText, text))
}

func get[T any](s *screen, js string) T {
	s.w.T.Helper()
	v, err := chromedp.Run(s.ctx, chromedp.Evaluate[T](js))
	if err != nil {
		s.w.T.Fatalf("%s: %v", js, err)
	}
	return v
}

func (s *screen) wait(limit time.Duration, what, js string) {
	s.w.T.Helper()
	s.w.Eventually(limit, what, func() bool {
		ok, err := chromedp.Run(s.ctx, chromedp.Evaluate[bool]("!!("+js+")"))
		return err == nil && ok
	})
}

func TestTerminalPrograms(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	terminalAgent(w, r)
	tun := r.Open(r.Credential("integration", world.Team), "gpu-1", map[string]any{"target_port": 9})
	s := terminalPage(w, r, w.Browser(4*time.Minute), tun, false)
	if hash := get[string](s, `location.href`); strings.Contains(hash, "code") || strings.Contains(hash, "#") {
		t.Errorf("the code leaves the address bar at once: %s", hash)
	}
	if kept := get[string](s, `JSON.stringify([localStorage, sessionStorage, document.cookie, history.state])`); strings.Contains(kept, "tc-") || strings.Contains(kept, "tr-") {
		t.Errorf("neither the code nor what it brought is kept: %s", kept)
	}
	s.do("reports of what the page's policy forbids are collected", evaluate(`window.forbidden = []; new ReportingObserver((l) => forbidden.push(...l.map((x) => JSON.stringify(x.body))), { types: ["csp-violation"], buffered: true }).observe()`))

	s.do("vim edits a file", keys("vim -u NONE -n greeting.txt\r"), world.Until(`terminal.buffer.active.type === "alternate"`), keys("ihello from vim: äöü €"), shows("hello from vim: äöü €"),
		keys("\x1b:wq\r"), world.Until(`terminal.buffer.active.type === "normal"`), keys("cat greeting.txt | tr a-z A-Z\r"), shows("HELLO FROM VIM"))
	if b, err := os.ReadFile(filepath.Join(w.Dir, "home", "greeting.txt")); err != nil || string(b) != "hello from vim: äöü €\n" {
		t.Errorf("the file on the machine holds %q %v", b, err)
	}
	s.do("htop draws, and ends with q", keys("htop\r"), shows("Load average"), shows("F10"), keys("q"), world.Until(`terminal.buffer.active.type === "normal"`))
	s.do("truecolour and wide characters are drawn", keys(`printf '\e[38;2;250;100;0mor\141nge\e[0m 漢字 \U0001F642\n'`+"\r"), shows("orange 漢字 🙂"))

	before := get[int](s, `terminal.cols`)
	s.do("the program learns of the window's size", chromedp.EmulateViewport(700, 500), world.Until(fmt.Sprintf(`terminal.cols < %d`, before)), keys("stty size\r"),
		world.Until(fmt.Sprintf(`%s.includes("\n" + terminal.rows + " " + terminal.cols + "\n")`, bufferText)), chromedp.EmulateViewport(1200, 900))

	s.do("copying and pasting are allowed", chromedp.Func(func(ctx context.Context, tg *chromedp.Target) error {
		for _, name := range []string{"clipboard-read", "clipboard-write"} {
			if _, err := cdp.Call(ctx, tg, browser.SetPermission, browser.SetPermissionParams{Permission: &browser.PermissionDescriptor{Name: name}, Setting: "granted", Origin: r.URL}); err != nil {
				return err
			}
		}
		return nil
	}))
	s.do("copy takes the selection, paste types it, in brackets", keys("clear; echo 'echo pas'ted$((20+3))\r"), shows("\necho pasted23"), evaluate(`terminal.select(0, [...Array(terminal.buffer.active.length).keys()].find((i) => terminal.buffer.active.getLine(i).translateToString(true) === "echo pasted23"), 13)`),
		chromedp.Click("#copy"), world.Until(`!document.hidden`), evaluate(`navigator.clipboard.readText().then((t) => { if (t !== "echo pasted23") throw new Error("copied " + t); })`),
		evaluate(`terminal.clear()`), chromedp.Click("#paste"), shows("# echo pasted23"), keys("\r"), shows("\npasted23"))
	s.do("a search finds and counts", chromedp.Click("#find"), chromedp.SendKeys("#query", "pasted23"), world.Until(`/^\d+ of \d+$/.test(document.getElementById("matches").textContent)`), keys(""), chromedp.Click("#close-search"))

	if forbidden := get[[]string](s, `window.forbidden`); len(forbidden) > 0 {
		t.Errorf("the page keeps to its policy: %v", forbidden)
	}
	s.do("the shell's end is told, and another can be opened", keys("exit 3\r"), world.Until(`document.getElementById("over-text").textContent.includes("exit status 3")`),
		chromedp.Click("#again"), connected(), keys("echo a'gain'\r"), shows("\nagain"))
	if audit := w.Run(nil, filepath.Join(w.Bin, "adit-relay"), "audit", "--socket", filepath.Join(r.DataDir, "admin.sock")); strings.Count(audit, `"terminal_opened"`) != 2 || !strings.Contains(audit, "bytes typed") || strings.Contains(audit, tun.AdminToken) {
		t.Errorf("each attachment is audited, without secrets:\n%s", audit)
	}
}

// terminalLooks are how people see the page.
var terminalLooks = []struct {
	name          string
	dark          bool
	width, height int64
}{{"light", false, 1200, 800}, {"dark", true, 1200, 800}, {"phone", false, 390, 844}}

func TestTerminalLooks(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	terminalAgent(w, r)
	tun := r.Open(r.Credential("integration", world.Team), "gpu-1", map[string]any{"target_port": 9})
	axe, err := os.ReadFile("../internal/web/ui/node_modules/axe-core/axe.min.js")
	if err != nil {
		t.Fatalf("npm's packages are not installed: %v", err)
	}
	s := &screen{w, w.Browser(4 * time.Minute)}
	see := func(name string) {
		t.Helper()
		for _, l := range terminalLooks {
			scheme := "light"
			if l.dark {
				scheme = "dark"
			}
			s.do("the page is shown "+l.name, chromedp.EmulateViewport(l.width, l.height), chromedp.Func(func(ctx context.Context, tg *chromedp.Target) error {
				_, err := cdp.Call(ctx, tg, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
					{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"}, // it replaces all that was set
				}})
				return err
			}), evaluate(`new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))`))
			if dir := os.Getenv("ADIT_E2E_SHOTS"); dir != "" {
				png, err := chromedp.Run(s.ctx, chromedp.CaptureScreenshot())
				if err == nil {
					err = os.WriteFile(filepath.Join(dir, fmt.Sprintf("terminal-%s-%s.png", name, l.name)), png, 0o644)
				}
				if err != nil {
					t.Errorf("keep a screenshot: %v", err)
				}
			}
			s.do("axe is there", evaluate(string(axe)+";0"))
			faults, err := chromedp.Run(s.ctx, chromedp.Evaluate[string](`axe.run(document, {resultTypes: ["violations"]}).then((r) => r.violations.filter((v) => ["serious", "critical"].includes(v.impact))
				.map((v) => v.id + ": " + v.nodes.map((n) => n.target + " " + n.failureSummary).join(" | ")).join("\n"))`, chromedp.EvalAwaitPromise))
			if err != nil || faults != "" {
				t.Errorf("axe finds no serious fault, %s, %s: %v\n%s", name, l.name, err, faults)
			}
			if wide := get[int](s, `document.documentElement.scrollWidth - innerWidth`); wide > 0 {
				t.Errorf("%s, %s: nothing is wider than the screen, by %d px", name, l.name, wide)
			}
		}
	}
	s.do("without a token a form asks for it", world.Navigate(r.URL+wire.TerminalPath+string(tun.SessionID)), chromedp.WaitVisible("#token"))
	see("form")
	s.do("a wrong token is refused", chromedp.SendKeys("#token", "adm-wrong\r"), world.Until(`document.getElementById("state").textContent === "refused"`))
	s.do("the right one attaches", chromedp.SendKeys("#token", tun.AdminToken+"\r"), connected(), keys("ls -la --color=always /; printf '\\e[31mred \\e[32mgreen \\e[33myellow \\e[34mblue\\e[0m\\n'\r"), shows("red green"))
	see("shell")
	s.do("a search is open", chromedp.Click("#find"), chromedp.SendKeys("#query", "usr"))
	see("search")
	s.do("the end", chromedp.Click("#close-search"), keys("exit\r"), world.Until(`!document.getElementById("over").hidden`))
	see("over")
}

// With motion a page is looked at when what moves has come to rest; who wants none
// sees none.
func TestTerminalMotion(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	terminalAgent(w, r)
	tun := r.Open(r.Credential("integration", world.Team), "gpu-1", map[string]any{"target_port": 9})
	axe, err := os.ReadFile("../internal/web/ui/node_modules/axe-core/axe.min.js")
	if err != nil {
		t.Fatalf("npm's packages are not installed: %v", err)
	}
	s := &screen{w, w.Browser(4 * time.Minute)}
	media := func(motion string) chromedp.Action[chromedp.Void] {
		return chromedp.Func(func(ctx context.Context, tg *chromedp.Target) error {
			_, err := cdp.Call(ctx, tg, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-reduced-motion", Value: motion}}})
			return err
		})
	}
	// A cursor that blinks never ends.
	moving := `document.getAnimations().filter((a) => a.effect.getComputedTiming().iterations !== Infinity)`
	count := `(() => { window.moves = 0; document.addEventListener("transitionrun", () => window.moves++); document.addEventListener("animationstart", () => window.moves++); })()`
	form := []chromedp.Action[chromedp.Void]{world.Navigate(r.URL + wire.TerminalPath + string(tun.SessionID)), chromedp.WaitVisible("#token"), evaluate(count)}
	refusedNow := world.Until(`document.getElementById("state").textContent === "refused"`)

	s.do("a page with motion", append(append([]chromedp.Action[chromedp.Void]{media("no-preference")}, form...), chromedp.SendKeys("#token", "adm-wrong\r"), refusedNow,
		world.Until(`window.moves > 0`), evaluate(`Promise.all(`+moving+`.map((a) => a.finished.catch(() => 0)))`), world.Until(moving+`.length === 0`), evaluate(string(axe)+";0"))...)
	faults, err := chromedp.Run(s.ctx, chromedp.Evaluate[string](`axe.run(document, {resultTypes: ["violations"]}).then((r) => r.violations.filter((v) => ["serious", "critical"].includes(v.impact)).map((v) => v.id + ": " + v.nodes.map((n) => n.target + " " + n.failureSummary).join(" | ")).join("\n"))`, chromedp.EvalAwaitPromise))
	if err != nil || faults != "" {
		t.Errorf("axe finds no serious fault once it rests: %v\n%s", err, faults)
	}

	s.do("a page without motion", append(append([]chromedp.Action[chromedp.Void]{media("reduce")}, form...), chromedp.SendKeys("#token", "adm-wrong\r"), refusedNow)...)
	if n := get[int](s, `document.getAnimations().length`); n != 0 || get[int](s, `window.moves`) != 0 {
		t.Errorf("%d things move although the user wants none", n)
	}
	s.do("the console", world.Navigate(r.URL+"/console"), withToken(), evaluate(count),
		chromedp.SendKeys("#secret", r.Credential("integration", world.Team)), chromedp.KeyEvent("\r"), world.Until(`document.querySelector(".pulse.live")`))
	r.Kill()
	s.do("which shows that it is cut off", world.Until(`document.querySelector(".pulse.lost")`))
	if n := get[int](s, `document.getAnimations().length`); n != 0 || get[int](s, `window.moves`) != 0 {
		t.Errorf("in the console %d things move although the user wants none", n)
	}
}

func TestTerminalFlood(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	terminalAgent(w, r)
	tun := r.Open(r.Credential("integration", world.Team), "gpu-1", map[string]any{"target_port": 9})
	s := terminalPage(w, r, w.Browser(5*time.Minute), tun, false)
	// Eight digits and a line end of two in 1 050 000 lines: 10.5 MB.
	const lines = 1050000
	s.do("line feeds are counted, and how long the page is busy at once", keys("PS1=\r"), evaluate(`(() => {
		window.feeds = 0; terminal.onLineFeed(() => feeds++);
		window.gap = 0; let last = performance.now(); const tick = () => { const now = performance.now(); gap = Math.max(gap, now - last); last = now; requestAnimationFrame(tick); }; requestAnimationFrame(tick);
	})()`))
	start := time.Now()
	s.do("a flood begins", evaluate(`feeds = 0`), keys(fmt.Sprintf("seq -w 00000001 %08d; echo e'nd'\r", lines)))
	s.wait(3*time.Minute, "10 MB of output arrive", `(() => { const b = terminal.buffer.active; return [1, 2, 3].some((i) => b.getLine(b.length - i)?.translateToString(true) === "end") || [...Array(terminal.rows).keys()].some((i) => b.getLine(b.baseY + i)?.translateToString(true) === "end"); })()`)
	took := time.Since(start)
	feeds, gap := get[int](s, `feeds`), get[float64](s, `gap`)
	t.Logf("10.5 MB in %v; the page was never busy for more than %.0f ms", took, gap)
	if feeds < lines+1 || feeds > lines+12 { // and those of the prompt's own lines
		t.Errorf("%d lines arrived of %d", feeds, lines)
	}
	if broken := get[string](s, `(() => { const b = terminal.buffer.active; let last = 0, n = 0; for (let i = 0; i < b.length; i++) { const m = /(\d{8})$/.exec(b.getLine(i).translateToString(true).trim()); if (!m) continue; if (last && +m[1] !== last + 1) return last + " " + m[1]; last = +m[1]; n++; } return n > 10000 ? "" : "only " + n; })()`); broken != "" {
		t.Errorf("the scrollback's lines follow each other: %s", broken)
	}
	if gap > 5000 {
		t.Errorf("the page froze for %.0f ms", gap)
	}
	s.do("it answers at once", keys("stty sane; echo st'ill there'\r"), shows("still there"))
}

func TestTerminalHeals(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	line := wan.Start(t, fmt.Sprintf("127.0.0.1:%d", r.Port), wan.Options{})
	terminalAgent(w, r, "ADIT_RELAY_URL=http://"+line.Addr())
	tun := r.Open(r.Credential("integration", world.Team), "gpu-1", map[string]any{"target_port": 9})
	s := terminalPage(w, r, w.Browser(4*time.Minute), tun, false)
	gapless := func(what string) {
		t.Helper()
		if broken := get[string](s, `(() => { const n = [...`+bufferText+`.matchAll(/tick-(\d+)-/g)].map((m) => +m[1]); for (let i = 1; i < n.length; i++) if (n[i] !== n[i-1] + 1) return n[i-1] + " then " + n[i]; return n.length ? "" : "none"; })()`); broken != "" {
			t.Errorf("%s: nothing is missing and nothing comes twice: %s", what, broken)
		}
	}
	count := `Math.max(0, ...[...` + bufferText + `.matchAll(/tick-(\d+)-/g)].map((m) => +m[1]))`
	// A shell of its own: the signal of Ctrl-C finds it also between two sleeps.
	s.do("a program prints on and on", keys("clear; sh -c 'i=0; while :; do i=$((i+1)); echo tick-$i-; sleep 0.1; done'\r"), shows("tick-5-"))
	line.Cut()
	s.do("the page says that it is cut off", world.Until(`document.getElementById("state").dataset.tone === "warn"`))
	at := get[int](s, count)
	line.Heal()
	start := time.Now()
	s.do("and is back by itself", connected(), world.Until(fmt.Sprintf("%s > %d", count, at+5)))
	t.Logf("attached again %v after the link healed", time.Since(start))
	gapless("after a cut of the link")

	r.Kill()
	r.Start()
	r.WaitReady(20 * time.Second)
	at = get[int](s, count)
	s.do("a restarted relay is no end either", connected(), world.Until(fmt.Sprintf("%s > %d", count, at+5)))
	gapless("after a kill of the relay")

	s.do("another page gets the replay", world.Navigate("about:blank"), world.Navigate(terminalURL(r, tun, false)), connected(), world.Until(count+" > 10"))
	gapless("in a new page")
	// Ctrl-C throws away what was typed and not read yet: the next comes when the prompt is back.
	s.do("and may interrupt it", keys("\x03"), world.Until(`/\^C\s*\n.*[#$]$/.test(`+bufferText+`.trimEnd())`), keys("echo d'one'\r"), shows("\ndone"))
}

func TestTerminalViewers(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	terminalAgent(w, r)
	sk := r.Credential("integration", world.Team)
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": 9})
	ctx := w.Browser(4 * time.Minute)
	first := terminalPage(w, r, ctx, tun, false)
	looker := terminalPage(w, r, w.Tab(ctx), tun, true)
	looker.do("who only looks on is told so", world.Until(`!document.getElementById("readonly").hidden && document.getElementById("viewers").textContent === "2 viewers"`))
	looker.do("their keys do nothing", keys("echo in'truder'\r"))
	first.do("the other one types", keys("echo work'ing'\r"), shows("\nworking"))
	looker.do("and both see it", shows("\nworking"))
	if get[bool](looker, bufferText+`.includes("intruder")`) {
		t.Error("a read-only viewer types nothing")
	}
	var v api.ViewerList
	r.API(tun.AdminToken, http.MethodGet, "/tunnels/"+string(tun.SessionID)+"/viewers", nil, &v)
	if len(v.Viewers) != 1 || v.Viewers[0].Connections != 2 { // one browser
		t.Errorf("they are viewers of the tunnel: %+v", v)
	}
	unused, closed := terminalURL(r, tun, false), time.Now()
	r.API(sk, http.MethodDelete, "/agents/gpu-1/tunnel", nil, nil)
	told := world.Until(`document.getElementById("over-title").textContent === "The tunnel is closed" && document.getElementById("over-text").textContent.startsWith("The tunnel was closed.") && !document.getElementById("over").hidden`)
	first.do("a closed tunnel ends the terminal and says so", told)
	looker.do("for all", told)
	t.Logf("both were told within %v", time.Since(closed))
	tab := w.Tab(ctx)
	w.Do(tab, "a code that nobody used opens nothing any more, and tells why", world.Navigate(unused), told)
	w.Do(tab, "nor does its token", world.Navigate("about:blank"), world.Navigate(r.URL+wire.TerminalPath+string(tun.SessionID)), chromedp.WaitVisible("#token"), chromedp.SendKeys("#token", tun.AdminToken+"\r"), told)
}

// dialTerminal opens a terminal's WebSocket as a program does.
func dialTerminal(t *testing.T, r *world.Relay, session, origin string, first any) (*websocket.Conn, error) {
	t.Helper()
	h := http.Header{}
	if origin != "" {
		h.Set("Origin", origin)
	}
	c, _, err := websocket.Dial(t.Context(), fmt.Sprintf("ws://127.0.0.1:%d%s%s%s", r.Port, wire.TerminalPath, session, wire.TerminalSocket), &websocket.DialOptions{HTTPHeader: h})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = c.CloseNow() })
	b, err := json.Marshal(first)
	if err != nil {
		t.Fatal(err)
	}
	return c, c.Write(t.Context(), websocket.MessageText, b)
}

// terminalEnd reads until the end and returns its code.
func terminalEnd(t *testing.T, c *websocket.Conn) websocket.CloseError {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		if _, _, err := c.Read(ctx); err != nil {
			var ce websocket.CloseError
			if !errors.As(err, &ce) {
				t.Fatalf("the socket ends with a close frame, got %v", err)
			}
			return ce
		}
	}
}

func TestTerminalRefusals(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	a := terminalAgent(w, r)
	sk := r.Credential("integration", world.Team)
	tun, foreign := r.Open(sk, "gpu-1", map[string]any{"target_port": 9}), r.Open(sk, "gpu-1", map[string]any{"target_port": 9})
	gone := r.Open(sk, "gpu-1", map[string]any{"target_port": 9})
	r.API(sk, http.MethodDelete, "/agents/gpu-1/tunnel?session_id="+string(gone.SessionID), nil, nil)
	session := string(tun.SessionID)
	for _, origin := range []string{"https://evil.example", "null", fmt.Sprintf("http://127.0.0.1:%d", r.Port), "http://" + strings.Split(strings.TrimPrefix(r.HostURL(tun), "http://"), "/")[0]} {
		if _, err := dialTerminal(t, r, session, origin, wire.TerminalAttach{Token: tun.AdminToken}); err == nil {
			t.Errorf("a page of %s gets no terminal, even with the token", origin)
		}
	}
	for name, c := range map[string]struct {
		session, token string
		code           websocket.StatusCode
	}{
		"no token":              {session, "", wire.CloseRefused},
		"a wrong token":         {session, "adm-wrong", wire.CloseRefused},
		"the URL's token":       {session, world.Segment(tun), wire.CloseRefused},
		"a team's credential":   {session, sk, wire.CloseRefused},
		"another tunnel's":      {session, foreign.AdminToken, wire.CloseRefused},
		"a tunnel never opened": {strings.Repeat("ab", 16), tun.AdminToken, wire.CloseRefused},
	} {
		s, err := dialTerminal(t, r, c.session, r.URL, wire.TerminalAttach{Token: c.token})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := terminalEnd(t, s); got.Code != c.code || got.Reason != "the token is not right, or the tunnel is closed" {
			t.Errorf("%s is refused as all others: %v", name, got)
		}
	}
	// A right token proves that its holder had the tunnel: they are told what became of it.
	replayed, err := dialTerminal(t, r, string(gone.SessionID), r.URL, wire.TerminalAttach{Token: gone.AdminToken})
	if err != nil {
		t.Fatal(err)
	}
	if got := terminalEnd(t, replayed); got.Code != websocket.StatusGoingAway || got.Reason != "the tunnel was closed" {
		t.Errorf("the token of a closed tunnel is told %v", got)
	}
	if strings.Contains(a.Log(), `"terminal started"`) {
		t.Error("nothing reached the agent")
	}

	s, err := dialTerminal(t, r, session, r.URL, wire.TerminalAttach{Token: tun.AdminToken})
	if err != nil {
		t.Fatal(err)
	}
	if _, b, err := s.Read(t.Context()); err != nil || !strings.Contains(string(b), wire.TerminalAttached) {
		t.Fatalf("the right token attaches: %s %v", b, err)
	}
	w.Run(a.Env, filepath.Join(w.Bin, "adit-agent"), "pause")
	if got := terminalEnd(t, s); got.Code != wire.CloseLost && got.Code != wire.CloseEnded {
		t.Errorf("a pause ends terminals: %v", got)
	}
	if s, err = dialTerminal(t, r, session, r.URL, wire.TerminalAttach{Token: tun.AdminToken}); err != nil {
		t.Fatal(err)
	}
	if got := terminalEnd(t, s); got.Code != wire.CloseDenied || !strings.Contains(got.Reason, "paused") {
		t.Errorf("and admits none: %v", got)
	}
}

// An address with a code enters once: in its page, which comes back by itself with what
// the code brought, and in no other.
func TestTerminalIsEnteredWithACodeThatWorksOnce(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r, line := relayBehind(w)
	terminalAgent(w, r)
	sk := r.Credential("integration", world.Team)
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": 9})
	ctx := w.Browser(4 * time.Minute)
	address := terminalURL(r, tun, false)
	s := &screen{w, ctx}
	s.do("the code enters", world.Navigate(address), connected(), keys("echo o'ne'\r"), shows("\none"))
	line.Cut()
	s.do("the page is cut off", world.Until(`document.getElementById("state").dataset.tone === "warn"`))
	line.Heal()
	s.do("and comes back without a code", connected(), keys("echo tw'o'\r"), shows("\ntwo"))
	r.Kill()
	r.Start()
	r.WaitReady(30 * time.Second)
	s.do("also when the relay restarted", connected(), keys("echo thr'ee'\r"), shows("\nthree"))

	again := &screen{w, w.Tab(ctx)}
	again.do("the address enters no second time, and says so", world.Navigate(address), world.Until(`document.getElementById("state").textContent === "refused" && document.getElementById("why").textContent.startsWith("The code is not right, was used already, or has expired.")`))
	fresh := terminalURL(r, tun, false)
	again.do("a fresh code may be pasted", chromedp.SendKeys("#token", fresh[strings.Index(fresh, "tc-"):]+"\r"), connected(), shows("\nthree"))
	again.do("what a reload forgets is asked for", world.Navigate("about:blank"), world.Navigate(r.URL+wire.TerminalPath+string(tun.SessionID)), chromedp.WaitVisible("#token"))
	again.do("a token is not taken from an address", world.Navigate("about:blank"), world.Navigate(r.URL+wire.TerminalPath+string(tun.SessionID)+"#token="+tun.AdminToken), chromedp.WaitVisible("#token"),
		world.Until(`document.getElementById("why").textContent.includes("not taken any more") && !location.href.includes("#")`))

	// From the command line, for an agent: the tunnel is left open.
	out := strings.TrimSpace(w.Run([]string{"ADIT_URL=" + r.URL, "ADIT_TOKEN=" + sk}, filepath.Join(w.Bin, "adit"), "terminal", "gpu-1", "--browser", "--read-only", "--expires", "1h"))
	again.do("adit terminal --browser makes one", world.Navigate("about:blank"), world.Navigate(out), world.Until(`document.getElementById("over-text").textContent.includes("nothing to look on at") || /look on/.test(document.getElementById("state").textContent)`))
	out = strings.TrimSpace(w.Run([]string{"ADIT_URL=" + r.URL, "ADIT_ADMIN_TOKEN=" + tun.AdminToken}, filepath.Join(w.Bin, "adit"), "terminal", string(tun.SessionID), "--browser"))
	again.do("and one of a tunnel that is open", world.Navigate("about:blank"), world.Navigate(out), connected(), shows("\nthree"))
	var made api.TerminalCode
	if err := json.Unmarshal([]byte(w.Run([]string{"ADIT_URL=" + r.URL, "ADIT_TOKEN=" + sk}, filepath.Join(w.Bin, "adit"), "terminal", string(tun.SessionID), "--browser", "--json")), &made); err != nil || time.Until(made.CodeExpiresAt) > 5*time.Minute {
		t.Errorf("as JSON: %+v %v", made, err)
	}
	audit := w.Run(nil, filepath.Join(w.Bin, "adit-relay"), "audit", "--socket", filepath.Join(r.DataDir, "admin.sock"))
	if strings.Count(audit, `"terminal_code"`) != 5 || strings.Contains(audit, fresh[strings.Index(fresh, "tc-"):]) {
		t.Errorf("who made codes is audited, without the codes:\n%s", audit)
	}
	if log := r.Log(); strings.Contains(log, fresh[strings.Index(fresh, "tc-")+3:]) || strings.Contains(log, address[strings.Index(address, "tc-")+3:]) {
		t.Error("a code is in the relay's log")
	}
}

func TestTerminalIsOffUnlessEnabled(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	w.Agent(r, "gpu-1")
	tun := r.Open(r.Credential("integration", world.Team), "gpu-1", map[string]any{"target_port": 9})
	s := &screen{w, w.Browser(2 * time.Minute)}
	s.do("the page says that the machine has terminals off, and how to turn them on", world.Navigate(terminalURL(r, tun, false)),
		world.Until(`document.getElementById("over-text").textContent.includes("terminal.enabled")`))
}

func TestTerminalIdleLimit(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	terminalAgent(w, r, "ADIT_TERMINAL_IDLE_TIMEOUT=3s")
	tun := r.Open(r.Credential("integration", world.Team), "gpu-1", map[string]any{"target_port": 9})
	s := terminalPage(w, r, w.Browser(2*time.Minute), tun, false)
	s.do("a terminal that nobody uses ends, and says why", world.Until(`document.getElementById("over-text").textContent.includes("nothing was typed or printed for 3s")`))
}

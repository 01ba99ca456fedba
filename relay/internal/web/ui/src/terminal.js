import "./csp.js";
import "./terminal.css";
import { Terminal } from "@xterm/xterm";
import { FitAddon } from "@xterm/addon-fit";
import { SearchAddon } from "@xterm/addon-search";
import { Unicode11Addon } from "@xterm/addon-unicode11";
import { WebLinksAddon } from "@xterm/addon-web-links";
import { Connection, code } from "./connection.js";

const $ = (id) => document.getElementById(id);

// A code comes in the fragment, which no server sees, and leaves the address bar and
// the history at once. It works once; the right to come back that it brings is kept in
// this page's memory and nowhere else. No other secret is taken from an address.
const fragment = new URLSearchParams(location.hash.slice(1));
const options = { code: fragment.get("code") ?? "", token: "", readOnly: false, terminal: fragment.get("terminal") || "main" };
if (location.hash) history.replaceState(null, "", location.pathname + location.search);
const session = location.pathname.split("/").pop();

// --- the screen
const themes = {
  dark: {
    background: "#0d1117", foreground: "#e6e9ed", cursor: "#6ea8ff", selectionBackground: "#2f4d7a",
    black: "#484f58", red: "#ff7b72", green: "#3fb950", yellow: "#d29922", blue: "#58a6ff", magenta: "#bc8cff", cyan: "#39c5cf", white: "#b1bac4",
    brightBlack: "#6e7681", brightRed: "#ffa198", brightGreen: "#56d364", brightYellow: "#e3b341", brightBlue: "#79c0ff", brightMagenta: "#d2a8ff", brightCyan: "#56d4dd", brightWhite: "#ffffff",
  },
  light: {
    background: "#ffffff", foreground: "#1c2024", cursor: "#1557c0", selectionBackground: "#b6d4fe",
    black: "#24292f", red: "#b3261e", green: "#116329", yellow: "#7d4e00", blue: "#0550ae", magenta: "#8250df", cyan: "#1b7c83", white: "#57606a",
    brightBlack: "#57606a", brightRed: "#a40e26", brightGreen: "#1a7f37", brightYellow: "#633c01", brightBlue: "#0969da", brightMagenta: "#6639ba", brightCyan: "#3192aa", brightWhite: "#1c2024",
  },
};
const still = matchMedia("(prefers-reduced-motion: reduce)");
const dark = matchMedia("(prefers-color-scheme: dark)");
const themeNow = () => document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
const term = new Terminal({
  allowProposedApi: true, cursorBlink: !still.matches, scrollback: 20000, minimumContrastRatio: 4.5, fontSize: matchMedia("(max-width: 40rem)").matches ? 12 : 14,
  fontFamily: getComputedStyle(document.documentElement).getPropertyValue("--mono"), theme: themes[themeNow()],
  macOptionIsMeta: true, rightClickSelectsWord: true,
});
const fit = new FitAddon(), search = new SearchAddon({ highlightLimit: 500 });
term.loadAddon(fit);
term.loadAddon(search);
term.loadAddon(new Unicode11Addon());
term.loadAddon(new WebLinksAddon((_, uri) => window.open(uri, "_blank", "noopener,noreferrer")));
term.unicode.activeVersion = "11";
$("terminal").hidden = false;
term.open($("terminal"));

const proposed = () => { const d = fit.proposeDimensions(); return d && d.cols > 1 && d.rows > 0 ? { cols: d.cols, rows: d.rows } : { cols: 80, rows: 24 }; };
let mine = proposed();
term.resize(mine.cols, mine.rows);

// --- what is going on
const say = (text, tone = "") => { $("state").textContent = text; $("state").dataset.tone = tone; };
const connection = new Connection(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/terminal/${session}/ws`, options, {
  size: () => mine,
  write: (bytes, done) => term.write(bytes, done),
  // In its turn: what was received before is still being shown.
  clear: () => term.write("\x1bc"),
});

function show(card) {
  for (const id of ["login", "over"]) $(id).hidden = id !== card;
  if (card === "login") $("token").focus();
  else if (card === "over") $("over").focus(); // not its button: Enter may still be held down
  else term.focus();
}

const sentence = (s) => s ? s.charAt(0).toUpperCase() + s.slice(1) + "." : "";

let lastExit = null;
connection.addEventListener("state", ({ detail }) => {
  switch (detail.state) {
    case "connecting": say(detail.tries ? "reconnecting" : "connecting", "warn"); break;
    case "waiting": say("waiting for the machine", "warn"); break;
    case "lost": say(`reconnecting in ${Math.ceil(detail.wait / 1000)} s${detail.reason ? ": " + detail.reason : ""}`, "warn"); break;
    case "attached":
      lastExit = null;
      say("connected", "good");
      $("title").textContent = detail.agent + (detail.terminal === "main" ? "" : ` · ${detail.terminal}`);
      document.title = `${detail.agent} · Terminal · Adit`;
      $("readonly").hidden = !detail.read_only;
      term.options.disableStdin = !!detail.read_only;
      connection.resize(mine);
      show(null);
  }
});
connection.addEventListener("viewers", ({ detail: { count, writers } }) => {
  $("viewers").hidden = count < 2;
  $("viewers").textContent = `${count} viewers`;
  $("viewers").title = `${writers} of them may type`;
});
connection.addEventListener("size", ({ detail: { cols, rows } }) => { if (cols !== term.cols || rows !== term.rows) term.resize(cols, rows); });
connection.addEventListener("exit", ({ detail }) => { lastExit = detail; });
connection.addEventListener("end", ({ detail }) => {
  $("viewers").hidden = true;
  if (detail.code === code.refused) {
    options.code = options.token = "";
    $("token").value = "";
    $("why").textContent = sentence(detail.reason) + " For a new code, click Terminal in the console, or run “adit terminal --browser”.";
    say("refused", "bad");
    return show("login");
  }
  $("go").hidden = !detail.place;
  if (detail.place) {
    say("not here", "bad");
    $("over-title").textContent = "The terminal is at another address";
    $("over-text").textContent = `You called the relay by a name that is not its own; terminals open at ${new URL(detail.place).host} only.`;
    $("go").href = detail.place + (options.code ? "#code=" + options.code : ""); // which is not used up yet
    $("go").textContent = "Open it there";
    $("again").hidden = true;
    return show("over");
  }
  say(detail.code === code.ended ? "ended" : "closed", detail.code === code.ended ? "" : "bad");
  $("over-title").textContent = detail.code === code.ended ? "The terminal ended" : detail.code === code.goingAway ? "The tunnel is closed" : "The terminal is not available";
  $("over-text").textContent = detail.code === code.ended && lastExit ? lastExit.text + "." : detail.code === code.goingAway ? sentence(detail.reason) + (/revoked/.test(detail.reason) ? "" : " Whoever opened it can open another one.") : sentence(detail.reason);
  $("again").hidden = detail.code === code.goingAway;
  show("over");
});

$("login").addEventListener("submit", (e) => {
  e.preventDefault();
  let secret = $("token").value.trim();
  secret = /#code=(tc-[a-z2-7]+)/.exec(secret)?.[1] ?? secret; // the whole address was pasted
  const isCode = secret.startsWith("tc-");
  if (/^(sk|dk|ak)-/.test(secret)) {
    $("token").value = "";
    $("why").textContent = "That is a credential, which opens no terminal here: click Terminal in the console, or run “adit terminal --browser”, for a code.";
    return;
  }
  options.code = isCode ? secret : "";
  options.token = isCode ? "" : secret;
  $("token").value = "";
  options.readOnly = $("look").checked;
  connection.open();
});
$("again").addEventListener("click", () => connection.open());
addEventListener("online", () => connection.retry());

// --- typing, with the sticky Ctrl of the key bar
let sticky = false;
const setSticky = (on) => { sticky = on; document.querySelector('[data-key="ctrl"]').setAttribute("aria-pressed", on); };
const encoder = new TextEncoder();
term.onData((text) => {
  if (sticky && text.length === 1 && text >= "@" && text <= "~") {
    text = String.fromCharCode(text.charCodeAt(0) & 0x1f);
    setSticky(false);
  }
  connection.type(encoder.encode(text));
});
term.onBinary((text) => connection.type(Uint8Array.from(text, (c) => c.charCodeAt(0))));
const arrows = { up: "A", down: "B", right: "C", left: "D" };
const small = matchMedia("(pointer: coarse), (max-width: 40rem)");
const offerKeys = () => { $("keys").hidden = !small.matches; };
small.addEventListener("change", offerKeys);
offerKeys();
$("keys").addEventListener("pointerdown", (e) => e.preventDefault()); // the keyboard stays open
$("keys").addEventListener("click", (e) => {
  const key = e.target.dataset.key;
  if (!key) return;
  if (key === "ctrl") setSticky(!sticky);
  else term.input(arrows[key] ? `\x1b${term.modes.applicationCursorKeysMode ? "O" : "["}${arrows[key]}` : { esc: "\x1b", tab: "\t", "ctrl-c": "\x03" }[key]);
  term.focus();
});

// --- size
let pending = 0;
const refit = () => {
  cancelAnimationFrame(pending);
  pending = requestAnimationFrame(() => {
    const now = proposed();
    if (now.cols === mine.cols && now.rows === mine.rows) return;
    mine = now;
    if (connection.attached && !options.readOnly) connection.resize(mine);
    else term.resize(mine.cols, mine.rows);
  });
};
new ResizeObserver(refit).observe($("terminal"));
const font = (by) => { term.options.fontSize = Math.min(32, Math.max(8, term.options.fontSize + by)); refit(); };
$("smaller").addEventListener("click", () => font(-1));
$("larger").addEventListener("click", () => font(1));

// --- colours
const paint = () => { term.options.theme = themes[themeNow()]; };
dark.addEventListener("change", paint);
still.addEventListener("change", () => { term.options.cursorBlink = !still.matches; });
$("theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = themeNow() === "dark" ? "light" : "dark";
  paint();
});

// --- copy and paste
async function copy() {
  if (term.hasSelection()) await navigator.clipboard.writeText(term.getSelection()).catch(() => say("the browser does not allow copying here", "warn"));
  term.focus();
}
async function paste() {
  const text = await navigator.clipboard.readText().catch(() => null);
  if (text === null) say("paste with Ctrl+V: the browser does not allow the button", "warn");
  else term.paste(text);
  term.focus();
}
$("copy").addEventListener("click", copy);
$("paste").addEventListener("click", paste);

// --- search
function find(open) {
  $("search").hidden = !open;
  $("find").setAttribute("aria-expanded", open);
  if (open) $("query").focus();
  else { search.clearDecorations(); term.focus(); }
}
const decorations = { matchOverviewRuler: "#d29922", activeMatchColorOverviewRuler: "#1f6feb", matchBackground: "#7d5a00", activeMatchBackground: "#1f6feb" };
const step = (forward) => forward ? search.findNext($("query").value, { decorations }) : search.findPrevious($("query").value, { decorations });
$("find").addEventListener("click", () => find($("search").hidden));
$("close-search").addEventListener("click", () => find(false));
$("previous").addEventListener("click", () => step(false));
$("search").addEventListener("submit", (e) => { e.preventDefault(); step(true); });
$("query").addEventListener("input", () => search.findPrevious($("query").value, { incremental: true, decorations }));
$("query").addEventListener("keydown", (e) => { if (e.key === "Escape") find(false); });
search.onDidChangeResults(({ resultIndex, resultCount }) => {
  $("matches").textContent = !$("query").value ? "" : resultCount ? (resultIndex < 0 ? `${resultCount}+` : `${resultIndex + 1} of ${resultCount}`) : "no match";
});

term.attachCustomKeyEventHandler((e) => {
  if (e.type !== "keydown" || !e.ctrlKey || !e.shiftKey) return true;
  const action = { KeyC: copy, KeyV: paste, KeyF: () => find(true) }[e.code];
  if (!action) return true;
  e.preventDefault();
  action();
  return false;
});

if (options.code) connection.open();
else {
  if (fragment.has("token")) $("why").textContent = "Addresses with a token in them are not taken any more: paste the token here, or ask for an address with a code.";
  say("not connected");
  show("login");
}

// For tests in a real browser, which look at the screen as a program can.
globalThis.terminal = term;

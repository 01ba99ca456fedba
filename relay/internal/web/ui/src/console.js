// The console: sign in, then the team's agents as they change.
import { html } from "htm/preact";
import { render } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import "./base.css";
import "./console.css";
import { connect, follow } from "./console-api.js";
import { Agent } from "./console-agent.js";
import { Fault } from "./console-parts.js";
import { labels, plural, said, states } from "./console-text.js";

function SignIn({ enter, reason }) {
  const [secret, setSecret] = useState("");
  const [team, setTeam] = useState("");
  const [error, setError] = useState(reason);
  const [busy, setBusy] = useState(false);
  const person = /^ey[\w-]+\.[\w-]+\./.test(secret.trim());
  const submit = async (e) => {
    e.preventDefault();
    setBusy(true);
    setError(null);
    const api = connect(secret.trim(), person ? team.trim() : "");
    try { await api.check(); enter(api); } catch (e) { setError(e); setBusy(false); }
  };
  return html`<main class="signin"><form onSubmit=${submit}>
    <h1>Adit console</h1>
    <p>Your team's GPU machines and the tunnels to them.</p>
    <label class="field" for="secret"><span>Secret</span><input id="secret" type="password" autocomplete="off" spellcheck="false" required autofocus aria-describedby="secret-hint" value=${secret} onInput=${(e) => setSecret(e.target.value)} />
      <small id="secret-hint">A credential (sk-… or dk-…) or your session token. It stays in this page's memory; a reload forgets it.</small></label>
    ${person && html`<label class="field" for="team"><span>Team</span><input id="team" autocomplete="off" spellcheck="false" required placeholder="UUID" value=${team} onInput=${(e) => setTeam(e.target.value)} /></label>`}
    <${Fault} error=${error} />
    <button type="submit" class="primary" disabled=${busy} aria-busy=${busy}>${busy ? "Signing in…" : "Sign in"}</button>
  </form></main>`;
}

function Board({ api, leave }) {
  const [agents, setAgents] = useState(null);
  const [link, setLink] = useState({ state: "connecting" });
  const [generation, setGeneration] = useState(0);
  const [warnings, setWarnings] = useState(new Map());
  const [filter, setFilter] = useState("");
  const [toasts, setToasts] = useState([]);
  const [now, setNow] = useState(Date.now());
  const stream = useRef(null);
  const search = useRef();

  const tell = (text) => {
    const t = { text, id: Math.random() };
    setToasts((l) => [...l.slice(-2), t]);
    setTimeout(() => setToasts((l) => l.filter((x) => x !== t)), 6000);
  };
  useEffect(() => {
    stream.current = follow(api, {
      state: (state, at, why) => setLink((old) => ({ state, at, why: state === "connecting" ? old.why : why, since: state === "live" ? Date.now() : old.since })),
      refused: (e) => leave(e),
      event: (e) => {
        switch (e.kind) {
          case "snapshot":
            setAgents(new Map((e.agents || []).map((a) => [a.agent_id, a])));
            setGeneration((n) => n + 1);
            break;
          case "agent_changed":
            setAgents((m) => new Map(m).set(e.agent_id, e.agent));
            break;
          case "agent_gone":
            setAgents((m) => { const n = new Map(m); n.delete(e.agent_id); return n; });
            tell(`${e.agent_id} is gone`);
            break;
          case "tunnel_closing":
            setWarnings((m) => new Map(m).set(e.session_id, e.detail));
            tell(`a tunnel to ${e.agent_id} ${e.detail}`);
            break;
          case "tunnel_closed":
            setWarnings((m) => { const n = new Map(m); n.delete(e.session_id); return n; });
            if (!api.closedHere(e.session_id)) tell(`a tunnel to ${e.agent_id} is over: ${e.detail}`);
            break;
        }
      },
    });
    const tick = setInterval(() => setNow(Date.now()), 1000);
    const key = (e) => {
      if (e.key === "/" && !e.ctrlKey && !e.metaKey && !e.altKey && !/^(input|select|textarea)$/i.test(e.target.tagName) && !document.querySelector("dialog[open]")) { e.preventDefault(); search.current?.focus(); }
    };
    addEventListener("keydown", key);
    return () => { stream.current.stop(); clearInterval(tick); removeEventListener("keydown", key); };
  }, [api]);

  const all = useMemo(() => [...(agents?.values() || [])].sort((a, b) => a.agent_id.localeCompare(b.agent_id, "en", { numeric: true })), [agents]);
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
  const shown = all.filter((a) => {
    const text = [a.agent_id, a.agent_status, states[a.agent_status]?.[0], ...labels(a), ...(a.system_stats?.gpu_devices || []).map((g) => g.device_name)].join(" ").toLowerCase();
    return words.every((w) => text.includes(w));
  });
  const counts = Object.keys(states).map((s) => [s, all.filter((a) => a.agent_status === s).length]).filter(([, n]) => n);
  const live = link.state === "live";
  return html`
    <a class="skip" href="#agents">Skip to the machines</a>
    <header class="top">
      <h1>Adit</h1>
      <span class=${"pulse " + (live ? "live" : "lost")} role="status">${live ? "Live" : link.since ? "Reconnecting" : "Connecting"}</span>
      <input ref=${search} type="search" aria-label="Filter machines" placeholder="Filter (press /)" value=${filter} onInput=${(e) => setFilter(e.target.value)} />
      <button type="button" onClick=${() => leave(null)}>Sign out</button>
    </header>
    ${!live && link.since && html`<div class="banner" role="alert"><span>${link.why ? said({ message: link.why }) : "The relay cannot be reached."} This is what was known ${Math.max(1, Math.round((now - link.since) / 1000)) < 2 ? "a moment ago" : "before"}; tunnels go on without this page.</span> <button type="button" onClick=${() => stream.current.retry()}>Try now${link.state === "waiting" ? ` (${Math.max(0, Math.ceil((link.at - now) / 1000))} s)` : ""}</button></div>`}
    <main id="agents" tabindex="-1" class=${live || !link.since ? "" : "stale"} aria-busy=${agents === null}>
      ${agents === null && html`<div class="empty" role="status"><p>Loading machines…</p></div>`}
      ${agents && html`<p class="summary" role="status">${plural(all.length, "machine")}${counts.length > 0 ? ": " + counts.map(([s, n]) => `${n} ${states[s][0].toLowerCase()}`).join(", ") : ""}${words.length ? ` · ${shown.length} shown` : ""}</p>`}
      ${agents && all.length === 0 && html`<div class="empty"><h2>No machine is connected</h2><p>On a GPU machine, with an agent credential in a file:</p><pre tabindex="0">adit-agent run --relay_url ${location.origin} --agent_id gpu-1 --credential_file ./credential</pre><p>It appears here by itself.</p></div>`}
      ${all.length > 0 && shown.length === 0 && html`<div class="empty"><h2>No machine matches</h2><button type="button" onClick=${() => setFilter("")}>Clear the filter</button></div>`}
      <div class="grid">${shown.map((a) => html`<${Agent} key=${a.agent_id} agent=${a} api=${api} now=${now} live=${generation} tell=${tell} warnings=${warnings} />`)}</div>
    </main>
    <div class="toasts" role="log" aria-live="polite" aria-label="Messages">${toasts.map((t) => html`<p key=${t.id}>${t.text.charAt(0).toUpperCase() + t.text.slice(1)}</p>`)}</div>`;
}

function App() {
  const [api, setAPI] = useState(null);
  const [reason, setReason] = useState(null);
  const leave = (e) => { setReason(e); setAPI(null); };
  return api ? html`<${Board} api=${api} leave=${leave} />` : html`<${SignIn} enter=${(a) => { setReason(null); setAPI(a); }} reason=${reason} />`;
}

const root = document.getElementById("app");
root.textContent = "";
render(html`<${App} />`, root);

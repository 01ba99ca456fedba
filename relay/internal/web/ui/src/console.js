// The console: sign in, then the team's agents as they change, its people and one's devices.
import { html } from "htm/preact";
import { render } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import "./base.css";
import "./console.css";
import { connect, door, follow, signedIn, token } from "./console-api.js";
import { Agent } from "./console-agent.js";
import { Devices } from "./console-devices.js";
import { Pair } from "./console-pair.js";
import { Act, Fault, Teams } from "./console-parts.js";
import { People } from "./console-people.js";
import { Card, Join, SignIn, toTunnel, Wait, Welcome } from "./console-signin.js";
import { labels, personName, plural, said, states } from "./console-text.js";

const views = { "#people": People, "#devices": Devices };

function Leave({ signOut }) {
  const [error, setError] = useState(null);
  return html`<${Act} run=${() => signOut().catch(setError)}>Sign out</${Act}><${Fault} error=${error} />`;
}

function Board({ api, teams, choose, signOut, leave, welcome, welcomed }) {
  const [view, setView] = useState(location.hash);
  const [agents, setAgents] = useState(null);
  const [link, setLink] = useState({ state: "connecting" });
  const [generation, setGeneration] = useState(0);
  const [warnings, setWarnings] = useState(new Map());
  const [knocked, setKnocked] = useState(new Map()); // session: how often somebody came, or was answered
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
      // Whoever is not in this team any more gets another one when the bearer is renewed.
      refused: (e) => {
        if (e.code === "not_a_member" && api.renews) return true;
        if (e.code !== "not_signed_in") leave(e); // of that the page has heard
        return false;
      },
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
          case "tunnel_access": // its tunnels are read again
            setAgents((m) => { const a = m.get(e.agent_id); return a ? new Map(m).set(e.agent_id, { ...a }) : m; });
            break;
          case "tunnel_closing":
            setWarnings((m) => new Map(m).set(e.session_id, e.detail));
            tell(`a tunnel to ${e.agent_id} ${e.detail}`);
            break;
          case "tunnel_knock":
            setKnocked((m) => new Map(m).set(e.session_id, (m.get(e.session_id) || 0) + 1));
            tell(`${e.agent_id}: ${e.detail}`);
            break;
          case "tunnel_closed":
            for (const set of [setWarnings, setKnocked]) set((m) => { const n = new Map(m); n.delete(e.session_id); return n; });
            if (!api.closedHere(e.session_id)) tell(`a tunnel to ${e.agent_id} is over: ${e.detail}`);
            break;
        }
      },
    });
    const tick = setInterval(() => setNow(Date.now()), 1000);
    const key = (e) => {
      if (e.key === "/" && !e.ctrlKey && !e.metaKey && !e.altKey && !/^(input|select|textarea)$/i.test(e.target.tagName) && !document.querySelector("dialog[open]")) { e.preventDefault(); search.current?.focus(); }
    };
    const turn = () => setView(location.hash);
    addEventListener("keydown", key);
    addEventListener("hashchange", turn);
    return () => { stream.current.stop(); clearInterval(tick); removeEventListener("keydown", key); removeEventListener("hashchange", turn); };
  }, [api]);

  const all = useMemo(() => [...(agents?.values() || [])].sort((a, b) => a.agent_id.localeCompare(b.agent_id, "en", { numeric: true })), [agents]);
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
  const shown = all.filter((a) => {
    const text = [a.agent_id, a.agent_status, states[a.agent_status]?.[0], ...labels(a), ...(a.system_stats?.gpu_devices || []).map((g) => g.device_name)].join(" ").toLowerCase();
    return words.every((w) => text.includes(w));
  });
  const counts = Object.keys(states).map((s) => [s, all.filter((a) => a.agent_status === s).length]).filter(([, n]) => n);
  const live = link.state === "live";
  const person = ["user", "device"].includes(api.me.kind);
  const View = person && views[view];
  const skip = (e) => { e.preventDefault(); document.querySelector("#main").focus(); };
  return html`
    <a class="skip" href="#main" onClick=${skip}>Skip to the content</a>
    <header class="top">
      <h1>Adit</h1>
      ${person && html`<nav aria-label="Views">${[["#", "Machines"], ["#people", "People"], ["#devices", "Devices"]].map(([at, name]) => html`<a key=${at} href=${at} aria-current=${(View ? view : "#") === at ? "page" : null}>${name}</a>`)}</nav>`}
      <span class=${"pulse " + (live ? "live" : "lost")} role="status">${live ? "Live" : link.since ? "Reconnecting" : "Connecting"}</span>
      ${!View && html`<input ref=${search} type="search" aria-label="Filter machines" placeholder="Filter (press /)" value=${filter} onInput=${(e) => setFilter(e.target.value)} />`}
      <div class="who">
        <${Teams} teams=${teams} team=${api.me.team_id} choose=${choose} />
        ${api.me.kind && html`<span title=${api.me.email}>${personName(api.me)} <small>${api.me.role}</small></span>`}
        <${Leave} signOut=${signOut} />
      </div>
    </header>
    ${!live && link.since && html`<div class="banner" role="alert"><span>${link.why ? said({ message: link.why }) : "The relay cannot be reached."} This is what was known ${Math.max(1, Math.round((now - link.since) / 1000)) < 2 ? "a moment ago" : "before"}; tunnels go on without this page.</span> <button type="button" onClick=${() => stream.current.retry()}>Try now${link.state === "waiting" ? ` (${Math.max(0, Math.ceil((link.at - now) / 1000))} s)` : ""}</button></div>`}
    ${welcome && html`<${Welcome} team=${welcome} me=${api.me} done=${welcomed} tell=${tell} />`}
    ${View ? html`<main id="main" tabindex="-1"><${View} api=${api} now=${now} tell=${tell} signOut=${signOut} leave=${leave} /></main>` : html`<main tabindex="-1" id="main" class=${live || !link.since ? "" : "stale"} aria-busy=${agents === null}>
      ${agents === null && html`<div class="empty" role="status"><p>Loading machines…</p></div>`}
      ${agents && html`<p class="summary" role="status">${plural(all.length, "machine")}${counts.length > 0 ? ": " + counts.map(([s, n]) => `${n} ${states[s][0].toLowerCase()}`).join(", ") : ""}${words.length ? ` · ${shown.length} shown` : ""}</p>`}
      ${agents && all.length === 0 && html`<div class="empty"><h2>No machine is connected</h2>${api.me.kind === "user" && api.may("member") ? html`<p>On a GPU machine, as root; the first command shows an address, which you open in this browser:</p><pre tabindex="0">adit-agent enroll --pair --relay-url ${location.origin}${"\n"}adit-agent run --config /etc/adit/agent.yaml</pre>` : html`<p>On a GPU machine, with an agent credential in a file:</p><pre tabindex="0">adit-agent run --relay_url ${location.origin} --agent_id gpu-1 --credential_file ./credential</pre>`}<p>It appears here by itself.</p></div>`}
      ${all.length > 0 && shown.length === 0 && html`<div class="empty"><h2>No machine matches</h2><button type="button" onClick=${() => setFilter("")}>Clear the filter</button></div>`}
      <div class="grid">${shown.map((a) => html`<${Agent} key=${a.agent_id} agent=${a} api=${api} now=${now} live=${generation} tell=${tell} warnings=${warnings} knocked=${knocked} />`)}</div>
    </main>`}
    <div class="toasts" role="log" aria-live="polite" aria-label="Messages">${toasts.map((t) => html`<p key=${t.id}>${t.text.charAt(0).toUpperCase() + t.text.slice(1)}</p>`)}</div>`;
}

const pairing = location.pathname === "/desktop/pair";

// An invitation comes in the fragment, which no server sees, and leaves the address bar and
// the history at once.
function takeInvite() {
  const invite = new URLSearchParams(location.hash.slice(1)).get("invite");
  if (invite) history.replaceState(null, "", location.pathname + location.search);
  return invite;
}

// The team that was chosen last in this browser: its id, which is no secret.
const chosen = {
  get: () => { try { return localStorage.getItem("adit-team"); } catch { return null; } },
  set: (team) => { try { localStorage.setItem("adit-team", team); } catch { /* it is asked for again */ } },
};

const signedOut = new Error("this browser is not signed in any more: you signed out in another tab or on another device, somebody removed you from the team, or the sign-in ended");

function App() {
  const [seat, setSeat] = useState(null); // whose secret the page has: { way, person }
  const [team, setTeam] = useState(chosen.get());
  const [wait, setWait] = useState({}); // until the relay has said whether the browser is signed in
  const [reason, setReason] = useState(null);
  const [asked, setAsked] = useState(false); // whether to accept an invitation
  const [welcome, setWelcome] = useState(null);
  const invite = useRef(null);

  const leave = (e) => { setSeat(null); setWait(null); setReason(e); };
  const enter = (way, person) => {
    if (person.kind === "user" && person.teams.length === 0 && !way.renew) throw new Error("you are in no team of this relay");
    setSeat({ way, person });
    setWait(null);
    setReason(null);
  };
  const come = async () => {
    const person = await token();
    if (toTunnel && !invite.current) {
      location.replace(toTunnel);
      return new Promise(() => {}); // the page ends
    }
    const way = signedIn(person, {
      changed: (t) => setSeat((s) => s?.way === way ? { way, person: { kind: "user", ...t } } : s),
      gone: () => leave(signedOut),
    });
    enter(way, { kind: "user", ...person });
  };
  const accept = async () => {
    const got = await door("POST", "invite", { invite: invite.current });
    invite.current = null;
    chosen.set(got.team_id);
    setTeam(got.team_id);
    setWelcome(got);
    await start();
  };
  const start = async () => {
    setWait({});
    try {
      await come();
      setAsked(!!invite.current);
    } catch (e) {
      if (e.status === 401 && invite.current) {
        try { await accept(); } catch (e) {
          if (e.code === "invite_refused") { invite.current = null; leave(e); } else setWait({ error: e });
        }
      } else if ([401, 403, 404].includes(e.status)) leave(null); // the sign-in view says what there is
      else setWait({ error: e });
    }
  };
  useEffect(() => {
    const look = () => { const i = takeInvite(); if (i) { invite.current = i; start(); } };
    invite.current = takeInvite();
    start();
    addEventListener("hashchange", look);
    return () => removeEventListener("hashchange", look);
  }, []);
  const signOut = async (everywhere) => {
    if (seat.way.renew) await door("POST", "logout", { everywhere: !!everywhere }).catch((e) => { if (e.status !== 401) throw e; });
    leave(null);
  };
  const choose = (id) => { chosen.set(id); setTeam(id); setWelcome(null); };

  const teams = seat?.person.teams || [];
  const here = teams.find((t) => t.team_id === team) || teams[0];
  const api = useMemo(() => seat && connect(seat.way, seat.person, seat.person.kind === "user" ? here?.team_id : ""), [seat?.way, here?.team_id]);
  if (api) api.me = { ...here, ...seat.person };

  if (wait) return html`<${Wait} error=${wait.error} again=${start} />`;
  if (!seat) return html`<${SignIn} enter=${enter} signedIn=${come} reason=${reason} title=${pairing ? "Pair a device" : toTunnel ? "Sign in for a tunnel" : "Adit console"} about=${pairing ? "Sign in first. Then you see who asks, and confirm." : toTunnel ? "The tunnel is for certain people. You go on to it when you are signed in." : "Your team's GPU machines and the tunnels to them."} />`;
  if (asked) return html`<${Join} name=${personName(seat.person)} join=${accept} skip=${() => { invite.current = null; setAsked(false); }} />`;
  if (seat.person.kind === "user" && !here) return html`<${Card} title="You are in no team"><p>You are signed in as ${personName(seat.person)}. Ask somebody of your team for an invitation, and open it in this browser.</p><${Leave} signOut=${signOut} /></${Card}>`;
  const shown = { api, teams, choose, signOut };
  if (pairing) return html`<${Pair} key=${here?.team_id} ...${shown} />`;
  return html`<${Board} key=${here?.team_id} ...${shown} leave=${leave} welcome=${welcome} welcomed=${() => setWelcome(null)} />`;
}

if (pairing) document.title = "Pair a device · Adit";
const root = document.getElementById("app");
root.textContent = "";
render(html`<${App} />`, root);

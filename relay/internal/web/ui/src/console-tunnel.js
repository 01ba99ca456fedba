// One open tunnel of an agent: what it is used for, and all that can be done to it.
import { html } from "htm/preact";
import { useEffect, useState } from "preact/hooks";
import { Access, accessText } from "./console-access.js";
import { Act, Choice, Copy, Dialog, Fault, QR, useList, visit } from "./console-parts.js";
import { ago, appName, bytes, clock, plural, seconds, until } from "./console-text.js";

export function Tunnel({ agent, session: s, api, now, tell, changed, warning, knocked, live }) {
  const [panel, setPanel] = useState("");
  const [ask, setAsk] = useState("");
  const [error, setError] = useState(null);
  const found = appName(s);
  const name = s.label || found || `Port ${s.target_port}`;
  const tcp = s.tunnel_protocol === "tcp";
  const run = (f) => async () => {
    setError(null);
    try { await f(); } catch (e) { setError(e); }
  };
  // A relay of the last release does not say whose it is.
  const least = s.own === false ? "admin" : "member";
  const mayUse = api.may(least, "tunnels");
  const toggle = (p) => () => setPanel(panel === p ? "" : p);
  const id = "t-" + s.session_id.slice(0, 12);
  const quiet = Date.parse(s.last_used_at) + seconds(s.idle_timeout) * 1000;
  const idle = s.idle_timeout !== "0s" && quiet < Date.parse(s.expires_at);
  return html`<li class="tunnel" aria-labelledby=${id}>
    <div class="what">
      <h3 id=${id}>${name}</h3>
      <span class="kind">${s.label && found ? found + " · " : ""}${tcp ? "tcp" : "http"} ${s.target_port}</span>
    </div>
    <dl class="facts">
      <div><dt>Opened by</dt><dd>${s.opened_by_name || s.opened_by}, ${ago(s.opened_at, now)}</dd></div>
      <div><dt>Used</dt><dd>${s.viewers > 0 ? `by ${plural(s.viewers, "viewer")} now` : ago(s.last_used_at, now)}</dd></div>
      <div><dt>Traffic</dt><dd><span title="from users to the app">↑ ${bytes(s.bytes_in)}</span> <span title="from the app to users">↓ ${bytes(s.bytes_out)}</span></dd></div>
      <div><dt>Closes</dt><dd title=${s.closes_because}>${idle && s.viewers === 0 ? `${until(quiet, now)} unless used` : clock(s.expires_at)}</dd></div>
      ${s.access && html`<div class="whole"><dt>For</dt><dd>${accessText(s)}</dd></div>`}
    </dl>
    ${warning && html`<p class="warning" role="status">${warning}</p>`}
    ${(s.warnings || []).map((w) => html`<p class="warning">${w}</p>`)}
    ${(s.access === "knock" || knocked) && html`<${Knocks} name=${name} session=${s} api=${api} now=${now} tell=${tell} again=${`${knocked} ${live}`} />`}
    <div class="actions">
      ${!tcp && html`<a class="button primary" href=${s.tunnel_url} target="_blank" rel="noopener noreferrer" aria-label=${`Open ${name} in a new tab`}>Open</a>`}
      <${Copy} text=${s.tunnel_url} what=${`Copy link of ${name}`} />
      <button type="button" aria-label=${`QR code of ${name}`} onClick=${() => setAsk("qr")}>QR</button>
      ${mayUse && html`<${Act} label=${`Terminal of ${name} in a new tab`} run=${run(async () => { visit((await api.terminal(s.session_id)).terminal_url); tell(`the terminal of ${name} opens in a new tab`); })}>Terminal</${Act}>`}
      <button type="button" aria-expanded=${panel === "viewers"} aria-label=${`Viewers${s.viewers > 0 ? ` (${s.viewers})` : ""} of ${name}`} onClick=${toggle("viewers")}>Viewers${s.viewers > 0 ? ` (${s.viewers})` : ""}</button>
      <button type="button" aria-expanded=${panel === "links"} aria-label=${`Named links of ${name}`} onClick=${toggle("links")}>Links</button>
      ${mayUse && s.access && html`<button type="button" aria-label=${`Access to ${name}`} onClick=${() => setAsk("access")}>Access</button>`}
      ${mayUse && html`<button type="button" aria-label=${`Extend ${name}`} onClick=${() => setAsk("extend")}>Extend</button>
      <button type="button" class="danger" aria-label=${`Close ${name}`} onClick=${() => setAsk("close")}>Close</button>`}
    </div>
    <${Fault} error=${error} />
    ${panel === "viewers" && html`<${Viewers} session=${s} api=${api} may=${mayUse} now=${now} tell=${tell} changed=${changed} />`}
    ${panel === "links" && html`<${Links} session=${s} api=${api} may=${api.may(least, "links")} now=${now} tell=${tell} tcp=${tcp} />`}
    ${ask === "qr" && html`<${Dialog} title=${name} close=${() => setAsk("")}><div class="opened"><${QR} text=${s.tunnel_url} /><p class="note">${!s.access || s.access === "anyone" ? "Whoever scans it can use the tunnel." : `The tunnel is for ${accessText(s)}.`}</p></div></${Dialog}>`}
    ${ask === "access" && html`<${Access} id=${id} title=${`Who may use ${name}`} now=${s} tcp=${tcp} save=${(body) => api.setAccess(s.session_id, body)} close=${() => setAsk("")} done=${(c) => { setAsk(""); tell(`${name} is for ${accessText(c)}`); changed(); }} />`}
    ${ask === "extend" && html`<${Extend} name=${name} session=${s} api=${api} close=${() => setAsk("")} done=${(e) => { setAsk(""); tell(`${name} stays open until ${clock(e.expires_at)}`); changed(); }} />`}
    ${ask === "close" && html`<${Dialog} title=${`Close ${name}?`} close=${() => setAsk("")}>
      <p>${s.viewers > 0 ? `${plural(s.viewers, "viewer")} will be cut off. ` : ""}The link stops working, and ${agent.agent_id} takes tasks again when its last tunnel is closed.</p>
      <footer><button type="button" onClick=${() => setAsk("")}>Keep it open</button>
      <${Act} class="primary danger" run=${run(async () => { try { await api.close(agent.agent_id, s.session_id); tell(`${name} is closed`); } finally { setAsk(""); changed(); } })}>Close tunnel</${Act}></footer>
    </${Dialog}>`}
  </li>`;
}

function Extend({ name, session, api, close, done }) {
  const [by, setBy] = useState("24h");
  const [error, setError] = useState(null);
  const run = async () => { try { done(await api.extend(session.session_id, by)); } catch (e) { setError(e); } };
  return html`<${Dialog} title=${`Extend ${name}`} close=${close}>
    <p>It ends at ${clock(session.expires_at)}.</p>
    <${Choice} id="extend-by" label="Keep it open, from now, for" value=${by} set=${setBy} options=${[["1h", "1 hour"], ["8h", "8 hours"], ["24h", "1 day"], ["72h", "3 days"], ["168h", "7 days"]]} />
    <${Fault} error=${error} />
    <footer><button type="button" onClick=${close}>Cancel</button><${Act} class="primary" run=${run}>Extend</${Act}></footer>
  </${Dialog}>`;
}

// Who waits to be let in; nothing, when nobody does.
function Knocks({ name, session, api, now, tell, again }) {
  const [list, error, load, setError] = useList(async () => (await api.knocks(session.session_id)).knocks);
  useEffect(() => { load(); }, [again]);
  const answer = (k, admit) => async () => {
    setError(null);
    try { await api.answer(session.session_id, k.knock_id, admit); tell(`${k.name} is ${admit ? "let in" : "refused"}`); } catch (e) { setError(e); }
    await load();
  };
  const waiting = (list || []).filter((k) => Date.parse(k.expires_at) > now);
  if (waiting.length === 0 && !error) return null;
  return html`<section class="panel" aria-label=${`Waiting at ${name}`}>
    <${Fault} error=${error} />
    <ul class="rows">${waiting.map((k) => html`<li key=${k.knock_id}>
      <div><strong>${k.name}</strong> <span class="note">waits to be let in, from ${k.remote_addr}, since ${ago(k.knocked_at, now)}${k.link_id ? ", by a named link" : ""}</span><br /><small class="agent">${k.browser || "no user agent"}</small></div>
      ${api.may("member", "tunnels") && html`<div class="actions"><${Act} class="primary" label=${`Admit ${k.name}`} run=${answer(k, true)}>Admit</${Act}>
      <${Act} class="danger" label=${`Refuse ${k.name}`} run=${answer(k, false)}>Refuse</${Act}></div>`}</li>`)}</ul>
  </section>`;
}

function Viewers({ session, api, may, now, tell, changed }) {
  const [list, error, load, setError] = useList(async () => (await api.viewers(session.session_id)).viewers);
  const who = (v) => v.user_name || v.user_id || v.remote_addr || "unknown";
  const kick = (v) => async () => {
    try { await api.kick(session.session_id, v.viewer_id); tell(`${who(v)} was disconnected`); } catch (e) { setError(e); }
    await load();
    changed();
  };
  return html`<section class="panel" aria-label="Viewers">
    <${Fault} error=${error} />
    ${list === null && !error && html`<p class="note">Loading…</p>`}
    ${list?.length === 0 && html`<p class="note">Nobody uses it now.</p>`}
    ${list?.length > 0 && html`<ul class="rows">${list.map((v) => html`<li key=${v.viewer_id}>
      <div><strong>${who(v)}</strong> <span class="note">${who(v) === v.remote_addr ? "" : `${v.remote_addr}, `}since ${ago(v.since, now)}, ${plural(v.connections, "connection")}, ↓ ${bytes(v.bytes_out)}${v.link_id ? ", by a named link" : ""}</span><br /><small class="agent">${v.user_agent || "no user agent"}</small></div>
      ${may && html`<${Act} class="danger" label=${`Disconnect ${who(v)}`} run=${kick(v)}>Disconnect</${Act}>`}</li>`)}</ul>`}
  </section>`;
}

function Links({ session, api, may, now, tell, tcp }) {
  const [list, error, load, setError] = useList(async () => (await api.links(session.session_id)).links);
  const [name, setName] = useState("");
  const [expires, setExpires] = useState("");
  const [uses, setUses] = useState("1");
  const [qr, setQR] = useState(null);
  const [access, setAccess] = useState(null);
  const [making, setMaking] = useState(false);
  const make = async (e) => {
    e.preventDefault();
    setMaking(true);
    try {
      const l = await api.makeLink(session.session_id, { name: name.trim(), ...(expires && { expires_in: expires }), ...(uses && { max_uses: Number(uses) }) });
      setName("");
      tell(`link “${l.name}” is ready`);
      await load();
    } catch (e) { setError(e); }
    setMaking(false);
  };
  const revoke = (l) => async () => {
    try { await api.revoke(session.session_id, l.link_id); tell(`link “${l.name}” is revoked`); } catch (e) { setError(e); }
    await load();
  };
  const id = (x) => `${x}-${session.session_id.slice(0, 12)}`;
  return html`<section class="panel" aria-label="Named links">
    <p class="note">Links of their own, for one person or purpose: each ends by itself or when you revoke it; the tunnel stays open.</p>
    ${list === null && !error && html`<p class="note">Loading…</p>`}
    ${list?.length === 0 && html`<p class="note">None yet.</p>`}
    ${list?.length > 0 && html`<ul class="rows">${list.map((l) => html`<li key=${l.link_id}>
      <div><strong>${l.name}</strong> <span class="note">${l.max_uses ? `${l.uses} of ${plural(l.max_uses, "use")}` : plural(l.uses, "use")}${l.last_used_at ? `, last ${ago(l.last_used_at, now)}` : ""}, ends ${until(l.expires_at, now)}${l.access ? `, for ${accessText(l)}` : ""}</span></div>
      <div class="actions"><${Copy} text=${l.url} what=${`Copy the link for ${l.name}`}>Copy</${Copy}>
      ${!tcp && html`<button type="button" aria-label=${`QR code of the link for ${l.name}`} onClick=${() => setQR(l)}>QR</button>`}
      ${may && l.access && html`<button type="button" aria-label=${`Access by the link for ${l.name}`} onClick=${() => setAccess(l)}>Access</button>`}
      ${may && html`<${Act} class="danger" label=${`Revoke the link for ${l.name}`} run=${revoke(l)}>Revoke</${Act}>`}</div></li>`)}</ul>`}
    <${Fault} error=${error} />
    ${may && html`<form class="line" onSubmit=${make}>
      <label class="field" for=${id("name")}><span>For whom</span><input id=${id("name")} required maxlength="64" value=${name} onInput=${(e) => setName(e.target.value)} /></label>
      <${Choice} id=${id("uses")} label="Viewers" value=${uses} set=${setUses} options=${[["1", "one"], ["3", "3"], ["10", "10"], ["50", "50"], ["", "any number"]]} />
      <${Choice} id=${id("ends")} label="Ends" value=${expires} set=${setExpires} options=${[["", "with the tunnel"], ["1h", "in 1 hour"], ["8h", "in 8 hours"], ["24h", "in 1 day"]]} />
      <button type="submit" class="primary" disabled=${making}>Make link</button>
    </form>`}
    ${access && html`<${Access} id=${id("link")} title=${`Who may come by the link “${access.name}”`} now=${access} otherwise="as the tunnel" tcp=${tcp} save=${(body) => api.setLinkAccess(session.session_id, access.link_id, body)} close=${() => setAccess(null)}
      done=${(l) => { setAccess(null); tell(`link “${l.name}” is for ${accessText(l)}`); load(); }} />`}
    ${qr && html`<${Dialog} title=${`Link for ${qr.name}`} close=${() => setQR(null)}><div class="opened"><${QR} text=${qr.url} /></div></${Dialog}>`}
  </section>`;
}

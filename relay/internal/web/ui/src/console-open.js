// The dialog that opens a tunnel, and what it shows when that is done.
import { html } from "htm/preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { AccessFields, accessBody, accessText, asked as askedAccess } from "./console-access.js";
import { Choice, Copy, Dialog, Fault, QR } from "./console-parts.js";
import { clock, plural, presets } from "./console-text.js";

const custom = { id: "custom", name: "Custom", ports: [8000] };

export function Open({ agent, api, close, opened }) {
  const [preset, setPreset] = useState(presets[0].id);
  const [port, setPort] = useState(String(presets[0].ports[0]));
  const [protocol, setProtocol] = useState("http");
  const [label, setLabel] = useState("");
  const [idle, setIdle] = useState("");
  const [expires, setExpires] = useState("");
  const [busy, setBusy] = useState("allow");
  const [access, setAccess] = useState(askedAccess());
  const [error, setError] = useState(null);
  const [running, setRunning] = useState(false);
  const [tunnel, setTunnel] = useState(null);
  const abort = useRef(null);
  const key = useRef(null);
  useEffect(() => () => abort.current?.abort(), []);

  const pick = (p) => { setPreset(p.id); setPort(String(p.ports[0])); setProtocol(p.tcp ? "tcp" : "http"); };
  const submit = async (e) => {
    e.preventDefault();
    const n = Number(port);
    if (!Number.isInteger(n) || n < 1 || n > 65535) { setError(new Error("a port is a number from 1 to 65535")); return; }
    setError(null);
    setRunning(true);
    abort.current = new AbortController();
    const body = { target_port: n, tunnel_protocol: protocol, when_busy: busy, ...(label && { label }), ...(idle && { idle_timeout: idle }), ...(expires && { expires_in: expires }), ...accessBody(access, protocol === "tcp") };
    const asked = JSON.stringify(body);
    if (key.current?.asked !== asked) key.current = { asked, id: crypto.getRandomValues(new Uint32Array(4)).join("-") };
    try {
      const t = await api.open(agent.agent_id, body, key.current.id, abort.current.signal);
      setTunnel(t);
      opened(t);
    } catch (e) {
      if (e.name !== "AbortError") setError(e);
      if (e.status) key.current = null; // it was refused: the next try is another one
    } finally {
      setRunning(false);
    }
  };

  if (tunnel) return html`<${Dialog} title=${`Tunnel to ${agent.agent_id} is open`} close=${close}><${Opened} tunnel=${tunnel} close=${close} /></${Dialog}>`;
  return html`<${Dialog} title=${`Open a tunnel to ${agent.agent_id}`} close=${close}>
    <form onSubmit=${submit}>
      <fieldset class="presets"><legend>What listens there</legend>
        ${[...presets, custom].map((p) => html`<label key=${p.id}><input type="radio" name="preset" value=${p.id} checked=${preset === p.id} onChange=${() => pick(p)} /><span>${p.name}${p !== custom && html` <small>${p.ports[0]}</small>`}</span></label>`)}
      </fieldset>
      <div class="pair">
        <label class="field" for="open-port"><span>Port</span><input id="open-port" inputmode="numeric" required value=${port} onInput=${(e) => { setPort(e.target.value); setPreset("custom"); }} /></label>
        <${Choice} id="open-protocol" label="Protocol" value=${protocol} set=${setProtocol} options=${[["http", "http (web page)"], ["tcp", "tcp (programs)"]]} />
      </div>
      <label class="field" for="open-label"><span>Label</span><input id="open-label" maxlength="64" placeholder="what it is for" value=${label} onInput=${(e) => setLabel(e.target.value)} /></label>
      <${AccessFields} id="open" value=${access} set=${setAccess} otherwise="the relay's default" tcp=${protocol === "tcp"} />
      <div class="pair">
        <${Choice} id="open-idle" label="Close when unused for" value=${idle} set=${setIdle} options=${[["", "the relay's default"], ["15m", "15 minutes"], ["1h", "1 hour"], ["4h", "4 hours"], ["12h", "12 hours"]]} />
        <${Choice} id="open-expires" label="Close in any case after" value=${expires} set=${setExpires} options=${[["", "the relay's default"], ["1h", "1 hour"], ["8h", "8 hours"], ["24h", "1 day"], ["72h", "3 days"]]} />
      </div>
      <${Choice} id="open-busy" label="If tasks are running" value=${busy} set=${setBusy} options=${[["allow", "open beside them"], ["wait", "wait until they end"], ["reject", "do not open"]]}
        hint=${agent.running_count > 0 ? `${plural(agent.running_count, "task")} running now; new ones wait until the tunnel closes.` : "No new tasks start while a tunnel is open."} />
      <${Fault} error=${error} />
      <footer>
        ${running && busy === "wait" && html`<p class="note" role="status">Waiting for the running tasks to end…</p>`}
        <button type="button" onClick=${close}>Cancel</button>
        <button type="submit" class="primary" disabled=${running} aria-busy=${running}>${running ? "Opening…" : "Open tunnel"}</button>
      </footer>
    </form>
  </${Dialog}>`;
}

function Opened({ tunnel, close }) {
  const tcp = tunnel.tunnel_protocol === "tcp";
  const ref = useRef();
  useLayoutEffect(() => ref.current?.focus(), []);
  return html`<div class="opened">
    <p>${!tunnel.access || tunnel.access === "anyone" ? "Whoever has this link can use it" : `It is for ${accessText(tunnel)},`} until ${clock(tunnel.expires_at)}, or until the tunnel closes.</p>
    <div class="share"><input ref=${ref} readonly aria-label="Link of the tunnel" value=${tunnel.tunnel_url} onFocus=${(e) => e.target.select()} /><${Copy} text=${tunnel.tunnel_url} what="Copy link" class="primary" >Copy link</${Copy}></div>
    ${tcp ? html`<p class="note">For programs: <code>adit connect - -L 127.0.0.1:2222</code> reads the link from its input.</p>` : html`<${QR} text=${tunnel.tunnel_url} />`}
    ${tunnel.warnings.map((w) => html`<p class="warning">${w}</p>`)}
    <footer>${!tcp && html`<a class="button" href=${tunnel.tunnel_url} target="_blank" rel="noopener noreferrer">Open in a new tab</a>`}<button type="button" onClick=${close}>Done</button></footer>
  </div>`;
}

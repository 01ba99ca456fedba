// One agent: its state, its machine and its tunnels.
import { html } from "htm/preact";
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { Open } from "./console-open.js";
import { Fault } from "./console-parts.js";
import { Tunnel } from "./console-tunnel.js";
import { ago, bytes, labels, plural, states } from "./console-text.js";

const refresh = 10_000; // bytes and viewers change without an event

export function Agent({ agent: a, api, now, live, tell, warnings, knocked }) {
  const [sessions, setSessions] = useState(null);
  const [error, setError] = useState(null);
  const [opening, setOpening] = useState(false);
  const turn = useRef(0);
  const load = useCallback(async () => {
    const mine = ++turn.current;
    try {
      const s = (await api.tunnels(a.agent_id)).sessions;
      if (mine === turn.current) { setSessions(s); setError(null); }
    } catch (e) {
      if (mine === turn.current) setError(e);
    }
  }, [api, a.agent_id]);
  // Every event about the agent is a new object.
  useEffect(() => { if (a.tunnels > 0 || a.agent_status === "tunnel") load(); else { turn.current++; setSessions([]); setError(null); } }, [a, live]);
  useEffect(() => {
    if (!a.tunnels) return;
    const t = setInterval(() => { if (!document.hidden) load(); }, refresh);
    return () => clearInterval(t);
  }, [a.tunnels > 0]);

  const [state, meaning] = states[a.agent_status] || [a.agent_status, ""];
  const id = "agent-" + a.agent_id;
  return html`<article class="agent-card" aria-labelledby=${id}>
    <header>
      <h2 id=${id}>${a.agent_id}</h2>
      <span class=${"state is-" + a.agent_status} title=${meaning}>${state}</span>
      ${a.paused && html`<span class="state is-paused" title="paused on the machine: nothing new is let in">Paused</span>`}
      ${api.may("member", "tunnels") && html`<button type="button" class=${sessions?.length ? "" : "primary"} aria-label=${`Open tunnel to ${a.agent_id}`} onClick=${() => setOpening(true)}>Open tunnel</button>`}
    </header>
    <${Machine} agent=${a} now=${now} />
    <${Fault} error=${error} />
    ${sessions === null && a.tunnels > 0 && !error && html`<p class="note">Loading ${plural(a.tunnels, "tunnel")}…</p>`}
    ${sessions?.length > 0 && html`<ul class="tunnels" aria-label=${`Tunnels of ${a.agent_id}`}>
      ${sessions.map((s) => html`<${Tunnel} key=${s.session_id} agent=${a} session=${s} api=${api} now=${now} tell=${tell} changed=${load} warning=${warnings.get(s.session_id)} knocked=${knocked.get(s.session_id)} live=${live} />`)}</ul>`}
    ${opening && html`<${Open} agent=${a} api=${api} close=${() => setOpening(false)} opened=${load} />`}
  </article>`;
}

function Machine({ agent: a, now }) {
  const gpus = a.system_stats?.gpu_devices || [];
  const named = labels(a).map((l) => [l, ...l.split(/=(.*)/s)]); // the text, its name, its value if it has one
  const tool = a.tool && `${a.tool}${a.tool_version ? " " + a.tool_version : ""}`;
  const facts = [
    a.running_count > 0 && `${plural(a.running_count, "task")} running${a.gpu_capacity ? ` of ${a.gpu_capacity}` : ""}`,
    tool, a.comfyui_version && a.tool !== "comfyui" && `ComfyUI ${a.comfyui_version}`, a.platform_arch,
    a.link_rtt_ms > 0 && `${a.link_rtt_ms < 1 ? "<1" : Math.round(a.link_rtt_ms)} ms away`,
    a.connected_at && `connected ${ago(a.connected_at, now)}`,
  ].filter(Boolean);
  return html`<div class="machine">
    ${named.length > 0 && html`<ul class="labels" aria-label="Labels">${named.map(([l, k, v]) => html`<li key=${l}>${k}${v && html`<b>${v}</b>`}</li>`)}</ul>`}
    ${gpus.length > 0 ? html`<ul class="gpus" aria-label="GPUs">${gpus.map((g, i) => html`<li key=${i}><span>${g.device_name}</span><${Memory} gpu=${g} /></li>`)}</ul>` : html`<p class="note">No GPU was reported.</p>`}
    ${a.agent_status === "syncing" && html`<p class="sync"><span>${[a.sync_phase, a.sync_detail].filter(Boolean).join(": ") || "Syncing"}</span>${a.sync_percent != null && html` <progress max="100" value=${a.sync_percent} aria-label="Sync">${a.sync_percent} %</progress> ${Math.round(a.sync_percent)} %`}</p>`}
    ${a.status_detail && html`<p class="warning">${a.status_detail}</p>`}
    <p class="note">${facts.join(" · ")}</p>
  </div>`;
}

function Memory({ gpu }) {
  if (!gpu.vram_total) return null;
  if (gpu.vram_free == null) return html`<small>${bytes(gpu.vram_total)}</small>`;
  const used = gpu.vram_total - gpu.vram_free;
  return html`<meter min="0" max=${gpu.vram_total} value=${used} aria-label=${`Memory of ${gpu.device_name}`}></meter><small>${bytes(used)} of ${bytes(gpu.vram_total)}</small>`;
}

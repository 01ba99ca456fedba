// Small parts that all views use.
import { html } from "htm/preact";
import { useCallback, useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { encode } from "uqr";
import { said } from "./console-text.js";

export function Fault({ error }) {
  if (!error) return null;
  return html`<p class="fault" role="alert">${said(error)}${error.code && html` <code>${error.code}</code>`}</p>`;
}

/** visit opens an address in a tab that knows nothing of this one. */
export function visit(url) {
  const a = document.createElement("a");
  Object.assign(a, { href: url, target: "_blank", rel: "noopener noreferrer" });
  a.click();
}

/** Busy is a button that runs something and cannot be pressed twice. */
export function Act({ run, label, children, ...rest }) {
  const [busy, setBusy] = useState(false);
  const here = useRef(true);
  useEffect(() => () => { here.current = false; }, []);
  const press = async () => {
    setBusy(true);
    try { await run(); } finally { if (here.current) setBusy(false); }
  };
  return html`<button type="button" aria-label=${label} aria-busy=${busy} disabled=${busy} onClick=${press} ...${rest}>${children}</button>`;
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // no permission, or no secure context
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "sr";
    (document.querySelector("dialog[open]") || document.body).append(area);
    area.select();
    const ok = document.execCommand("copy");
    area.remove();
    if (!ok) throw new Error("the browser does not allow copying; select the link and copy it by hand");
  }
}

export function Copy({ text, what, children = "Copy link", ...rest }) {
  const [done, setDone] = useState(null);
  const press = async () => {
    try { await copy(text); setDone("Copied"); } catch (e) { setDone("Not copied"); }
    setTimeout(() => setDone(null), 1600);
  };
  return html`<button type="button" class="copy" aria-label=${done ? `${done}: ${what}` : what} onClick=${press} ...${rest}>${done || children}<span class="sr" role="status">${done ? `${what}: ${done.toLowerCase()}` : ""}</span></button>`;
}

export function QR({ text }) {
  const { data, size } = encode(text, { ecc: "M", border: 2 });
  let d = "";
  data.forEach((row, y) => row.forEach((on, x) => { if (on) d += `M${x} ${y}h1v1h-1z`; }));
  return html`<svg class="qr" role="img" aria-label="QR code of the link" viewBox=${`0 0 ${size} ${size}`} shape-rendering="crispEdges"><rect width=${size} height=${size} fill="#fff"/><path d=${d} fill="#000"/></svg>`;
}

/**
 * Dialog is modal; Escape and a press beside it close it, and the browser gives the focus
 * back to what had it. That is done in the layout phase: an effect's end comes after the
 * next paint, and would take the focus from what the user has gone to by then.
 */
export function Dialog({ title, close, children, wide }) {
  const ref = useRef();
  useLayoutEffect(() => {
    const dialog = ref.current;
    dialog.showModal();
    // The browser would begin with the cross.
    (dialog.querySelector("input:checked") || dialog.querySelector(".box > :not(header) :is(input, select, button, a)"))?.focus();
    return () => dialog.close();
  }, []);
  return html`<dialog ref=${ref} class=${wide ? "wide" : ""} aria-labelledby="dialog-title"
      onCancel=${(e) => { e.preventDefault(); close(); }} onClick=${(e) => { if (e.target === ref.current) close(); }}>
    <div class="box">
      <header><h2 id="dialog-title">${title}</h2><button type="button" class="quiet" aria-label="Close this dialog" onClick=${close}>✕</button></header>
      ${children}
    </div>
  </dialog>`;
}

/** Teams is the choice of a team, for who is in several. */
export function Teams({ teams, team, choose }) {
  return teams.length > 1 && html`<select id="team" aria-label="Team" value=${team} onChange=${(e) => choose(e.target.value)}>${teams.map((t) => html`<option key=${t.team_id} value=${t.team_id} selected=${t.team_id === team}>${t.team_name || t.team_id}</option>`)}</select>`;
}

/** Check is a box to tick. */
export function Check({ id, value, set, children }) {
  return html`<label class="check" for=${id}><input id=${id} type="checkbox" checked=${value} onChange=${(e) => set(e.target.checked)} /><span>${children}</span></label>`;
}

export function Choice({ label, value, set, options, hint, id }) {
  return html`<label class="field" for=${id}><span>${label}</span>
    <select id=${id} value=${value} onChange=${(e) => set(e.target.value)}>
      ${options.map(([v, text]) => html`<option value=${v} selected=${v === value}>${text}</option>`)}
    </select>${hint && html`<small>${hint}</small>`}</label>`;
}

/** useList reads a list now and every few seconds while it is shown. */
export function useList(read, every = 5000) {
  const [list, setList] = useState(null);
  const [error, setError] = useState(null);
  const load = useCallback(async () => {
    try { setList(await read()); setError(null); } catch (e) { setError(e); }
  }, []);
  useEffect(() => {
    load();
    const t = setInterval(() => { if (!document.hidden) load(); }, every);
    return () => clearInterval(t);
  }, []);
  return [list, error, load, setError];
}

/** Ask is a question before something that cannot be undone. */
export function Ask({ title, yes, no = "Cancel", run, close, children }) {
  const [error, setError] = useState(null);
  const go = async () => { try { await run(); close(); } catch (e) { setError(e); } };
  return html`<${Dialog} title=${title} close=${close}>
    ${children}
    <${Fault} error=${error} />
    <footer><button type="button" onClick=${close}>${no}</button><${Act} class="primary danger" run=${go}>${yes}</${Act}></footer>
  </${Dialog}>`;
}

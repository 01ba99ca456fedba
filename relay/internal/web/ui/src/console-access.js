// Who may use a tunnel, or come by a named link: how it is chosen, shown and changed.
import { html } from "htm/preact";
import { useState } from "preact/hooks";
import { Check, Choice, Dialog, Fault } from "./console-parts.js";

const modes = [
  ["anyone", "anyone who has the link"],
  ["pin", "whoever knows a PIN"],
  ["knock", "whom the team lets in"],
  ["team", "members of the team"],
  ["people", "certain people"],
];

const split = (text) => text.split(/[\s,]+/).filter(Boolean);

/** accessText says who may use something; a relay of the last release says nothing. */
export function accessText(c) {
  if (!c.access) return "";
  let text = modes.find(([m]) => m === c.access)?.[1] || c.access;
  if (c.access === "people") text = c.people?.length ? c.people.join(", ") : "whoever opened it";
  if (c.from?.length) text += `, from ${c.from.join(", ")}`;
  return c.read_only ? text + ", to look only" : text;
}

/** asked is what the fields start from; of nothing it is what the relay does by itself. */
export const asked = (c = {}) => ({ access: c.access || "", people: (c.people || []).join(", "), pin: "", from: (c.from || []).join(", "), read_only: !!c.read_only });

/** accessBody is what the relay is asked for. */
export function accessBody(v, tcp) {
  if (!v.access) return {};
  const people = split(v.people), from = split(v.from);
  return {
    access: v.access,
    ...(v.access === "people" && { people }),
    ...(v.access === "pin" && v.pin && { pin: v.pin }),
    ...(from.length > 0 && { from }),
    ...(v.read_only && !tcp && { read_only: true }),
  };
}

/** AccessFields choose it. otherwise is what the first choice is called, which asks for nothing. */
export function AccessFields({ id, value: v, set, otherwise, tcp, pinStays, alone }) {
  const to = (more) => set({ ...v, ...more });
  const field = (name) => (e) => to({ [name]: e.target.value });
  return html`
    <${Choice} id=${id + "-access"} label="Who may use it" value=${v.access} set=${(access) => to({ access })} options=${[...(otherwise ? [["", otherwise]] : []), ...modes]}
      hint=${v.access === "team" ? "They sign in; so do you." : v.access === "knock" ? "They wait until somebody of the team answers." : ""} />
    ${v.access === "people" && html`<label class="field" for=${id + "-people"}><span>Who</span><input id=${id + "-people"} required=${!alone} autocomplete="off" spellcheck="false" placeholder="alice@example.com, *@partner.example" value=${v.people} onInput=${field("people")} /><small>Addresses, all of a domain, or group:NAME. They sign in; whoever opened it always may.</small></label>`}
    ${v.access === "pin" && html`<label class="field" for=${id + "-pin"}><span>PIN</span><input id=${id + "-pin"} type="password" required=${!pinStays} minlength="6" maxlength="64" autocomplete="new-password" value=${v.pin} onInput=${field("pin")} /><small>${pinStays ? "Left empty, it stays as it is. Everybody is asked for it again." : "6 to 64 characters. Tell it to them by another way than the link."}</small></label>`}
    ${v.access !== "" && html`<details open=${!!v.from || v.read_only}><summary>Narrower</summary><div class="more">
      <label class="field" for=${id + "-from"}><span>From these networks only</span><input id=${id + "-from"} autocomplete="off" spellcheck="false" placeholder="203.0.113.0/24" value=${v.from} onInput=${field("from")} /></label>
      ${!tcp && html`<${Check} id=${id + "-read"} value=${v.read_only} set=${(read_only) => to({ read_only })}>To look only: nobody sends anything to the app</${Check}>`}
    </div></details>`}`;
}

/** Access is the dialog that changes it. */
export function Access({ id, title, now, otherwise, tcp, save, close, done }) {
  const [value, setValue] = useState(asked(now));
  const [error, setError] = useState(null);
  const [running, setRunning] = useState(false);
  const submit = async (e) => {
    e.preventDefault();
    setError(null);
    setRunning(true);
    try { done(await save(accessBody(value, tcp))); } catch (e) { setError(e); setRunning(false); }
  };
  return html`<${Dialog} title=${title} close=${close}>
    <form onSubmit=${submit}>
      <${AccessFields} id=${id} value=${value} set=${setValue} otherwise=${otherwise} tcp=${tcp} pinStays=${now.access === "pin"} alone=${now.access === "people" && !now.people?.length} />
      <p class="note">Who may not use it any more is cut off at once.</p>
      <${Fault} error=${error} />
      <footer><button type="button" onClick=${close}>Cancel</button><button type="submit" class="primary" disabled=${running} aria-busy=${running}>Save</button></footer>
    </form>
  </${Dialog}>`;
}

// By what the caller gets in: browsers, paired devices, passkeys.
import { html } from "htm/preact";
import { useState } from "preact/hooks";
import { Act, Ask, Fault, useList } from "./console-parts.js";
import { addPasskey, mayAddPasskey, thisDevice } from "./console-signin.js";
import { ago, until } from "./console-text.js";

const methods = { issuer: "your organisation's sign-in", invite: "an invitation", passkey: "a passkey" };

export function Devices({ api, now, tell, signOut }) {
  const [list, error, load, setError] = useList(() => api.devices());
  const [asked, setAsked] = useState(null); // what is about to be revoked: [its id, its name, what follows]
  const [everywhere, setEverywhere] = useState(false);
  const [name, setName] = useState(thisDevice());
  const add = async (e) => {
    try { await addPasskey(name.trim()); tell("the passkey is there: sign in with it from now on"); } catch (e) { setError(e); return; }
    await load();
  };
  const revoke = async () => { await api.forget(asked[0]); tell(`${asked[1]} is revoked`); await load(); };
  const rows = (of, label, none, row) => html`${of.length === 0 && html`<p class="note">${none}</p>`}
    ${of.length > 0 && html`<ul class="rows" aria-label=${label}>${of.map((x) => {
      const { id, name, facts, follows, own } = row(x);
      return html`<li key=${id}><div><strong>${name}</strong>${own ? " (this one)" : ""} <span class="note">${facts.filter(Boolean).join(", ")}</span></div>
        ${!own && api.me.kind === "user" && html`<div class="actions"><button type="button" class="danger" aria-label=${`Revoke ${name}`} onClick=${() => setAsked([id, name, follows])}>Revoke</button></div>`}</li>`;
    })}</ul>`}`;
  return html`<section class="sheet" aria-labelledby="devices-title">
    <h2 id="devices-title">Your devices</h2>
    <${Fault} error=${error} />
    ${list === null && !error && html`<p class="note" role="status">Loading…</p>`}
    ${list && html`
    <section class="panel" aria-labelledby="browsers-title"><h3 id="browsers-title">Browsers that are signed in</h3>
      ${rows(list.sign_ins, "Browsers", "None: you are here with a token.", (s) => ({
        id: s.sign_in_id, name: s.browser ? thisDevice(s.browser) : "Unknown browser", own: s.current, follows: "The browser is signed out at once.",
        facts: [s.remote_addr && `from ${s.remote_addr}`, `by ${methods[s.method] || s.method}`, `used ${ago(s.seen_at, now)}`, `ends ${until(s.expires_at, now)} unless used`],
      }))}
      ${api.renews && html`<div class="actions"><button type="button" class="danger" onClick=${() => setEverywhere(true)}>Sign out everywhere</button></div>`}
    </section>
    <section class="panel" aria-labelledby="paired-title"><h3 id="paired-title">Paired devices</h3>
      ${rows(list.devices, "Paired devices", "None. “adit login” on a machine pairs it.", (d) => ({
        id: d.id, name: d.name || d.prefix, follows: "It cannot act for you any more, and the tunnels that it opened are closed.",
        facts: [`paired ${ago(d.created_at, now)}`, d.last_used_at && `used ${ago(d.last_used_at, now)}`, d.expires_at && `ends ${until(d.expires_at, now)}`],
      }))}
    </section>
    ${(list.passkeys.length > 0 || api.me.may_add_passkey !== false) && html`<section class="panel" aria-labelledby="passkeys-title"><h3 id="passkeys-title">Passkeys</h3>
      ${rows(list.passkeys, "Passkeys", "None. With a passkey you sign in without a password, on each of your devices.", (k) => ({
        id: k.passkey_id, name: k.name, follows: "It signs nobody in any more. Who is signed in stays so.",
        facts: [`added ${ago(k.created_at, now)}`, k.last_used_at ? `used ${ago(k.last_used_at, now)}` : "not used yet"],
      }))}
      ${mayAddPasskey(api.me) && api.renews && html`<div class="line two"><label class="field" for="passkey-name"><span>Name of the new passkey</span><input id="passkey-name" maxlength="64" value=${name} onInput=${(e) => setName(e.target.value)} /></label>
        <${Act} class="primary" run=${add}>Add a passkey</${Act}></div>`}
    </section>`}`}
    ${asked && html`<${Ask} title=${`Revoke ${asked[1]}?`} yes="Revoke" run=${revoke} close=${() => setAsked(null)}><p>${asked[2]}</p></${Ask}>`}
    ${everywhere && html`<${Ask} title="Sign out everywhere?" yes="Sign out everywhere" run=${() => signOut(true)} close=${() => setEverywhere(false)}><p>Every browser in which you are signed in is signed out at once, this one too. Paired devices stay paired.</p></${Ask}>`}
  </section>`;
}

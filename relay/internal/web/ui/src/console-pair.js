// The page that pairs a device: it shows who asks, and the person confirms.
import { html } from "htm/preact";
import { useEffect, useState } from "preact/hooks";
import { Fault, Teams } from "./console-parts.js";
import { Card } from "./console-signin.js";
import { ago, clock, personName, teamName } from "./console-text.js";

// tidy is a code as it is shown; what was typed may have any case, dashes and spaces.
const tidy = (code) => code.toUpperCase().replace(/[^A-Z0-9]/g, "").replace(/^(.{4})(?=.)/, "$1-");

export function Pair({ api, teams, choose, signOut }) {
  const [code, setCode] = useState(tidy(new URLSearchParams(location.search).get("user_code") || ""));
  const [asked, setAsked] = useState(null); // who asks
  const [name, setName] = useState("");
  const [done, setDone] = useState(null);
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(!!code);
  const show = async (code) => {
    setBusy(true);
    setError(null);
    try {
      const a = await api.pairing(code);
      setAsked(a);
      setName((n) => n || a.agent_id || a.machine_name || a.client || "");
    } catch (e) { setError(e); }
    setBusy(false);
  };
  const may = api.may("member");
  useEffect(() => { if (code && may) show(code); }, []);
  const finish = (how) => { history.replaceState(null, "", location.pathname); setDone(how); };
  const confirm = async (e) => {
    e.preventDefault();
    setBusy(true);
    setError(null);
    try { finish(await api.confirm(code, name.trim())); } catch (e) { setError(e); }
    setBusy(false);
  };
  const me = html`<p class="note">You are ${personName(api.me)}${teams.length === 1 && teams[0].team_name ? `, in ${teamName(teams[0])}` : ""}. <button type="button" class="link" onClick=${() => signOut().catch(setError)}>Sign out</button></p>
    ${teams.length > 1 && html`<label class="field" for="team"><span>For the team</span><${Teams} teams=${teams} team=${api.me.team_id} choose=${choose} /></label>`}`;

  if (done?.status) return html`<${Card} title="Paired"><p role="status"><b>${done.device_name || name}</b> is paired. Go back to it: it goes on by itself.</p>${done.agent_id ? html`<a class="button" href="/console">Your machines</a>` : html`<a class="button" href="/console#devices">Your devices</a>`}</${Card}>`;
  if (done) return html`<${Card} title="Nothing was paired"><p role="status">The code ends by itself. If you did not ask for it, somebody may have sent it to you to get in as you: do not confirm it, and tell who looks after this relay.</p><a class="button" href="/console">To the console</a></${Card}>`;
  if (!may) return html`<${Card} title="Pair a device"><p class="warning">Whoever pairs a device is a member at least; you are ${api.me.role} of ${teamName(api.me)}. Ask an admin of the team.</p>${me}</${Card}>`;
  if (!asked) return html`<${Card} title="Pair a device">
    <form onSubmit=${(e) => { e.preventDefault(); show(code); }}>
      <label class="field" for="code"><span>Code</span><input id="code" class="code" required autocomplete="off" autocapitalize="characters" spellcheck="false" maxlength="20" placeholder="AB7K-PNQ3" value=${code} onInput=${(e) => setCode(e.target.value)} />
        <small>The device shows it: 8 letters and digits.</small></label>
      <${Fault} error=${error} />
      <button type="submit" class="primary" disabled=${busy} aria-busy=${busy}>${busy ? "Looking…" : "Next"}</button>
    </form>${me}</${Card}>`;
  const agent = asked.keys.includes("agent");
  const device = asked.keys.includes("device");
  return html`<${Card} title="Pair this device?">
    <p>Confirm only if you started this yourself, just now, and the device shows this code:</p>
    <p class="code">${tidy(code)}</p>
    <dl class="facts one">
      <div><dt>Program</dt><dd>${asked.client || "it does not say"}</dd></div>
      <div><dt>Machine</dt><dd>${asked.machine_name || "it does not say"}</dd></div>
      <div><dt>Asks from</dt><dd>${asked.remote_addr}, ${ago(asked.asked_at, Date.now())}</dd></div>
      <div><dt>It will</dt><dd>${[device && "act as you in the team, until you revoke it", agent && `connect the machine to the team as ${asked.agent_id}`].filter(Boolean).join("; ")}</dd></div>
    </dl>
    <p class="note">Program and machine are what it says of itself. The code ends at ${clock(asked.expires_at)}.</p>
    ${me}
    <form onSubmit=${confirm}>
      <label class="field" for="device-name"><span>Name of the device</span><input id="device-name" required maxlength="100" autocomplete="off" value=${name} onInput=${(e) => setName(e.target.value)} /></label>
      <${Fault} error=${error} />
      <button type="submit" class="primary" disabled=${busy} aria-busy=${busy}>Confirm</button>
      <button type="button" onClick=${() => finish({})}>This is not me</button>
    </form>
  </${Card}>`;
}

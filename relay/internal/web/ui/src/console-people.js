// The people of the team: who is in it, as what, and who is invited.
import { html } from "htm/preact";
import { useState } from "preact/hooks";
import { atLeast, rolesUpTo } from "./console-api.js";
import { Act, Ask, Check, Choice, Copy, Dialog, Fault, QR, useList } from "./console-parts.js";
import { ago, clock, personName, plural, until } from "./console-text.js";

const roles = { viewer: "sees machines and tunnels", member: "opens tunnels, closes their own", admin: "closes others' too; people, credentials", owner: "all, and roles" };
const sources = { issuer: "by the organisation's sign-in", operator: "by the operator" };

// all reads every page of the list. A viewer sees of the team's people only themself.
async function all(api) {
  if (!api.may("member")) return [{ ...api.me, source: "" }];
  const out = [];
  for (let page = 1; ; page++) {
    const { members, page_meta: m } = await api.members(page);
    out.push(...members);
    if (members.length === 0 || out.length >= m.total_count) return out;
  }
}

export function People({ api, now, tell }) {
  const [list, error, load, setError] = useList(() => all(api), 20_000); // a thousand members are ten answers
  const [leaving, setLeaving] = useState(null); // who is about to be removed
  const mine = api.me.user_id;
  const setRole = async (m, field) => {
    const role = field.value;
    try {
      await api.setRole(m.user_id, role);
      tell(`${personName(m)} is ${role} now`);
      await load();
    } catch (e) { field.value = m.role; setError(e); }
  };
  return html`<section class="sheet" aria-labelledby="people-title">
    <h2 id="people-title">People${api.me.team_name ? ` of ${api.me.team_name}` : ""}</h2>
    <${Fault} error=${error} />
    ${list === null && !error && html`<p class="note" role="status">Loading…</p>`}
    ${list && html`<p class="note">${api.may("member") ? plural(list.length, "member") : "As a viewer you do not see who else is in the team."}</p>
    <ul class="rows" aria-label="Members">${list.map((m) => html`<li key=${m.user_id}>
      <div><strong>${personName(m)}</strong>${m.user_id === mine ? " (you)" : ""} <span class="note">${[m.user_name && m.email, sources[m.source], m.invited_by && `invited by ${m.invited_by.startsWith("operator:") ? "the operator" : m.invited_by}`, m.seen_at && `here ${ago(m.seen_at, now)}`].filter(Boolean).join(", ")}</span></div>
      <div class="actions">
        ${api.may("owner") ? html`<select aria-label=${`Role of ${personName(m)}`} value=${m.role} onChange=${(e) => setRole(m, e.target)}>${rolesUpTo("owner").map((r) => html`<option key=${r} value=${r} selected=${r === m.role} title=${roles[r]}>${r}</option>`)}</select>` : html`<span class="kind" title=${roles[m.role]}>${m.role}</span>`}
        ${m.user_id === mine ? html`<button type="button" class="danger" onClick=${() => setLeaving(m)}>Leave the team</button>`
          : api.may("admin") && atLeast(api.me.role, m.role) && html`<button type="button" class="danger" aria-label=${`Remove ${personName(m)}`} onClick=${() => setLeaving(m)}>Remove</button>`}
      </div></li>`)}</ul>`}
    ${leaving && html`<${Remove} member=${leaving} self=${leaving.user_id === mine} api=${api} tell=${tell} close=${() => setLeaving(null)} done=${load} />`}
    ${api.may("admin") && html`<${Invites} api=${api} now=${now} tell=${tell} />`}
  </section>`;
}

function Remove({ member, self, api, tell, close, done }) {
  const [keep, setKeep] = useState(false);
  const name = personName(member);
  const run = async () => {
    await api.remove(member.user_id, keep);
    tell(self ? "you have left the team" : `${name} is removed`);
    await done();
  };
  return html`<${Ask} title=${self ? "Leave the team?" : `Remove ${name}?`} yes=${self ? "Leave" : "Remove"} run=${run} close=${close}>
    <p>${self ? "You are" : `${name} is`} signed out of this team at once, and ${self ? "your" : "their"} devices and credentials stop working in it.</p>
    <${Check} id="keep-tunnels" value=${keep} set=${setKeep}>Keep the tunnels open that ${self ? "you" : "they"} opened</${Check}>
  </${Ask}>`;
}

function Invites({ api, now, tell }) {
  const [list, error, load, setError] = useList(async () => (await api.invites()).invites);
  const [name, setName] = useState("");
  const [role, setRole] = useState("member");
  const [expires, setExpires] = useState("24h");
  const [making, setMaking] = useState(false);
  const [made, setMade] = useState(null);
  const make = async (e) => {
    e.preventDefault();
    setMaking(true);
    try {
      setMade(await api.invite({ name: name.trim(), role, expires_in: expires }));
      setName("");
      await load();
    } catch (e) { setError(e); }
    setMaking(false);
  };
  const takeBack = (i) => async () => {
    try { await api.takeBack(i.invite_id); tell(`the invitation for ${i.name} is taken back`); } catch (e) { setError(e); return; }
    await load();
  };
  return html`<section class="panel" aria-labelledby="invites-title">
    <h3 id="invites-title">Invitations</h3>
    <p class="note">An address that works once, within a day. Whoever opens it is in the team.</p>
    ${list?.length > 0 && html`<ul class="rows" aria-label="Invitations">${list.map((i) => html`<li key=${i.invite_id}>
      <div><strong>${i.name}</strong> <span class="note">as ${i.role}, by ${i.created_by.startsWith("operator:") ? "the operator" : i.created_by}, ends ${until(i.expires_at, now)}</span></div>
      <div class="actions"><${Act} class="danger" label=${`Take back the invitation for ${i.name}`} run=${takeBack(i)}>Take back</${Act}></div></li>`)}</ul>`}
    <${Fault} error=${error} />
    <form class="line" onSubmit=${make}>
      <label class="field" for="invite-name"><span>For whom</span><input id="invite-name" required maxlength="64" autocomplete="off" placeholder="their name" value=${name} onInput=${(e) => setName(e.target.value)} /></label>
      <${Choice} id="invite-role" label="Role" value=${role} set=${setRole} options=${rolesUpTo(api.me.role).map((r) => [r, r])} />
      <${Choice} id="invite-ends" label="Works for" value=${expires} set=${setExpires} options=${[["1h", "1 hour"], ["8h", "8 hours"], ["24h", "1 day"]]} />
      <button type="submit" class="primary" disabled=${making}>Invite</button>
    </form>
    <p class="note">${role}: ${roles[role]}.</p>
    ${made && html`<${Dialog} title=${`Invitation for ${made.name}`} close=${() => setMade(null)}><div class="opened">
      <p>Give this address to ${made.name} and to nobody else. It works once, until ${clock(made.expires_at)}, and is not shown again.</p>
      <div class="share"><input readonly aria-label="Address of the invitation" value=${made.invite_url} onFocus=${(e) => e.target.select()} /><${Copy} text=${made.invite_url} what="Copy the invitation" class="primary">Copy</${Copy}></div>
      <${QR} text=${made.invite_url} />
      <footer><button type="button" onClick=${() => setMade(null)}>Done</button></footer>
    </div></${Dialog}>`}
  </section>`;
}

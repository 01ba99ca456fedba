// How a person gets in: by the issuer, a passkey, an invitation, or a secret.
import { html } from "htm/preact";
import { useEffect, useState } from "preact/hooks";
import { door, typed, whoIs } from "./console-api.js";
import { Act, Fault } from "./console-parts.js";
import { said, teamName } from "./console-text.js";
import { rightPlace } from "./place.js";

const webauthn = globalThis.PublicKeyCredential;
const passkeysHere = !!webauthn?.parseRequestOptionsFromJSON;

// ceremony turns the browser's refusals, which are one word for much, into what happened;
// none says what it means that there was no passkey in the end.
const ceremony = async (none, run) => {
  try {
    return await run();
  } catch (e) {
    if (e.name === "InvalidStateError") throw new Error("this device has a passkey of yours already");
    if (e.name === "NotAllowedError") throw new Error(none);
    throw new Error(`the browser could not use a passkey: ${e.message}`);
  }
};

/** mayAddPasskey says whether somebody can add one: the relay must let them, and the browser know how. */
export const mayAddPasskey = (person) => !!person.may_add_passkey && passkeysHere;

/** byPasskey signs in with a passkey. */
async function byPasskey() {
  const { ticket, publicKey } = await door("POST", "passkey/begin", {});
  const credential = await ceremony("no passkey was used: it was cancelled, or there is none for this relay on this device", () => navigator.credentials.get({ publicKey: webauthn.parseRequestOptionsFromJSON(publicKey) }));
  await door("POST", "passkey/finish", { ticket, credential: credential.toJSON() });
}

/** addPasskey makes one for who is signed in. */
export async function addPasskey(name) {
  const { ticket, publicKey } = await door("POST", "passkey/register/begin", {});
  const credential = await ceremony("no passkey was added: it was cancelled, took too long, or this device makes none", () => navigator.credentials.create({ publicKey: webauthn.parseCreationOptionsFromJSON(publicKey) }));
  await door("POST", "passkey/register/finish", { ticket, credential: credential.toJSON(), name });
}

/** thisDevice is what a passkey or a browser is called if nobody says otherwise. */
export function thisDevice(agent = navigator.userAgent) {
  const system = [["Android", "Android"], ["iPhone", "iPhone"], ["iPad", "iPad"], ["Mac OS", "Mac"], ["Windows", "Windows"], ["CrOS", "ChromeOS"], ["Linux", "Linux"]].find(([w]) => agent.includes(w))?.[1];
  const browser = [["Edg/", "Edge"], ["OPR/", "Opera"], ["Firefox/", "Firefox"], ["Chrome/", "Chrome"], ["Safari/", "Safari"]].find(([w]) => agent.includes(w))?.[1];
  return [browser, system].filter(Boolean).join(" on ") || agent.slice(0, 60) || "unknown browser";
}

export function Card({ title, children }) {
  return html`<main class="signin"><div class="box"><h1>${title}</h1>${children}</div></main>`;
}

/** Wait is shown until the relay has said whether the browser is signed in. */
export function Wait({ error, again }) {
  useEffect(() => {
    if (!error) return;
    const t = setTimeout(again, 2000 + 2000 * Math.random());
    return () => clearTimeout(t);
  }, [error]);
  return error ? html`<${Card} title="Adit console"><${Fault} error=${error} /><p class="note">This page tries again by itself.</p><button type="button" onClick=${again}>Try now</button></${Card}>` : html`<p class="boot">Loading…</p>`;
}

/** Join asks whoever is signed in already before an invitation makes them a member of a team. */
export function Join({ name, join, skip }) {
  const [error, setError] = useState(null);
  const run = async () => { try { await join(); } catch (e) { setError(e); } };
  if (error?.code === "invite_refused") return html`<${Card} title="This invitation does not work"><${Fault} error=${error} /><a class="button primary" href="/console" onClick=${(e) => { e.preventDefault(); skip(); }}>To the console</a></${Card}>`;
  return html`<${Card} title="You are invited to a team">
    <p>This browser is signed in as <b>${name}</b>. If you accept, ${name} becomes a member of the team that invited you. Accept only an invitation that you expected.</p>
    <${Fault} error=${error} />
    <${Act} class="primary" run=${run}>Accept as ${name}</${Act}>
    <button type="button" onClick=${skip}>Do not accept</button>
    <p class="note">The invitation is for somebody else? Sign out first, then open it again.</p>
  </${Card}>`;
}

/** toTunnel is where somebody goes on to who signs in for a tunnel; empty: they stay here. */
export const toTunnel = /^\/auth\/pass\?t=[\w-]+$/.exec(new URLSearchParams(location.search).get("return_to"))?.[0] || "";

export function SignIn({ title, about, reason, enter, signedIn }) {
  const [offer, setOffer] = useState(null); // what the relay offers; null: not known yet
  const [off, setOff] = useState(null);     // why it offers nothing
  const [place, setPlace] = useState("");
  const [error, setError] = useState(reason);
  useEffect(() => {
    (async () => {
      const offered = door("GET", "options").catch((e) => { if (e.code === "sign_in_off") setOff(e); return {}; });
      setPlace(await rightPlace());
      setOffer(await offered);
    })();
  }, []);
  useEffect(() => setError(reason), [reason]);
  const passkey = async () => {
    setError(null);
    try { await byPasskey(); await signedIn(); } catch (e) { setError(e); }
  };
  // By another name of the relay there is no cookie of its own, and no passkey.
  const issuer = !place && offer?.issuer;
  const passkeys = !place && offer?.passkeys && passkeysHere;
  const alone = offer && !issuer && !passkeys && !place; // there is only the token
  return html`<${Card} title=${title}>
    <p>${about}</p>
    <${Fault} error=${error} />
    ${place && html`<p>People sign in at the relay's own address. This is another name of it.</p><a class="button primary" href=${place + location.search}>Go to ${new URL(place).host}</a>`}
    ${issuer && html`<a class="button primary" href=${"/auth/login?return_to=" + encodeURIComponent(toTunnel || location.pathname + location.search)}>Sign in with ${offer.issuer_name || "your organisation"}</a>`}
    ${passkeys && html`<${Act} class=${issuer ? "" : "primary"} run=${passkey}>Sign in with a passkey</${Act}>`}
    ${!place && offer?.invites && html`<p class="note">You are new here? Open the invitation that somebody of your team sent you.</p>`}
    ${off && html`<p class="note">${said(off)}</p>`}
    ${offer && html`<details open=${alone}><summary>I have a token</summary><${Secret} enter=${enter} focus=${alone} setError=${setError} /></details>`}
  </${Card}>`;
}

function Secret({ enter, focus, setError }) {
  const [secret, setSecret] = useState("");
  const [busy, setBusy] = useState(false);
  const submit = async (e) => {
    e.preventDefault();
    setBusy(true);
    setError(null);
    const way = typed(secret.trim());
    try { enter(way, await whoIs(way)); } catch (e) { setError(e); setBusy(false); }
  };
  return html`<form onSubmit=${submit}>
    <label class="field" for="secret"><span>Secret</span><input id="secret" type="password" autocomplete="off" spellcheck="false" required autofocus=${focus} aria-describedby="secret-hint" value=${secret} onInput=${(e) => setSecret(e.target.value)} />
      <small id="secret-hint">A credential (sk-… or dk-…) or your session token. It stays in this page's memory; a reload forgets it.</small></label>
    <button type="submit" class=${focus ? "primary" : ""} disabled=${busy} aria-busy=${busy}>${busy ? "Signing in…" : "Sign in with the token"}</button>
  </form>`;
}

/** Welcome tells a new member where they are, and offers the way back. */
export function Welcome({ team, me, done, tell }) {
  const passkeys = mayAddPasskey(me) && !me.has_passkey;
  const [error, setError] = useState(null);
  const add = async () => {
    setError(null);
    try { await addPasskey(thisDevice()); tell("the passkey is there: sign in with it from now on"); done(); } catch (e) { setError(e); }
  };
  return html`<section class="welcome" aria-label="Welcome">
    <p><b>You are in ${teamName(team)} as ${team.role}.</b>${passkeys ? " Add a passkey to come back by yourself: without one you need another invitation when this browser's sign-in has ended." : ""}</p>
    <${Fault} error=${error} />
    <div class="actions">${passkeys && html`<${Act} class="primary" run=${add}>Add a passkey</${Act}>`}<button type="button" onClick=${done}>${passkeys ? "Not now" : "All right"}</button></div>
  </section>`;
}

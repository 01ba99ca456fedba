// The console's way to the relay. Secrets live in this module's memory and in request
// headers, and nowhere else: a reload forgets them. What a reload keeps is the sign-in of
// the browser, in a cookie that no script can read.
const base = "/api/v1";

export class Problem extends Error {
  constructor(status, doc) {
    super(doc.detail || doc.title || `the relay answered ${status}`);
    this.status = status;
    this.code = doc.code || "";
    this.hop = doc.hop || "";
    this.request = doc.request_id || "";
  }
}

/** Offline is for what never reached the relay. */
export class Offline extends Error {}

async function request(method, url, body, options = {}) {
  let r;
  try {
    r = await fetch(url, {
      method, credentials: options.cookie ? "same-origin" : "omit", cache: "no-store", redirect: "error", signal: options.signal,
      headers: { ...options.headers, ...(body === undefined ? {} : { "Content-Type": "application/json" }) },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (e) {
    if (e.name === "AbortError") throw e;
    throw new Offline("the relay cannot be reached");
  }
  if (!r.ok) throw new Problem(r.status, await r.json().catch(() => ({})));
  return r;
}

/** door asks what stands under /auth: the only part of the relay that reads the cookie. */
export const door = async (method, path, body) => {
  const r = await request(method, "/auth/" + path, body, { cookie: true });
  return r.status === 204 ? null : r.json();
};

/** typed is the way of a secret that was typed in. */
export const typed = (secret) => ({ bearer: async () => secret });

/** token asks for a bearer. It is renewed a minute before it ends, by the relay's clock. */
export async function token() {
  const r = await request("POST", "/auth/token", {}, { cookie: true });
  const t = await r.json();
  const now = Date.parse(r.headers.get("Date")) || Date.now();
  return { ...t, until: Date.now() + Date.parse(t.expires_at) - now - 60_000 };
}

/**
 * signedIn is the way of a browser that is signed in. changed hears of each new bearer,
 * which says anew what the person may; gone, that the browser is not signed in any more.
 */
export function signedIn(first, { changed, gone }) {
  let held = first, asking = null;
  const renew = () => (asking ??= token().then((t) => {
    if (t.user_id !== first.user_id) { // somebody else signed in, in another tab
      location.reload();
      return new Promise(() => {});
    }
    held = t;
    changed(t);
    return t.token;
  }, (e) => {
    if (e.status === 401) gone(e);
    throw e;
  }).finally(() => { asking = null; }));
  return { bearer: async () => (Date.now() < held.until ? held.token : renew()), renew };
}

const order = ["viewer", "member", "admin", "owner"];
export const atLeast = (role, least) => order.indexOf(role) >= order.indexOf(least);
export const rolesUpTo = (role) => order.filter((r) => atLeast(role, r));

/** connect returns the calls of somebody who is in a team. */
export function connect(way, me, team) {
  const named = team ? { "X-Team-ID": team } : {};

  async function ask(method, path, body, options = {}) {
    const send = (bearer) => request(method, base + path, body, { ...options, headers: { Authorization: "Bearer " + bearer, ...named, ...options.headers } });
    let r;
    try {
      r = await send(await way.bearer()).catch(async (e) => {
        if (e.status !== 401 || !way.renew) throw e;
        return send(await way.renew());
      });
    } catch (e) {
      // What the page knows of the person's role is old.
      if (["role_required", "not_a_member"].includes(e.code)) way.renew?.().catch(() => {});
      throw e;
    }
    if (options.stream) return r;
    return r.status === 204 ? null : r.json();
  }

  const closed = new Set(); // by this page
  const id = encodeURIComponent;
  const agent = (a) => "/agents/" + id(a);
  const tunnel = (t) => "/tunnels/" + id(t);
  const keeping = (keep) => (keep ? "?keep_tunnels=true" : "");
  const api = {
    me, // who is calling, and their role in the team, as far as is known here
    renews: !!way.renew, // it is this browser that is signed in
    may: (role, scope) => atLeast(api.me.role, role) && (!api.me.scopes?.length || api.me.scopes.includes(scope)),
    tunnels: (a) => ask("GET", agent(a) + "/tunnel"),
    // The key makes a repetition after a lost answer harmless.
    open: (a, body, key, signal) => ask("POST", agent(a) + "/tunnel", body, { signal, headers: { "Idempotency-Key": key } }),
    close: (a, session) => closed.add(session) && ask("DELETE", agent(a) + "/tunnel?session_id=" + session),
    closedHere: (session) => closed.has(session),
    extend: (session, expires) => ask("POST", tunnel(session) + "/extend", { expires_in: expires }),
    terminal: (session) => ask("POST", tunnel(session) + "/terminal", {}),
    setAccess: (session, body) => ask("PUT", tunnel(session) + "/access", body),
    setLinkAccess: (session, link, body) => ask("PUT", tunnel(session) + "/links/" + id(link) + "/access", body),
    viewers: (session) => ask("GET", tunnel(session) + "/viewers"),
    kick: (session, viewer) => ask("DELETE", tunnel(session) + "/viewers/" + id(viewer)),
    knocks: (session) => ask("GET", tunnel(session) + "/knocks"),
    answer: (session, knock, admit) => ask("POST", tunnel(session) + "/knocks/" + id(knock), { admit }),
    links: (session) => ask("GET", tunnel(session) + "/links"),
    makeLink: (session, body) => ask("POST", tunnel(session) + "/links", body),
    revoke: (session, link) => ask("DELETE", tunnel(session) + "/links/" + id(link)),
    watch: (last, signal) => ask("GET", "/agents/watch", undefined, { stream: true, signal, headers: last ? { "Last-Event-ID": last } : {} }),

    members: (page) => ask("GET", "/members?per_page=100&current_page=" + page),
    setRole: (user, role) => ask("PATCH", "/members/" + id(user), { role }),
    remove: (user, keep) => ask("DELETE", "/members/" + id(user) + keeping(keep)),
    invites: () => ask("GET", "/invites"),
    invite: (body) => ask("POST", "/invites", body),
    takeBack: (invite) => ask("DELETE", "/invites/" + id(invite)),
    devices: () => ask("GET", "/devices"),
    forget: (device) => ask("DELETE", "/devices/" + id(device)),
    pairing: (code) => ask("POST", "/desktop/pair/show", { user_code: code }),
    confirm: (code, name) => ask("POST", "/desktop/pair/confirm", { user_code: code, device_name: name }),
  };
  return api;
}

/** whoIs asks who a secret is; a relay of the last release does not say, and lets it do all. */
export async function whoIs(way) {
  try {
    const r = await request("GET", base + "/me", undefined, { headers: { Authorization: "Bearer " + await way.bearer() } });
    return await r.json();
  } catch (e) {
    if (e.code !== "not_found") throw e;
    return { kind: "", role: "owner", teams: [] };
  }
}

const silence = 40_000; // a comment comes every 15 s
const first = 400, longest = 15_000;

// follow keeps the event stream open until stop is called: EventSource cannot send
// Authorization. state is "live", "connecting" or "waiting" (with the time of the
// next try, and the relay's reason if it gave one). refused says whether to go on trying.
export function follow(api, { event, state, refused }) {
  let stopped = false, last = "", delay = first, abort = null, wake = null, why = "";

  async function once() {
    abort = new AbortController();
    let timer = setTimeout(() => abort.abort(), silence);
    try {
      state("connecting");
      const r = await api.watch(last, abort.signal);
      const reader = r.body.pipeThrough(new TextDecoderStream()).getReader();
      let buffer = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        clearTimeout(timer);
        timer = setTimeout(() => abort.abort(), silence);
        buffer += value;
        for (let end; (end = buffer.indexOf("\n\n")) >= 0; buffer = buffer.slice(end + 2)) deliver(buffer.slice(0, end));
      }
    } finally {
      clearTimeout(timer);
    }
  }

  function deliver(block) {
    const data = [];
    for (const line of block.split("\n")) {
      if (line.startsWith("id: ")) last = line.slice(4);
      else if (line.startsWith("data: ")) data.push(line.slice(6));
    }
    if (data.length === 0) return;
    const e = JSON.parse(data.join("\n"));
    if (e.kind === "goodbye") { why = e.detail; return; }
    if (e.kind === "snapshot") { delay = first; why = ""; state("live"); }
    event(e);
  }

  async function run() {
    while (!stopped) {
      try {
        await once();
      } catch (e) {
        if (stopped) return;
        if (e instanceof Problem) why = e.message;
        if (e instanceof Problem && [400, 401, 403].includes(e.status) && !refused(e)) return;
      }
      if (stopped) return;
      const wait = delay * (0.7 + 0.6 * Math.random());
      delay = Math.min(delay * 1.7, longest);
      state("waiting", Date.now() + wait, why);
      await new Promise((ok) => { const t = setTimeout(ok, wait); wake = () => { clearTimeout(t); ok(); }; });
      wake = null;
    }
  }

  const retry = () => { delay = first; wake?.(); };
  const lost = () => abort?.abort();
  addEventListener("online", retry);
  addEventListener("offline", lost);
  run();
  return {
    retry,
    stop() {
      stopped = true;
      removeEventListener("online", retry);
      removeEventListener("offline", lost);
      abort?.abort();
      wake?.();
    },
  };
}

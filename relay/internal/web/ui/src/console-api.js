// The console's way to the relay. The secret lives in this module's memory and in
// request headers, and nowhere else: a reload forgets it.
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

/** offline is for what never reached the relay. */
export class Offline extends Error {}

export function connect(secret, team) {
  const headers = { Authorization: "Bearer " + secret, ...(team ? { "X-Team-ID": team } : {}) };

  async function ask(method, path, body, options = {}) {
    let r;
    try {
      r = await fetch(base + path, {
        method, credentials: "omit", cache: "no-store", redirect: "error", signal: options.signal,
        headers: { ...headers, ...options.headers, ...(body === undefined ? {} : { "Content-Type": "application/json" }) },
        body: body === undefined ? undefined : JSON.stringify(body),
      });
    } catch (e) {
      if (e.name === "AbortError") throw e;
      throw new Offline("the relay cannot be reached");
    }
    if (!r.ok) throw new Problem(r.status, await r.json().catch(() => ({})));
    if (options.stream) return r;
    return r.status === 204 ? null : r.json();
  }

  const closed = new Set(); // by this page
  const agent = (id) => "/agents/" + encodeURIComponent(id);
  const tunnel = (id) => "/tunnels/" + encodeURIComponent(id);
  return {
    check: () => ask("GET", "/agents?per_page=1"),
    tunnels: (id) => ask("GET", agent(id) + "/tunnel"),
    // The key makes a repetition after a lost answer harmless.
    open: (id, body, key, signal) => ask("POST", agent(id) + "/tunnel", body, { signal, headers: { "Idempotency-Key": key } }),
    close: (id, session) => closed.add(session) && ask("DELETE", agent(id) + "/tunnel?session_id=" + session),
    closedHere: (session) => closed.has(session),
    extend: (session, expires) => ask("POST", tunnel(session) + "/extend", { expires_in: expires }),
    terminal: (session) => ask("POST", tunnel(session) + "/terminal", {}),
    viewers: (session) => ask("GET", tunnel(session) + "/viewers"),
    kick: (session, viewer) => ask("DELETE", tunnel(session) + "/viewers/" + encodeURIComponent(viewer)),
    links: (session) => ask("GET", tunnel(session) + "/links"),
    makeLink: (session, body) => ask("POST", tunnel(session) + "/links", body),
    revoke: (session, link) => ask("DELETE", tunnel(session) + "/links/" + encodeURIComponent(link)),
    watch: (last, signal) => ask("GET", "/agents/watch", undefined, { stream: true, signal, headers: last ? { "Last-Event-ID": last } : {} }),
  };
}

const silence = 40_000; // a comment comes every 15 s
const first = 400, longest = 15_000;

// follow keeps the event stream open until stop is called: EventSource cannot send
// Authorization. state is "live", "connecting" or "waiting" (with the time of the
// next try, and the relay's reason if it gave one).
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
        if (e instanceof Problem && [400, 401, 403].includes(e.status)) { refused(e); return; }
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

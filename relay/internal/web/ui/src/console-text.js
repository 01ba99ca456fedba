// What people read: sizes, times, names.
import apps from "../../../../../shared/apps/apps.json";

const units = ["B", "KiB", "MiB", "GiB", "TiB"];

export function bytes(n) {
  let i = 0;
  for (; n >= 1024 && i < units.length - 1; i++) n /= 1024;
  return `${i === 0 || n >= 100 ? Math.round(n) : n.toFixed(1)} ${units[i]}`;
}

function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) { const m = Math.floor((s % 3600) / 60); return `${Math.floor(s / 3600)} h${m ? ` ${m} min` : ""}`; }
  const h = Math.floor((s % 86400) / 3600);
  return `${Math.floor(s / 86400)} d${h ? ` ${h} h` : ""}`;
}

export const ago = (t, now) => (now - Date.parse(t) < 5000 ? "just now" : span((now - Date.parse(t)) / 1000) + " ago");
export const until = (t, now) => { const at = typeof t === "number" ? t : Date.parse(t); return at <= now ? "now" : "in " + span((at - now) / 1000); };
export const clock = (t) => new Date(t).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
export const plural = (n, one, many = one + "s") => `${n} ${n === 1 ? one : many}`;

/** seconds reads a duration as the relay writes it: 1h30m0s. */
export function seconds(text) {
  let n = 0;
  for (const [, v, u] of String(text).matchAll(/([\d.]+)(h|ms|m|s)/g)) n += v * { h: 3600, m: 60, s: 1, ms: 0.001 }[u];
  return n;
}

/** presets are the apps that a tunnel is opened to by name. */
export const presets = apps.filter((a) => a.preset);

/** appName is what listens behind a tunnel, as far as is known. */
export const appName = (s) => apps.find((a) => a.id === s.app)?.name || s.app || presets.find((a) => a.ports[0] === s.target_port)?.name || "";

/** labels of a machine, as texts; a relay of the last release sends a mapping. */
export const labels = (a) => (Array.isArray(a.agent_labels) ? a.agent_labels : Object.entries(a.agent_labels || {}).map(([k, v]) => (v ? `${k}=${v}` : k)));

export const states = {
  idle: ["Idle", "ready for tasks and tunnels"],
  busy: ["Busy", "runs tasks"],
  tunnel: ["In use", "a tunnel is open: no new tasks"],
  syncing: ["Syncing", "prepares itself"],
  unhealthy: ["Unhealthy", "a health check fails"],
};

/** said is a detail as a sentence. */
export const said = (e) => { const s = e.message || String(e); return s.charAt(0).toUpperCase() + s.slice(1) + (/[.!?]$/.test(s) ? "" : "."); };

/** personName is what a person is called: a name, else what is unmistakable of them. */
export const personName = (p) => p.user_name || p.email || p.name || p.user_id || "you";

/** teamName is what a team is called by who is in one alone, or in several. */
export const teamName = (t) => (t.team_name ? `the team ${t.team_name}` : "the team");

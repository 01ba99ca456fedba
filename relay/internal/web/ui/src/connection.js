// One viewer's connection to a terminal: it attaches, carries frames, acknowledges
// what was shown, and comes back by itself with the output that it missed. The
// frames are those of shared/wire/terminal.go.
import { rightPlace } from "./place.js";

const DATA = 0, RESIZE = 1, ACK = 2, REPLAY = 3, SIZE = 4, VIEWERS = 5, EXIT = 6;
const ACK_EVERY = 64 << 10;
const PIECE = 16 << 10;

// Close codes that say why, and that trying again does not help.
export const code = { elsewhere: 0, goingAway: 1001, policy: 1008, ended: 4000, refused: 4401, denied: 4403, nothing: 4404, limit: 4429, internal: 4500 };
const final = new Set([code.goingAway, code.policy, code.ended, code.refused, code.denied, code.limit, code.internal]);

export class Connection extends EventTarget {
  #socket = null;
  #timer = 0;
  #tries = 0;
  #instance = "";
  #received = 0; // position in the output
  #shown = 0;
  #acked = 0;
  #exited = false; // the program ended: the close that follows is no loss, whatever its code
  #generation = 0; // of the attachment: what an earlier one still shows counts no more

  // screen: { size(): {cols, rows}, write(bytes, done), clear() }
  constructor(url, options, screen) {
    super();
    this.url = url;
    this.options = options; // code or token, readOnly, terminal
    this.screen = screen;
  }

  #emit(type, detail) { this.dispatchEvent(new CustomEvent(type, { detail })); }

  open() {
    this.close();
    const socket = new WebSocket(this.url);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    this.#exited = false;
    let opened = false;
    this.#emit("state", { state: "connecting", tries: this.#tries });
    socket.onopen = () => {
      opened = true;
      const { code, token, readOnly, terminal } = this.options;
      socket.send(JSON.stringify({ ...(code ? { code } : { token }), ...this.screen.size(), read_only: readOnly, attach: terminal, instance: this.#instance, seen: this.#received }));
    };
    socket.onmessage = ({ data }) => {
      if (this.#socket !== socket) return;
      if (typeof data === "string") {
        const message = JSON.parse(data);
        if (message.state === "admitted") { // the code is used up; this is what comes back
          Object.assign(this.options, { code: "", token: message.right, readOnly: !!message.read_only });
          return;
        }
        if (message.state === "attached") this.#tries = 0;
        this.#emit("state", message);
      } else this.#frame(new Uint8Array(data));
    };
    socket.onclose = ({ code, reason }) => {
      if (this.#socket !== socket) return;
      this.#socket = null;
      if (this.#exited) this.#emit("end", { code: 4000, reason });
      else if (final.has(code)) this.#emit("end", { code, reason });
      else this.#again(reason, opened);
    };
  }

  // #again tries later: soon at first, at most 15 s apart, and not while nobody looks.
  async #again(reason, opened) {
    const wait = Math.min(250 * 1.6 ** this.#tries, 15000) * (0.6 + 0.4 * Math.random());
    this.#tries++;
    if (!opened) {
      // A browser tells nothing of a handshake that was refused; a plain request does. By
      // another name of the relay every handshake is refused, and the plain request is not.
      const answer = await fetch(this.url.replace(/^ws/, "http"), { cache: "no-store" }).catch(() => null);
      const place = answer?.status === 426 && await rightPlace();
      if (!answer) reason = "the relay cannot be reached";
      else if (answer.status !== 426) reason = (await answer.json().catch(() => ({}))).detail;
      if (place && !this.#socket) return this.#emit("end", { code: code.elsewhere, place });
    }
    if (this.#socket) return;
    this.#emit("state", { state: "lost", reason, wait });
    this.#timer = setTimeout(() => this.#wake(), wait);
  }

  #wake() {
    if (document.visibilityState === "visible") return this.open();
    document.addEventListener("visibilitychange", () => this.#wake(), { once: true });
  }

  // retry does not wait any longer.
  retry() { if (!this.#socket && this.#timer) this.open(); }

  close() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    const socket = this.#socket;
    this.#socket = null;
    socket?.close(1000);
  }

  get attached() { return this.#socket?.readyState === WebSocket.OPEN; }

  #frame(bytes) {
    const payload = bytes.subarray(1), view = new DataView(bytes.buffer, 1);
    switch (bytes[0]) {
      case DATA: {
        this.#received += payload.length;
        const generation = this.#generation;
        this.screen.write(payload, () => {
          if (generation !== this.#generation) return;
          this.#shown += payload.length;
          if (this.#shown - this.#acked >= ACK_EVERY || this.#shown === this.#received) this.#ack();
        });
        break;
      }
      case REPLAY: {
        const position = Number(view.getBigUint64(1));
        this.#instance = new TextDecoder().decode(payload.subarray(9));
        this.#generation++;
        this.#received = this.#shown = this.#acked = position;
        if (!(payload[0] & 1)) this.screen.clear();
        this.#emit("replay", { continues: !!(payload[0] & 1), readOnly: !!(payload[0] & 2) });
        break;
      }
      case SIZE: this.#emit("size", { cols: view.getUint16(0), rows: view.getUint16(2) }); break;
      case VIEWERS: this.#emit("viewers", { count: view.getUint16(0), writers: view.getUint16(2) }); break;
      case EXIT:
        this.#exited = true;
        this.#emit("exit", { status: view.getInt32(0), text: new TextDecoder().decode(payload.subarray(4)) });
        break;
    }
  }

  #send(type, payload) {
    if (!this.attached) return;
    const message = new Uint8Array(1 + payload.length);
    message[0] = type;
    message.set(payload, 1);
    this.#socket.send(message);
  }

  #ack() {
    this.#acked = this.#shown;
    const b = new Uint8Array(8);
    new DataView(b.buffer).setBigUint64(0, BigInt(this.#shown));
    this.#send(ACK, b);
  }

  type(bytes) {
    if (this.options.readOnly) return;
    for (let i = 0; i < bytes.length; i += PIECE) this.#send(DATA, bytes.subarray(i, i + PIECE));
  }

  resize({ cols, rows }) {
    const b = new Uint8Array(4), view = new DataView(b.buffer);
    view.setUint16(0, cols);
    view.setUint16(2, rows);
    this.#send(RESIZE, b);
  }
}

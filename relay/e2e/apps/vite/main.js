import { text } from "./text.js";

const show = (t) => { document.getElementById("text").textContent = t; };
show(text);
window.loadedAt = performance.timeOrigin;
if (import.meta.hot) {
  import.meta.hot.accept("./text.js", (fresh) => show(fresh.text));
}

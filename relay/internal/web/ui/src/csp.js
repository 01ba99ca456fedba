// xterm.js makes <style> elements and style attributes, which a strict
// Content-Security-Policy refuses. What they hold goes by way of the CSSOM instead,
// which the policy allows: a constructed style sheet, and cssText. Import this
// before xterm.
const create = Document.prototype.createElement;
const setAttribute = Element.prototype.setAttribute;

Document.prototype.createElement = function (name, options) {
  if (String(name).toLowerCase() !== "style") return create.call(this, name, options);
  // Even an empty <style> is refused, so it is none.
  const el = create.call(this, "span");
  el.hidden = true;
  const sheet = new CSSStyleSheet();
  let text = "";
  document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
  Object.defineProperty(el, "textContent", {
    get: () => text,
    set: (v) => { text = String(v ?? ""); sheet.replaceSync(text); },
  });
  Object.defineProperty(el, "sheet", { get: () => sheet });
  el.remove = () => {
    document.adoptedStyleSheets = document.adoptedStyleSheets.filter((s) => s !== sheet);
    Element.prototype.remove.call(el);
  };
  return el;
};

Element.prototype.setAttribute = function (name, value) {
  if (String(name).toLowerCase() === "style" && this.style) this.style.cssText = value;
  else setAttribute.call(this, name, value);
};

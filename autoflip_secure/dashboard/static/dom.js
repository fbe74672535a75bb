// Makes elements. Everything that comes from data becomes text or an attribute's value, never markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

// Writes only where the text differs, so that a screen reader is not told the same again.
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// `columns`: {title, number}; `rows`: arrays of text or nodes. The region scrolls, so it takes the keyboard's focus.
export function table(caption, columns, rows) {
  const head = columns.map((c) => h("th", { scope: "col", class: c.number ? "number" : null }, c.title));
  const body = rows.map((row) => h("tr", {}, row.map((cell, i) => {
    const attributes = { class: columns[i].number ? "number" : null };
    return i ? h("td", attributes, cell) : h("th", { scope: "row", ...attributes }, cell);
  })));
  return h("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": caption },
    h("table", {}, h("caption", {}, caption), h("thead", {}, h("tr", {}, head)), h("tbody", {}, body)));
}

// A section with a heading; what changes goes into `body`.
export function section(title, ...children) {
  const body = h("div", {}, ...children);
  return { element: h("section", {}, h("h2", {}, title), body), body };
}

// A bar beside a figure that says the same in words.
export function bar(share, kind = "") {
  const inner = h("span", { class: `fill ${kind}` });
  inner.style.width = `${100 * Math.max(0, Math.min(1, share || 0))}%`;
  return h("span", { class: "bar", "aria-hidden": "true" }, inner);
}

// Contents made when they are first looked at, and again while they are open.
export class Disclosure {
  constructor(title, make) {
    this.make = make;
    this.stale = true;
    this.body = h("div");
    this.element = h("details", { ontoggle: () => this.draw() }, h("summary", {}, title), this.body);
  }

  update() {
    this.stale = true;
    this.draw();
  }

  draw() {
    if (!this.element.open || !this.stale || this.body.contains(document.activeElement)) return;
    const at = this.body.firstElementChild?.scrollTop ?? 0;
    this.body.replaceChildren(this.make());
    if (this.body.firstElementChild) this.body.firstElementChild.scrollTop = at;
    this.stale = false;
  }
}

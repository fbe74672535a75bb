// Line charts as SVG, each with the same said in words and as a table.

import { Disclosure, h, s, setText, table } from "./dom.js";

const HEIGHT = 190;
const LEFT = 52, RIGHT = 12, TOP = 10, BOTTOM = 26;
const MOST_POINTS = 500;
const MOST_ROWS = 100;

function thinned(points, most) {
  if (points.length <= most) return points;
  const step = (points.length - 1) / (most - 1);
  return Array.from({ length: most }, (_, i) => points[Math.round(i * step)]);
}

// Steps of 1, 2 or 5 times a power of ten: about `wanted` of them from `low` to `high`.
function ticks(low, high, wanted, whole) {
  const rough = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const factor = [[1.5, 1], [3.5, 2], [7.5, 5]].find(([below]) => rough < below * power)?.[1] ?? 10;
  const step = whole ? Math.max(1, Math.round(factor * power)) : factor * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) found.push(i * step + 0); // no -0
  return found;
}

export class LineChart {
  // `format` words a value; `from` and `to` are what the vertical axis shows at least.
  // `axis` words those beside the grid, where `format` is too long for them.
  constructor({ title, format, axis = format, from = Infinity, to = -Infinity, x = "round" }) {
    Object.assign(this, { title, format, axis, from, to, x, lines: [], shaded: 0, last: 1 });
    this.svg = s("svg", { role: "img", height: HEIGHT });
    this.legend = h("ul", { class: "legend" });
    this.words = h("p", { class: "words" });
    this.data = new Disclosure(`Table: ${title}`, () => this.table());
    this.element = h("figure", { class: "chart" },
      h("figcaption", {}, h("h3", {}, title)), this.legend, this.svg, this.words, this.data.element);
    new ResizeObserver(() => this.draw()).observe(this.svg);
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.point(null));
  }

  // `lines`: {label, points: [[x, y], ...], step}; `shaded`: the first rounds, drawn on a tinted ground.
  update(lines, { shaded = 0, shadedLabel = "", last = 1 } = {}) {
    this.lines = lines.filter((line) => line.points.length);
    Object.assign(this, { shaded, last: Math.max(1, last, ...this.lines.map((l) => l.points.at(-1)[0])) });
    this.element.hidden = !this.lines.length;
    this.legend.replaceChildren(
      ...this.lines.map((line, i) => h("li", {},
        s("svg", { width: 26, height: 10, "aria-hidden": "true" },
          s("line", { class: `line s${i % 6}`, x1: 0, y1: 5, x2: 26, y2: 5 })),
        line.label)),
      ...(shaded && shadedLabel ? [h("li", {}, h("span", { class: "swatch", "aria-hidden": "true" }), shadedLabel)] : []));
    const said = this.lines.map((line) => this.say(line)).join(" ");
    this.svg.setAttribute("aria-label", `${this.title}, line chart. ${said}`);
    if (!this.hovered) setText(this.words, this.now());
    this.data.update();
    this.draw();
  }

  say(line) {
    const values = line.points.map((p) => p[1]);
    const [first, end] = [line.points[0], line.points.at(-1)];
    const parts = [`${this.format(first[1])} at ${this.x} ${first[0]}`];
    if (line.points.length > 1) {
      parts.push(`lowest ${this.format(Math.min(...values))}, highest ${this.format(Math.max(...values))}`);
      parts.push(`${this.format(end[1])} at ${this.x} ${end[0]}`);
    }
    return `${line.label}: ${parts.join(", ")}.`;
  }

  now(at = Infinity) {
    const found = this.lines.map((line) => [line.label, line.points.findLast((p) => p[0] <= at)]).filter((f) => f[1]);
    const place = at === Infinity ? Math.max(...found.map((f) => f[1][0])) : at;
    return `${this.x[0].toUpperCase()}${this.x.slice(1)} ${place}: ` +
      found.map(([label, p]) => `${label} ${this.format(p[1])}`).join(" · ");
  }

  table() {
    const all = [...new Set(this.lines.flatMap((line) => line.points.map((p) => p[0])))].sort((a, b) => a - b);
    const maps = this.lines.map((line) => new Map(line.points));
    const rows = thinned(all, MOST_ROWS).map((x) => [String(x), ...maps.map((m) => (m.has(x) ? this.format(m.get(x)) : "–"))]);
    const cut = all.length > MOST_ROWS ? `, ${MOST_ROWS} of ${all.length} rows` : "";
    const columns = [{ title: this.x, number: true }, ...this.lines.map((l) => ({ title: l.label, number: true }))];
    return table(`${this.title} by ${this.x}${cut}`, columns, rows);
  }

  scales() {
    const width = Math.max(200, this.svg.clientWidth || 480);
    const values = this.lines.flatMap((line) => line.points.map((p) => p[1]));
    let low = Math.min(this.from, ...values), high = Math.max(this.to, ...values);
    if (!(high > low)) [low, high] = [Math.min(low, 0), high > 0 ? high * 1.1 : 1];
    const pad = (high - low) * 0.05;
    if (low !== this.from) low -= pad;
    if (high !== this.to) high += pad;
    const right = width - RIGHT, bottom = HEIGHT - BOTTOM;
    const first = Math.min(1, ...this.lines.map((l) => l.points[0][0]));
    const span = Math.max(1, this.last - first);
    return {
      width, right, bottom, low, high, first,
      x: (value) => LEFT + ((value - first) / span) * (right - LEFT),
      y: (value) => bottom - ((value - low) / (high - low)) * (bottom - TOP),
      round: (px) => Math.round(first + ((px - LEFT) / (right - LEFT)) * span),
    };
  }

  draw() {
    if (!this.lines.length) return;
    const at = this.scales();
    const parts = [];
    if (this.shaded) parts.push(s("rect", { class: "shade", x: LEFT, y: TOP, width: Math.max(0, at.x(this.shaded) - LEFT), height: at.bottom - TOP }));
    for (const y of ticks(at.low, at.high, 4)) {
      parts.push(s("line", { class: "grid", x1: LEFT, x2: at.right, y1: at.y(y), y2: at.y(y) }));
      parts.push(s("text", { x: LEFT - 7, y: at.y(y) + 4, "text-anchor": "end" }, this.axis(y)));
    }
    for (const x of ticks(at.first, this.last, Math.max(2, at.width / 90), true)) {
      parts.push(s("text", { x: at.x(x), y: HEIGHT - 8, "text-anchor": "middle" }, String(x)));
    }
    this.lines.forEach((line, i) => parts.push(this.path(line, i, at)));
    this.cross = s("line", { class: "cross", y1: TOP, y2: at.bottom, visibility: "hidden" });
    parts.push(this.cross);
    this.svg.setAttribute("viewBox", `0 0 ${at.width} ${HEIGHT}`);
    this.svg.replaceChildren(...parts);
  }

  path(line, i, at) {
    const points = thinned(line.points, MOST_POINTS);
    if (points.length === 1) return s("circle", { class: `dot s${i % 6}`, cx: at.x(points[0][0]), cy: at.y(points[0][1]), r: 3 });
    let d = "";
    points.forEach(([x, y], k) => {
      const [px, py] = [at.x(x).toFixed(1), at.y(y).toFixed(1)];
      d += k === 0 ? `M${px} ${py}` : line.step ? `H${px}V${py}` : `L${px} ${py}`;
    });
    return s("path", { class: `line s${i % 6}`, d });
  }

  point(event) {
    this.hovered = event !== null;
    if (!this.lines.length || !this.cross) return;
    if (!event) {
      this.cross.setAttribute("visibility", "hidden");
      setText(this.words, this.now());
      return;
    }
    const at = this.scales();
    const place = Math.max(at.first, Math.min(this.last, at.round(event.clientX - this.svg.getBoundingClientRect().left)));
    for (const name of ["x1", "x2"]) this.cross.setAttribute(name, at.x(place));
    this.cross.setAttribute("visibility", "visible");
    setText(this.words, this.now(place));
  }
}

// A line without axes, beside a figure that says its last value.
export function sparkline(points) {
  const width = 90, height = 20;
  if (points.length < 2) return null;
  const values = points.map((p) => p[1]);
  const low = Math.min(...values), high = Math.max(...values), span = high - low || 1;
  const [first, last] = [points[0][0], points.at(-1)[0]];
  const d = thinned(points, 90).map(([x, y], i) =>
    `${i ? "L" : "M"}${(((x - first) / (last - first)) * width).toFixed(1)} ${(height - 2 - ((y - low) / span) * (height - 4)).toFixed(1)}`);
  return s("svg", { class: "spark", width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
    s("path", { class: "line s0", d: d.join("") }));
}

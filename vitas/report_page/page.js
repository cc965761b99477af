"use strict";
// What is dynamic of a report: figures are drawn when they come into view; a point that is clicked is drawn below its
// figure. The page holds all its data; nothing is fetched.
const figures = JSON.parse(document.getElementById("figures").textContent);
const themes = JSON.parse(document.getElementById("themes").textContent);
const darkMode = window.matchMedia("(prefers-color-scheme: dark)");
const MOST_PINS = 6;

// As vitas/drawing.py, which says what is what; a test compares the two.
const BOX = 9, GAP = 1, SPACE = 5, MARGIN = 2, HIGHEST = 88, PATCH = 20, DENSEST = 2;

function number(value) {
  return String(Math.round(100 * value) / 100);
}

function parseArchitecture(text) {
  if (text.includes("|")) {
    const parts = text.split("|").map((part) => part.split(",").map(Number));
    const [heads, hidden] = parts[4];
    const columns = [];
    parts.slice(0, 4).forEach(([, , expansion, layers], i) => {
      const dim = Math.min(1024, hidden * 2 ** i), ofStage = Math.floor(heads / 2 ** (3 - i));
      const attention = Math.floor(dim / ofStage) * ofStage;
      for (let n = 0; n < layers; n++) columns.push({ band: dim, heads: ofStage, qkv: 3 * attention, mlp: expansion * dim });
    });
    return { patch: 4, columns };
  }
  const [patch, embed, , ...blocks] = text.split("-");
  const band = Number(embed.slice(1)), columns = [];
  for (const block of blocks) {
    const [, heads, qkv, mlp, repeat] = block.match(/^(?:h(\d+)q(\d+)m(\d+)|id)(?:x(\d+))?$/);
    for (let n = 0; n < Number(repeat || 1); n++) columns.push({ band, heads: +(heads || 0), qkv: +(qkv || 0), mlp: +(mlp || 0) });
  }
  return { patch: Number(patch.replace(/\D/g, "")), columns };
}

function highestDim(text) {
  return Math.max(1, ...parseArchitecture(text).columns.map((c) => Math.max(c.band, c.qkv, c.mlp)));
}

function drawArchitecture(text, scale = HIGHEST / highestDim(text)) {
  const { patch, columns } = parseArchitecture(text);
  const height = Math.max(PATCH, ...columns.map((c) => scale * Math.max(c.band, c.qkv, c.mlp)));
  const middle = MARGIN + height / 2, shapes = [];
  const box = (name, x, width, tall) =>
    shapes.push(`<rect class="vd-${name}" x="${number(x)}" y="${number(middle - tall / 2)}" width="${number(width)}" height="${number(tall)}"/>`);
  const cells = Math.max(1, Math.min(8, Math.floor(32 / patch + 0.5)));
  box("patch", MARGIN, PATCH, PATCH);
  for (let i = 1; i < cells; i++) {
    const at = (PATCH * i) / cells, top = middle - PATCH / 2;
    shapes.push(`<path class="vd-patch" d="M${number(MARGIN + at)} ${number(top)}v${number(PATCH)}M${number(MARGIN)} ${number(top + at)}h${number(PATCH)}"/>`);
  }
  let x = MARGIN + PATCH + SPACE;
  const width = 2 * BOX + GAP + SPACE;
  columns.forEach((c, position) => {
    box("band", x - SPACE, width + (position === columns.length - 1 ? SPACE : 0), scale * c.band);
    if (c.heads) {
      const tall = scale * c.qkv;
      box("attention", x, BOX, tall);
      for (let i = 1; i < c.heads && tall >= DENSEST * c.heads; i++) {
        const y = middle - tall / 2 + (tall * i) / c.heads;
        shapes.push(`<path class="vd-tick" d="M${number(x)} ${number(y)}h${number(BOX)}"/>`);
      }
      box("mlp", x + BOX + GAP, BOX, scale * c.mlp);
    }
    x += width;
  });
  const wide = number(x + MARGIN), tall = number(height + 2 * MARGIN);
  return `<svg xmlns="http://www.w3.org/2000/svg" class="vd" role="img" viewBox="0 0 ${wide} ${tall}" width="${wide}" height="${tall}"><title>${text}</title>${shapes.join("")}</svg>`;
}

// What is known of a point, as text; nothing of it is ever read as markup.
function described(datum) {
  const grouped = (value) => Number(value).toLocaleString("en-US");
  return [
    datum.name,
    datum.generation !== undefined && `top-1 ${Number(datum.y).toFixed(2)}%`,
    datum.loss !== undefined && datum.loss !== null && `loss ${Number(datum.loss).toFixed(4)}`,
    `${grouped(datum.x)} MACs`,
    datum.parameters !== undefined && `${grouped(datum.parameters)} parameters`,
    datum.generation !== undefined && `generation ${datum.generation}`,
  ].filter(Boolean).map((part) => part.replaceAll(" ", "\u00a0")).join(" · ");
}

class Pins {
  constructor(figure) {
    this.place = figure.querySelector(".pins");
    this.pinned = [];
    this.hovered = null;
    this.onchange = () => {};
  }
  toggle(datum) {
    const there = this.pinned.findIndex((pin) => pin.architecture === datum.architecture);
    if (there >= 0) this.pinned.splice(there, 1);
    else this.pinned = [datum, ...this.pinned].slice(0, MOST_PINS);
    this.show();
    this.onchange(this.pinned);
  }
  hover(datum) {
    if (this.hovered === datum || (datum && this.hovered && datum.architecture === this.hovered.architecture)) return;
    this.hovered = datum;
    this.show();
  }
  show() {
    const shown = this.pinned.map((datum) => [datum, "pin"]);
    // Something is always drawn once anything was, so that the page does not jump under the pointer.
    if (this.hovered && !this.pinned.some((pin) => pin.architecture === this.hovered.architecture)) shown.push([this.hovered, "pin hover"]);
    const scale = HIGHEST / Math.max(1, ...shown.map(([datum]) => highestDim(datum.architecture)));
    this.place.replaceChildren(...shown.map(([datum, kind]) => {
      const card = document.createElement("div"), told = document.createElement("p");
      const drawing = document.createElement("div"), text = document.createElement("p");
      card.className = kind;
      told.textContent = described(datum);
      drawing.className = "drawing";
      drawing.innerHTML = drawArchitecture(datum.architecture, scale);
      text.className = "mono";
      text.textContent = datum.architecture;
      card.append(told, drawing, text);
      if (kind === "pin") {
        const close = document.createElement("button");
        close.textContent = "×";
        close.title = "unpin";
        close.setAttribute("aria-label", "unpin");
        close.addEventListener("click", () => this.toggle(datum));
        card.append(close);
      }
      return card;
    }));
  }
}

// A copy of a specification, with the colours of the mode.
function coloured(value, dark) {
  if (Array.isArray(value)) return value.map((each) => coloured(each, dark));
  if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, key === "values" ? each : coloured(each, dark)]));
  return (dark && themes.inTheDark[value]) || value;
}

// A point's own fields, without Vega's key of it.
function plain(datum) {
  return Object.fromEntries(Object.entries(datum));
}

const pinsOf = new WeakMap();

async function draw(figure) {
  const { spec, pins } = figures[figure.dataset.figure];
  const dark = darkMode.matches;
  figure.dataset.state = "drawing";
  const embedded = await vegaEmbed(figure.querySelector(".chart"), coloured(spec, dark), {
    actions: false,
    renderer: "canvas",
    config: themes[dark ? "dark" : "light"],
    tooltip: { theme: dark ? "dark" : "light" },
  });
  const view = embedded.view;
  figure.vega?.finalize();
  figure.vega = embedded;
  if (pins) {
    const held = pinsOf.get(figure) || new Pins(figure);
    pinsOf.set(figure, held);
    const mark = (pinned) => view.data("pinned", pinned.map((datum) => ({ ...datum }))).runAsync();
    held.onchange = mark;
    view.addEventListener("click", (event, item) => item?.datum?.architecture && held.toggle(plain(item.datum)));
    view.addEventListener("pointermove", (event, item) => item?.datum?.architecture && held.hover(plain(item.datum)));
    await mark(held.pinned);
  }
  figure.dataset.state = "drawn";
}

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting || entry.target.dataset.state) continue;
    draw(entry.target).catch((error) => console.error(error));
  }
}, { rootMargin: "400px" });

document.querySelectorAll("figure[data-figure]").forEach((figure) => seen.observe(figure));
darkMode.addEventListener("change", () =>
  document.querySelectorAll('figure[data-state="drawn"]').forEach((figure) => draw(figure).catch((error) => console.error(error))));

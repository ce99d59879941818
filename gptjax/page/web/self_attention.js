// The attention of every head over a text: all in small, and one in large.

import { bars, el, formula, heatmap, percent, svg, visible } from "./drawing.js";
import { headChoices, headGrid } from "./heads.js";
import { topPlaces } from "./layers.js";
import { attentionHeads } from "./pass.js";

/** Positions in the list of those that are looked at most. */
const N_SOURCES = 5;
/** Weights below this have no arc. */
const LEAST_ARC = 0.02;
/** A longer text has no room for its tokens under the arcs. */
const MOST_ARC_NAMES = 100;
/** Nor along the axes of the picture. */
const MOST_AXIS_NAMES = 40;

export class SelfAttention {
  /**
   * @param {import("./pass.js").Pass} pass
   * @param {() => void} change  another head was chosen
   * @param {(t: number) => void} hold  looks at a position, and stays there
   */
  constructor(pass, change, hold) {
    this.pass = pass;
    this.change = change;
    this.hold = hold;
    this.grid = el("div");
    this.large = el("div");
  }

  /** The weights of the chosen head, (T, T). */
  weights() {
    return attentionHeads(this.pass, this.pass.layer)[this.pass.head];
  }

  drawGrid() {
    const { n_layer, n_head } = this.pass.run.config;
    const heads = Array.from({ length: n_layer }, (_, i) => attentionHeads(this.pass, i)).flat();
    const select = (/** @type {number} */ i) => {
      [this.pass.layer, this.pass.head] = [Math.floor(i / n_head), i % n_head];
      this.change();
    };
    const chosen = this.pass.layer * n_head + this.pass.head;
    this.grid.replaceChildren(headGrid(headChoices(heads, n_head), n_head, chosen, select));
  }

  drawLarge() {
    const { run, ids, t, layer, head } = this.pass;
    const width = run.config.n_embd / run.config.n_head;
    const row = this.weights().row(t);
    const sources = topPlaces(row, N_SOURCES).map((s) => ({
      name: `${this.name(s)}  (${s})`,
      value: row[s],
      text: percent(row[s]),
    }));
    const names = ids.map((_, s) => this.name(s));
    this.large.replaceChildren(
      el("h3", {}, `Layer ${layer + 1}, head ${head + 1}`),
      arcs(row, t, names),
      el(
        "div",
        { class: "columns" },
        this.map(),
        el(
          "div",
          {},
          el("p", {}, `Position ${t}, “${this.name(t)}”, looks most at:`),
          bars(sources),
        ),
      ),
      formula(
        `weights = softmax(q k^T / sqrt(${width}) + mask)      mask = -inf where the column is later than the row`,
        `q, k: (${ids.length}, ${width}); weights: (${ids.length}, ${ids.length}). The tab Forward pass says where q and k come from.`,
      ),
    );
  }

  /** All weights of the head as a picture, with a line in words for the one under the mouse. */
  map() {
    const { layer, head } = this.pass;
    const weights = this.weights();
    const label = `attention of layer ${layer + 1}, head ${head + 1}: rows look at columns`;
    const picture = heatmap(weights, label);
    const advice = "Point at a square. Click a row to look at its position.";
    const words = el("p", { class: "faint" }, advice);
    /** The row and column of a point of the picture. @param {MouseEvent} event */
    const place = (event) => {
      const box = picture.getBoundingClientRect();
      const at = (/** @type {number} */ share) =>
        Math.max(0, Math.min(weights.rows - 1, Math.floor(share * weights.rows)));
      return [
        at((event.clientY - box.top) / box.height),
        at((event.clientX - box.left) / box.width),
      ];
    };
    picture.onmousemove = (event) => {
      const [t, s] = place(event);
      const weight = percent(weights.row(t)[s]);
      words.textContent = `“${this.name(t)}” (${t}) looks at “${this.name(s)}” (${s}): ${weight}`;
    };
    picture.onclick = (event) => this.hold(place(event)[0]);
    return el(
      "div",
      { class: "map" },
      this.withAxes(picture),
      words,
      el(
        "p",
        { class: "faint" },
        "Each row is a position that looks, each column one that it looks at. No position looks ahead, so the upper half is empty. Small weights are drawn stronger than they are: the colour is their square root.",
      ),
    );
  }

  /** A picture with the tokens along its top and its left side, if there is room. @param {HTMLElement} picture */
  withAxes(picture) {
    const names = this.pass.ids.map((_, s) => this.name(s));
    if (names.length > MOST_AXIS_NAMES || names.some((name) => name.length > 2)) return picture;
    // Screen readers hear the picture's label instead of single letters.
    const axis = (/** @type {string} */ side) =>
      el(
        "div",
        { class: side, "aria-hidden": "true" },
        ...names.map((name, s) =>
          el("span", { class: s === this.pass.t ? "chosen" : "" }, name.replace("␣", "")),
        ),
      );
    return el("div", { class: "axes" }, axis("tokens-above"), axis("tokens-beside"), picture);
  }

  /** The token at a position. @param {number} t */
  name(t) {
    return visible(this.pass.run.tokenizer.name(this.pass.ids[t]));
  }
}

/**
 * Arcs from the position that looks to those that it looks at, thicker for larger weights.
 * @param {Float32Array} row
 * @param {number} at
 * @param {string[]} names  of all tokens
 */
function arcs(row, at, names) {
  const x = (/** @type {number} */ t) => (1180 * (t + 0.5)) / row.length + 10;
  const picture = svg("svg", {
    viewBox: "0 0 1200 150",
    class: "wide",
    role: "img",
    "aria-label": "arcs to the positions that are looked at",
  });
  for (let s = 0; s <= at; s++) {
    if (row[s] < LEAST_ARC) continue;
    const [width, height] = [(x(at) - x(s)) / 2, Math.min(112, 20 + (x(at) - x(s)) / 5)];
    const curve =
      s === at
        ? `M ${x(s) - 7} 122 a 7 9 0 0 1 14 0`
        : `M ${x(s)} 122 a ${width} ${height} 0 0 1 ${2 * width} 0`;
    const style = {
      fill: "none",
      stroke: "var(--blue)",
      "stroke-width": 1 + 7 * row[s],
      "stroke-opacity": 0.25 + 0.75 * row[s],
    };
    picture.append(svg("path", { d: curve, ...style }));
  }
  if (names.length > MOST_ARC_NAMES) return picture;
  names.forEach((name, t) => {
    const label = svg("text", { x: x(t), y: 140, "text-anchor": "middle" }, name);
    if (t === at) label.style.fontWeight = "bold";
    picture.append(label);
  });
  return picture;
}

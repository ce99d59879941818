// Elements, pictures and numbers, as all views draw them.

/** Milliseconds of computing before the page is drawn again. */
export const FRAME = 14;

/**
 * An element with attributes and children. onclick and other properties are set as they are.
 * @param {string} tag
 * @param {{[name: string]: any}} [attributes]
 * @param {...(Node | string)} children
 */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on") || name === "value" || name === "disabled") {
      /** @type {any} */ (element)[name] = value;
    } else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/**
 * An element of a picture.
 * @param {string} tag
 * @param {{[name: string]: any}} [attributes]
 * @param {...(Node | string)} children
 */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) /** @type {any} */ (element)[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** A token as one sees it: blanks and line ends get a sign. @param {string} text */
export function visible(text) {
  return text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "␣") || "∅";
}

/** A sentence on parts of a text that the model does not know. @param {string[]} unknown */
export function leftOut(unknown) {
  const list = unknown.map((part) => `“${visible(part)}”`).join(", ");
  return unknown.length ? `The model never saw ${list}: left out.` : "";
}

/** A share as a percentage: 12 %, 0.3 %. @param {number} p */
export function percent(p) {
  if (p > 0 && p < 0.0005) return "< 0.1\u00a0%";
  if (p < 1 && p >= 0.995) return "> 99\u00a0%";
  return `${(100 * p).toFixed(p < 0.0995 ? 1 : 0)}\u00a0%`;
}

/** @param {number} n */
export function count(n) {
  return n.toLocaleString("en");
}

/** The name of a part for readers: "block_1.attention.2" is "layer 2, head 3". @param {string} name */
export function partName(name) {
  const [, layer, kind, head] = name.match(/^block_(\d+)(?:\.(\w+?))?(?:\.(\w+))?$/) ?? [];
  if (layer === undefined) return name.replace("_", " ");
  const where = `layer ${Number(layer) + 1}`;
  if (!kind) return where;
  if (kind === "mlp") return `${where}, MLP`;
  const attention = kind === "cross_attention" ? "cross-attention" : "attention";
  if (head === undefined) return `${where}, ${attention}`;
  if (head === "bias") return `${where}, ${attention} bias`;
  return `${where}, ${kind === "cross_attention" ? "cross-" : ""}head ${Number(head) + 1}`;
}

/** A background whose strength is a share in [0, 1]. @param {"blue" | "orange"} colour @param {number} share */
export function shade(colour, share) {
  return `rgba(var(--${colour}-rgb), ${Math.max(0, Math.min(1, share)).toFixed(3)})`;
}

/** Lines of an equation, empty ones left out. @param {...string} lines */
export function formula(...lines) {
  return el("code", { class: "equation" }, lines.filter(Boolean).join("\n"));
}

/**
 * A picture of a matrix, one small square for each number, darker for larger ones.
 * @param {import("./layers.js").Matrix} matrix
 * @param {string} label  the picture in words, for screen readers
 * @param {number} [most]  the number that gets the full colour
 */
export function heatmap(matrix, label, most = 1) {
  const { rows, width, data } = matrix;
  const canvas = /** @type {HTMLCanvasElement} */ (
    el("canvas", { role: "img", "aria-label": label })
  );
  [canvas.width, canvas.height] = [width, rows];
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const image = context.createImageData(width, rows);
  return painted(canvas, (blue) => {
    for (let i = 0; i < data.length; i++) {
      // The square root shows small weights, too.
      image.data.set([...blue, 255 * Math.sqrt(Math.max(0, Math.min(1, data[i] / most)))], 4 * i);
    }
    context.putImageData(image, 0, 0);
  });
}

/**
 * A picture of a vector, one small square for each number: blue if it is positive, orange if it is
 * negative, stronger if it is larger. A long vector takes several lines.
 * @param {Float32Array} vector
 * @param {string} label  the picture in words, for screen readers
 * @param {{most?: number, name?: (i: number) => string}} [options]  most: the size that gets the
 *   full colour. name: of a number, for the mouse.
 */
export function strip(vector, label, { most = largest(vector), name = (i) => `[${i}]` } = {}) {
  const rows = Math.ceil(vector.length / MOST_SQUARES);
  const width = Math.ceil(vector.length / rows);
  const canvas = /** @type {HTMLCanvasElement} */ (
    el("canvas", { role: "img", "aria-label": label, class: "strip" })
  );
  [canvas.width, canvas.height] = [width, rows];
  canvas.style.height = `${rows === 1 ? 20 : 12 * rows}px`;
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const image = context.createImageData(width, rows);
  canvas.onmousemove = ({ offsetX, offsetY }) => {
    const [column, row] = [offsetX / canvas.clientWidth, offsetY / canvas.clientHeight];
    const i = Math.floor(row * rows) * width + Math.floor(column * width);
    if (i in vector) canvas.title = `${name(i)} = ${vector[i].toFixed(3)}`;
  };
  return painted(canvas, (blue, orange) => {
    vector.forEach((x, i) => {
      const share = Math.min(1, Math.abs(x) / (most || 1));
      image.data.set([...(x < 0 ? orange : blue), 255 * share ** 0.7], 4 * i);
    });
    context.putImageData(image, 0, 0);
  });
}

/** @typedef {(blue: number[], orange: number[]) => void} Painter */

/** How each picture is painted. @type {WeakMap<HTMLCanvasElement, Painter>} */
const painters = new WeakMap();

/** Paints a picture, which repaint() can do again. @param {HTMLCanvasElement} canvas @param {Painter} paint */
function painted(canvas, paint) {
  painters.set(canvas, paint);
  repaint([canvas]);
  return canvas;
}

/** Paints pictures in the colours that the page has now. @param {Iterable<HTMLCanvasElement>} pictures */
export function repaint(pictures) {
  const style = getComputedStyle(document.documentElement);
  const [blue, orange] = ["--blue-rgb", "--orange-rgb"].map((colour) =>
    style.getPropertyValue(colour).split(",").map(Number),
  );
  for (const canvas of pictures) painters.get(canvas)?.(blue, orange);
}

/** Squares in a line of a strip. */
const MOST_SQUARES = 128;

/** The size of the largest number. @param {Float32Array} vector */
export function largest(vector) {
  return vector.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
}

/**
 * A slider with its name and value.
 * @param {string} name
 * @param {{min: number, max: number, step: number, value: number}} range
 * @param {(value: number) => void} change
 * @param {(value: number) => string} [show]
 */
export function slider(name, range, change, show = String) {
  const input = /** @type {HTMLInputElement} */ (
    el("input", { type: "range", ...range, "aria-label": name })
  );
  const output = el("output", {}, show(range.value));
  input.oninput = () => {
    output.textContent = show(Number(input.value));
    change(Number(input.value));
  };
  return el("label", {}, name, input, output);
}

/**
 * Rows of a name, a bar and a number.
 * @param {{name: string | Node, value: number, text: string, colour?: string}[]} rows
 */
export function bars(rows) {
  const most = Math.max(1e-9, ...rows.map((row) => Math.abs(row.value)));
  return el(
    "div",
    { class: "bars" },
    ...rows.flatMap(({ name, value, text, colour }) => [
      el("span", {}, name),
      el("span", {
        class: `bar ${value < 0 ? "negative" : (colour ?? "")}`,
        style: `width: ${((100 * Math.abs(value)) / most).toFixed(1)}%`,
      }),
      el("span", { class: "faint" }, text),
    ]),
  );
}

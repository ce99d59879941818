// Small pictures of attention heads, of which one is chosen.

import { el, heatmap, largest } from "./drawing.js";
/** @typedef {import("./layers.js").Matrix} Matrix */
/** alone: it has a row of its own. @typedef {{name: string, short: string, matrix: Matrix, alone?: boolean}} Choice */

/**
 * The heads of every layer as choices. @param {Matrix[]} heads  layer by layer @param {number} nHead
 * @returns {Choice[]}
 */
export function headChoices(heads, nHead) {
  return heads.map((matrix, i) => {
    const [layer, head] = [Math.floor(i / nHead) + 1, (i % nHead) + 1];
    return { name: `layer ${layer}, head ${head}`, short: `${layer}.${head}`, matrix };
  });
}

/**
 * A button with a picture for each choice: the heads of every layer, after a mean of them if there is one.
 * @param {Choice[]} choices
 * @param {number} nHead
 * @param {number} chosen
 * @param {(i: number) => void} select
 */
export function headGrid(choices, nHead, chosen, select) {
  const buttons = choices.map(({ name, short, matrix, alone }, i) => {
    const choose = () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === buttons[i]));
      select(i);
    };
    const pressed = String(i === chosen);
    const words = { "aria-pressed": pressed, "aria-label": name, title: name };
    return el(
      "button",
      { onclick: choose, class: alone ? "alone" : "", ...words },
      heatmap(matrix, `attention of ${name}`, largest(matrix.data)),
      el("span", { "aria-hidden": "true" }, short),
    );
  });
  const style = `grid-template-columns: repeat(${Math.min(nHead, 8)}, minmax(0, 8rem))`;
  return el("div", { class: "grid heads", style }, ...buttons);
}

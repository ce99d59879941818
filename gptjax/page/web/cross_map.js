// Cross-attention in large: source tokens across, target tokens down.

import { el, percent, shade } from "./drawing.js";

/**
 * @param {{matrix: import("./layers.js").Matrix, sources: string[], targets: string[], at: number,
 *   look: (t: number) => void, label: string}} given  at: the target token that is looked at
 */
export function crossMap({ matrix, sources, targets, at, look, label }) {
  const chosen = matrix.row(at);
  const names = sources.map((name, s) => {
    const style = `background: ${shade("blue", 0.7 * Math.sqrt(chosen[s]))}`;
    return el("b", { style }, name);
  });
  const rows = targets.flatMap((name, t) => {
    const point = { onmouseenter: () => look(t), onclick: () => look(t) };
    // The chosen row is not drawn again when the mouse moves over it.
    const row = t === at ? { class: "chosen" } : point;
    const cells = Array.from(matrix.row(t), (weight) => {
      const style = `background: ${shade("blue", Math.sqrt(weight))}`;
      return el("i", { ...row, style, title: percent(weight) });
    });
    return [el("b", row, name), ...cells];
  });
  const style = `grid-template-columns: max-content repeat(${sources.length}, minmax(1.3rem, 3rem))`;
  const picture = { class: "cross", role: "img", "aria-label": label, style };
  return el("div", picture, el("span"), ...names, ...rows);
}

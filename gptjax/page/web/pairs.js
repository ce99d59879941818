import { el } from "./drawing.js";

/** @param {import("./page.js").Run} run @returns {import("./page.js").View} */
export function pairsView(run) {
  return { id: "pairs", title: "pairs", element: el("section", {}, String(run.config.type)) };
}

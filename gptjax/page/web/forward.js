import { el } from "./drawing.js";

/** @param {import("./page.js").Run} run @returns {import("./page.js").View} */
export function forwardView(run) {
  return { id: "forward", title: "forward", element: el("section", {}, String(run.config.type)) };
}

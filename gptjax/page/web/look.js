import { el } from "./drawing.js";

/** @param {import("./page.js").Run} run @returns {import("./page.js").View} */
export function lookView(run) {
  return { id: "look", title: "look", element: el("section", {}, String(run.config.type)) };
}

import { el } from "./drawing.js";

/** @param {import("./page.js").Run} run @returns {import("./page.js").View} */
export function learnView(run) {
  return { id: "learn", title: "learn", element: el("section", {}, String(run.config.type)) };
}

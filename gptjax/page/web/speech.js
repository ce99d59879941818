import { el } from "./drawing.js";

/** @param {import("./page.js").Run} run @returns {import("./page.js").View} */
export function speechView(run) {
  return { id: "speech", title: "speech", element: el("section", {}, String(run.config.type)) };
}

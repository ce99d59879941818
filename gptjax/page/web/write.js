import { el } from "./drawing.js";

/** @param {import("./page.js").Run} run @returns {import("./page.js").View} */
export function writeView(run) {
  return { id: "write", title: "write", element: el("section", {}, String(run.config.type)) };
}

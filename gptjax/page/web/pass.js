// One forward pass over a text with all that was computed in it, and the place that is looked at.

import { Probe } from "./attention.js";
import { Matrix } from "./layers.js";
import { readText } from "./sampling.js";

/**
 * t: the position that is looked at, counted from 0; so are layer and head. loss: of the text, in
 * nats per token.
 * @typedef {{run: import("./page.js").Run, ids: number[], t: number, layer: number, head: number,
 *   probe: Probe, logits: Matrix, loss: number}} Pass
 */

/** How many tokens of a written text the other views take over. */
export const MOST_LOOKED_AT = 64;

/** A pass over nothing yet. @param {import("./page.js").Run} run @returns {Pass} */
export function newPass(run) {
  const computed = { probe: new Probe(), logits: new Matrix(0, 0), loss: 0 };
  return { run, ids: [], t: 0, layer: 0, head: 0, ...computed };
}

/** Runs the model over tokens, with the parts that are on. @param {Pass} pass @param {number[]} ids */
export function runPass(pass, ids) {
  const { config, params, off } = pass.run;
  const probe = new Probe(off);
  Object.assign(pass, { ids, probe, ...readText(config, params, ids, probe) });
}

/** Attention weights of a layer, (T, T) for each head. @param {Pass} pass @param {number} layer */
export function attentionHeads({ probe }, layer) {
  return /** @type {Matrix[]} */ (probe.weights.get(`block_${layer}.attention`));
}

/** The residual stream at the position, (1, D) before the first layer and after each. @param {Pass} pass */
export function residualStreams({ run, t, probe }) {
  const { n_layer } = run.config;
  return Array.from({ length: n_layer + 1 }, (_, i) =>
    probe.get(i < n_layer ? `block_${i}.input` : "stream").slice(t, t + 1),
  );
}

/** The parts that are off; a head of a layer that is off is no further one. @param {Set<string>} off */
export function partsOff(off) {
  return [...off].filter((name) => !off.has(name.split(".")[0]) || !name.includes("."));
}

/** A sentence on the parts that are off, if there are any. @param {Set<string>} off */
export function switchedOff(off) {
  const n = partsOff(off).length;
  if (!n) return "";
  return `${n} ${n === 1 ? "part of the model is" : "parts of the model are"} off: see the tab Look.`;
}

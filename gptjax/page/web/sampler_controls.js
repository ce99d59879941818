// What decides how tokens are drawn: temperature, top-k, top-p and the seed.

import { el, slider } from "./drawing.js";

/** The largest top-k of a slider; beyond it are all tokens. */
const MOST_K = 99;

/**
 * The settings that a view starts with: temperature 0.8, any token.
 * @returns {import("./sampling.js").Sampler}
 */
export const newSampler = () => ({ temperature: 0.8, topK: 0, topP: 1 });

/** @param {import("./sampling.js").Sampler} sampler @param {() => void} [change] */
export function temperatureSlider(sampler, change = () => {}) {
  const set = (/** @type {number} */ value) => {
    sampler.temperature = value;
    change();
  };
  const range = { min: 0, max: 2, step: 0.05, value: sampler.temperature };
  return slider("temperature", range, set, (t) => t.toFixed(2));
}

/**
 * @param {import("./sampling.js").Sampler} sampler
 * @param {number} nTokens  size of the vocabulary
 * @param {() => void} change
 */
export function topKSlider(sampler, nTokens, change) {
  const most = Math.min(nTokens - 1, MOST_K);
  const set = (/** @type {number} */ value) => {
    sampler.topK = value > most ? 0 : value;
    change();
  };
  const range = { min: 1, max: most + 1, step: 1, value: most + 1 };
  return slider("top-k", range, set, (k) => (k > most ? "all" : String(k)));
}

/** @param {import("./sampling.js").Sampler} sampler @param {() => void} change */
export function topPSlider(sampler, change) {
  const set = (/** @type {number} */ value) => {
    sampler.topP = value;
    change();
  };
  return slider("top-p", { min: 0.05, max: 1, step: 0.05, value: 1 }, set, (p) => p.toFixed(2));
}

/** A field for a seed, a whole number below 2^32. */
export class SeedField {
  constructor() {
    this.input = /** @type {HTMLInputElement} */ (
      el("input", { type: "number", min: 0, step: 1, value: "1337" })
    );
    this.input.onchange = () => this.set(this.value);
    this.element = el("label", { title: "the same seed writes the same text" }, "seed", this.input);
  }

  get value() {
    return Math.abs(Math.round(Number(this.input.value))) % 2 ** 32 || 0;
  }

  /** @param {number} seed */
  set(seed) {
    this.input.value = String(seed);
  }
}

// What else might have stood at one place of a text.

import { el, percent, visible } from "./drawing.js";
import { probabilities } from "./sampling.js";

/**
 * A token of a text: its surprise, -log p in nats, and the likeliest tokens at its place. likely
 * is empty where the model had nothing to read before it. logits: null if they are not kept.
 * @typedef {{id: number, surprise: number, likely: {id: number, p: number}[], isPrompt: boolean,
 *   logits: Float32Array | null}} Written
 */

export class Alternatives {
  /**
   * @param {import("./tokenizer.js").Tokenizer} tokenizer
   * @param {import("./sampling.js").Sampler} sampler
   * @param {(at: number, id: number) => void} take  writes another token at a place
   */
  constructor(tokenizer, sampler, take) {
    this.tokenizer = tokenizer;
    this.sampler = sampler;
    this.take = take;
    this.element = el("div", { class: "panel" });
    this.showNothing();
  }

  showNothing() {
    const advice = "Point at a token to see what else might have stood there. Click it to hold it.";
    this.element.replaceChildren(el("p", {}, advice));
  }

  /** @param {number} at @param {Written} written  the token there @param {boolean} held */
  show(at, written, held) {
    const own = `“${this.name(written.id)}”`;
    if (!written.likely.length) {
      const why = at
        ? "is out of the model's sight."
        : "is the first token: nothing comes before it.";
      this.element.replaceChildren(el("p", {}, `${own} ${why}`));
      return;
    }
    const p = percent(Math.exp(-written.surprise));
    const nats = `-ln p = ${written.surprise.toFixed(2)} nats`;
    const freeing = held ? "Held: click it again to free it. " : "";
    const sides = written.logits
      ? "Left: what the model says. Right: after temperature, top-k and top-p. "
      : "";
    const note = `${sides}${freeing}Click another token: the text goes on from there.`;
    this.element.replaceChildren(
      el("p", { role: "status" }, `${own} had a probability of ${p}: a surprise of ${nats}.`),
      el("div", { class: "bars" }, ...this.rows(at, written)),
      el("p", { class: "faint" }, note),
    );
  }

  /** A button, a bar and the probabilities for each of the likeliest tokens. @param {number} at @param {Written} written */
  rows(at, { id, likely, logits }) {
    const drawn = logits && probabilities(logits, this.sampler);
    return likely.flatMap((other) => {
      const attributes = { onclick: () => this.take(at, other.id), title: "write this instead" };
      const button = el("button", attributes, this.name(other.id));
      if (other.id === id) button.style.fontWeight = "bold";
      const width = ((100 * other.p) / likely[0].p).toFixed(1);
      const chance = drawn ? ` → ${percent(drawn[other.id])}` : "";
      return [
        button,
        el("span", { class: "bar", style: `width: ${width}%` }),
        el("span", { class: "faint" }, percent(other.p) + chance),
      ];
    });
  }

  /** @param {number} id */
  name(id) {
    return visible(this.tokenizer.name(id));
  }
}

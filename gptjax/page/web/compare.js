// Checkpoints side by side: the same prompt, continued by each of them.

import { count, el, FRAME, leftOut } from "./drawing.js";
import { newSampler, SeedField, temperatureSlider } from "./sampler_controls.js";
import { choose, probabilities, random, Writer } from "./sampling.js";
import { firstPrompt } from "./write.js";

const COMPARED_TOKENS = 200;

/** A checkpoint with the size of its weights in the page. @typedef {{step: number, bytes: number, base: boolean}} Kept */

/** The checkpoints of a page, first to last. @param {any} contents @returns {Kept[]} */
function keptCheckpoints({ step, weights, checkpoints }) {
  const others = checkpoints.map((/** @type {any} */ c) => ({
    step: c.step,
    bytes: c.bytes.length,
    base: false,
  }));
  const all = [{ step, bytes: weights.bytes.length, base: true }, ...others];
  return all.sort((a, b) => a.step - b.step);
}

class Comparing {
  /** @param {import("./page.js").Run} run */
  constructor(run) {
    this.run = run;
    this.kept = keptCheckpoints(run.contents);
    this.sampler = newSampler();
    /** Which start the text that is being written belongs to: a later one ends it. */
    this.round = 0;
    this.prompt = /** @type {HTMLTextAreaElement} */ (
      el("textarea", { "aria-label": "Prompt for every checkpoint", rows: 2, spellcheck: "false" })
    );
    this.prompt.value = firstPrompt(run.contents);
    this.seed = new SeedField();
    this.warning = el("p", { class: "warning", role: "status" });
    this.texts = this.kept.map(({ step }) =>
      el("div", {
        class: "text sample",
        tabindex: 0,
        role: "group",
        "aria-label": `Text of step ${step}`,
      }),
    );
    const cards = this.kept.map((kept, i) =>
      el("div", { class: "panel" }, this.facts(kept), this.texts[i]),
    );
    // Nothing to see before they write.
    this.cards = el("div", { class: "cards hidden" }, ...cards);
  }

  /** Lets every checkpoint write. Each has the same random numbers. */
  async start() {
    const round = ++this.round;
    const { config, tokenizer } = this.run;
    const { ids, unknown } = tokenizer.encode(this.prompt.value);
    this.warning.textContent = leftOut(unknown);
    const prompt = ids.length ? ids : [tokenizer.start];
    const writing = await Promise.all(
      this.kept.map(async ({ step }, i) => {
        const writer = new Writer(config, await this.run.checkpoint(step), prompt);
        const written = el("span");
        this.texts[i].replaceChildren(
          el("span", { class: "token prompt" }, tokenizer.pieces(ids).join("")),
          written,
        );
        return { writer, written, draw: random(this.seed.value), done: false };
      }),
    );
    this.cards.classList.remove("hidden");
    const sampler = { ...this.sampler };
    const frame = () => {
      if (round !== this.round) return;
      const end = performance.now() + FRAME;
      while (performance.now() < end && writing.some((one) => !one.done)) {
        for (const one of writing) {
          if (one.done) continue;
          const id = choose(probabilities(one.writer.logits, sampler), one.draw());
          one.done = tokenizer.ends.includes(id);
          if (!one.done) one.writer.append(id);
          one.done ||= one.writer.tokens.length >= prompt.length + COMPARED_TOKENS;
        }
      }
      for (const { writer, written } of writing) {
        written.textContent = tokenizer.pieces(writer.tokens).slice(prompt.length).join("");
      }
      if (writing.some((one) => !one.done)) requestAnimationFrame(frame);
    };
    frame();
  }

  /** What is known of a checkpoint, above its text. @param {Kept} kept */
  facts({ step, bytes, base }) {
    const row = this.run.contents.metrics.find(
      (/** @type {any} */ r) => r.step === step && r.val_loss !== undefined,
    );
    const loss = row ? `validation loss ${row.val_loss.toFixed(4)}; ` : "";
    const format = base ? this.run.contents.weights.format : "int8 differences";
    return el(
      "p",
      {},
      el("b", {}, `Step ${count(step)}`),
      el("br"),
      el(
        "span",
        { class: "faint" },
        `${loss}${(bytes / 1e6).toFixed(2)} MB of this page, ${format}`,
      ),
    );
  }

  elements() {
    const temperature = temperatureSlider(this.sampler);
    const button = el("button", { class: "main", onclick: () => this.start() }, "Write with each");
    const steps = this.kept.map(({ step }) => count(step));
    return [
      el(
        "p",
        {},
        `The same prompt and the same random numbers, continued side by side by the weights of the steps ${steps.slice(0, -1).join(", ")} and ${steps.at(-1)}. What differs is only what the model had learned by then.`,
      ),
      this.prompt,
      this.warning,
      el("div", { class: "controls" }, button, temperature, this.seed.element),
      this.cards,
    ];
  }
}

/** The part of the view Learn that compares checkpoints. @param {import("./page.js").Run} run */
export function comparison(run) {
  const heading = el("h2", {}, "Checkpoints side by side");
  const one =
    "This page has the weights of one checkpoint. Where a run keeps more, the option --checkpoints of gptjax page puts them side by side here.";
  const children = run.contents.checkpoints.length
    ? new Comparing(run).elements()
    : [el("p", {}, one)];
  return el("div", {}, heading, ...children);
}

// Write: the model continues a prompt, and shows what else it might have written.

import { Alternatives } from "./alternatives.js";
import { count, el, FRAME, formula, leftOut, shade, visible } from "./drawing.js";
import { logSoftmax } from "./layers.js";
import { switchedOff } from "./pass.js";
import {
  newSampler,
  SeedField,
  temperatureSlider,
  topKSlider,
  topPSlider,
} from "./sampler_controls.js";
import { choose, likeliest, probabilities, random, Writer } from "./sampling.js";
import { TokenText } from "./token_text.js";

/** @typedef {import("./alternatives.js").Written} Written */
/** @typedef {import("./layers.js").Matrix} Matrix */

/** A token that surprises by this many nats has the full colour: it had 1 chance in 400. */
const MOST_SURPRISE = 6;
const N_ALTERNATIVES = 10;
/** Tokens that are written at a time. */
const N_WRITTEN = 400;
/** Logits of larger vocabularies are not kept for every token. */
const MOST_KEPT = 4096;

/** Where a prompt starts: a speaker of the example text, or its first words. @param {any} contents */
export function firstPrompt(contents) {
  const text = /** @type {string} */ (contents.text ?? "");
  return text.match(/[A-Z][A-Za-z ]+:\n/)?.[0] ?? text.slice(0, 24);
}

/** What a token is in this model, in a sentence. @param {import("./page.js").Run} run */
function tokenIs({ contents, tokenizer }) {
  const kinds = {
    char: "one character",
    word: "one word",
    byte: "one byte",
    bpe: "a piece of a word",
  };
  const kind = kinds[/** @type {keyof kinds} */ (contents.tokenizer.type)];
  return `A token is ${kind} here; the model knows ${count(tokenizer.size)} of them, its vocabulary.`;
}

/** @param {number} nats */
const surpriseColour = (nats) => shade("orange", 0.5 * Math.min(1, nats / MOST_SURPRISE));

class Writing {
  /** @param {import("./page.js").Run} run */
  constructor(run) {
    this.run = run;
    this.sampler = newSampler();
    this.seed = new SeedField();
    this.draw = random(this.seed.value);
    /** @type {Written[]} the tokens of the text, one for each of its spans */
    this.written = [];
    /** @type {Writer | null} */
    this.writer = null;
    this.running = false;
    /** The next call of frame(), of which there is one at a time. */
    this.request = 0;
    /** The parts that were off when the writer began. */
    this.without = "";
    /** What the writer should know about the prompt. */
    this.remark = "";
    /** Tokens that are still to be written. */
    this.left = 0;
    this.prompt = /** @type {HTMLTextAreaElement} */ (
      el("textarea", { "aria-label": "Prompt", rows: 2, spellcheck: "false" })
    );
    this.prompt.value = firstPrompt(run.contents);
    this.prompt.onkeydown = (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.start();
    };
    this.warning = el("p", { class: "warning", role: "status" });
    const label = "Text. Arrow keys move from token to token, Enter holds one, Escape frees it";
    this.text = new TokenText(label, () => this.explain());
    this.text.element.append(el("span", { class: "faint" }, "Press Write."));
    this.button = el("button", { class: "main", onclick: () => this.press() }, "Write");
    this.more = el("button", { onclick: () => this.goOn(), disabled: true }, "Go on");
    this.alternatives = new Alternatives(run.tokenizer, this.sampler, (at, id) =>
      this.take(at, id),
    );
  }

  press() {
    if (this.running) this.stop();
    else this.start();
  }

  /** Reads the prompt, and begins to write. */
  start() {
    const { ids, unknown } = this.run.tokenizer.encode(this.prompt.value);
    this.remark = this.remarkOn(ids, unknown);
    this.draw = random(this.seed.value);
    const logits = this.begin(ids, ids.length);
    // Row t - 1 is of token t of those that the model sees, the last ones of ids.
    for (let t = 1; t < logits.rows; t++) {
      this.measure(ids.length - logits.rows + t, logits.row(t - 1));
    }
    this.go();
  }

  /** What the writer should know about the prompt. @param {number[]} ids @param {string[]} unknown */
  remarkOn(ids, unknown) {
    const { tokenizer, config } = this.run;
    const notes = [leftOut(unknown)];
    if (!ids.length) notes.push(`Starts from “${visible(tokenizer.name(tokenizer.start))}”.`);
    const unseen = ids.length - config.block_size;
    if (unseen > 0) {
      notes.push(
        `The model reads ${config.block_size} tokens: the first ${unseen} are out of its sight.`,
      );
    }
    return notes.join(" ").trim();
  }

  /** Makes a writer that goes on after tokens. @param {number[]} ids */
  read(ids) {
    const { config, params, off } = this.run;
    this.writer = new Writer(config, params, ids, off);
    this.without = [...off].join();
    this.warning.textContent = `${this.remark} ${switchedOff(off)}`.trim();
    return /** @type {Matrix} */ (this.writer.prompt);
  }

  /**
   * Starts again from tokens, of which nPrompt are the prompt. Returns the logits after each of
   * those that the model sees.
   * @param {number[]} ids
   * @param {number} nPrompt
   */
  begin(ids, nPrompt) {
    this.text.set([]);
    this.written = [];
    this.alternatives.showNothing();
    const logits = this.read(ids.length ? ids : [this.run.tokenizer.start]);
    ids.forEach((id, i) => {
      this.add(id, i < nPrompt);
    });
    this.relabel();
    return logits;
  }

  /** Writes on after the text that is there, with the parts that are on by now. */
  goOn() {
    // The cache of the writer was computed with other parts.
    if (this.writer && this.without !== [...this.run.off].join()) this.read(this.writer.tokens);
    this.go();
  }

  /** Writes on until the end is reached or somebody stops it. */
  go() {
    this.left = N_WRITTEN;
    this.running = true;
    this.button.textContent = "Stop";
    this.more.setAttribute("disabled", "");
    this.next();
  }

  stop() {
    this.running = false;
    this.button.textContent = "Write";
    this.more.removeAttribute("disabled");
    this.run.tokens = this.written.map((w) => w.id);
  }

  frame() {
    if (!this.running || !this.writer) return;
    const end = performance.now() + FRAME;
    const first = this.written.length;
    while (performance.now() < end && this.left-- > 0) {
      const id = choose(probabilities(this.writer.logits, this.sampler), this.draw());
      if (this.run.tokenizer.ends.includes(id)) this.left = 0;
      else this.append(id);
    }
    this.relabel(first);
    if (this.left > 0) this.next();
    else this.stop();
  }

  /** Calls frame() once more. A text that was begun anew may wait for such a call already. */
  next() {
    cancelAnimationFrame(this.request);
    this.request = requestAnimationFrame(() => this.frame());
  }

  /** Writes one token. @param {number} id */
  append(id) {
    if (!this.writer) return;
    this.add(id, false);
    this.measure(this.written.length - 1, this.writer.logits);
    this.writer.append(id);
  }

  /** @param {number} id @param {boolean} isPrompt */
  add(id, isPrompt) {
    this.written.push({ id, surprise: 0, likely: [], isPrompt, logits: null });
    this.text.append(el("span", { class: isPrompt ? "token prompt" : "token" }));
  }

  /** Keeps how little the model expected a token. @param {number} at @param {Float32Array} logits  of its place */
  measure(at, logits) {
    const written = this.written[at];
    const logP = logSoftmax(logits);
    written.surprise = -logP[written.id];
    written.likely = likeliest(logP, N_ALTERNATIVES);
    if (logits.length <= MOST_KEPT) written.logits = logits.slice();
    this.paint(at);
  }

  /** @param {number} at */
  paint(at) {
    this.text.spans[at].style.background = surpriseColour(this.written[at].surprise);
  }

  /** Sets the text of the tokens from `first` on, which may depend on those before them. */
  relabel(first = 0) {
    const pieces = this.run.tokenizer.pieces(this.written.map((w) => w.id));
    for (let i = first; i < pieces.length; i++) this.text.spans[i].textContent = pieces[i];
  }

  /** Shows what might have stood in the place of the chosen token. */
  explain() {
    const { at, held } = this.text;
    if (at >= 0) this.alternatives.show(at, this.written[at], held);
  }

  /** Puts another token at a place, and writes on from there. @param {number} at @param {number} id */
  take(at, id) {
    this.stop();
    const before = this.written.slice(0, at);
    this.begin(
      before.map((w) => w.id),
      before.filter((w) => w.isPrompt).length,
    );
    this.written = before;
    for (const i of before.keys()) this.paint(i);
    this.append(id);
    this.relabel();
    this.text.select(at);
    this.text.element.focus();
    this.go();
  }

  controls() {
    const { sampler } = this;
    const change = () => this.explain();
    const another = () => {
      this.seed.set((this.seed.value + 1) % 2 ** 32);
      this.start();
    };
    return el(
      "div",
      { class: "controls" },
      this.button,
      this.more,
      temperatureSlider(sampler, change),
      topKSlider(sampler, this.run.tokenizer.size, change),
      topPSlider(sampler, change),
      this.seed.element,
      el("button", { onclick: another, title: "write again, with the next seed" }, "New seed"),
    );
  }

  element() {
    const { run } = this;
    const size = run.tokenizer.size;
    const legend = [0, 1, 2, 4, 6].map((nats) => {
      const style = `background: ${surpriseColour(nats)}`;
      return el("span", { class: "key", style }, nats === 6 ? "6 or more" : String(nats));
    });
    return el(
      "section",
      {},
      el(
        "p",
        {},
        `Type how a text begins. The model gives every token a probability to come next, draws one, and repeats. ${tokenIs(run)} The more orange, the less the model expected it.`,
      ),
      this.prompt,
      this.warning,
      this.controls(),
      el("div", { class: "columns" }, this.text.element, this.alternatives.element),
      el(
        "p",
        { class: "faint" },
        "Surprise in nats (1 nat: 1 chance in 2.7; 3 nats: 1 in 20): ",
        ...legend,
      ),
      el(
        "details",
        {},
        el("summary", {}, "How a token is drawn"),
        formula(
          `p_i = exp(logit_i / temperature) / sum_j exp(logit_j / temperature)      i, j = 0 ... ${size - 1}`,
        ),
        el(
          "p",
          {},
          `A logit is the number that the model gives a token: the larger, the likelier. A temperature below 1 makes likely tokens likelier; 0 always takes the likeliest. top-k keeps the k likeliest of the ${size} tokens. top-p keeps the likeliest ones that together reach this probability. The model reads at most ${run.config.block_size} tokens back. The same seed writes the same text.`,
        ),
      ),
    );
  }
}

/** @param {import("./page.js").Run} run @returns {import("./page.js").View} */
export function writeView(run) {
  const writing = new Writing(run);
  const hide = () => {
    if (writing.running) writing.stop();
  };
  return { id: "write", title: "Write", element: writing.element(), hide };
}

// Write: the model continues a prompt, and shows what else it might have written.

import { el, percent, shade, slider, visible } from "./drawing.js";
import { logSoftmax } from "./layers.js";
import { choose, probabilities, random, readText, Writer } from "./sampling.js";

/** A token that surprises by this many nats has the full colour: it had 1 chance in 400. */
const MOST_SURPRISE = 6;
const N_ALTERNATIVES = 10;
/** Milliseconds of computing before the page is drawn again. */
const FRAME = 14;

/**
 * A token of the text: its surprise, -log p in nats, and the likeliest tokens at its place.
 * @typedef {{id: number, surprise: number, likely: {id: number, p: number}[], span: HTMLElement}} Written
 */

/** The likeliest next tokens. @param {Float64Array} logP */
export function likeliest(logP, n = N_ALTERNATIVES) {
  const ids = [...logP.keys()].sort((a, b) => logP[b] - logP[a]).slice(0, n);
  return ids.map((id) => ({ id, p: Math.exp(logP[id]) }));
}

/** Where a prompt starts: a speaker of the example text, or its first words. @param {any} contents */
export function firstPrompt(contents) {
  const text = /** @type {string} */ (contents.text ?? "");
  return text.match(/[A-Z][A-Za-z ]+:\n/)?.[0] ?? text.slice(0, 24);
}

/** The view, and what it knows of the text. */
class Writing {
  /** @param {import("./page.js").Run} run */
  constructor(run) {
    this.run = run;
    this.sampler = { temperature: 0.8, topK: 0, topP: 1 };
    this.seed = 1337;
    /** @type {Written[]} */
    this.written = [];
    /** @type {Writer | null} */
    this.writer = null;
    this.draw = random(this.seed);
    this.chosen = -1;
    this.running = false;
    this.left = 0;
    this.prompt = /** @type {HTMLTextAreaElement} */ (
      el("textarea", { "aria-label": "Prompt", rows: 2, spellcheck: "false" })
    );
    this.prompt.value = firstPrompt(run.contents);
    this.warning = el("p", { class: "warning", role: "status" });
    this.text = el("div", {
      class: "text",
      tabindex: 0,
      role: "group",
      "aria-label": "Text; arrow keys move from token to token",
    });
    this.button = el(
      "button",
      { class: "main", onclick: () => (this.running ? this.stop() : this.start()) },
      "Write",
    );
    this.detail = el("div", { class: "panel", "aria-live": "polite" });
    this.text.onkeydown = (event) => this.move(event);
    this.text.onmouseover = (event) => this.point(event);
    this.text.onclick = (event) => this.point(event);
    this.showNothing();
  }

  showNothing() {
    this.detail.replaceChildren(
      el(
        "p",
        {},
        "Point at a character, or click it: here you see what else might have stood there.",
      ),
    );
  }

  /** Reads the prompt, and begins to write. */
  start() {
    const { tokenizer, config, params } = this.run;
    const { ids, unknown } = tokenizer.encode(this.prompt.value);
    const list = unknown.map((part) => `“${visible(part)}”`).join(", ");
    this.warning.textContent = unknown.length ? `The model never saw ${list}: left out.` : "";
    this.draw = random(this.seed);
    this.begin(ids, ids.length);
    const shown = ids.slice(-config.block_size);
    if (shown.length > 1) {
      const { logits } = readText(config, params, shown);
      for (let t = 1; t < shown.length; t++)
        this.measure(this.written[ids.length - shown.length + t], logits.row(t - 1));
    }
    this.go();
  }

  /** Starts again from tokens, of which nPrompt are the prompt. @param {number[]} ids @param {number} nPrompt */
  begin(ids, nPrompt) {
    const { tokenizer, config, params } = this.run;
    this.text.replaceChildren();
    this.written = [];
    this.nPrompt = nPrompt;
    this.writer = new Writer(config, params, ids.length ? ids : [tokenizer.start]);
    for (const id of ids) this.add(id);
    this.relabel();
  }

  /** Writes on until the end is reached or somebody stops it. */
  go() {
    this.left = 400;
    this.running = true;
    this.button.textContent = "Stop";
    requestAnimationFrame(() => this.frame());
  }

  stop() {
    this.running = false;
    this.button.textContent = "Write";
    this.run.tokens = this.written.map((w) => w.id).slice(-this.run.config.block_size);
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
    if (this.left > 0) requestAnimationFrame(() => this.frame());
    else this.stop();
  }

  /** @param {number} id */
  append(id) {
    if (!this.writer) return;
    this.measure(this.add(id), this.writer.logits);
    this.writer.append(id);
  }

  /** @param {number} id */
  add(id) {
    const isPrompt = this.written.length < (this.nPrompt ?? 0);
    const span = el("span", { class: isPrompt ? "token prompt" : "token" });
    const made = { id, surprise: 0, likely: [], span };
    this.written.push(made);
    this.text.append(span);
    return made;
  }

  /** Shades a token by how little the model expected it. @param {Written} written @param {Float32Array} logits */
  measure(written, logits) {
    const logP = logSoftmax(logits);
    written.surprise = -logP[written.id];
    written.likely = likeliest(logP);
    written.span.style.background = shade("orange", (0.75 * written.surprise) / MOST_SURPRISE);
  }

  /** Sets the text of tokens. A character of several tokens is shown at its last one. */
  relabel(first = 0) {
    const from = Math.max(0, first - 4);
    const pieces = this.run.tokenizer.pieces(this.written.slice(from).map((w) => w.id));
    pieces.forEach((piece, i) => {
      this.written[from + i].span.textContent = piece;
    });
  }

  /** @param {KeyboardEvent} event */
  move(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !this.written.length) return;
    event.preventDefault();
    this.select(Math.max(0, Math.min(this.written.length - 1, this.chosen + step)));
  }

  /** @param {MouseEvent} event */
  point(event) {
    const at = this.written.findIndex((w) => w.span === event.target);
    if (at >= 0) this.select(at);
  }

  /** Shows what might have stood at one place. @param {number} at */
  select(at) {
    this.written[this.chosen]?.span.classList.remove("chosen");
    this.chosen = at;
    const { id, surprise, likely, span } = this.written[at];
    span.classList.add("chosen");
    const name = this.run.tokenizer.name;
    const p = Math.exp(-surprise);
    const heading = likely.length
      ? `The model gave “${visible(name(id))}” a probability of ${percent(p)}: a surprise of -log p = ${surprise.toFixed(2)} nats.`
      : `“${visible(name(id))}” is the first token: nothing comes before it.`;
    const rows = likely.map((other) => {
      const take = el(
        "button",
        { onclick: () => this.take(at, other.id), title: "write this instead" },
        visible(name(other.id)),
      );
      if (other.id === id) take.style.fontWeight = "bold";
      const bar = el("span", {
        class: "bar",
        style: `width: ${((100 * other.p) / likely[0].p).toFixed(1)}%`,
      });
      return [take, bar, el("span", { class: "faint" }, percent(other.p))];
    });
    const advice = likely.length
      ? el("p", { class: "faint" }, "Click another one: the text goes on from there.")
      : "";
    this.detail.replaceChildren(
      el("p", {}, heading),
      el("div", { class: "bars" }, ...rows.flat()),
      advice,
    );
  }

  /** Puts another token at a place, and writes on from there. @param {number} at @param {number} id */
  take(at, id) {
    this.stop();
    const before = this.written.slice(0, at);
    const nPrompt = Math.min(at, this.nPrompt ?? 0);
    this.begin(
      before.map((w) => w.id),
      nPrompt,
    );
    before.forEach((old, i) => {
      this.written[i].surprise = old.surprise;
      this.written[i].likely = old.likely;
      this.written[i].span.style.background = old.span.style.background;
    });
    this.append(id);
    this.relabel();
    this.select(at);
    this.go();
  }

  element() {
    const { sampler, run } = this;
    const set =
      (/** @type {"temperature" | "topK" | "topP"} */ name) => (/** @type {number} */ value) => {
        sampler[name] = value;
      };
    const seed = /** @type {HTMLInputElement} */ (
      el("input", { type: "number", min: 0, step: 1, value: "1337" })
    );
    seed.onchange = () => {
      this.seed = Number(seed.value) >>> 0;
    };
    const size = run.tokenizer.size;
    return el(
      "section",
      {},
      el(
        "p",
        {},
        "Type how a text begins. The model reads it, and writes one token after another: each time it gives every token of its vocabulary a probability, and one is drawn. The more orange a character is, the less the model expected it.",
      ),
      this.prompt,
      this.warning,
      el(
        "div",
        { class: "controls" },
        this.button,
        slider(
          "temperature",
          { min: 0, max: 2, step: 0.05, value: sampler.temperature },
          set("temperature"),
          (t) => t.toFixed(2),
        ),
        slider(
          "top-k",
          { min: 0, max: Math.min(size, 100), step: 1, value: 0 },
          set("topK"),
          (k) => (k ? String(k) : "all"),
        ),
        slider("top-p", { min: 0.05, max: 1, step: 0.05, value: 1 }, set("topP"), (p) =>
          p.toFixed(2),
        ),
        el("label", {}, "seed", seed),
      ),
      el("div", { class: "columns" }, this.text, this.detail),
      el(
        "details",
        {},
        el("summary", {}, "How a token is drawn"),
        el(
          "code",
          { class: "equation" },
          `p_i = exp(logit_i / temperature) / sum_j exp(logit_j / temperature)      i, j = 1 ... ${size}`,
        ),
        el(
          "p",
          {},
          `A temperature below 1 makes likely tokens likelier; 0 always takes the likeliest. top-k keeps the k likeliest of the ${size} tokens. top-p keeps the likeliest ones that together reach this probability. The model reads at most ${run.config.block_size} tokens back.`,
        ),
      ),
    );
  }
}

/** @param {import("./page.js").Run} run @returns {import("./page.js").View} */
export function writeView(run) {
  const writing = new Writing(run);
  return { id: "write", title: "Write", element: writing.element() };
}

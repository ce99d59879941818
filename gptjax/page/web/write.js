// Write: the model continues a prompt, and shows what else it might have written.

import { count, el, leftOut, percent, shade, slider, visible } from "./drawing.js";
import { logSoftmax } from "./layers.js";
import { Probe } from "./model.js";
import { choose, probabilities, random, readText, Writer } from "./sampling.js";

/** A token that surprises by this many nats has the full colour: it had 1 chance in 400. */
const MOST_SURPRISE = 6;
const N_ALTERNATIVES = 10;
/** Tokens that are written at a time. */
const N_WRITTEN = 400;
/** Milliseconds of computing before the page is drawn again. */
const FRAME = 14;
/** Logits of larger vocabularies are not kept for every token. */
const MOST_KEPT = 4096;

/**
 * A token of the text: its surprise, -log p in nats, and the likeliest tokens at its place. likely
 * is empty where the model had nothing to read before it. logits: null if they are not kept.
 * @typedef {{id: number, surprise: number, likely: {id: number, p: number}[], isPrompt: boolean,
 *   logits: Float32Array | null, span: HTMLElement}} Written
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
    /** The token that the panel explains; pinned: pointing at another one does not change it. */
    this.chosen = -1;
    this.pinned = false;
    this.running = false;
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
    this.text = el("div", { class: "text", tabindex: 0, role: "group", "aria-label": label });
    this.text.append(el("span", { class: "faint" }, "Press Write."));
    this.button = el("button", { class: "main", onclick: () => this.press() }, "Write");
    this.more = el("button", { onclick: () => this.go(), disabled: true }, "Go on");
    this.seedInput = /** @type {HTMLInputElement} */ (
      el("input", { type: "number", min: 0, step: 1, value: "1337" })
    );
    this.seedInput.onchange = () => this.setSeed(Number(this.seedInput.value));
    this.detail = el("div", { class: "panel" });
    this.text.onkeydown = (event) => this.move(event);
    this.text.onmouseover = (event) => this.point(event);
    this.text.onclick = (event) => this.pin(event);
    this.showNothing();
  }

  showNothing() {
    this.chosen = -1;
    this.pinned = false;
    const advice = "Point at a token to see what else might have stood there. Click it to hold it.";
    this.detail.replaceChildren(el("p", {}, advice));
  }

  /** @param {number} seed */
  setSeed(seed) {
    this.seed = Math.abs(Math.round(seed)) % 2 ** 32 || 0;
    this.seedInput.value = String(this.seed);
  }

  press() {
    if (this.running) this.stop();
    else this.start();
  }

  /** Reads the prompt, and begins to write. */
  start() {
    const { tokenizer, config, params, off } = this.run;
    const { ids, unknown } = tokenizer.encode(this.prompt.value);
    const notes = [leftOut(unknown)];
    if (!ids.length) notes.push(`Starts from “${visible(tokenizer.name(tokenizer.start))}”.`);
    const unseen = ids.length - config.block_size;
    if (unseen > 0) {
      notes.push(
        `The model reads ${config.block_size} tokens: the first ${unseen} are out of its sight.`,
      );
    }
    if (off.size) notes.push(`Without ${off.size} of its parts: see the tab Look.`);
    this.warning.textContent = notes.join(" ").trim();
    this.draw = random(this.seed);
    this.begin(ids, ids.length);
    const shown = ids.slice(-config.block_size);
    if (shown.length > 1) {
      const { logits } = readText(config, params, shown, off.size ? new Probe(off) : null);
      for (let t = 1; t < shown.length; t++) {
        this.measure(this.written[ids.length - shown.length + t], logits.row(t - 1));
      }
    }
    this.go();
  }

  /**
   * Starts again from tokens, of which nPrompt are the prompt.
   * @param {number[]} ids
   * @param {number} nPrompt
   */
  begin(ids, nPrompt) {
    const { tokenizer, config, params, off } = this.run;
    this.text.replaceChildren();
    this.written = [];
    this.showNothing();
    this.writer = new Writer(config, params, ids.length ? ids : [tokenizer.start], off);
    ids.forEach((id, i) => {
      this.add(id, i < nPrompt);
    });
    this.relabel();
  }

  /** Writes on until the end is reached or somebody stops it. */
  go() {
    this.left = N_WRITTEN;
    this.running = true;
    this.button.textContent = "Stop";
    this.more.setAttribute("disabled", "");
    requestAnimationFrame(() => this.frame());
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
    if (this.left > 0) requestAnimationFrame(() => this.frame());
    else this.stop();
  }

  /** @param {number} id */
  append(id) {
    if (!this.writer) return;
    this.measure(this.add(id, false), this.writer.logits);
    this.writer.append(id);
  }

  /** @param {number} id @param {boolean} isPrompt */
  add(id, isPrompt) {
    const span = el("span", { class: isPrompt ? "token prompt" : "token" });
    const made = { id, surprise: 0, likely: [], isPrompt, logits: null, span };
    this.written.push(made);
    this.text.append(span);
    return made;
  }

  /**
   * Shades a token by how little the model expected it.
   * @param {Written} written
   * @param {Float32Array} logits  of its place
   */
  measure(written, logits) {
    const logP = logSoftmax(logits);
    written.surprise = -logP[written.id];
    written.likely = likeliest(logP);
    if (logits.length <= MOST_KEPT) written.logits = logits.slice();
    paint(written);
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
    const last = this.written.length - 1;
    const { chosen } = this;
    const places = { ArrowRight: chosen + 1, ArrowLeft: chosen - 1, Home: 0, End: last };
    const to = places[/** @type {keyof places} */ (event.key)];
    if (event.key === "Escape") this.pinned = false;
    if (event.key === "Enter") this.pinned = true;
    if (to === undefined || last < 0) return;
    event.preventDefault();
    this.select(Math.max(0, Math.min(last, to)));
  }

  /** @param {MouseEvent} event */
  point(event) {
    const at = this.written.findIndex((w) => w.span === event.target);
    if (at >= 0 && !this.pinned) this.select(at);
  }

  /** Holds a token, or frees it if it was held. @param {MouseEvent} event */
  pin(event) {
    const at = this.written.findIndex((w) => w.span === event.target);
    if (at < 0) return;
    this.pinned = !(this.pinned && at === this.chosen);
    this.select(at);
  }

  /** Shows what might have stood at one place. @param {number} at */
  select(at) {
    this.written[this.chosen]?.span.classList.remove("chosen");
    this.chosen = at;
    const written = this.written[at];
    written.span.classList.add("chosen");
    const name = (/** @type {number} */ id) => visible(this.run.tokenizer.name(id));
    if (!written.likely.length) {
      const why = at
        ? "is out of the model's sight."
        : "is the first token: nothing comes before it.";
      this.detail.replaceChildren(el("p", {}, `“${name(written.id)}” ${why}`));
      return;
    }
    const p = Math.exp(-written.surprise);
    const nats = `-ln p = ${written.surprise.toFixed(2)} nats`;
    const heading = `“${name(written.id)}” had a probability of ${percent(p)}: a surprise of ${nats}.`;
    const drawn = written.logits && probabilities(written.logits, this.sampler);
    const rows = written.likely.map((other) => {
      const title = "write this instead";
      const take = el("button", { onclick: () => this.take(at, other.id), title }, name(other.id));
      if (other.id === written.id) take.style.fontWeight = "bold";
      const width = ((100 * other.p) / written.likely[0].p).toFixed(1);
      const chance = drawn ? ` → ${percent(drawn[other.id])}` : "";
      return [
        take,
        el("span", { class: "bar", style: `width: ${width}%` }),
        el("span", { class: "faint" }, percent(other.p) + chance),
      ];
    });
    const held = this.pinned ? "Held: click it again to free it. " : "";
    const note = `Left: what the model says. Right: after temperature, top-k and top-p. ${held}Click another token: the text goes on from there.`;
    this.detail.replaceChildren(
      el("p", { role: "status" }, heading),
      el("div", { class: "bars" }, ...rows.flat()),
      el("p", { class: "faint" }, note),
    );
  }

  /** Puts another token at a place, and writes on from there. @param {number} at @param {number} id */
  take(at, id) {
    this.stop();
    const before = this.written.slice(0, at);
    this.begin(
      before.map((w) => w.id),
      before.filter((w) => w.isPrompt).length,
    );
    before.forEach((old, i) => {
      this.written[i] = { ...old, span: this.written[i].span };
      paint(this.written[i]);
    });
    this.append(id);
    this.relabel();
    this.select(at);
    this.text.focus();
    this.go();
  }

  /** A slider of the sampler. The panel follows it. @param {"temperature" | "topK" | "topP"} name */
  set(name) {
    return (/** @type {number} */ value) => {
      // The last place of top-k is all tokens.
      this.sampler[name] = name === "topK" && value > this.mostK() ? 0 : value;
      if (this.chosen >= 0) this.select(this.chosen);
    };
  }

  mostK() {
    return Math.min(this.run.tokenizer.size - 1, 99);
  }

  controls() {
    const most = this.mostK();
    const topK = { min: 1, max: most + 1, step: 1, value: most + 1 };
    const temperature = { min: 0, max: 2, step: 0.05, value: this.sampler.temperature };
    const topP = { min: 0.05, max: 1, step: 0.05, value: 1 };
    const another = () => {
      this.setSeed(this.seed + 1);
      if (!this.running) this.start();
    };
    return el(
      "div",
      { class: "controls" },
      this.button,
      this.more,
      slider("temperature", temperature, this.set("temperature"), (t) => t.toFixed(2)),
      slider("top-k", topK, this.set("topK"), (k) => (k > most ? "all" : String(k))),
      slider("top-p", topP, this.set("topP"), (p) => p.toFixed(2)),
      el("label", { title: "the same seed writes the same text" }, "seed", this.seedInput),
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
      el("div", { class: "columns" }, this.text, this.detail),
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
        el(
          "code",
          { class: "equation" },
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

/** @param {number} nats */
function surpriseColour(nats) {
  return shade("orange", 0.5 * Math.min(1, nats / MOST_SURPRISE));
}

/** @param {Written} written */
function paint(written) {
  written.span.style.background = surpriseColour(written.surprise);
}

/** @param {import("./page.js").Run} run @returns {import("./page.js").View} */
export function writeView(run) {
  const writing = new Writing(run);
  const hide = () => {
    if (writing.running) writing.stop();
  };
  return { id: "write", title: "Write", element: writing.element(), hide };
}

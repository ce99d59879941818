// Transduce: from a source to a target, token by token, and what each token read of the source.

import { meanOfHeads } from "./alignment.js";
import { crossMap } from "./cross_map.js";
import { el, formula, leftOut, percent, shade, visible } from "./drawing.js";
import { headChoices, headGrid } from "./heads.js";
import { topPlaces } from "./layers.js";
import { encoder } from "./model.js";
import { crossWeights, likeliest, transduce } from "./sampling.js";

/** Milliseconds from one token to the next: the model is faster than a reader. */
const PACE = 70;
/** A token that surprises by this many nats has the full colour. */
const FULL_SURPRISE = 3;

/** One token of a target. @typedef {{id: number, logP: Float64Array, chip: HTMLElement}} Step */

class Transducing {
  /** @param {import("./page.js").Run} run */
  constructor(run) {
    this.run = run;
    /** @type {number[]} */
    this.ids = [];
    /** @type {Step[]} */
    this.steps = [];
    /** @type {import("./heads.js").Choice[]} */
    this.choices = [];
    this.head = 0;
    this.at = 0;
    /** Number of the target that is written: an older one stops. */
    this.turn = 0;
    this.input = /** @type {HTMLInputElement} */ (
      el("input", { type: "text", "aria-label": "Source", spellcheck: "false", class: "source" })
    );
    this.input.autocapitalize = "off";
    this.input.value = run.contents.sources?.[0] ?? "";
    this.input.oninput = () => this.read();
    this.note = el("p", { class: "warning", role: "status" });
    this.target = el("div", { class: "chips", role: "group", "aria-label": "Target" });
    this.target.onkeydown = (event) => this.move(event);
    const names = ["large", "detail", "grid", "equation", "product"];
    /** @type {{[name: string]: HTMLElement}} */
    this.panels = Object.fromEntries(names.map((name) => [name, el("div")]));
    this.panels.detail.className = "panel";
    this.panels.detail.setAttribute("aria-live", "polite");
  }

  /** The name of a token of the target. @param {number} id */
  name(id) {
    const { contents, tokenizer } = this.run;
    return id === contents.tokenizer.end ? "end" : visible(tokenizer.name(id));
  }

  /** Reads the source, and says what of it the model cannot read. */
  read() {
    const source = /** @type {import("./tokenizer.js").Tokenizer} */ (this.run.source);
    const typed = this.input.value.trim();
    const small = typed.toLowerCase();
    let { ids, unknown } = source.encode(typed);
    const notes = [];
    if (source.encode(small).unknown.length < unknown.length) {
      ({ ids, unknown } = source.encode(small));
      notes.push("The model knows no capital letters: they are read as small ones.");
    }
    if (unknown.length) notes.push(leftOut(unknown));
    const most = this.run.config.source_block_size;
    if (ids.length > most) notes.push(`Only the first ${most} tokens are read.`);
    if (!ids.length) notes.push("Type something that the model can read.");
    this.note.textContent = notes.join(" ");
    this.ids = ids.slice(0, most);
    this.write([]);
  }

  /** Writes a target that begins with some tokens. @param {number[]} first */
  async write(first) {
    const { config, params, contents } = this.run;
    const turn = ++this.turn;
    // The button that was pressed is gone once another target is written.
    const wasPressed = this.panels.detail.contains(document.activeElement);
    this.steps = [];
    this.target.replaceChildren();
    for (const panel of Object.values(this.panels)) panel.replaceChildren();
    if (!this.ids.length) return;
    const table = config.share_embeddings ? params.token_embedding : null;
    const encoded = encoder(config, params, this.ids);
    const { tokenizer: ends } = contents;
    const pace = matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : PACE;
    for (const made of transduce(config, params.decoder, table, encoded, ends, first)) {
      this.add(made);
      if (this.steps.length <= first.length) continue;
      await new Promise((resume) => setTimeout(resume, pace));
      if (turn !== this.turn) return; // somebody typed on
    }
    const made = this.steps.map((step) => step.id);
    const heads = crossWeights(config, params.decoder, table, encoded, ends.start_ids, made);
    const matrix = meanOfHeads(heads);
    const mean = { name: "mean of all heads", short: "mean", matrix, alone: true };
    this.choices = [mean, ...headChoices(heads, config.n_head)];
    this.drawGrid();
    this.drawEquations();
    const at = Math.max(0, Math.min(first.length - 1, made.length - 1));
    this.look(at);
    if (wasPressed && document.activeElement === document.body) this.steps[at].chip.focus();
  }

  /** Shows one more token. @param {{id: number, logP: Float64Array}} made */
  add({ id, logP }) {
    const at = this.steps.length;
    const p = Math.exp(logP[id]);
    const chip = el(
      "button",
      {
        onclick: () => this.look(at),
        onfocus: () => this.look(at),
        onmouseenter: () => this.look(at),
        style: `background: ${shade("orange", 0.5 * Math.min(1, -logP[id] / FULL_SURPRISE))}`,
      },
      el("b", {}, this.name(id)),
      el("span", { class: "faint" }, percent(p)),
    );
    this.steps.push({ id, logP, chip });
    this.target.append(chip);
  }

  /** @param {KeyboardEvent} event */
  move(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    this.steps[Math.max(0, Math.min(this.steps.length - 1, this.at + step))]?.chip.focus();
  }

  /** Looks at one token of the target. @param {number} at */
  look(at) {
    this.at = at;
    this.steps.forEach(({ chip }, i) => {
      chip.classList.toggle("chosen", i === at);
    });
    if (!this.choices.length || this.choices[0].matrix.rows !== this.steps.length) return;
    this.drawLarge();
    this.drawDetail();
  }

  drawGrid() {
    const { n_head: nHead } = this.run.config;
    const select = (/** @type {number} */ i) => {
      this.head = i;
      this.look(this.at);
    };
    this.panels.grid.replaceChildren(headGrid(this.choices, nHead, this.head, select));
  }

  /** The tokens of the source that the chosen head reads most for the chosen token. */
  strongest() {
    const row = this.choices[this.head].matrix.row(this.at);
    const source = /** @type {import("./tokenizer.js").Tokenizer} */ (this.run.source);
    return topPlaces(row, 3)
      .filter((s, i) => !i || row[s] > 0.02)
      .map((s) => `“${visible(source.name(this.ids[s]))}” ${percent(row[s])}`)
      .join(", ");
  }

  /** One head in large: source tokens across, target tokens down. */
  drawLarge() {
    const { name, matrix } = this.choices[this.head];
    const source = /** @type {import("./tokenizer.js").Tokenizer} */ (this.run.source);
    const map = crossMap({
      matrix,
      sources: this.ids.map((id) => visible(source.name(id))),
      targets: this.steps.map(({ id }) => this.name(id)),
      at: this.at,
      look: (t) => this.look(t),
      label: `Cross-attention, ${name}. ${this.name(this.steps[this.at].id)} reads ${this.strongest()}`,
    });
    const title = name[0].toUpperCase() + name.slice(1);
    this.panels.large.replaceChildren(el("h3", {}, title), el("div", { class: "scroll" }, map));
  }

  /** The chosen token: its probability, and what else might stand there. */
  drawDetail() {
    const { id, logP } = this.steps[this.at];
    const before = this.steps.slice(0, this.at).map((step) => step.id);
    const rows = likeliest(logP, 6).map((other) => {
      const take = el(
        "button",
        { onclick: () => this.write([...before, other.id]), title: "take this instead" },
        this.name(other.id),
      );
      if (other.id === id) take.style.fontWeight = "bold";
      const bar = el("span", { class: "bar", style: `width: ${(100 * other.p).toFixed(1)}%` });
      return [take, bar, el("span", { class: "faint" }, percent(other.p))];
    });
    const what = id === this.run.contents.tokenizer.end ? "The end" : `“${this.name(id)}”`;
    this.panels.detail.replaceChildren(
      el("p", {}, `${what} has a probability of ${percent(Math.exp(logP[id]))}.`),
      el(
        "p",
        {},
        `To choose it, the model read ${this.strongest()} (${this.choices[this.head].name}).`,
      ),
      el("div", { class: "bars" }, ...rows.flat()),
      el("p", { class: "faint" }, "Click another one: the target goes on from there."),
    );
  }

  drawEquations() {
    const { n_embd: width, n_head: nHead } = this.run.config;
    const [nSource, nTarget] = [this.ids.length, this.steps.length];
    const k = width / nHead;
    const attention = [
      `softmax(q k^T / sqrt(${k})) v      the target, (${nTarget}, ${width}), reads the source, (${nSource}, ${width})`,
      `each of ${nHead} heads: q (${nTarget}, ${k}), k and v (${nSource}, ${k}), weights (${nTarget}, ${nSource})`,
    ];
    const shares = this.steps.map(({ id, logP }) => Math.exp(logP[id]));
    const product = shares.reduce((a, b) => a * b, 1);
    // Small factors are no zeros.
    const short = (/** @type {number} */ p) => (p < 0.01 ? p.toPrecision(2) : p.toFixed(2));
    const factors = shares.map(short).join(" x ");
    this.panels.equation.replaceChildren(formula(...attention));
    this.panels.product.replaceChildren(
      formula(`p(target | source) = ${factors} = ${product.toPrecision(2)}`),
    );
  }

  element() {
    const { contents } = this.run;
    const examples = (contents.sources ?? []).map((/** @type {string} */ source) => {
      const take = () => {
        this.input.value = source;
        this.read();
      };
      return el("button", { onclick: take }, source);
    });
    const { large, detail, grid, equation, product } = this.panels;
    return el(
      "section",
      {},
      el(
        "p",
        {},
        "Type a source. The encoder reads all of it at once; then the decoder writes the target, one token after another, each with its probability. The more orange, the less sure the model was.",
      ),
      el("div", { class: "controls" }, this.input, ...examples),
      this.note,
      this.target,
      product,
      el("h2", {}, "What each token reads"),
      el(
        "p",
        {},
        "Cross-attention lets each token of the target read the source. Point at one to see where it looked when it was chosen: the bluer, the more.",
      ),
      el("div", { class: "beside" }, large, detail),
      equation,
      el("h2", {}, "Every head"),
      el(
        "p",
        {},
        "Source across, target down. Choose one to see it in large: 2.3 is head 3 of layer 2.",
      ),
      grid,
    );
  }
}

/** @param {import("./page.js").Run} run @returns {import("./page.js").View} */
export function pairsView(run) {
  const transducing = new Transducing(run);
  const show = () => {
    if (!transducing.steps.length) transducing.read();
  };
  return { id: "pairs", title: "Transduce", element: transducing.element(), show };
}

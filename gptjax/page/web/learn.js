// Learn: the losses of the run, what it wrote at each evaluation, and its checkpoints side by side.

import { comparison } from "./compare.js";
import { lossCurve } from "./curve.js";
import { count, el, formula, slider } from "./drawing.js";

/** @typedef {import("./curve.js").Row} Row */

/** A duration in words: 45 s, 3 min, 1 h 20 min. @param {number} seconds */
function duration(seconds) {
  if (seconds < 100) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** The evaluations of a run: those with a loss, and those with a sample. @param {any} contents @returns {Row[]} */
function evaluations(contents) {
  /** @type {Map<number, Row>} */
  const byStep = new Map();
  for (const step of Object.keys(contents.samples))
    byStep.set(Number(step), { step: Number(step) });
  for (const row of contents.metrics) if (row.val_loss !== undefined) byStep.set(row.step, row);
  return [...byStep.values()].sort((a, b) => a.step - b.step);
}

/** The lines of a sample: a source of text, if there is one, the answer, (the right ones). @param {string} text */
function answersTable(text) {
  const rows = text.split("\n").map((line) => {
    const cells = line.split("\t");
    const right = cells.length > 1 ? (cells.pop() ?? "").replace(/^\(|\)$/g, "") : "";
    const isRight = right.split(" | ").includes(cells[cells.length - 1]);
    return { cells: [...cells, right], isRight };
  });
  const names =
    rows[0].cells.length > 2 ? ["source", "answer", "right answer"] : ["answer", "right answer"];
  return el(
    "table",
    {},
    el("tr", {}, ...names.map((name) => el("th", { scope: "col" }, name))),
    ...rows.map(({ cells, isRight }) =>
      el(
        "tr",
        {},
        ...cells.map((cell, i) =>
          el("td", {}, i === names.length - 1 && isRight ? `✓ ${cell}` : cell),
        ),
      ),
    ),
  );
}

class Learning {
  /** @param {import("./page.js").Run} run */
  constructor(run) {
    this.run = run;
    this.rows = /** @type {Row[]} */ (run.contents.metrics);
    this.evaluations = evaluations(run.contents);
    this.isText = ["GPTConfig", "BigramConfig"].includes(run.config.type);
    // The evaluation of the page's checkpoint comes first, the best of the run if nobody chose.
    const own = this.evaluations.findIndex((row) => row.step === run.contents.step);
    this.at = own >= 0 ? own : this.evaluations.length - 1;
    this.curve = el("div");
    this.detail = el("div", { class: "panel" });
    this.scrubber = this.makeScrubber();
    /** @type {((clientX: number) => number) | null} */
    this.stepAt = null;
    this.curve.onclick = (event) => this.point(event.clientX);
    // Drawn for the width that there is, so that its letters are as large as all others. In the next
    // frame: a picture that changes its size at once is an error for the observer.
    const resized = () => requestAnimationFrame(() => this.drawCurve());
    new ResizeObserver(resized).observe(this.curve);
  }

  makeScrubber() {
    const most = this.evaluations.length - 1;
    if (most < 1) return el("div");
    const show = (/** @type {number} */ i) => `step ${count(this.evaluations[i].step)}`;
    const range = { min: 0, max: most, step: 1, value: this.at };
    return slider("evaluation", range, (i) => this.choose(i), show);
  }

  /** Looks at another evaluation. @param {number} i */
  choose(i) {
    this.at = i;
    this.drawCurve();
    this.drawDetail();
  }

  /** Looks at the evaluation that is nearest to a click. @param {number} clientX */
  point(clientX) {
    const input = this.scrubber.querySelector("input");
    if (!this.stepAt || !input) return;
    const step = this.stepAt(clientX);
    const distances = this.evaluations.map((row) => Math.abs(row.step - step));
    input.value = String(distances.indexOf(Math.min(...distances)));
    input.dispatchEvent(new Event("input"));
  }

  inWords() {
    const { step, val_loss, seconds } = this.evaluations[this.at];
    const loss = val_loss === undefined ? "" : `, validation loss ${val_loss.toFixed(4)}`;
    return `step ${count(step)}${loss}${seconds === undefined ? "" : `, after ${duration(seconds)}`}`;
  }

  drawCurve() {
    const { contents, tokenizer } = this.run;
    // In units that grow with the letters of the page.
    const unit = Number.parseFloat(getComputedStyle(document.documentElement).fontSize) / 16;
    const width = this.curve.clientWidth / unit;
    if (!width || !this.rows.length) return;
    const size = tokenizer.size;
    const { picture, stepAt } = lossCurve(this.rows, {
      width,
      at: this.evaluations[this.at]?.step ?? -1,
      checkpoints: [contents.step, ...contents.checkpoints.map((/** @type {any} */ c) => c.step)],
      shown: contents.step,
      guess: this.isText ? Math.log(size) : null,
      guessName: `guessing: ln ${count(size)} = ${Math.log(size).toFixed(2)}`,
    });
    this.stepAt = stepAt;
    this.curve.replaceChildren(picture);
  }

  /** The loss and the sample of an evaluation. */
  drawDetail() {
    this.scrubber.querySelector("input")?.setAttribute("aria-valuetext", this.inWords());
    const row = this.evaluations[this.at];
    const { samples, step } = this.run.contents;
    const sample = samples[row.step];
    const words = this.inWords();
    const own = row.step === step ? " This is the checkpoint in this page." : "";
    const heading = el("p", {}, el("b", {}, words[0].toUpperCase() + words.slice(1)), `.${own}`);
    const unsure =
      row.val_loss === undefined
        ? ""
        : el(
            "p",
            { class: "faint" },
            `On average as unsure as between e^${row.val_loss.toFixed(2)} = ${Math.exp(row.val_loss).toFixed(1)} equally likely tokens.`,
          );
    const text = sample
      ? [el("p", {}, this.isText ? "What it wrote:" : "What it answered:"), this.sample(sample)]
      : [el("p", { class: "faint" }, "No sample was written at this evaluation.")];
    this.detail.replaceChildren(heading, unsure, ...text);
  }

  /** A text, or a table of answers. @param {string} text */
  sample(text) {
    const attributes = { tabindex: 0, role: "group", "aria-label": "Sample" };
    if (this.isText) return el("div", { class: "text sample", ...attributes }, text);
    return el("div", { class: "answers", ...attributes }, answersTable(text));
  }

  /** The curve and the samples, or why there are none. */
  history() {
    if (!this.rows.length && !this.evaluations.length) {
      return [
        el(
          "p",
          {},
          "This run has no record of its training, because it was imported or quantized, or its metrics.jsonl is missing. So there is no curve.",
        ),
      ];
    }
    if (this.evaluations.length) this.drawDetail();
    const legend = el(
      "p",
      { class: "legend faint" },
      el("span", { style: "color: var(--blue)" }, "— "),
      "training loss  ",
      el("span", { style: "color: var(--orange)" }, "● "),
      "validation loss  ",
      el("span", { style: "color: var(--green)" }, "▲ "),
      "weights in this page",
    );
    const left = el(
      "div",
      {},
      legend,
      this.curve,
      el("div", { class: "controls scrubber" }, this.scrubber),
    );
    return [el("div", { class: "columns even" }, left, this.evaluations.length ? this.detail : "")];
  }

  element() {
    const { config } = this.run;
    const task = this.isText
      ? "The loss says how much each next token surprised the model: low is good. The validation loss is measured on text that the model never trained on."
      : "The loss says how much each token of the right answer surprised the model: low is good. The validation loss is measured on examples that the model never trained on.";
    const of = config.block_size > 1 ? `t = 1 ... ${config.block_size}` : "t";
    return el(
      "section",
      {},
      el(
        "p",
        {},
        `${task}${this.evaluations.length > 1 ? " Move the slider, or click the curve, to see what the model could do at each evaluation." : ""}`,
      ),
      formula(`loss = mean of −log p(token_t | the tokens before it)      ${of}`),
      ...this.history(),
      this.isText ? comparison(this.run) : "",
    );
  }
}

/** @param {import("./page.js").Run} run @returns {import("./page.js").View} */
export function learnView(run) {
  return { id: "learn", title: "Learn", element: new Learning(run).element() };
}

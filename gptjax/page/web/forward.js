// Forward pass: how one position becomes the probabilities of the next token, step by step.

import { el, visible } from "./drawing.js";
import { addStep, attentionStep, hiddenStep, normStep, queryStep } from "./layer_steps.js";
import { MOST_LOOKED_AT, newPass, runPass, switchedOff } from "./pass.js";
import { embeddingStep, logitStep, probabilityStep, streamStep, tokenStep } from "./steps.js";
import { TokenText } from "./token_text.js";

class Forward {
  /** @param {import("./page.js").Run} run */
  constructor(run) {
    this.run = run;
    this.pass = newPass(run);
    const label = "Tokens; arrow keys move the position";
    this.text = new TokenText(label, (t) => this.look(t), { follows: false });
    this.note = el("p", { class: "warning note", role: "status" });
    this.spoken = el("p", { class: "visually-hidden", role: "status" });
    this.first = el("div");
    this.layer = el("div");
    this.last = el("div");
    this.layers = this.choice("layer", run.config.n_layer);
    this.heads = this.choice("head", run.config.n_head);
  }

  /** A list to choose a layer or a head from. @param {"layer" | "head"} name @param {number} n */
  choice(name, n) {
    const options = Array.from({ length: n }, (_, i) =>
      el("option", { value: String(i) }, `${i + 1} of ${n}`),
    );
    const select = /** @type {HTMLSelectElement} */ (el("select", {}, ...options));
    select.onchange = () => {
      this.pass[name] = Number(select.value);
      this.drawLayer();
    };
    return select;
  }

  /** The view is shown: reads the text that was written, with the parts that are on. */
  show() {
    const { run } = this;
    const ids = run.tokens.slice(0, Math.min(run.config.block_size, MOST_LOOKED_AT));
    if (!ids.length) ids.push(run.tokenizer.start);
    const isSame =
      ids.length === this.pass.ids.length && ids.every((id, i) => id === this.pass.ids[i]);
    runPass(this.pass, ids);
    this.note.textContent = switchedOff(run.off);
    this.text.set(ids.map((id) => visible(run.tokenizer.name(id))));
    // The second last: a token follows, so that the answer can be compared with it.
    this.text.select(isSame ? this.pass.t : Math.max(0, ids.length - 2));
  }

  /** Draws everything that depends on the position. @param {number} t */
  look(t) {
    const { pass } = this;
    pass.t = t;
    this.text.spans.forEach((span, s) => {
      span.classList.toggle("prompt", s > t);
    });
    const name = visible(this.run.tokenizer.name(pass.ids[t]));
    this.spoken.textContent = `position ${t}, ${name}`;
    this.first.replaceChildren(tokenStep(pass), embeddingStep(pass));
    this.drawLayer();
    this.last.replaceChildren(streamStep(pass), logitStep(pass), probabilityStep(pass));
  }

  /** What depends on the layer and the head. */
  drawLayer() {
    const { pass, layers, heads } = this;
    [layers.value, heads.value] = [String(pass.layer), String(pass.head)];
    const choose = (/** @type {number} */ head) => {
      pass.head = head;
      this.drawLayer();
      // The button that was pressed is a new one now.
      /** @type {HTMLElement | undefined} */ (
        this.layer.querySelectorAll(".head button")[head]
      )?.focus();
    };
    this.layer.replaceChildren(
      normStep(pass, "attention"),
      queryStep(pass),
      attentionStep(pass, choose),
      addStep(pass, "attention"),
      normStep(pass, "mlp"),
      hiddenStep(pass),
      addStep(pass, "mlp"),
    );
  }

  element() {
    const { n_layer } = this.run.config;
    const controls = el(
      "div",
      { class: "controls" },
      el("label", {}, "layer", this.layers),
      el("label", {}, "head", this.heads),
    );
    return el(
      "section",
      {},
      el(
        "p",
        {},
        `How one token becomes a guess at the next one. The text is the last one that you wrote or looked at, its first ${MOST_LOOKED_AT} tokens. Choose a token of it: everything below is computed at its position, from it and the tokens before it. Squares are numbers, blue above zero, orange below. Everything is counted from 0, except layers and heads.`,
      ),
      this.note,
      el("div", { class: "sticky" }, this.text.element, this.spoken, controls),
      el(
        "div",
        { class: "stream" },
        this.first,
        el("h2", {}, n_layer === 1 ? "The layer" : `One of the ${n_layer} layers`),
        this.layer,
        el("h2", {}, "The answer"),
        this.last,
      ),
    );
  }
}

/** @param {import("./page.js").Run} run @returns {import("./page.js").View} */
export function forwardView(run) {
  const forward = new Forward(run);
  return {
    id: "forward",
    title: "Forward pass",
    element: forward.element(),
    show: () => forward.show(),
  };
}

// Parts of the model that are switched off, and what becomes of a text without them.

import { el, formula, partName } from "./drawing.js";
import { partsOff } from "./pass.js";
import { mostLikely, readText, Writer } from "./sampling.js";

/** Tokens of the continuation that is shown. */
const CONTINUATION = 60;

export class Switches {
  /**
   * @param {import("./pass.js").Pass} pass  of the text with the parts that are on
   * @param {() => void} change  computes the pass again
   */
  constructor(pass, change) {
    this.pass = pass;
    this.change = change;
    /** What the whole model makes of the text. */
    this.whole = { ids: pass.ids, loss: 0, continuation: "" };
    this.buttons = el("div");
    this.effect = el("div");
    this.drawButtons();
  }

  /** A button for every part. */
  drawButtons() {
    const { config, off } = this.pass.run;
    const rows = Array.from({ length: config.n_layer }, (_, i) => {
      const heads = Array.from({ length: config.n_head }, (_, h) =>
        this.button(`block_${i}.attention.${h}`, `head ${h + 1}`),
      );
      return el(
        "div",
        { class: "controls" },
        this.button(`block_${i}`, `layer ${i + 1}`),
        ...heads,
        this.button(`block_${i}.mlp`, "MLP"),
      );
    });
    const all = () => {
      off.clear();
      this.drawButtons();
      this.change();
    };
    this.buttons.replaceChildren(...rows, el("button", { onclick: all }, "All on"));
  }

  /** @param {string} part @param {string} text */
  button(part, text) {
    const { off } = this.pass.run;
    const name = partName(part);
    // Nothing of a layer that is off is computed.
    const layer = part.split(".")[0];
    const disabled = part !== layer && off.has(layer);
    const words = { "aria-pressed": String(!off.has(part)), title: name, "aria-label": name };
    const press = () => {
      if (!off.delete(part)) off.add(part);
      this.change();
      this.drawButtons();
      // The button that was pressed is a new one now.
      /** @type {HTMLElement | null} */ (this.buttons.querySelector(`[title="${name}"]`))?.focus();
    };
    return el("button", { ...words, disabled, onclick: press }, text);
  }

  /** The loss of the text, and how it goes on: with the whole model, and with the parts that are on. */
  drawEffect() {
    const { run, ids, loss } = this.pass;
    const { config, params, off } = run;
    if (this.whole.ids !== ids) {
      const whole = off.size ? readText(config, params, ids).loss : loss;
      this.whole = { ids, loss: whole, continuation: this.goOn(new Set()) };
    }
    const rows = [this.row("whole model", this.whole.loss, this.whole.continuation)];
    if (off.size) {
      const n = partsOff(off).length;
      const title = `without ${n} ${n === 1 ? "part" : "parts"}`;
      rows.push(this.row(title, loss, this.goOn(off)));
    }
    const names = ["", "loss of the text", "change", "likeliest continuation"];
    const head = el("tr", {}, ...names.map((name) => el("th", {}, name)));
    const width = config.n_embd / config.n_head;
    const b = params.block_0.attention.output.bias ? " + b" : "";
    this.effect.replaceChildren(
      formula(
        `x = x + [head 1, ..., head ${config.n_head}] W_o${b},  x = x + MLP(x)      a head that is off: ${width} zeros`,
        `loss = mean of −log p(token_t | the tokens before it)      t = 1 ... ${ids.length - 1}`,
      ),
      el("div", { class: "scroll", "aria-live": "polite" }, el("table", {}, head, ...rows)),
    );
  }

  /** @param {string} title @param {number} nats @param {string} text */
  row(title, nats, text) {
    const change = nats - this.whole.loss;
    const sign = change < 0 ? "−" : "+";
    const cells = [
      Number.isNaN(nats) ? "–" : `${nats.toFixed(3)} nats`,
      change ? `${sign}${Math.abs(change).toFixed(3)}` : "",
    ];
    return el(
      "tr",
      {},
      el("td", {}, title),
      ...cells.map((cell) => el("td", { class: "number" }, cell)),
      el("td", {}, el("code", {}, text)),
    );
  }

  /** How the text goes on, always with the likeliest token. @param {Set<string>} without */
  goOn(without) {
    const { run, ids } = this.pass;
    const writer = new Writer(run.config, run.params, ids, without);
    for (let i = 0; i < CONTINUATION; i++) writer.append(mostLikely(writer.logits));
    return run.tokenizer.pieces(writer.tokens).slice(ids.length).join("");
  }
}

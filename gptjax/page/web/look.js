// Look: what the model computes inside for a text, and what happens without a part of it.

import { count, el, formula, leftOut, shade } from "./drawing.js";
import { MOST_LOOKED_AT, newPass, runPass } from "./pass.js";
import { Attribution, logitLens, streamLengths } from "./residual.js";
import { SelfAttention } from "./self_attention.js";
import { Switches } from "./switches.js";
import { TokenText } from "./token_text.js";

/** Milliseconds without a key before a text is read. */
const TYPING_PAUSE = 250;

class Looking {
  /** @param {import("./page.js").Run} run */
  constructor(run) {
    this.run = run;
    this.pass = newPass(run);
    /** The run's tokens when they were taken over. */
    this.seen = run.tokens;
    this.input = /** @type {HTMLTextAreaElement} */ (
      el("textarea", { "aria-label": "Text to look at", rows: 2, spellcheck: "false" })
    );
    this.input.oninput = () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.read(), TYPING_PAUSE);
    };
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.timer = undefined;
    this.warning = el("p", { class: "warning", role: "status" });
    const label = "Tokens; arrow keys move the position";
    this.text = new TokenText(label, (t) => this.look(t));
    const chosen = () => this.drawAttention();
    this.attention = new SelfAttention(this.pass, chosen, (t) => this.text.hold(t));
    this.lens = el("div");
    this.lengths = el("div");
    this.attribution = new Attribution(this.pass);
    this.switches = new Switches(this.pass, () => this.compute(this.pass.ids));
    this.body = el("div");
  }

  /** The view is shown: takes over the text that was written. */
  show() {
    const { tokenizer, tokens, config } = this.run;
    if (this.input.value && this.seen === tokens) return this.compute(this.pass.ids);
    const n = Math.min(config.block_size, MOST_LOOKED_AT);
    this.input.value = tokenizer.pieces(tokens.slice(0, n)).join("") || "\n";
    this.read();
    if (tokens.length > n) {
      this.warning.textContent = `The first ${n} of ${count(tokens.length)} tokens that were written. Type to change them.`;
    }
  }

  /** Reads the text of the input. */
  read() {
    const { tokenizer, config } = this.run;
    const { ids, unknown } = tokenizer.encode(this.input.value);
    const notes = [leftOut(unknown)];
    if (ids.length > config.block_size) {
      notes.push(`Only the first ${config.block_size} tokens are read.`);
    }
    if (!ids.length) notes.push("Type at least one token.");
    this.warning.textContent = notes.join(" ").trim();
    this.body.classList.toggle("stale", !ids.length);
    if (!ids.length) return;
    // The other views look at this text, too.
    this.run.tokens = ids.slice(0, config.block_size);
    this.seen = this.run.tokens;
    const pieces = tokenizer.pieces(this.seen);
    this.text.set(pieces.map((piece) => piece.replace("\n", "⏎\n")));
    this.compute(this.seen);
  }

  /** Runs the model over tokens, and draws everything. @param {number[]} ids */
  compute(ids) {
    runPass(this.pass, ids);
    this.attention.drawGrid();
    this.switches.drawEffect();
    // The second last: a token follows, so that the answers can be compared with it.
    this.text.select(this.text.at < 0 ? Math.max(0, ids.length - 2) : this.text.at);
  }

  /** Draws everything that depends on the position. @param {number} t */
  look(t) {
    this.pass.t = t;
    this.drawAttention();
    this.lens.replaceChildren(logitLens(this.pass));
    this.lengths.replaceChildren(streamLengths(this.pass));
    this.attribution.draw();
  }

  /** One head in large, and over the text. */
  drawAttention() {
    const { t } = this.pass;
    const row = this.attention.weights().row(t);
    this.text.spans.forEach((span, s) => {
      span.style.background = s <= t ? shade("blue", 0.5 * Math.sqrt(row[s])) : "none";
    });
    this.attention.drawLarge();
  }

  element() {
    const { config } = this.run;
    const cap = config.logit_softcap
      ? ` The soft-cap of ${config.logit_softcap} comes after this sum.`
      : "";
    const words = (/** @type {string} */ text) => el("p", {}, text);
    const part = (/** @type {string} */ title, /** @type {(Node | string)[]} */ ...content) =>
      el("section", { class: "part" }, el("h2", {}, title), ...content);
    this.body.append(
      el(
        "section",
        {},
        el("h2", {}, "Attention"),
        words(
          `Every layer has ${config.n_head} heads. Each decides for every position which earlier ones to read from: the bluer, the more. Choose one: 2.3 is head 3 of layer 2.`,
        ),
        el("div", { class: "attention" }, this.attention.grid, this.attention.large),
      ),
      el(
        "div",
        { class: "parts" },
        part(
          "Logit lens",
          words(
            "We skip the remaining layers, and let the final norm and the output matrix read what is there (nostalgebraist 2020). The model was not trained for that: early rows can be confident and wrong. The last row is its real answer.",
          ),
          this.lens,
        ),
        part(
          "Residual stream",
          words(
            "A vector runs through the model, and each layer adds one to it. Blue: how long the vector is. Grey: how long the one is that the layer added. What layers add may cancel.",
          ),
          formula(`|x| = sqrt(x_1^2 + ... + x_${config.n_embd}^2)`),
          this.lengths,
        ),
        part(
          "Who says so?",
          words(
            "What each part of the model adds to the logit of the token that you choose. Blue speaks for this token, orange against it. All bars together are its logit.",
          ),
          el(
            "p",
            { class: "faint" },
            `Only what a part adds directly is counted, against the mean of all tokens (Elhage et al. 2021). What it does by way of later layers counts for those: a part with a small bar may still be indispensable. Switch it off in the next section to see. What the final norm divides by is held fixed.${cap}`,
          ),
          this.attribution.element,
        ),
        part(
          "Switch parts off",
          words(
            "A part that is off adds nothing, in the other tabs too. If the loss of the text hardly rises, the model manages without this part here; another may do the same work. The loss may even fall.",
          ),
          this.switches.buttons,
          this.switches.effect,
        ),
      ),
    );
    return el(
      "section",
      {},
      words(
        "Type a text. Point at a token: every picture below is about that position. Click it to hold it; arrow keys move on.",
      ),
      this.input,
      this.warning,
      el("div", { class: "sticky" }, this.text.element),
      this.body,
    );
  }
}

/** @param {import("./page.js").Run} run @returns {import("./page.js").View} */
export function lookView(run) {
  const looking = new Looking(run);
  return { id: "look", title: "Look", element: looking.element(), show: () => looking.show() };
}

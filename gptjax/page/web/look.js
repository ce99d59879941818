// Look: what the model computes inside for a text, and what happens without a part of it.

import { bars, count, el, heatmap, partName, percent, shade, svg, visible } from "./drawing.js";
import { dot, logSoftmax, Matrix } from "./layers.js";
import { logitAttribution, Probe, readOut } from "./model.js";
import { mostLikely, readText, Writer } from "./sampling.js";
import { likeliest } from "./write.js";

const CONTINUATION = 60;
const N_PARTS = 12;

class Looking {
  /** @param {import("./page.js").Run} run */
  constructor(run) {
    this.run = run;
    this.layer = 0;
    this.head = 0;
    /** The position that is looked at, and the token whose logit is explained; -1: the likeliest. */
    this.at = 0;
    this.target = -1;
    this.probe = new Probe();
    /** @type {number[]} the tokens of the text, and those of the run when they were taken over */
    this.ids = [];
    this.seen = run.tokens;
    /** The loss of the text with the whole model. */
    this.whole = { ids: this.ids, loss: 0 };
    this.loss = 0;
    this.logits = new Matrix(0, 0);
    this.input = /** @type {HTMLTextAreaElement} */ (
      el("textarea", { "aria-label": "Text to look at", rows: 2, spellcheck: "false" })
    );
    this.input.oninput = () => this.read();
    this.warning = el("p", { class: "warning", role: "status" });
    this.tokens = el("div", {
      class: "text",
      tabindex: 0,
      role: "group",
      "aria-label": "Tokens; arrow keys move the position",
    });
    this.tokens.style.minHeight = "0";
    this.tokens.onkeydown = (event) => this.move(event);
    this.tokens.onclick = (event) => this.point(event);
    this.tokens.onmouseover = (event) => this.point(event);
    /** @type {HTMLElement[]} */
    this.spans = [];
    const names = ["grid", "large", "lens", "norms", "parts", "switches", "effect"];
    /** @type {{[name: string]: HTMLElement}} */
    this.panels = Object.fromEntries(names.map((name) => [name, el("div")]));
  }

  /** The view is shown: takes over the text that was written. */
  show() {
    const { tokenizer, tokens, config } = this.run;
    const text = tokenizer.pieces(tokens.slice(0, Math.min(config.block_size, 64))).join("");
    if (!this.input.value || this.seen !== tokens) this.input.value = text || "\n";
    this.seen = tokens;
    this.read();
  }

  /** Reads the text of the input. */
  read() {
    const { tokenizer, config } = this.run;
    const { ids, unknown } = tokenizer.encode(this.input.value);
    const notes = unknown.length
      ? [`The model never saw ${unknown.map((u) => `“${visible(u)}”`).join(", ")}: left out.`]
      : [];
    if (ids.length > config.block_size)
      notes.push(`Only the first ${config.block_size} tokens are read.`);
    if (ids.length < 2) notes.push("Type at least two tokens.");
    this.warning.textContent = notes.join(" ");
    if (ids.length < 2) return;
    this.ids = ids.slice(0, config.block_size);
    this.at = this.ids.length - 1;
    this.target = -1;
    const pieces = tokenizer.pieces(this.ids);
    this.spans = pieces.map((piece) => el("span", { class: "token" }, piece.replace("\n", "⏎\n")));
    this.tokens.replaceChildren(...this.spans);
    this.compute();
    this.drawSwitches();
  }

  /** Runs the model over the text, and draws everything. */
  compute() {
    const { config, params, off } = this.run;
    if (this.whole.ids !== this.ids) {
      this.whole = { ids: this.ids, loss: readText(config, params, this.ids).loss };
    }
    this.probe = new Probe(off);
    const { logits, loss } = readText(config, params, this.ids, this.probe);
    this.logits = logits;
    this.loss = loss;
    this.drawGrid();
    this.drawEffect();
    this.drawPosition();
  }

  /** @param {KeyboardEvent} event */
  move(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    this.look(Math.max(0, Math.min(this.ids.length - 1, this.at + step)));
  }

  /** @param {MouseEvent} event */
  point(event) {
    const at = this.spans.indexOf(/** @type {HTMLElement} */ (event.target));
    if (at >= 0 && at !== this.at) this.look(at);
  }

  /** Looks at another position. @param {number} at */
  look(at) {
    this.at = at;
    this.target = -1;
    this.drawPosition();
  }

  /** Everything that depends on the position. */
  drawPosition() {
    this.drawAttention();
    this.drawLens();
    this.drawNorms();
    this.drawParts();
  }

  weights(layer = this.layer, head = this.head) {
    const heads = /** @type {import("./layers.js").Matrix[]} */ (
      this.probe.weights.get(`block_${layer}.attention`)
    );
    return heads[head];
  }

  drawGrid() {
    const { n_layer, n_head } = this.run.config;
    /** @type {HTMLElement[]} */
    const cells = [];
    for (let layer = 0; layer < n_layer; layer++) {
      for (let head = 0; head < n_head; head++) {
        const select = () => {
          [this.layer, this.head] = [layer, head];
          for (const cell of cells) cell.setAttribute("aria-pressed", String(cell === button));
          this.drawAttention();
        };
        const name = `layer ${layer + 1}, head ${head + 1}`;
        const pressed = layer === this.layer && head === this.head;
        const picture = heatmap(this.weights(layer, head), `attention of ${name}`);
        const short = el("span", { "aria-hidden": "true" }, `${layer + 1}.${head + 1}`);
        const button = el(
          "button",
          { onclick: select, "aria-pressed": String(pressed), "aria-label": name, title: name },
          picture,
          short,
        );
        cells.push(button);
      }
    }
    const columns = `grid-template-columns: repeat(${Math.min(n_head, 8)}, minmax(0, 7rem))`;
    this.panels.grid.replaceChildren(el("div", { class: "grid", style: columns }, ...cells));
  }

  /** One head in large: over the text, and as a table in words for the strongest sources. */
  drawAttention() {
    const { tokenizer, config } = this.run;
    const weights = this.weights();
    const row = weights.row(this.at);
    this.spans.forEach((span, s) => {
      span.style.background = s <= this.at ? shade("blue", Math.sqrt(row[s])) : "none";
      span.classList.toggle("chosen", s === this.at);
    });
    const order = [...row.keys()].sort((a, b) => row[b] - row[a]).slice(0, 5);
    const name = (/** @type {number} */ t) => visible(tokenizer.name(this.ids[t]));
    const width = config.n_embd / config.n_head;
    const rows = order.map((s) => ({
      name: `${name(s)}  (${s + 1})`,
      value: row[s],
      text: percent(row[s]),
    }));
    const picture = heatmap(
      weights,
      `attention of layer ${this.layer + 1}, head ${this.head + 1}: rows look at columns`,
    );
    this.panels.large.replaceChildren(
      el("h3", {}, `Layer ${this.layer + 1}, head ${this.head + 1}`),
      arcs(
        row,
        this.at,
        this.ids.map((_, t) => name(t)),
      ),
      el(
        "div",
        { class: "columns" },
        el(
          "div",
          { class: "map" },
          picture,
          el(
            "p",
            { class: "faint" },
            "Each row is a position that looks, each column one that it looks at. Nobody looks ahead, so the upper half is empty.",
          ),
        ),
        el(
          "div",
          {},
          el("p", {}, `Position ${this.at + 1}, “${name(this.at)}”, looks most at:`),
          bars(rows),
        ),
      ),
      el(
        "code",
        { class: "equation" },
        `weights = softmax(q k^T / sqrt(${width}))      q: (${weights.rows}, ${width}), k: (${weights.rows}, ${width}), weights: (${weights.rows}, ${weights.rows})`,
      ),
    );
  }

  /** The residual stream at the position: before the first layer, and after each. */
  streams() {
    const { n_layer } = this.run.config;
    const after = (/** @type {number} */ i) =>
      i < n_layer ? this.probe.get(`block_${i}.input`) : this.probe.get("stream");
    return Array.from({ length: n_layer + 1 }, (_, i) => after(i).slice(this.at, this.at + 1));
  }

  drawLens() {
    const { config, params, tokenizer } = this.run;
    const next = this.ids[this.at + 1];
    const rows = this.streams().map((stream, i) => {
      const logP = logSoftmax(readOut(config, params, stream, params.token_embedding).row(0));
      const cells = likeliest(logP, 4).map(({ id, p }) =>
        el(
          "td",
          { class: "token", style: `background: ${shade("blue", 0.7 * p)}` },
          `${visible(tokenizer.name(id))} ${percent(p)}`,
        ),
      );
      const truth = next === undefined ? "" : percent(Math.exp(logP[next]));
      return el(
        "tr",
        {},
        el("td", {}, i ? `after layer ${i}` : "embedding"),
        ...cells,
        el("td", { class: "number" }, truth),
      );
    });
    const truth = next === undefined ? "" : `“${visible(tokenizer.name(next))}” stands there`;
    const head = el(
      "tr",
      {},
      el("th", {}, ""),
      el("th", { colspan: 4 }, "likeliest next tokens"),
      el("th", {}, truth),
    );
    this.panels.lens.replaceChildren(
      el("div", { class: "scroll" }, el("table", {}, head, ...rows)),
    );
  }

  drawNorms() {
    const rows = this.streams().map((stream, i) => {
      const length = Math.sqrt(dot(stream.row(0), stream.row(0)));
      return { name: i ? `after layer ${i}` : "embedding", value: length, text: length.toFixed(1) };
    });
    this.panels.norms.replaceChildren(bars(rows));
  }

  /** What the parts of the model add to the logit of a token. */
  drawParts() {
    const { config, params, tokenizer } = this.run;
    const logits = this.logits.row(this.at);
    const target = this.target >= 0 ? this.target : mostLikely(logits);
    const parts = logitAttribution(
      config,
      params,
      this.probe,
      this.at,
      target,
      params.token_embedding,
    );
    parts.sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
    const rest = parts.slice(N_PARTS).reduce((sum, part) => sum + part.value, 0);
    const shown = parts.slice(0, N_PARTS);
    if (parts.length > N_PARTS)
      shown.push({ name: `${parts.length - N_PARTS} others`, value: rest });
    const signed = (/** @type {number} */ x) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(2);
    const candidates = likeliest(logSoftmax(logits), 6).map(({ id, p }) => {
      const pick = () => {
        this.target = id;
        this.drawParts();
      };
      return el(
        "button",
        { onclick: pick, "aria-pressed": String(id === target) },
        `${visible(tokenizer.name(id))} ${percent(p)}`,
      );
    });
    const pickers = el("div", { class: "controls pick" }, "Next token:", ...candidates);
    this.panels.parts.replaceChildren(
      pickers,
      bars(shown.map(({ name, value }) => ({ name: partName(name), value, text: signed(value) }))),
    );
  }

  /** A button for every part that can be switched off. */
  drawSwitches() {
    const { config, off } = this.run;
    const toggle = (/** @type {string} */ name, /** @type {string} */ text) => {
      const button = el(
        "button",
        { "aria-pressed": String(!off.has(name)), title: partName(name) },
        text,
      );
      button.onclick = () => {
        if (!off.delete(name)) off.add(name);
        button.setAttribute("aria-pressed", String(!off.has(name)));
        this.compute();
      };
      return button;
    };
    const rows = Array.from({ length: config.n_layer }, (_, i) => {
      const heads = Array.from({ length: config.n_head }, (_, h) =>
        toggle(`block_${i}.attention.${h}`, `head ${h + 1}`),
      );
      return el(
        "div",
        { class: "controls" },
        toggle(`block_${i}`, `layer ${i + 1}`),
        ...heads,
        toggle(`block_${i}.mlp`, "MLP"),
      );
    });
    const all = () => {
      off.clear();
      this.drawSwitches();
      this.compute();
    };
    this.panels.switches.replaceChildren(...rows, el("button", { onclick: all }, "All on"));
  }

  /** The loss of the text, and how it goes on, with the parts that are on. */
  drawEffect() {
    const { config, params, tokenizer, off } = this.run;
    const [loss, whole, ids] = [this.loss, this.whole.loss, this.ids];
    const goOn = (/** @type {Set<string>} */ without) => {
      const writer = new Writer(config, params, ids, without);
      for (let i = 0; i < CONTINUATION; i++) writer.append(mostLikely(writer.logits));
      return tokenizer.pieces(writer.tokens).slice(ids.length).join("");
    };
    const line = (
      /** @type {string} */ title,
      /** @type {number} */ nats,
      /** @type {string} */ text,
    ) =>
      el(
        "tr",
        {},
        el("td", {}, title),
        el("td", { class: "number" }, `${nats.toFixed(3)} nats`),
        el("td", {}, el("code", {}, text)),
      );
    const rows = [line("whole model", whole, goOn(new Set()))];
    if (off.size)
      rows.push(
        line(`without ${count(off.size)} ${off.size === 1 ? "part" : "parts"}`, loss, goOn(off)),
      );
    const head = el(
      "tr",
      {},
      el("th", {}, ""),
      el("th", {}, "loss of the text"),
      el("th", {}, "likeliest continuation"),
    );
    this.panels.effect.replaceChildren(
      el("div", { class: "scroll", "aria-live": "polite" }, el("table", {}, head, ...rows)),
    );
  }

  element() {
    const { grid, large, lens, norms, parts, switches, effect } = this.panels;
    const { config } = this.run;
    const cap = config.logit_softcap
      ? ` The soft-cap of ${config.logit_softcap} comes after this sum.`
      : "";
    return el(
      "section",
      {},
      el(
        "p",
        {},
        "Type a text. Point at a character: every picture below is about that position, and what the model computes there.",
      ),
      this.input,
      this.warning,
      this.tokens,
      el("h2", {}, "Attention"),
      el(
        "p",
        {},
        "Every head decides for each position which earlier ones to read from. The bluer, the more. Choose one: 2.3 is head 3 of layer 2.",
      ),
      grid,
      large,
      el("h2", {}, "Logit lens"),
      el(
        "p",
        {},
        "What would the model answer if it stopped after a layer? The output head reads the residual stream as it is at that point (nostalgebraist 2020).",
      ),
      lens,
      el("h2", {}, "Residual stream"),
      el(
        "p",
        {},
        "Each layer adds to a vector that runs through the model. This is its length: a small step means that a layer changed little.",
      ),
      el("code", { class: "equation" }, `|x| = sqrt(x_1^2 + ... + x_${config.n_embd}^2)`),
      norms,
      el("h2", {}, "Who says so?"),
      el(
        "p",
        {},
        `What each part adds to the logit of a token, compared with the average token. Blue speaks for it, orange against it (Elhage et al. 2021).${cap}`,
      ),
      parts,
      el("h2", {}, "Switch parts off"),
      el(
        "p",
        {},
        "A part that is off adds nothing. If the loss of the text hardly rises, the part was not needed here.",
      ),
      switches,
      effect,
    );
  }
}

/**
 * Arcs from the position that looks to those that it looks at, thicker for larger weights.
 * @param {Float32Array} row
 * @param {number} at
 * @param {string[]} names  of all tokens
 */
function arcs(row, at, names) {
  const x = (/** @type {number} */ t) => (1180 * (t + 0.5)) / row.length + 10;
  const picture = svg("svg", {
    viewBox: "0 0 1200 150",
    role: "img",
    "aria-label": "arcs to the positions that are looked at",
  });
  for (let s = 0; s <= at; s++) {
    if (row[s] < 0.02) continue;
    const [width, height] = [(x(at) - x(s)) / 2, Math.min(112, 20 + (x(at) - x(s)) / 5)];
    const curve =
      s === at
        ? `M ${x(s) - 7} 122 a 7 9 0 0 1 14 0`
        : `M ${x(s)} 122 a ${width} ${height} 0 0 1 ${2 * width} 0`;
    const style = {
      fill: "none",
      stroke: "var(--blue)",
      "stroke-width": 1 + 7 * row[s],
      "stroke-opacity": 0.25 + 0.75 * row[s],
    };
    picture.append(svg("path", { d: curve, ...style }));
  }
  if (names.length > 100) return picture;
  names.forEach((name, t) => {
    const label = svg("text", { x: x(t), y: 140, "text-anchor": "middle" }, name);
    if (t === at) label.style.fontWeight = "bold";
    picture.append(label);
  });
  return picture;
}

/** @param {import("./page.js").Run} run @returns {import("./page.js").View} */
export function lookView(run) {
  const looking = new Looking(run);
  return { id: "look", title: "Look", element: looking.element(), show: () => looking.show() };
}

// Look: what the model computes inside for a text, and what happens without a part of it.

import {
  bars,
  count,
  el,
  heatmap,
  leftOut,
  partName,
  percent,
  shade,
  svg,
  visible,
} from "./drawing.js";
import { dot, logSoftmax, Matrix } from "./layers.js";
import { logitAttribution, Probe, readOut } from "./model.js";
import { mostLikely, readText, Writer } from "./sampling.js";
import { likeliest } from "./write.js";

const CONTINUATION = 60;
/** Milliseconds without a key before a text is read. */
const TYPING_PAUSE = 250;
const MOST_TAKEN = 64;
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
    this.whole = { ids: this.ids, loss: 0, continuation: "" };
    this.loss = 0;
    this.logits = new Matrix(0, 0);
    this.input = /** @type {HTMLTextAreaElement} */ (
      el("textarea", { "aria-label": "Text to look at", rows: 2, spellcheck: "false" })
    );
    this.input.oninput = () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.read(), TYPING_PAUSE);
    };
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.timer = undefined;
    /** A position that was clicked: pointing at another one does not change it. */
    this.pinned = false;
    this.warning = el("p", { class: "warning", role: "status" });
    this.tokens = el("div", {
      class: "text",
      tabindex: 0,
      role: "group",
      "aria-label": "Tokens; arrow keys move the position",
    });
    this.tokens.onkeydown = (event) => this.move(event);
    this.tokens.onclick = (event) => {
      const at = this.spans.indexOf(/** @type {HTMLElement} */ (event.target));
      this.pinned = at >= 0 && !(this.pinned && at === this.at);
      if (at >= 0) this.look(at);
    };
    this.tokens.onmouseover = (event) => {
      const at = this.spans.indexOf(/** @type {HTMLElement} */ (event.target));
      if (at >= 0 && at !== this.at && !this.pinned) this.look(at);
    };
    this.body = el("div");
    /** @type {HTMLElement[]} */
    this.spans = [];
    const names = ["grid", "large", "lens", "norms", "parts", "switches", "effect"];
    /** @type {{[name: string]: HTMLElement}} */
    this.panels = Object.fromEntries(names.map((name) => [name, el("div")]));
  }

  /** The view is shown: takes over the text that was written. */
  show() {
    const { tokenizer, tokens, config } = this.run;
    const n = Math.min(config.block_size, MOST_TAKEN);
    const isNew = this.seen !== tokens;
    if (!this.input.value || isNew) {
      this.input.value = tokenizer.pieces(tokens.slice(0, n)).join("") || "\n";
      this.read();
      if (tokens.length > n) {
        this.warning.textContent = `The first ${n} of ${count(tokens.length)} tokens that were written. Type to change them.`;
      }
    } else this.compute();
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
    this.ids = ids.slice(0, config.block_size);
    // The other views look at this text, too.
    this.run.tokens = this.ids;
    this.seen = this.ids;
    this.at = this.ids.length - 1;
    this.pinned = false;
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
    this.probe = new Probe(off);
    const { logits, loss } = readText(config, params, this.ids, this.probe);
    this.logits = logits;
    this.loss = loss;
    if (this.whole.ids !== this.ids) {
      const whole = off.size ? readText(config, params, this.ids).loss : loss;
      this.whole = { ids: this.ids, loss: whole, continuation: this.goOn(new Set()) };
    }
    this.drawGrid();
    this.drawEffect();
    this.drawPosition();
  }

  /** How the text goes on, always with the likeliest token. @param {Set<string>} without */
  goOn(without) {
    const { config, params, tokenizer } = this.run;
    const writer = new Writer(config, params, this.ids, without);
    for (let i = 0; i < CONTINUATION; i++) writer.append(mostLikely(writer.logits));
    return tokenizer.pieces(writer.tokens).slice(this.ids.length).join("");
  }

  /** @param {KeyboardEvent} event */
  move(event) {
    const last = this.ids.length - 1;
    const places = { ArrowRight: this.at + 1, ArrowLeft: this.at - 1, Home: 0, End: last };
    const to = places[/** @type {keyof places} */ (event.key)];
    if (event.key === "Escape") this.pinned = false;
    if (event.key === "Enter") this.pinned = true;
    if (to === undefined) return;
    event.preventDefault();
    this.look(Math.max(0, Math.min(last, to)));
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
      span.style.background = s <= this.at ? shade("blue", 0.5 * Math.sqrt(row[s])) : "none";
      span.classList.toggle("chosen", s === this.at);
    });
    const order = [...row.keys()].sort((a, b) => row[b] - row[a]).slice(0, 5);
    const name = (/** @type {number} */ t) => visible(tokenizer.name(this.ids[t]));
    const width = config.n_embd / config.n_head;
    const rows = order.map((s) => ({
      name: `${name(s)}  (${s})`,
      value: row[s],
      text: percent(row[s]),
    }));
    const picture = heatmap(
      weights,
      `attention of layer ${this.layer + 1}, head ${this.head + 1}: rows look at columns`,
    );
    const cell = el(
      "p",
      { class: "faint" },
      "Point at a square. Click a row to look at its position.",
    );
    /** The row and column of a point of the picture. @param {MouseEvent} event */
    const place = (event) => {
      const box = picture.getBoundingClientRect();
      const at = (/** @type {number} */ share) =>
        Math.max(0, Math.min(weights.rows - 1, Math.floor(share * weights.rows)));
      return [
        at((event.clientY - box.top) / box.height),
        at((event.clientX - box.left) / box.width),
      ];
    };
    picture.onmousemove = (event) => {
      const [t, source] = place(event);
      const weight = percent(weights.row(t)[source]);
      cell.textContent = `“${name(t)}” (${t}) looks at “${name(source)}” (${source}): ${weight}`;
    };
    picture.onclick = (event) => {
      this.pinned = true;
      this.look(place(event)[0]);
    };
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
          cell,
          el(
            "p",
            { class: "faint" },
            "Each row is a position that looks, each column one that it looks at. No position looks ahead, so the upper half is empty. Small weights are drawn stronger than they are: the colour is their square root.",
          ),
        ),
        el(
          "div",
          {},
          el("p", {}, `Position ${this.at}, “${name(this.at)}”, looks most at:`),
          bars(rows),
        ),
      ),
      el(
        "code",
        { class: "equation" },
        `weights = softmax(q k^T / sqrt(${width}) + mask)      mask = -inf where the column is later than the row\nq, k: (${weights.rows}, ${width}); weights: (${weights.rows}, ${weights.rows}). The tab Forward pass says where q and k come from.`,
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
          { class: "token", style: `background: ${shade("blue", 0.5 * p)}` },
          `${visible(tokenizer.name(id))} ${percent(p)}`,
        ),
      );
      const truth = next === undefined ? "" : percent(Math.exp(logP[next]));
      return el(
        "tr",
        {},
        el("td", {}, i ? `after layer ${i}` : "embedding"),
        ...(next === undefined ? [] : [el("td", {}, truth)]),
        ...cells,
      );
    });
    const truth = next === undefined ? "" : `“${visible(tokenizer.name(next))}”, which follows`;
    const head = el(
      "tr",
      {},
      el("th", {}, ""),
      ...(next === undefined ? [] : [el("th", {}, truth)]),
      el("th", { colspan: 4 }, "likeliest next tokens"),
    );
    this.panels.lens.replaceChildren(
      el("div", { class: "scroll" }, el("table", {}, head, ...rows)),
    );
  }

  drawNorms() {
    const length = (/** @type {Float32Array} */ x) => Math.sqrt(dot(x, x));
    const streams = this.streams().map((stream) => stream.row(0));
    const rows = streams.flatMap((x, i) => {
      const after = { name: i ? `after layer ${i}` : "embedding", value: length(x) };
      if (!i) return [after];
      const added = length(x.map((value, j) => value - streams[i - 1][j]));
      return [{ name: `added by layer ${i}`, value: added, colour: "grey" }, after];
    });
    this.panels.norms.replaceChildren(
      bars(rows.map((row) => ({ ...row, text: row.value.toFixed(1) }))),
    );
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
    const sum = parts.reduce((total, part) => total + part.value, 0);
    const candidates = likeliest(logSoftmax(logits), 6).map(({ id, p }, i) => {
      const pick = () => {
        this.target = id;
        this.drawParts();
        this.panels.parts.querySelectorAll("button")[i]?.focus();
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
      el(
        "p",
        {},
        `Sum: ${signed(sum)}, the logit ${this.beforeCap()}minus the mean of all logits.`,
      ),
    );
  }

  beforeCap() {
    return this.run.config.logit_softcap ? "before the soft-cap " : "";
  }

  /** A button for every part that can be switched off. */
  drawSwitches() {
    const { config, off } = this.run;
    const toggle = (/** @type {string} */ name, /** @type {string} */ text) => {
      const button = el(
        "button",
        {
          "aria-pressed": String(!off.has(name)),
          title: partName(name),
          "aria-label": partName(name),
        },
        text,
      );
      // Nothing of a layer that is off is computed.
      const layer = name.split(".")[0];
      if (name !== layer && off.has(layer)) button.setAttribute("disabled", "");
      button.onclick = () => {
        if (!off.delete(name)) off.add(name);
        this.compute();
        this.drawSwitches();
        /** @type {HTMLElement | null} */
        const again = this.panels.switches.querySelector(`[title="${partName(name)}"]`);
        again?.focus();
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
    const { off } = this.run;
    const line = (
      /** @type {string} */ title,
      /** @type {number} */ nats,
      /** @type {string} */ text,
    ) => {
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
    };
    const rows = [line("whole model", this.whole.loss, this.whole.continuation)];
    // A head of a layer that is off is no further part.
    const parts = [...off].filter((name) => !off.has(name.split(".")[0]) || !name.includes("."));
    if (off.size) {
      const title = `without ${count(parts.length)} ${parts.length === 1 ? "part" : "parts"}`;
      rows.push(line(title, this.loss, this.goOn(off)));
    }
    const names = ["", "loss of the text", "change", "likeliest continuation"];
    const head = el("tr", {}, ...names.map((name) => el("th", {}, name)));
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
    const words = (/** @type {string} */ text) => el("p", {}, text);
    this.body.append(
      el("h2", {}, "Attention"),
      words(
        `Every layer has ${config.n_head} heads. Each decides for every position which earlier ones to read from: the bluer, the more. Choose one: 2.3 is head 3 of layer 2.`,
      ),
      grid,
      large,
      el("h2", {}, "Logit lens"),
      words(
        "We skip the remaining layers, and let the final norm and the output matrix read what is there (nostalgebraist 2020). The model was not trained for that: early rows can be confident and wrong. The last row is its real answer.",
      ),
      lens,
      el("h2", {}, "Residual stream"),
      words(
        "A vector runs through the model, and each layer adds one to it. Blue: how long the vector is. Grey: how long the one is that the layer added. What layers add may cancel.",
      ),
      el("code", { class: "equation" }, `|x| = sqrt(x_1^2 + ... + x_${config.n_embd}^2)`),
      norms,
      el("h2", {}, "Who says so?"),
      words(
        `What each part adds directly to the logit of a token, compared with the mean of all tokens (Elhage et al. 2021). Blue speaks for the token, orange against it. What a part does by way of later layers counts for those, so an early layer with a small bar can still be indispensable: switch it off below. What the final norm divides by is held fixed.${cap}`,
      ),
      parts,
      el("h2", {}, "Switch parts off"),
      words(
        "A part that is off adds nothing, in the other tabs too. If the loss of the text hardly rises, the model manages without this part here; another may do the same work. The loss may even fall.",
      ),
      switches,
      effect,
    );
    return el(
      "section",
      {},
      words(
        "Type a text. Point at a token: every picture below is about that position. Click it to hold it; arrow keys move on.",
      ),
      this.input,
      this.warning,
      el("div", { class: "sticky" }, this.tokens),
      this.body,
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
    class: "wide",
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

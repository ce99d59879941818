// What can be read from the residual stream at one position of a text.

import { logitAttribution } from "./attribution.js";
import { bars, el, formula, partName, percent, shade, visible } from "./drawing.js";
import { dot, logSoftmax, statistics } from "./layers.js";
import { readOut } from "./model.js";
import { residualStreams } from "./pass.js";
import { likeliest, mostLikely } from "./sampling.js";

/** @typedef {import("./pass.js").Pass} Pass */

/** Likeliest tokens in a row of the logit lens. */
const N_ANSWERS = 4;
/** Tokens whose logit can be explained, and the parts that are shown for one. */
const [N_TARGETS, N_PARTS] = [6, 12];

/** A table of the tokens that the model would answer after each layer. @param {Pass} pass */
export function logitLens(pass) {
  const { config, params, tokenizer } = pass.run;
  const next = pass.ids[pass.t + 1];
  const isKnown = next !== undefined;
  const rows = residualStreams(pass).map((stream, i) => {
    const logP = logSoftmax(readOut(config, params, stream, params.token_embedding).row(0));
    const cells = likeliest(logP, N_ANSWERS).map(({ id, p }) =>
      el(
        "td",
        { class: "token", style: `background: ${shade("blue", 0.5 * p)}` },
        `${visible(tokenizer.name(id))} ${percent(p)}`,
      ),
    );
    const truth = isKnown ? [el("td", {}, percent(Math.exp(logP[next])))] : [];
    return el("tr", {}, el("td", {}, i ? `after layer ${i}` : "embedding"), ...truth, ...cells);
  });
  const truth = isKnown ? `“${visible(tokenizer.name(next))}”, which follows` : "";
  const head = el(
    "tr",
    {},
    el("th", {}, ""),
    ...(isKnown ? [el("th", {}, truth)] : []),
    el("th", { colspan: N_ANSWERS }, "likeliest next tokens"),
  );
  const { n_layer, n_embd, logit_softcap: cap, tie_embeddings: tied } = config;
  const u = tied ? "norm(x_l) E^T" : `norm(x_l) W${params.head.bias ? " + b" : ""}`;
  const size = tokenizer.size;
  const shape = tied ? `E: (${size}, ${n_embd})` : `W: (${n_embd}, ${size})`;
  return el(
    "div",
    {},
    formula(
      `p_l = softmax(${cap ? `${cap} * tanh((${u}) / ${cap})` : u})`,
      `l = 0 ... ${n_layer} layers; x_l: (${n_embd}), ${shape}, p_l: (${size})`,
    ),
    el("div", { class: "scroll" }, el("table", {}, head, ...rows)),
  );
}

/** The length of the residual stream after each layer, and of what the layer added. @param {Pass} pass */
export function streamLengths(pass) {
  const length = (/** @type {Float32Array} */ x) => Math.sqrt(dot(x, x));
  const streams = residualStreams(pass).map((stream) => stream.row(0));
  const rows = streams.flatMap((x, i) => {
    const after = { name: i ? `after layer ${i}` : "embedding", value: length(x) };
    if (!i) return [after];
    const added = length(x.map((value, j) => value - streams[i - 1][j]));
    return [{ name: `added by layer ${i}`, value: added, colour: "grey" }, after];
  });
  return bars(rows.map((row) => ({ ...row, text: row.value.toFixed(1) })));
}

/** What each part of the model adds to the logit of a token that one chooses. */
export class Attribution {
  /** @param {Pass} pass */
  constructor(pass) {
    this.pass = pass;
    this.element = el("div");
  }

  /** @param {number} [target]  the token; without it, the likeliest */
  draw(target) {
    const { run, probe, t } = this.pass;
    const logits = this.pass.logits.row(t);
    const token = target ?? mostLikely(logits);
    const table = run.params.token_embedding;
    const parts = logitAttribution(run.config, run.params, probe, t, token, table);
    const sum = parts.reduce((total, part) => total + part.value, 0);
    const cap = run.config.logit_softcap ? "before the soft-cap " : "";
    const { spread } = statistics(run.config, probe.get("stream").row(t));
    const centred = run.config.norm === "layernorm" ? " − its mean" : "";
    const w = run.config.tie_embeddings ? "row of E" : "column of W";
    this.element.replaceChildren(
      formula(
        `sum over ${parts.length} parts of part · d,  d = g * (w − mean of all w) / ${spread.toFixed(2)}${centred}`,
        `w: the token's ${w}, g: of the final norm; part, d, w, g: (${run.config.n_embd})`,
      ),
      el("div", { class: "controls pick" }, "Next token:", ...this.targets(logits, token)),
      bars(strongestParts(parts)),
      el("p", {}, `Sum: ${signed(sum)}, the logit ${cap}minus the mean of all logits.`),
    );
  }

  /** A button for each token that can be explained. @param {Float32Array} logits @param {number} chosen */
  targets(logits, chosen) {
    const { tokenizer } = this.pass.run;
    return likeliest(logSoftmax(logits), N_TARGETS).map(({ id, p }, i) => {
      const pick = () => {
        this.draw(id);
        // The button that was pressed is a new one now.
        this.element.querySelectorAll("button")[i]?.focus();
      };
      const attributes = { onclick: pick, "aria-pressed": String(id === chosen) };
      return el("button", attributes, `${visible(tokenizer.name(id))} ${percent(p)}`);
    });
  }
}

/** Rows for the parts that add or take most, and one for all others. @param {{name: string, value: number}[]} parts */
function strongestParts(parts) {
  const sorted = parts.toSorted((a, b) => Math.abs(b.value) - Math.abs(a.value));
  const others = sorted.splice(N_PARTS);
  if (others.length) {
    const value = others.reduce((sum, part) => sum + part.value, 0);
    sorted.push({ name: `${others.length} others`, value });
  }
  return sorted.map(({ name, value }) => ({ name: partName(name), value, text: signed(value) }));
}

/** @param {number} x */
const signed = (x) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(2);

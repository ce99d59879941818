// The first and the last steps of a forward pass, with the numbers that one position has in them.

import { bars, count, el, formula, largest, percent, strip, visible } from "./drawing.js";
import { dot, linear, logSoftmax, norm, statistics } from "./layers.js";
import { residualStreams } from "./pass.js";
import { likeliest } from "./sampling.js";

/** @typedef {import("./pass.js").Pass} Pass */

/** Logits that a strip can show: a larger vocabulary would be a page of squares. */
const MOST_LOGITS = 1024;

/** @param {number} x */
export const decimals = (x) => x.toFixed(2).replace("-", "−");

/** The name of a token in quotes. @param {Pass} pass @param {number} id */
export const quotedToken = ({ run }, id) => `“${visible(run.tokenizer.name(id))}”`;

/**
 * A step: a heading, sentences, an equation, pictures. A branch leaves the residual stream.
 * @param {string} title
 * @param {string} sentences
 * @param {string[]} equation
 * @param {{branch?: boolean, pictures?: (Node | string)[]}} [options]
 */
export function passStep(title, sentences, equation, { branch = false, pictures = [] } = {}) {
  return el(
    "article",
    { class: branch ? "step branch" : "step" },
    el(
      "div",
      {},
      el("h3", {}, title),
      el("p", {}, sentences),
      equation.length ? formula(...equation) : "",
    ),
    el("div", {}, ...pictures),
  );
}

/**
 * A vector with its name, its first numbers, and its picture.
 * @param {string} name
 * @param {string} text
 * @param {Float32Array} vector
 * @param {{most?: number, name?: (i: number) => string}} [options]
 */
export function vectorRow(name, text, vector, options = {}) {
  const first = Array.from(vector.slice(0, 4), decimals).join(", ");
  const numbers = vector.length > 4 ? `[${first}, ...]` : `[${first}]`;
  const label = `${name}, ${text}: ${vector.length} numbers, the largest ${decimals(largest(vector))}; ${numbers}`;
  const nameOf = options.name ?? ((/** @type {number} */ i) => `${name}[${i}]`);
  return el(
    "figure",
    {},
    el("figcaption", {}, el("b", {}, name), ` ${text} `, el("code", { class: "faint" }, numbers)),
    strip(vector, label, { ...options, name: nameOf }),
  );
}

/** The shapes of a matrix product. @param {number} rows @param {number} inner @param {number} columns */
export const productShapes = (rows, inner, columns) =>
  `(${rows}, ${inner}) x (${inner}, ${columns}) -> (${rows}, ${columns})`;

/** @param {Pass} pass */
export function tokenStep(pass) {
  const { run, ids, t } = pass;
  const id = ids[t];
  const size = count(run.tokenizer.size);
  return passStep(
    "Token",
    `The text was cut into tokens. The model knows ${size} of them, and knows each by a number only.`,
    [
      `${quotedToken(pass, id)} -> ${id}      one of ${size}; position ${t} of 0 ... ${ids.length - 1}`,
    ],
  );
}

/** @param {Pass} pass */
export function embeddingStep({ run, ids, t, probe }) {
  const { config, params } = run;
  const [V, D] = [params.token_embedding.table.rows, config.n_embd];
  const learned = config.position === "learned";
  const x = probe.get("block_0.input").row(t);
  const token = probe.get("token_embedding").row(t);
  const most = Math.max(largest(x), largest(token));
  const position = learned
    ? "A second table has a vector for each position. The sum of both starts the residual stream."
    : "It starts the residual stream. The position comes in later: it rotates queries and keys.";
  const rows = [vectorRow("x", `starts the residual stream, (${D})`, x, { most })];
  if (learned) {
    const vector = probe.get("position_embedding").row(t);
    rows.unshift(vectorRow(`P[${t}]`, "the position", vector, { most }));
    rows.unshift(vectorRow(`E[${ids[t]}]`, "the token", token, { most }));
  }
  return passStep(
    "Embedding",
    `Each token has a vector of ${D} numbers, learned in training. ${position}`,
    [
      learned
        ? `x = E[${ids[t]}] + P[${t}]      E: (${V}, ${D}), P: (${params.position_embedding.table.rows}, ${D})`
        : `x = E[${ids[t]}]      E: (${V}, ${D}); all tokens: (${ids.length}, ${D})`,
    ],
    { pictures: rows },
  );
}

/**
 * The equation of a norm with its numbers at the position.
 * @param {any} config
 * @param {import("./layers.js").Params} p  of the norm
 * @param {Float32Array} x
 */
export function normEquation(config, p, x) {
  const { mean, spread } = statistics(config, x);
  const [bias, D] = [p.bias ? " + b" : "", x.length];
  const shift = mean < 0 ? `+ ${decimals(-mean)}` : `− ${decimals(mean)}`;
  if (config.norm !== "layernorm")
    return `y = x / sqrt(mean(x^2) + 0.00001) * g${bias} = x / ${decimals(spread)} * g${bias}      g: (${D})`;
  return `y = (x − mean(x)) / sqrt(var(x) + 0.00001) * g${bias} = (x ${shift}) / ${decimals(spread)} * g${bias}      g${p.bias ? ", b" : ""}: (${D})`;
}

/** The residual stream of the position through all layers. @param {Pass} pass */
export function streamStep(pass) {
  const rows = residualStreams(pass).map((stream, i) => {
    const x = stream.row(0);
    const length = decimals(Math.sqrt(dot(x, x)));
    return vectorRow("x", `${i ? `after layer ${i}` : "embedding"}, length ${length}`, x);
  });
  return passStep(
    "The residual stream, layer by layer",
    "All layers do the same with other weights. Each line is this position's vector, with colours of its own scale.",
    [],
    { pictures: rows },
  );
}

/** @param {Pass} pass */
export function logitStep(pass) {
  const { run, ids, t, probe, logits } = pass;
  const { config, params } = run;
  const [T, D, V] = [ids.length, config.n_embd, logits.width];
  const x = probe.get("stream").slice(t, t + 1);
  const y = norm(config, params.final_norm, x);
  const [tied, cap] = [config.tie_embeddings, config.logit_softcap];
  const product = tied ? "y E^T" : `y W${params.head.bias ? " + b" : ""}`;
  const row = logits.row(t);
  const name = (/** @type {number} */ i) => `logit of ${quotedToken(pass, i)}`;
  const how = tied
    ? "The table of token vectors is used again: a logit says how well y fits the vector of a token."
    : "A last matrix makes one number for each token that might come next: its logit.";
  const pictures = [vectorRow("y", `after the final norm, (${D})`, y.row(0))];
  if (V <= MOST_LOGITS)
    pictures.push(vectorRow("logits", `one for each token, (${V})`, row, { name }));
  const uncapped = tied || !cap ? 0 : largest(linear(params.head, y).row(0));
  const limit = uncapped ? ` The largest was ${decimals(uncapped)} before.` : "";
  return passStep(
    "Logits",
    `${how}${cap ? ` A soft-cap keeps them between −${cap} and ${cap}.${limit}` : ""}`,
    [
      normEquation(config, params.final_norm, x.row(0)),
      `${cap ? "u" : "logits"} = ${product}      ${productShapes(T, D, V)}`,
      cap ? `logits = ${cap} * tanh(u / ${cap})` : "",
    ],
    { pictures },
  );
}

/** @param {Pass} pass */
export function probabilityStep(pass) {
  const { ids, t, logits } = pass;
  const row = logits.row(t);
  const logP = logSoftmax(row);
  const best = likeliest(logP, 8);
  const next = ids[t + 1];
  const truth =
    next === undefined
      ? "No token follows in this text. The tab Write draws one from these probabilities."
      : `In the text ${quotedToken(pass, next)} follows: probability ${percent(Math.exp(logP[next]))}, so the loss here is −log p = ${decimals(-logP[next])} nats.`;
  const sum = row[best[0].id] - logP[best[0].id];
  const rows = best.map(({ id, p }) => {
    const name = el("code", {}, quotedToken(pass, id));
    if (id === next) name.style.fontWeight = "bold";
    return { name, value: p, text: percent(p) };
  });
  return passStep(
    "Probabilities",
    `Softmax makes a positive number of every logit, and all ${count(row.length)} of them sum to 1. ${truth}`,
    [
      `p_i = exp(logit_i) / sum_j exp(logit_j)      j = 0 ... ${row.length - 1}`,
      `p(${quotedToken(pass, best[0].id)}) = exp(${decimals(row[best[0].id])}) / exp(${decimals(sum)}) = ${best[0].p.toFixed(3)}`,
    ],
    { pictures: [bars(rows)] },
  );
}

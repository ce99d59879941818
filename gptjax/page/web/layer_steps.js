// The steps of one layer in a forward pass, with the numbers that one position has in them.

import { el, largest, percent, shade, visible } from "./drawing.js";
import { dot, topPlaces } from "./layers.js";
import { attentionHeads } from "./pass.js";
import {
  decimals,
  normEquation,
  passStep,
  productShapes,
  quotedToken,
  vectorRow,
} from "./steps.js";

/** @typedef {import("./pass.js").Pass} Pass */

/** A norm, and the short convolution after it. @param {Pass} pass @param {"attention" | "mlp"} part */
export function normStep({ run, t, layer, probe }, part) {
  const { config, params } = run;
  const name = `block_${layer}`;
  const x = probe.get(part === "mlp" ? `${name}.middle` : `${name}.input`).row(t);
  const before = config.short_conv - 1;
  const rows = [
    vectorRow("x", "the residual stream", x),
    vectorRow("y", "normalized", probe.get(`${name}.${part}.norm`).row(t)),
  ];
  let [sentence, equation] = ["", ""];
  if (before > 0) {
    const neighbours = before === 1 ? "the position before" : `the ${before} positions before`;
    sentence = ` Then a short convolution adds a little of ${neighbours}, with a weight for each of the ${config.n_embd} numbers.`;
    const terms = Array.from({ length: before }, (_, j) => ` + w_${j + 1} * y[t-${j + 1}]`);
    equation = `y[t] = y[t]${terms.join("")}      t = ${t}, w: (${config.n_embd})`;
    rows.push(vectorRow("y", "after the convolution", probe.get(`${name}.${part}.conv`).row(t)));
  }
  return passStep(
    part === "mlp" ? "Norm before the MLP" : "Norm before attention",
    `A copy of the stream is brought to a common size, so that ${part === "mlp" ? "the MLP" : "attention"} gets numbers in a range that it knows. g is learned.${sentence}`,
    [normEquation(config, params[name][`${part}_norm`], x), equation],
    { branch: true, pictures: rows },
  );
}

/** @param {Pass} pass */
export function queryStep({ run, ids, t, layer, head, probe }) {
  const { config } = run;
  const [T, D, H] = [ids.length, config.n_embd, config.n_head];
  const K = D / H;
  const part = (/** @type {string} */ name) =>
    probe
      .get(`block_${layer}.attention.${name}`)
      .row(t)
      .subarray(head * K, (head + 1) * K);
  const b = config.attention_bias ? [" + b_q", " + b_k", " + b_v"] : ["", "", ""];
  const rotary = config.position === "rotary";
  const how = [
    config.qk_norm ? " Queries and keys are brought to one length." : "",
    rotary
      ? ` They are rotated by an angle that grows with the position, so that scores depend on the distance.`
      : "",
  ].join("");
  return passStep(
    `Query, key, value (head ${head + 1} of ${H})`,
    `A query says what this position looks for, a key what it can be found by, a value what it passes on. Every head has its own ${K} numbers of each.${how}`,
    [
      `q = y W_q${b[0]},  k = y W_k${b[1]},  v = y W_v${b[2]}`,
      `each ${productShapes(T, D, D)}, cut into ${H} heads of ${K}`,
      config.qk_norm ? "q = q / rms(q),  k = k / rms(k)      for every head" : "",
      rotary
        ? `(q_i, q_(i+${K / 2})) rotated by ${t} * 10000^(−i/${K / 2}), i = 0 ... ${K / 2 - 1}; k likewise`
        : "",
    ],
    {
      branch: true,
      pictures: [
        vectorRow("q", `looks for, (${K})`, part("query")),
        vectorRow("k", `is found by, (${K})`, part("key")),
        vectorRow("v", `passes on, (${K})`, part("value")),
      ],
    },
  );
}

/** The text up to the position, shaded by where a head looks. @param {Pass} pass @param {Float32Array} row */
function shadedText({ run, ids, t }, row) {
  const tokens = ids.slice(0, t + 1).map((id, s) => {
    const background = shade("blue", row[s] ** 0.7);
    return el(
      "span",
      { style: `background: ${background}`, title: percent(row[s]) },
      visible(run.tokenizer.name(id)),
    );
  });
  return el("span", { class: "shaded", "aria-hidden": "true" }, ...tokens);
}

/** Where every head looks. choose: makes another head the one that is shown. @param {Pass} pass @param {(head: number) => void} choose */
export function attentionStep(pass, choose) {
  const { run, ids, t, layer, head, probe } = pass;
  const { config } = run;
  const [T, D, H] = [ids.length, config.n_embd, config.n_head];
  const K = D / H;
  const name = `block_${layer}.attention`;
  const weights = attentionHeads(pass, layer);
  const rows = weights.map((matrix, h) => {
    const row = matrix.row(t);
    const best = topPlaces(row, Math.min(3, t + 1));
    const words = best.map((s) => `${quotedToken(pass, ids[s])} ${percent(row[s])}`).join(", ");
    const button = el(
      "button",
      { "aria-pressed": String(h === head), onclick: () => choose(h) },
      `head ${h + 1}`,
    );
    return el(
      "div",
      { class: "head" },
      button,
      shadedText(pass, row),
      el("span", { class: "faint" }, words),
    );
  });
  const row = weights[head].row(t);
  const s = row.indexOf(Math.max(...row));
  const at = (/** @type {string} */ what, /** @type {number} */ i) =>
    probe
      .get(`${name}.${what}`)
      .row(i)
      .subarray(head * K, (head + 1) * K);
  const score = dot(at("query", t), at("key", s)) / Math.sqrt(K);
  return passStep(
    "Attention: where each head looks",
    "A score says how well the query of this position fits the key of an earlier one. A softmax makes weights of them that sum to 1, and the result is the average of the values with these weights.",
    [
      `scores = q k^T / sqrt(${K})      ${productShapes(T, K, T)} for every head`,
      `weights = softmax(scores[${t}, 0 ... ${t}])      later positions are not seen`,
      `head ${head + 1}: q[${t}] k[${s}]^T / sqrt(${K}) = ${decimals(score)}, the weight of ${quotedToken(pass, ids[s])} is ${row[s].toFixed(2)}`,
    ],
    {
      branch: true,
      pictures: [
        el("div", { class: "heads pick" }, ...rows),
        vectorRow(
          "z",
          `= weights v, all ${H} heads side by side, (${D})`,
          probe.get(`${name}.heads`).row(t),
        ),
      ],
    },
  );
}

/** @param {Pass} pass */
export function hiddenStep({ run, ids, t, layer, probe }) {
  const { config, contents } = run;
  const [T, D, F] = [ids.length, config.n_embd, contents.hidden_width];
  const h = probe.get(`block_${layer}.mlp.hidden`).row(t);
  const b = run.params[`block_${layer}`].mlp.hidden.bias ? " + b" : "";
  /** @type {{[name: string]: string}} */
  const equations = {
    relu: `h = max(0, y W_1${b})`,
    relu2: `h = max(0, y W_1${b})^2`,
    gelu: `h = gelu(y W_1${b}),  gelu(x) = x * P(normal < x)`,
    gelu_tanh: `h = gelu(y W_1${b}),  gelu(x) = x/2 * (1 + tanh(0.80 (x + 0.0447 x^3)))`,
    swiglu: b
      ? "h = (y W_1 + b) * silu(y W_g + b),  silu(x) = x / (1 + e^−x)"
      : "h = y W_1 * silu(y W_g),  silu(x) = x / (1 + e^−x)",
  };
  const active = h.reduce((n, x) => n + Number(Math.abs(x) > 0.1 * largest(h)), 0);
  return passStep(
    "MLP: each position by itself",
    `The vector is multiplied into ${F} hidden numbers, and a non-linearity decides which of them count. Here ${active} of ${F} are above a tenth of the largest. A second matrix turns them back into ${D}.`,
    [`${equations[config.activation]}      ${productShapes(T, D, F)}`],
    { branch: true, pictures: [vectorRow("h", `hidden activations, (${F})`, h)] },
  );
}

/** What attention or the MLP adds to the stream. @param {Pass} pass @param {"attention" | "mlp"} part */
export function addStep({ run, ids, t, layer, probe }, part) {
  const { config, contents, params } = run;
  const [T, D] = [ids.length, config.n_embd];
  const name = `block_${layer}`;
  const [before, input] = part === "mlp" ? ["middle", "h"] : ["input", "z"];
  const isLast = layer + 1 === config.n_layer;
  const next = isLast ? "stream" : `block_${layer + 1}.input`;
  const after = probe.get(part === "mlp" ? next : `${name}.middle`).row(t);
  const x = probe.get(`${name}.${before}`).row(t);
  const added = probe.get(`${name}.${part}`).row(t);
  const most = Math.max(largest(x), largest(added), largest(after));
  const size = Math.sqrt(dot(added, added) / dot(x, x));
  const b = params[name][part].output.bias ? " + b" : "";
  const [W, width] = part === "mlp" ? ["W_2", contents.hidden_width] : ["W_o", D];
  const whose = part === "mlp" ? "The MLP" : "Attention";
  return passStep(
    part === "mlp" ? "The MLP's result is added" : "Attention's result is added",
    `A matrix mixes ${part === "mlp" ? "the hidden numbers" : "what the heads found"}, and the result is added to the residual stream. ${whose} adds a vector ${decimals(size)} times as long as the stream was.`,
    [`x = x + ${input} ${W}${b}      ${productShapes(T, width, D)}`],
    {
      pictures: [
        vectorRow("x", "before", x, { most }),
        vectorRow(`${input} ${W}${b}`, "is added", added, { most }),
        vectorRow("x", "after", after, { most }),
      ],
    },
  );
}

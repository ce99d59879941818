// Which parts of the model speak for a token, and which against it.

import { Matrix, multiply, statistics } from "./layers.js";

/**
 * What each part of the model adds to the logit of one token at row t, above the average logit.
 *
 * The final norm is linear once its statistics are held fixed, so the logit, before any soft-cap,
 * is a sum over the parts that were added to the residual stream (direct logit attribution,
 * Elhage et al. 2021).
 * @param {any} config
 * @param {import("./layers.js").Params} p
 * @param {import("./attention.js").Probe} probe  of the forward pass
 * @param {number} t
 * @param {number} token
 * @param {import("./layers.js").Params} embedding
 * @returns {{name: string, value: number}[]}
 */
export function logitAttribution(config, p, probe, t, token, embedding) {
  const { spread } = statistics(config, probe.get("stream").row(t));
  const direction = new Float64Array(config.n_embd);
  const vocabulary = config.tie_embeddings ? embedding.table.rows : p.head.kernel.width;
  // What the biases of the final norm and of the output head add is the same for every text.
  const headBias = config.tie_embeddings ? null : p.head.bias?.data;
  const finalBias = p.final_norm.bias?.data;
  let biases = headBias ? headBias[token] - average(headBias) : 0;
  for (let i = 0; i < config.n_embd; i++) {
    const at = (/** @type {number} */ v) =>
      config.tie_embeddings ? embedding.table.row(v)[i] : p.head.kernel.row(i)[v];
    let mean = 0;
    for (let v = 0; v < vocabulary; v++) mean += at(v) / vocabulary;
    direction[i] = ((at(token) - mean) * p.final_norm.scale.data[i]) / spread;
    if (finalBias) biases += (at(token) - mean) * finalBias[i];
  }
  // A norm with a mean subtracts it: the same as a direction whose mean is zero.
  if (config.norm === "layernorm") {
    const mean = average(direction);
    for (let i = 0; i < direction.length; i++) direction[i] -= mean;
  }
  const along = (/** @type {Float32Array} */ x) =>
    x.reduce((sum, value, i) => sum + value * direction[i], 0);
  const parts = [{ name: "token_embedding", value: along(probe.get("token_embedding").row(t)) }];
  if (config.position !== "rotary") {
    parts.push({
      name: "position_embedding",
      value: along(probe.get("position_embedding").row(t)),
    });
  }
  const width = config.n_embd / config.n_head;
  for (let i = 0; i < config.n_layer; i++) {
    for (const kind of ["attention", "cross_attention"]) {
      const name = `block_${i}.${kind}`;
      if (!probe.values.has(name)) continue;
      const output = p[`block_${i}`][kind].output;
      let rest = along(probe.get(name).row(t));
      const off = probe.off.has(name) || probe.off.has(`block_${i}`);
      for (let h = 0; h < config.n_head && !off; h++) {
        const y = new Matrix(
          1,
          width,
          probe
            .get(`${name}.heads`)
            .row(t)
            .slice(h * width, (h + 1) * width),
        );
        const value = along(multiply(y, output.kernel.slice(h * width, (h + 1) * width)).row(0));
        parts.push({ name: `${name}.${h}`, value });
        rest -= value;
      }
      if (output.bias) parts.push({ name: `${name}.bias`, value: rest });
    }
    parts.push({ name: `block_${i}.mlp`, value: along(probe.get(`block_${i}.mlp`).row(t)) });
  }
  if (headBias || finalBias) parts.push({ name: "final biases", value: biases });
  return parts;
}

/** @param {Float32Array | Float64Array} numbers */
function average(numbers) {
  let sum = 0;
  for (const x of numbers) sum += x;
  return sum / numbers.length;
}

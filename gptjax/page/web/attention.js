// Attention and its cache, as in attention.py, cross_attention.py and cache.py.
//
// A Probe, where one is given, records what is computed inside, and switches parts off.

import { linear, Matrix, rmsNormalize, rotate } from "./layers.js";

/** @typedef {import("./layers.js").Params} Params */

/**
 * The cache of one block: keys and values of all heads, and the inputs of its short convolutions.
 * @typedef {{k: Matrix, v: Matrix, attention_input: Matrix, mlp_input: Matrix,
 *   encoder: {k: Matrix, v: Matrix} | null}} BlockCache
 * @typedef {{length: number, blocks: BlockCache[]}} Cache
 */

/** Records values by name, and names the parts that are off. */
export class Probe {
  /** @param {Set<string>} [off]  names such as block_0.attention.2 (a head) and block_1.mlp */
  constructor(off = new Set()) {
    this.off = off;
    /** @type {Map<string, Matrix>} */
    this.values = new Map();
    /** @type {Map<string, Matrix[]>} attention weights (T, S), one for each head */
    this.weights = new Map();
  }

  /** @param {string} name */
  get(name) {
    return /** @type {Matrix} */ (this.values.get(name));
  }
}

/**
 * An empty cache of block_size positions for every layer of a decoder.
 * @param {any} config
 * @returns {Cache}
 */
export function emptyCache(config) {
  const make = (/** @type {number} */ n) => new Matrix(n, config.n_embd);
  const inputs = config.short_conv ? config.short_conv - 1 + config.block_size : 0;
  const block = () => ({
    k: make(config.block_size),
    v: make(config.block_size),
    attention_input: make(inputs),
    mlp_input: make(inputs),
    encoder: null,
  });
  return { length: 0, blocks: Array.from({ length: config.n_layer }, block) };
}

/**
 * softmax(q k^T / sqrt(K)) v, for every head (Vaswani et al. 2017, eq. 1).
 * If `start` is a number, row t sees sources 0 ... start + t; otherwise it sees all.
 * @param {Matrix} q
 * @param {Matrix} k
 * @param {Matrix} v
 * @param {number} nHead
 * @param {number | null} start
 * @param {Matrix[] | null} record  gets the weights of each head
 */
export function attend(q, k, v, nHead, start, record) {
  const width = q.width / nHead;
  const scale = width ** -0.5;
  const y = new Matrix(q.rows, q.width);
  for (let h = 0; h < nHead; h++) {
    const first = h * width;
    const kept = record ? new Matrix(q.rows, k.rows) : null;
    const weights = new Float32Array(k.rows);
    for (let t = 0; t < q.rows; t++) {
      const seen = start === null ? k.rows : start + t + 1;
      // A score says how well the query of t fits the key of s.
      let most = -Infinity;
      for (let s = 0; s < seen; s++) {
        let score = 0;
        const [qAt, kAt] = [t * q.width + first, s * k.width + first];
        for (let i = 0; i < width; i++) score += q.data[qAt + i] * k.data[kAt + i];
        weights[s] = score * scale;
        most = Math.max(most, weights[s]);
      }
      // The weights of a position are positive and sum to 1 ...
      let sum = 0;
      for (let s = 0; s < seen; s++) {
        weights[s] = Math.exp(weights[s] - most);
        sum += weights[s];
      }
      // ... so the result is a weighted average of the values that it sees.
      const yt = y.row(t);
      for (let s = 0; s < seen; s++) {
        const weight = weights[s] / sum;
        if (kept) kept.data[t * k.rows + s] = weight;
        const vAt = s * v.width + first;
        for (let i = 0; i < width; i++) yt[first + i] += weight * v.data[vAt + i];
      }
    }
    if (record && kept) record.push(kept);
  }
  return y;
}

/**
 * The last linear map of attention, after heads that are off were set to zero.
 * @param {any} config
 * @param {Params} p
 * @param {Matrix} y
 * @param {string} name
 * @param {Probe | null} probe
 */
function mixHeads(config, p, y, name, probe) {
  const width = config.n_embd / config.n_head;
  for (let h = 0; h < config.n_head; h++) {
    if (!probe?.off.has(`${name}.${h}`)) continue;
    for (let t = 0; t < y.rows; t++) y.row(t).fill(0, h * width, (h + 1) * width);
  }
  probe?.values.set(`${name}.heads`, y);
  return linear(p.output, y);
}

/**
 * @param {any} config
 * @param {boolean} causal
 * @param {Params} p
 * @param {Matrix} x
 * @param {BlockCache | null} cache
 * @param {number} start  positions that the cache holds
 * @param {string} name
 * @param {Probe | null} probe
 */
export function selfAttention(config, causal, p, x, cache, start, name, probe) {
  // What each position looks for, what it can be found by, and what it passes on.
  const [q, k, v] = [linear(p.query, x), linear(p.key, x), linear(p.value, x)];
  if (config.qk_norm) for (const matrix of [q, k]) rmsNormalize(matrix, config.n_head);
  if (config.position === "rotary")
    for (const matrix of [q, k]) rotate(matrix, config.n_head, start);
  let [keys, values] = [k, v];
  if (cache) {
    cache.k.slice(start, start + x.rows).data.set(k.data);
    cache.v.slice(start, start + x.rows).data.set(v.data);
    [keys, values] = [cache.k.slice(0, start + x.rows), cache.v.slice(0, start + x.rows)];
  }
  /** @type {Matrix[]} */
  const record = [];
  const y = attend(q, keys, values, config.n_head, causal ? start : null, probe ? record : null);
  if (probe) {
    probe.weights.set(name, record);
    probe.values.set(`${name}.query`, q).set(`${name}.key`, k).set(`${name}.value`, v);
  }
  return mixHeads(config, p, y, name, probe);
}

/**
 * @param {any} config
 * @param {Params} p
 * @param {Matrix} x
 * @param {Matrix | null} source  the encoder's output; null once a cache has seen it
 * @param {BlockCache | null} cache
 * @param {string} name
 * @param {Probe | null} probe
 */
export function crossAttention(config, p, x, source, cache, name, probe) {
  const q = linear(p.query, x);
  let keysValues = cache?.encoder ?? null;
  if (source) keysValues = { k: linear(p.key, source), v: linear(p.value, source) };
  if (!keysValues) throw new Error("cross-attention needs the encoder's output");
  if (config.qk_norm) {
    rmsNormalize(q, config.n_head);
    if (source) rmsNormalize(keysValues.k, config.n_head);
  }
  if (cache) cache.encoder = keysValues;
  /** @type {Matrix[]} */
  const record = [];
  const y = attend(q, keysValues.k, keysValues.v, config.n_head, null, probe ? record : null);
  probe?.weights.set(name, record);
  return mixHeads(config, p, y, name, probe);
}

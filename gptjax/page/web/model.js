// The models, as in attention.py, gpt.py, encoder_decoder.py and speech_recognizer.py.
//
// A Probe, where one is given, records what is computed inside, and switches parts off.

import {
  activate,
  addTo,
  attendToTable,
  embed,
  linear,
  Matrix,
  mlp,
  multiply,
  norm,
  rmsNormalize,
  rotate,
  shortConv,
  statistics,
} from "./layers.js";

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
function selfAttention(config, causal, p, x, cache, start, name, probe) {
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
function crossAttention(config, p, x, source, cache, name, probe) {
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

/**
 * Attention, then an MLP, each added to the residual stream x, which changes.
 * @param {any} config
 * @param {boolean} causal
 * @param {Params} p
 * @param {Matrix} x
 * @param {string} name
 * @param {{cache?: BlockCache | null, start?: number, decoder?: boolean, source?: Matrix | null,
 *   probe?: Probe | null}} given
 */
function block(
  config,
  causal,
  p,
  x,
  name,
  { cache = null, start = 0, decoder = false, source = null, probe = null },
) {
  const add = (/** @type {string} */ part, /** @type {Matrix} */ y) => {
    if (probe?.off.has(`${name}.${part}`) || probe?.off.has(name)) y.data.fill(0);
    probe?.values.set(`${name}.${part}`, y);
    addTo(x.data, y.data);
  };
  probe?.values.set(`${name}.input`, x.copy());

  // Attention: positions exchange information.
  let y = norm(config, p.attention_norm, x);
  probe?.values.set(`${name}.attention.norm`, y);
  y = shortConv(config, causal, p.attention_input, y, cache && cache.attention_input, start);
  probe?.values.set(`${name}.attention.conv`, y);
  add(
    "attention",
    selfAttention(config, causal, p.attention, y, cache, start, `${name}.attention`, probe),
  );

  if (decoder) {
    y = norm(config, p.cross_attention_norm, x);
    add(
      "cross_attention",
      crossAttention(config, p.cross_attention, y, source, cache, `${name}.cross_attention`, probe),
    );
  }

  // MLP: each position by itself.
  probe?.values.set(`${name}.middle`, x.copy());
  y = norm(config, p.mlp_norm, x);
  probe?.values.set(`${name}.mlp.norm`, y);
  y = shortConv(config, causal, p.mlp_input, y, cache && cache.mlp_input, start);
  probe?.values.set(`${name}.mlp.conv`, y);
  const { h, y: out } = mlp(config, p.mlp, y);
  probe?.values.set(`${name}.mlp.hidden`, h);
  add("mlp", out);
}

/**
 * The logits (T, V) of the next token after each token.
 * @param {any} config
 * @param {Params} p
 * @param {ArrayLike<number>} tokens
 * @param {{cache?: Cache | null, table?: Params | null, decoder?: boolean, source?: Matrix | null,
 *   probe?: Probe | null}} [given]  table: an embedding that is shared with an encoder
 */
export function gpt(
  config,
  p,
  tokens,
  { cache = null, table = null, decoder = false, source = null, probe = null } = {},
) {
  const start = cache ? cache.length : 0;
  if (start + tokens.length > config.block_size) {
    throw new Error(`${start + tokens.length} tokens do not fit block_size ${config.block_size}`);
  }
  // Turn each token into a vector, and add (or prepare to rotate by) its position.
  const embedding = table ?? p.token_embedding;
  const x = embed(embedding, tokens);
  probe?.values.set("token_embedding", x.copy());
  addPositions(config, p, x, start, probe);

  for (let i = 0; i < config.n_layer; i++) {
    const given = { cache: cache && cache.blocks[i], start, decoder, source, probe };
    block(config, true, p[`block_${i}`], x, `block_${i}`, given);
  }
  if (cache) cache.length = start + tokens.length;
  probe?.values.set("stream", x);
  return readOut(config, p, x, embedding);
}

/**
 * What a residual stream would answer: the final norm and the output head, (T, D) to (T, V).
 * @param {any} config
 * @param {Params} p
 * @param {Matrix} x
 * @param {Params} embedding
 */
export function readOut(config, p, x, embedding) {
  const y = norm(config, p.final_norm, x);
  const logits = config.tie_embeddings ? attendToTable(embedding, y) : linear(p.head, y);
  const cap = config.logit_softcap;
  if (cap)
    logits.data.forEach((logit, i) => {
      logits.data[i] = cap * Math.tanh(logit / cap);
    });
  return logits;
}

/**
 * Adds learned positions to x, if the model has them.
 * @param {any} config
 * @param {Params} p
 * @param {Matrix} x
 * @param {number} start
 * @param {Probe | null} probe
 */
function addPositions(config, p, x, start, probe) {
  if (config.position === "rotary") return;
  const positions = p.position_embedding.table.slice(start, start + x.rows);
  probe?.values.set("position_embedding", positions);
  addTo(x.data, positions.data);
}

/**
 * The blocks and the last norm of an encoder.
 * @param {any} config
 * @param {Params} p
 * @param {Matrix} x
 * @param {Probe | null} probe
 */
function encode(config, p, x, probe) {
  for (let i = 0; i < config.n_encoder_layer; i++) {
    block(config, false, p[`block_${i}`], x, `encoder.block_${i}`, { probe });
  }
  return norm(config, p.final_norm, x);
}

/**
 * The encoder of an encoder-decoder: source tokens to vectors (S, D).
 * @param {any} config
 * @param {Params} p  of the whole model
 * @param {ArrayLike<number>} source
 * @param {Probe | null} [probe]
 */
export function encoder(config, p, source, probe = null) {
  const x = embed(config.share_embeddings ? p.token_embedding : p.encoder.token_embedding, source);
  addPositions(config, p.encoder, x, 0, null);
  return encode(config, p.encoder, x, probe);
}

/**
 * The encoder of a speech recognizer: log-mel frames (T, M) of 10 ms to vectors (T / 2, D).
 * @param {any} config
 * @param {Params} p  of the whole model
 * @param {Matrix} mel
 * @param {Probe | null} [probe]
 */
export function speechEncoder(config, p, mel, probe = null) {
  const x = convolve(p.encoder.conv_2, convolve(p.encoder.conv_1, mel, 1), 2);
  if (x.rows > config.source_block_size) {
    throw new Error(`${x.rows} positions do not fit ${config.source_block_size}`);
  }
  if (config.position !== "rotary") addTo(x.data, sinusoids(x.rows, config.n_embd).data);
  return encode(config, p.encoder, x, probe);
}

/**
 * A convolution of width 3 over time, zero outside the recording, as one matmul, then a GELU.
 * @param {Params} p
 * @param {Matrix} x
 * @param {number} stride
 */
function convolve(p, x, stride) {
  const window = new Matrix(Math.ceil(x.rows / stride), 3 * x.width);
  for (let t = 0; t < window.rows; t++) {
    for (let j = 0; j < 3; j++) {
      const at = t * stride + j - 1;
      if (at >= 0 && at < x.rows) window.row(t).set(x.row(at), j * x.width);
    }
  }
  const y = linear(p, window);
  y.data.forEach((value, i) => {
    y.data[i] = activate("gelu", value);
  });
  return y;
}

/** Fixed positions (S, D): sines, then cosines. @param {number} rows @param {number} width */
function sinusoids(rows, width) {
  const x = new Matrix(rows, width);
  const half = width >> 1;
  for (let t = 0; t < rows; t++) {
    for (let i = 0; i < half; i++) {
      const angle = t * 10000 ** (-i / (half - 1));
      x.row(t)[i] = Math.sin(angle);
      x.row(t)[half + i] = Math.cos(angle);
    }
  }
  return x;
}

/**
 * What each part of the model adds to the logit of one token at row t, above the average logit.
 *
 * The final norm is linear once its statistics are held fixed, so the logit, before any soft-cap,
 * is a sum over the parts that were added to the residual stream (direct logit attribution,
 * Elhage et al. 2021).
 * @param {any} config
 * @param {Params} p
 * @param {Probe} probe  of the forward pass
 * @param {number} t
 * @param {number} token
 * @param {Params} embedding
 * @returns {{name: string, value: number}[]}
 */
export function logitAttribution(config, p, probe, t, token, embedding) {
  const { spread } = statistics(config, probe.get("stream").row(t));
  const direction = new Float64Array(config.n_embd);
  const vocabulary = config.tie_embeddings ? embedding.table.rows : p.head.kernel.width;
  for (let i = 0; i < config.n_embd; i++) {
    const at = (/** @type {number} */ v) =>
      config.tie_embeddings ? embedding.table.row(v)[i] : p.head.kernel.row(i)[v];
    let mean = 0;
    for (let v = 0; v < vocabulary; v++) mean += at(v) / vocabulary;
    direction[i] = ((at(token) - mean) * p.final_norm.scale.data[i]) / spread;
  }
  // A norm with a mean subtracts it: the same as a direction whose mean is zero.
  if (config.norm === "layernorm") {
    const mean = direction.reduce((sum, value) => sum + value, 0) / direction.length;
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
  return parts;
}

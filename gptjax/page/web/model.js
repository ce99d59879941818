// The models, as in gpt.py, encoder_decoder.py and speech_recognizer.py.

import { crossAttention, selfAttention } from "./attention.js";
import {
  activate,
  addTo,
  attendToTable,
  embed,
  linear,
  Matrix,
  mlp,
  norm,
  shortConv,
} from "./layers.js";

/** @typedef {import("./layers.js").Params} Params */
/** @typedef {import("./attention.js").Probe} Probe */
/** @typedef {import("./attention.js").Cache} Cache */
/** @typedef {import("./attention.js").BlockCache} BlockCache */

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

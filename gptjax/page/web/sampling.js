// How the next token is drawn, and how a text goes on, as in decoding/sampling.py.

import { emptyCache, Probe } from "./attention.js";
import { embed, logSoftmax, topPlaces } from "./layers.js";
import { gpt } from "./model.js";

/** @typedef {import("./layers.js").Matrix} Matrix */
/** @typedef {{temperature: number, topK: number, topP: number}} Sampler */

/** A random generator in [0, 1) with a seed (mulberry32). @param {number} seed */
export function random(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
}

/**
 * The probabilities that a token is drawn from: temperature, then top-k, then top-p.
 * @param {Float32Array} logits
 * @param {Sampler} sampler  temperature 0 takes the most likely token
 */
export function probabilities(logits, { temperature, topK, topP }) {
  if (temperature < 1e-37) {
    const p = new Float64Array(logits.length);
    p[mostLikely(logits)] = 1;
    return p;
  }
  const most = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const scaled = logits.map((logit) => (logit - most) / temperature);
  if (topK > 0 && topK < scaled.length) {
    const least = scaled.slice().sort().reverse()[topK - 1];
    scaled.forEach((x, i) => {
      if (x < least) scaled[i] = -Infinity;
    });
  }
  const p = logSoftmax(scaled).map(Math.exp);
  if (topP < 1) {
    // A token stays if those before it do not reach top-p: the first always does.
    const sorted = p.slice().sort().reverse();
    let [sum, kept] = [0, 0];
    while (kept < sorted.length && sum < topP) sum += sorted[kept++];
    const least = sorted[kept - 1];
    p.forEach((x, i) => {
      if (x < least) p[i] = 0;
    });
  }
  const total = p.reduce((a, b) => a + b, 0);
  return p.map((x) => x / total);
}

/** @param {Float32Array} logits */
export function mostLikely(logits) {
  let best = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i;
  return best;
}

/** The n likeliest tokens. @param {Float64Array} logP @param {number} n */
export function likeliest(logP, n) {
  return topPlaces(logP, n).map((id) => ({ id, p: Math.exp(logP[id]) }));
}

/** @param {Float64Array} p @param {number} draw  in [0, 1) */
export function choose(p, draw) {
  let [sum, last] = [0, 0];
  for (let i = 0; i < p.length; i++) {
    if (p[i] === 0) continue;
    sum += p[i];
    last = i;
    if (draw < sum) return i;
  }
  return last;
}

/**
 * A text that grows. The cache holds block_size tokens. When it is full, the last half of it is
 * read again, with new positions; see decoding/sampling.py.
 */
export class Writer {
  /**
   * @param {any} config
   * @param {import("./layers.js").Params} params
   * @param {number[]} tokens  at least one
   * @param {Set<string>} [off]  parts that are switched off
   */
  constructor(config, params, tokens, off = new Set()) {
    this.config = config;
    this.params = params;
    this.off = off;
    this.tokens = tokens.slice();
    /** @type {Float32Array} logits of the next token */
    this.logits = new Float32Array();
    /** @type {Matrix | null} logits after each token of the prompt's window, until a token is written */
    this.prompt = this.read(tokens.slice(-config.block_size));
  }

  /** The logits after each token of a window. @param {number[]} window */
  read(window) {
    const isBigram = this.config.type === "BigramConfig";
    if (!isBigram) this.cache = emptyCache(this.config);
    const logits = isBigram ? embed(this.params.table, window) : this.compute(window);
    this.logits = logits.row(logits.rows - 1);
    return logits;
  }

  /** @param {number[]} tokens */
  compute(tokens) {
    const probe = this.off.size ? new Probe(this.off) : null;
    return gpt(this.config, this.params, tokens, { cache: this.cache, probe });
  }

  /** Appends a token and computes the next logits. @param {number} token */
  append(token) {
    this.tokens.push(token);
    this.prompt = null; // of a large vocabulary, these are many numbers
    const { config, cache } = this;
    if (!cache) this.read([token]);
    else if (cache.length < config.block_size) this.logits = this.compute([token]).row(0);
    else this.read(this.tokens.slice(-Math.max(1, config.block_size >> 1)));
  }
}

/**
 * The logits of the next token after each token of a text, and its mean loss in nats per token: NaN
 * if it has one token, which nothing predicts.
 * @param {any} config
 * @param {import("./layers.js").Params} params
 * @param {number[]} tokens  at most block_size
 * @param {import("./attention.js").Probe | null} [probe]
 */
export function readText(config, params, tokens, probe = null) {
  const logits =
    config.type === "BigramConfig"
      ? embed(params.table, tokens)
      : gpt(config, params, tokens, { probe });
  let sum = 0;
  for (let t = 1; t < tokens.length; t++) sum -= logSoftmax(logits.row(t - 1))[tokens[t]];
  return { logits, loss: sum / (tokens.length - 1) };
}

/**
 * The most likely target of an encoder's output, token by token, each with the log-probabilities
 * that it was taken from. The last one is the end token, unless the decoder has no more room.
 * @param {any} config
 * @param {import("./layers.js").Params} decoder  parameters of the decoder
 * @param {import("./layers.js").Params | null} table  an embedding shared with the encoder
 * @param {Matrix} source  the encoder's output
 * @param {{start_ids: number[], end: number}} ends  tokens before a target, and the one after it
 * @param {number[]} [first]  tokens that the target has to begin with
 * @returns {Generator<{id: number, logP: Float64Array}>}
 */
export function* transduce(config, decoder, table, source, { start_ids: start, end }, first = []) {
  const given = { cache: emptyCache(config), table, decoder: true };
  let logits = gpt(config, decoder, start, { ...given, source });
  for (let n = 0; ; n++) {
    const last = logits.row(logits.rows - 1);
    const id = first[n] ?? mostLikely(last);
    yield { id, logP: logSoftmax(last) };
    if (id === end || given.cache.length === config.block_size) return;
    logits = gpt(config, decoder, [id], given);
  }
}

/**
 * The cross-attention of a target, (T, S) for every head of every layer, layer by layer. Row t is
 * of the choice of token t.
 * @param {any} config
 * @param {import("./layers.js").Params} decoder
 * @param {import("./layers.js").Params | null} table
 * @param {import("./layers.js").Matrix} source
 * @param {number[]} start
 * @param {number[]} ids  of the target, with its end token if it has one
 */
export function crossWeights(config, decoder, table, source, start, ids) {
  const probe = new Probe();
  const tokens = [...start, ...ids.slice(0, -1)];
  gpt(config, decoder, tokens, { table, decoder: true, source, probe });
  const layers = Array.from({ length: config.n_layer }, (_, i) =>
    probe.weights.get(`block_${i}.cross_attention`),
  );
  return layers.flatMap((heads) =>
    (heads ?? []).map((weights) => weights.slice(start.length - 1, weights.rows)),
  );
}

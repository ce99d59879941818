// The simple parts of a Transformer, as in layers.py, rotary.py and short_conv.py.
//
// A sequence of T vectors of width D is a Matrix of T rows. There is no batch: a page computes one
// sequence at a time. A parameter is a Matrix too; a vector has one row.

/** Rows of float32 numbers, one after the other. */
export class Matrix {
  /**
   * @param {number} rows
   * @param {number} width
   * @param {Float32Array} [data]
   */
  constructor(rows, width, data = new Float32Array(rows * width)) {
    this.rows = rows;
    this.width = width;
    this.data = data;
  }

  /** One row, not copied. @param {number} i */
  row(i) {
    return this.data.subarray(i * this.width, (i + 1) * this.width);
  }

  /** Rows first ... end - 1, not copied. @param {number} first @param {number} end */
  slice(first, end) {
    const data = this.data.subarray(first * this.width, end * this.width);
    return new Matrix(end - first, this.width, data);
  }

  copy() {
    return new Matrix(this.rows, this.width, this.data.slice());
  }
}

/**
 * Parameters by name, as in Flax: params.block_0.attention.query.kernel.
 * @typedef {{[name: string]: any}} Params
 */

/**
 * x W: (T, K) times (K, N) gives (T, N). Four rows of W at a time, which halves the reads of y.
 * Zeros of x are skipped: after a ReLU most of them are.
 * @param {Matrix} x
 * @param {Matrix} w
 */
export function multiply(x, w) {
  const [n, k, m] = [x.rows, x.width, w.width];
  const y = new Matrix(n, m);
  const weights = w.data;
  const used = new Int32Array(k);
  for (let t = 0; t < n; t++) {
    const xt = x.row(t);
    const yt = y.row(t);
    let nUsed = 0;
    for (let i = 0; i < k; i++) if (xt[i] !== 0) used[nUsed++] = i;
    let u = 0;
    for (; u + 4 <= nUsed; u += 4) {
      const [i0, i1, i2, i3] = [used[u], used[u + 1], used[u + 2], used[u + 3]];
      const [a, b, c, d] = [xt[i0], xt[i1], xt[i2], xt[i3]];
      const [o0, o1, o2, o3] = [i0 * m, i1 * m, i2 * m, i3 * m];
      for (let j = 0; j < m; j++) {
        yt[j] +=
          a * weights[o0 + j] + b * weights[o1 + j] + c * weights[o2 + j] + d * weights[o3 + j];
      }
    }
    for (; u < nUsed; u++) {
      const [a, o] = [xt[used[u]], used[u] * m];
      for (let j = 0; j < m; j++) yt[j] += a * weights[o + j];
    }
  }
  return y;
}

/** y = x W + b. @param {Params} p @param {Matrix} x */
export function linear(p, x) {
  const y = multiply(x, p.kernel);
  if (p.bias) {
    for (let t = 0; t < y.rows; t++) addTo(y.row(t), p.bias.data);
  }
  return y;
}

/** y += x. @param {Float32Array} y @param {Float32Array} x */
export function addTo(y, x) {
  for (let i = 0; i < y.length; i++) y[i] += x[i];
}

/**
 * (x - mean) / sqrt(variance + 1e-5) * scale + bias; RMSNorm has neither mean nor bias.
 * @param {any} config
 * @param {Params} p
 * @param {Matrix} x
 */
export function norm(config, p, x) {
  const y = new Matrix(x.rows, x.width);
  for (let t = 0; t < x.rows; t++) {
    const { mean, spread } = statistics(config, x.row(t));
    const [xt, yt] = [x.row(t), y.row(t)];
    for (let i = 0; i < x.width; i++) {
      yt[i] = ((xt[i] - mean) / spread) * p.scale.data[i] + (p.bias ? p.bias.data[i] : 0);
    }
  }
  return y;
}

/**
 * What a norm subtracts from a vector, and what it divides by.
 * @param {any} config
 * @param {Float32Array} x
 */
export function statistics(config, x) {
  let [sum, squares] = [0, 0];
  if (config.norm === "layernorm") for (const value of x) sum += value;
  const mean = sum / x.length;
  for (const value of x) squares += (value - mean) ** 2;
  return { mean, spread: Math.sqrt(squares / x.length + 1e-5) };
}

/** Every head's part of every row divided by its root mean square. @param {Matrix} x @param {number} nHead */
export function rmsNormalize(x, nHead) {
  const width = x.width / nHead;
  for (let first = 0; first < x.data.length; first += width) {
    let squares = 0;
    for (let i = first; i < first + width; i++) squares += x.data[i] ** 2;
    const spread = Math.sqrt(squares / width + 1e-5);
    for (let i = first; i < first + width; i++) x.data[i] /= spread;
  }
}

/** The rows of a table. @param {Params} p @param {ArrayLike<number>} ids */
export function embed(p, ids) {
  const y = new Matrix(ids.length, p.table.width);
  for (let t = 0; t < ids.length; t++) y.row(t).set(p.table.row(ids[t]));
  return y;
}

/** The table as an output head: (T, D) to (T, rows). @param {Params} p @param {Matrix} x */
export function attendToTable(p, x) {
  const y = new Matrix(x.rows, p.table.rows);
  for (let t = 0; t < x.rows; t++) {
    for (let v = 0; v < p.table.rows; v++) y.row(t)[v] = dot(x.row(t), p.table.row(v));
  }
  return y;
}

/** @param {Float32Array} x @param {Float32Array} y */
export function dot(x, y) {
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += x[i] * y[i];
  return sum;
}

/** Two linear maps with a non-linearity between them. @param {any} config @param {Params} p @param {Matrix} x */
export function mlp(config, p, x) {
  const h = linear(p.hidden, x);
  if (config.activation === "swiglu") {
    const gate = linear(p.gate, x);
    for (let i = 0; i < h.data.length; i++)
      h.data[i] *= gate.data[i] / (1 + Math.exp(-gate.data[i]));
  } else {
    h.data.forEach((value, i) => {
      h.data[i] = activate(config.activation, value);
    });
  }
  return { h, y: linear(p.output, h) };
}

/** @param {string} name @param {number} x */
export function activate(name, x) {
  switch (name) {
    case "relu":
      return Math.max(0, x);
    case "relu2":
      return Math.max(0, x) ** 2;
    case "gelu":
      return 0.5 * x * (1 + erf(x / Math.SQRT2));
    case "gelu_tanh":
      return 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));
  }
  throw new Error(`unknown activation ${name}`);
}

/** The error function, to 2e-7 (Abramowitz & Stegun 1964, 7.1.26). @param {number} x */
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const factors = [1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592];
  const y = 1 - factors.reduce((sum, factor) => sum * t + factor, 0) * t * Math.exp(-x * x);
  return Math.sign(x) * y;
}

/**
 * Rotates each pair (x_i, x_(i + K/2)) of every head by its position's angle. Changes x.
 * @param {Matrix} x
 * @param {number} nHead
 * @param {number} start  position of the first row
 */
export function rotate(x, nHead, start) {
  const width = x.width / nHead;
  const half = width >> 1;
  for (let t = 0; t < x.rows; t++) {
    const row = x.row(t);
    for (let i = 0; i < half; i++) {
      const angle = (start + t) * 10000 ** (-i / half);
      const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
      for (let at = i; at < x.width; at += width) {
        const [a, b] = [row[at], row[at + half]];
        row[at] = a * cos - b * sin;
        row[at + half] = a * sin + b * cos;
      }
    }
  }
}

/**
 * y_t = x_t + sum_j w_j x_(t-j) per channel: every position sees its neighbours.
 * @param {any} config
 * @param {boolean} causal
 * @param {Params | undefined} p
 * @param {Matrix} x
 * @param {Matrix | null} earlier  a cache's inputs, after W - 1 rows of zeros; x is written into it
 * @param {number} start  positions before x in the cache
 */
export function shortConv(config, causal, p, x, earlier, start) {
  if (!config.short_conv || !p) return x;
  const nAfter = causal ? 0 : (config.short_conv - 1) >> 1;
  const nBefore = config.short_conv - 1 - nAfter;
  const y = x.copy();
  if (earlier) earlier.slice(nBefore + start, nBefore + start + x.rows).data.set(x.data);
  for (let t = 0; t < x.rows; t++) {
    for (let j = -nAfter; j <= nBefore; j++) {
      if (j === 0) continue;
      const inside = t - j >= 0 && t - j < x.rows;
      if (!inside && !(earlier && t - j < 0)) continue;
      const neighbour = inside
        ? x.row(t - j)
        : /** @type {Matrix} */ (earlier).row(nBefore + start + t - j);
      const w = p[`w_${j}`].data;
      const yt = y.row(t);
      for (let i = 0; i < x.width; i++) yt[i] += w[i] * neighbour[i];
    }
  }
  return y;
}

/**
 * Log-probabilities of logits, in float64. @param {Float32Array} logits
 */
export function logSoftmax(logits) {
  let most = -Infinity;
  for (const logit of logits) most = Math.max(most, logit);
  let sum = 0;
  for (const logit of logits) sum += Math.exp(logit - most);
  const log = most + Math.log(sum);
  return Float64Array.from(logits, (logit) => logit - log);
}

/** The places of the n largest numbers, the largest first. @param {Float32Array | Float64Array} numbers @param {number} n */
export function topPlaces(numbers, n) {
  return [...numbers.keys()].sort((a, b) => numbers[b] - numbers[a]).slice(0, n);
}

// When each word is spoken, from cross-attention, as in decoding/word_alignment.py.

import { Matrix } from "./layers.js";

export const POSITION_SECONDS = 0.02;
const N_ALIGNMENT_HEADS = 2;
const MIN_WEIGHT = 0.1;

/**
 * The mean (T, S) of the heads that follow the sound from left to right best.
 * @param {Matrix[]} heads
 */
export function meanOfAlignmentHeads(heads) {
  const share = (/** @type {Matrix} */ weights) => {
    const onPath = monotonicPath(weights).reduce((sum, t, s) => sum + weights.row(t)[s], 0);
    return onPath / weights.data.reduce((a, b) => a + b, 0);
  };
  const shares = heads.map(share);
  const order = [...heads.keys()].sort((a, b) => shares[b] - shares[a]);
  return meanOfHeads(order.slice(0, N_ALIGNMENT_HEADS).map((i) => heads[i]));
}

/** @param {Matrix[]} heads */
export function meanOfHeads(heads) {
  const mean = new Matrix(heads[0].rows, heads[0].width);
  for (const { data } of heads) {
    data.forEach((x, i) => {
      mean.data[i] += x / heads.length;
    });
  }
  return mean;
}

/**
 * The token of every position, with the largest sum of weights; it moves on by 0 or 1 tokens.
 * @param {Matrix} weights  (T, S)
 * @returns {number[]}
 */
export function monotonicPath(weights) {
  const [nTarget, nSource] = [weights.rows, weights.width];
  let score = new Float64Array(nTarget).fill(-Infinity);
  score[0] = 0;
  /** @type {boolean[][]} */
  const moved = [];
  for (let s = 0; s < nSource; s++) {
    const next = new Float64Array(nTarget);
    moved.push([]);
    for (let t = 0; t < nTarget; t++) {
      const previous = t ? score[t - 1] : -Infinity;
      moved[s][t] = previous > score[t];
      next[t] = (s ? Math.max(score[t], previous) : score[t]) + weights.row(t)[s];
    }
    score = next;
  }
  let t = score.findLastIndex(Number.isFinite);
  const path = new Array(nSource);
  for (let s = nSource - 1; s >= 0; s--) {
    path[s] = t;
    if (s && moved[s][t]) t--;
  }
  return path;
}

/**
 * A word with its times in seconds, and its first and last token.
 * @typedef {{text: string, start: number, end: number, first: number, last: number}} Word
 */

/**
 * The words of a text with their times.
 * @param {string[]} pieces  the text of each token
 * @param {Matrix} weights  (T + 1, S): the last row is of the end token
 */
export function wordTimes(pieces, weights) {
  const tokenOf = monotonicPath(weights);
  /** @type {Word[]} */
  const words = [];
  let [text, first] = ["", 0];
  pieces.forEach((piece, last) => {
    text += piece;
    // A word ends before a token that starts with a space.
    if (last + 1 < pieces.length && !/^\s/.test(pieces[last + 1])) return;
    if (text.trim()) {
      const [from, to] = span(tokenOf, weights, first, last);
      const [start, end] = [from * POSITION_SECONDS, to * POSITION_SECONDS];
      words.push({ text: text.trim(), start, end, first, last });
    }
    [text, first] = ["", last + 1];
  });
  return words;
}

/**
 * The positions from ... to - 1 of the tokens first ... last.
 * @param {number[]} tokenOf
 * @param {Matrix} weights
 * @param {number} first
 * @param {number} last
 */
function span(tokenOf, weights, first, last) {
  const positions = [...tokenOf.keys()].filter((s) => tokenOf[s] >= first && tokenOf[s] <= last);
  if (!positions.length) {
    // There are more tokens than positions.
    const at = tokenOf.filter((t) => t < first).length;
    return [at, at];
  }
  const most = positions.map((s) => {
    let weight = 0;
    for (let t = first; t <= last; t++) weight = Math.max(weight, weights.row(t)[s]);
    return weight;
  });
  const least = MIN_WEIGHT * Math.max(...most);
  const strong = positions.filter((_, j) => most[j] >= least);
  return [strong[0], strong[strong.length - 1] + 1];
}

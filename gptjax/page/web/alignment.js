// When each word is spoken, from cross-attention, as in decoding/word_alignment.py.

import { Matrix } from "./layers.js";

const POSITION_SECONDS = 0.02;
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
  const ranked = heads.map((weights, i) => ({ weights, i, share: share(weights) }));
  ranked.sort((a, b) => b.share - a.share || a.i - b.i);
  const best = ranked.slice(0, N_ALIGNMENT_HEADS);
  const mean = new Matrix(heads[0].rows, heads[0].width);
  for (const { weights } of best)
    weights.data.forEach((x, i) => {
      mean.data[i] += x / best.length;
    });
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
 * Words with their times in seconds.
 * @param {string[]} pieces  the text of each token
 * @param {Matrix} weights  (T + 1, S): the last row is of the end token
 */
export function wordTimes(pieces, weights) {
  const tokenOf = monotonicPath(weights);
  const words = [];
  let [text, begin] = ["", 0];
  for (let i = 0; i < pieces.length; i++) {
    text += pieces[i];
    if (i + 1 < pieces.length && !/^\s/.test(pieces[i + 1])) continue;
    const positions = [...tokenOf.keys()].filter((s) => tokenOf[s] >= begin && tokenOf[s] <= i);
    if (text.trim() && positions.length) {
      const most = positions.map((s) => {
        let weight = 0;
        for (let t = begin; t <= i; t++) weight = Math.max(weight, weights.row(t)[s]);
        return weight;
      });
      const least = MIN_WEIGHT * Math.max(...most);
      const strong = positions.filter((_, j) => most[j] >= least);
      words.push({
        text: text.trim(),
        start: strong[0] * POSITION_SECONDS,
        end: (strong[strong.length - 1] + 1) * POSITION_SECONDS,
      });
    }
    [text, begin] = ["", i + 1];
  }
  return words;
}

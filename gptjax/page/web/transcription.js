// A recording to text, as in decoding/transcription.py, for one window of it.

import { meanOfAlignmentHeads, wordTimes } from "./alignment.js";
import { features, HOP, SAMPLE_RATE, WINDOW } from "./audio.js";
import { Matrix } from "./layers.js";
import { speechEncoder } from "./model.js";
import { crossWeights, transduce } from "./sampling.js";

const OVERLAP = 0.25;
const [MIN_REPETITIONS, LONGEST_REPETITION] = [4, 30];
/** Clips with no louder sample (-80 dB) are silent: recordings of speech have louder noise. */
const SILENT = 1e-4;
/** Share of the loudest 20 ms. Quieter ends are pauses, of which MARGIN_SECONDS stay. */
const QUIET = 10 ** (-35 / 20);
const MARGIN_SECONDS = 0.2;
/** Of fast speech: it limits a window to what the decoder has room to write. */
const TOKENS_PER_SECOND = /** @type {{[type: string]: number}} */ ({ word: 2, char: 12, byte: 12 });
const SUBWORDS_PER_SECOND = 4;

/**
 * What was heard. first, end: the samples that were read. mel: (T, M). ids: of the text, and the
 * end token if it came. heads: cross-attention (T, S) of every head, row t of ids[t]. onPath: the
 * mean of the heads that the times are from. Times count from the start of the recording.
 * @typedef {{first: number, end: number, mel: Matrix, text: string, ids: number[],
 *   heads: Matrix[], onPath: Matrix | null, words: import("./alignment.js").Word[]}} Heard
 */

/**
 * The text of the first window of a recording, and when each word was spoken.
 * @param {import("./page.js").Run} run
 * @param {Float32Array} samples
 * @returns {Heard}
 */
export function transcribe({ config, params, tokenizer, contents }, samples) {
  const [first, end] = firstWindow(samples, longestWindow(config, contents.tokenizer));
  const part = samples.subarray(first, end);
  const nothing = { text: "", ids: [], heads: [], onPath: null, words: [] };
  if (part.length < WINDOW || part.every((x) => Math.abs(x) <= SILENT)) {
    return { first, end, mel: new Matrix(0, config.n_mels), ...nothing };
  }
  const nFrames = Math.min(Math.floor(part.length / HOP), 2 * config.source_block_size);
  const mel = features(config, part);
  const source = speechEncoder(config, params, mel);
  const { tokenizer: ends } = contents;
  let ids = [...transduce(config, params.decoder, null, source, ends)].map(({ id }) => id);
  const hasEnd = ids[ids.length - 1] === ends.end;
  if (!hasEnd) ids = cutRepetitions(ids);
  const words = hasEnd ? ids.slice(0, -1) : ids;
  const heard = { first, end, mel: mel.slice(0, nFrames) };
  if (!words.length) return { ...heard, ...nothing };
  // Where repetitions were cut off, the decoder has room for the end token.
  const room = config.block_size - ends.start_ids.length + 1;
  const rows = [...words, ends.end].slice(0, room);
  const weights = crossWeights(config, params.decoder, null, source, ends.start_ids, rows);
  const heads = weights.map((of) => columns(of, (nFrames + 1) >> 1));
  const onPath = meanOfAlignmentHeads(heads);
  const pieces = tokenizer.pieces(words);
  const offset = first / SAMPLE_RATE;
  const timed = wordTimes(pieces, onPath).map((word) => ({
    ...word,
    start: word.start + offset,
    end: Math.min(word.end + offset, end / SAMPLE_RATE),
  }));
  return { ...heard, text: pieces.join("").trim(), ids: rows, heads, onPath, words: timed };
}

/** The first n columns. @param {Matrix} x @param {number} n */
function columns(x, n) {
  const y = new Matrix(x.rows, n);
  for (let t = 0; t < x.rows; t++) y.row(t).set(x.row(t).subarray(0, n));
  return y;
}

/** Samples of a window. @param {any} config @param {any} saved  the tokenizer of the page */
export function longestWindow(config, saved) {
  const room = config.block_size - saved.start_ids.length;
  const seconds = room / (TOKENS_PER_SECOND[saved.target.type] ?? SUBWORDS_PER_SECOND);
  return Math.min(2 * config.source_block_size * HOP, Math.trunc(seconds * SAMPLE_RATE));
}

/**
 * [first, end] of the first window, which ends at a quiet place if the recording goes on.
 * @param {Float32Array} samples
 * @param {number} longest
 */
export function firstWindow(samples, longest) {
  const [first, end] = trimPauses(samples, 0, samples.length);
  if (end - first <= longest) return [first, end];
  const shared = Math.trunc(longest * OVERLAP);
  const stop = first + longest;
  return trimPauses(samples, first, quietestPlace(samples, stop - (shared >> 1), stop));
}

/**
 * [first, end] without the long pauses at both ends.
 * @param {Float32Array} samples
 * @param {number} first
 * @param {number} end
 */
function trimPauses(samples, first, end) {
  const [n, margin] = [SAMPLE_RATE / 50, MARGIN_SECONDS * SAMPLE_RATE];
  if (end - first < n) return [first, end];
  const loudness = [];
  for (let at = first; at + n <= end; at += n) {
    loudness.push(Math.sqrt(samples.subarray(at, at + n).reduce((sum, x) => sum + x * x, 0) / n));
  }
  const least = QUIET * loudness.reduce((a, b) => Math.max(a, b));
  const [from, to] = [
    loudness.findIndex((x) => x >= least),
    loudness.findLastIndex((x) => x >= least),
  ];
  return [Math.max(first, first + n * from - margin), Math.min(end, first + n * to + n + margin)];
}

/**
 * The middle of the quietest 100 ms between two samples.
 * @param {Float32Array} samples
 * @param {number} first
 * @param {number} end
 */
function quietestPlace(samples, first, end) {
  const n = Math.min(SAMPLE_RATE / 10, end - first);
  let power = samples.subarray(first, first + n).reduce((sum, x) => sum + x * x, 0);
  let [least, best] = [power, first];
  for (let at = first; at + n < end; at++) {
    power += samples[at + n] ** 2 - samples[at] ** 2;
    if (power < least) [least, best] = [power, at + 1];
  }
  return best + (n >> 1);
}

/** Without a tail that is a loop of the model, not speech. @param {number[]} ids */
function cutRepetitions(ids) {
  const longest = Math.min(LONGEST_REPETITION, Math.floor(ids.length / MIN_REPETITIONS));
  for (let n = 1; n <= longest; n++) {
    let repeated = 0;
    while (repeated + n < ids.length && ids.at(-1 - repeated) === ids.at(-1 - repeated - n)) {
      repeated++;
    }
    const nRepeats = 1 + Math.floor(repeated / n);
    if (nRepeats >= MIN_REPETITIONS) return ids.slice(0, ids.length - (nRepeats - 1) * n);
  }
  return ids;
}

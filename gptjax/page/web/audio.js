// Sound as a log-mel spectrogram, as in data/audio.py. Samples are at 16 kHz, in [-1, 1].

import { Matrix, multiply } from "./layers.js";

export const SAMPLE_RATE = 16000;
export const [WINDOW, HOP] = [400, 160];

/** Triangular filters (WINDOW / 2 + 1, M) on Slaney's mel scale. @param {number} nMels */
export function melFilters(nMels) {
  const step = Math.log(6.4) / 27;
  const toHz = (/** @type {number} */ mel) =>
    mel < 15 ? (200 / 3) * mel : 1000 * Math.exp(step * (mel - 15));
  const top = 15 + Math.log(SAMPLE_RATE / 2000) / step;
  const edges = Array.from({ length: nMels + 2 }, (_, i) => toHz((top * i) / (nMels + 1)));
  const filters = new Matrix(WINDOW / 2 + 1, nMels);
  for (let f = 0; f < filters.rows; f++) {
    const hz = (f * SAMPLE_RATE) / WINDOW;
    for (let m = 0; m < nMels; m++) {
      const [low, middle, high] = edges.slice(m, m + 3);
      const height = Math.min((hz - low) / (middle - low), (high - hz) / (high - middle));
      filters.row(f)[m] = (Math.max(0, height) * 2) / (high - low);
    }
  }
  return filters;
}

/**
 * What the model sees of a recording: (T, M), a frame for every 10 ms.
 * @param {any} config
 * @param {Float32Array} samples
 */
export function features(config, samples) {
  const padsWithSilence = config.pad_source;
  const nFrames = padsWithSilence
    ? 2 * config.source_block_size
    : Math.max(1, Math.floor(samples.length / HOP));
  // The end of the sound reaches into two more frames; they count for the loudest value.
  const nMore = padsWithSilence ? 0 : 2;
  const padded = new Float32Array(
    padsWithSilence ? nFrames * HOP : Math.max(samples.length, nFrames * HOP) + WINDOW,
  );
  padded.set(samples.subarray(0, padded.length));
  const mirrored = (/** @type {number} */ i) => {
    if (i < 0) return padded[-i];
    return i < padded.length ? padded[i] : padded[2 * padded.length - 2 - i];
  };
  const frames = new Matrix(nFrames + nMore, WINDOW);
  for (let t = 0; t < frames.rows; t++) {
    for (let i = 0; i < WINDOW; i++) {
      const hann = 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / WINDOW);
      frames.row(t)[i] = hann * mirrored(HOP * t + i - WINDOW / 2);
    }
  }
  const mel = multiply(power(frames), melFilters(config.n_mels));
  const log = mel.data.map((x) => Math.log10(Math.max(x, 1e-10)));
  const loudest = (/** @type {Float32Array} */ of) => of.reduce((a, b) => Math.max(a, b));
  const [least, most] = [loudest(log) - 8, longestFrames(config, nFrames) * config.n_mels];
  // Volume carries no words: the loudest value becomes 1, unless the model pads like Whisper.
  const shift = padsWithSilence ? 0 : 1 - (loudest(log.subarray(0, most)) + 4) / 4;
  const kept = log.subarray(0, nFrames * config.n_mels);
  return new Matrix(
    nFrames,
    config.n_mels,
    kept.map((x) => (Math.max(x, least) + 4) / 4 + shift),
  );
}

/** Frames that count for the loudest one: at most the window. @param {any} config @param {number} n */
function longestFrames(config, n) {
  return Math.min(n + 2, 2 * config.source_block_size);
}

/** Power of every frequency: (T, WINDOW) to (T, WINDOW / 2 + 1). @param {Matrix} frames */
function power(frames) {
  const [cos, sin] = [new Matrix(WINDOW, WINDOW / 2 + 1), new Matrix(WINDOW, WINDOW / 2 + 1)];
  for (let i = 0; i < WINDOW; i++) {
    for (let f = 0; f < cos.width; f++) {
      const angle = (2 * Math.PI * ((i * f) % WINDOW)) / WINDOW;
      cos.row(i)[f] = Math.cos(angle);
      sin.row(i)[f] = Math.sin(angle);
    }
  }
  const [real, imaginary] = [multiply(frames, cos), multiply(frames, sin)];
  const squares = real.data.map((x, i) => x * x + imaginary.data[i] ** 2);
  return new Matrix(frames.rows, cos.width, squares);
}

/** Samples of a bundled clip: 16-bit integers in base64. @param {string} text */
export function unpackClip(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return Float32Array.from(new Int16Array(bytes.buffer), (x) => x / 32767);
}

/**
 * The samples of a sound file, its channels averaged. Rejects if the browser cannot decode it.
 * @param {ArrayBuffer} bytes
 */
export async function decodeSound(bytes) {
  const sound = await new OfflineAudioContext(1, 1, SAMPLE_RATE).decodeAudioData(bytes);
  const samples = new Float32Array(sound.length);
  for (let c = 0; c < sound.numberOfChannels; c++) {
    sound.getChannelData(c).forEach((x, i) => {
      samples[i] += x / sound.numberOfChannels;
    });
  }
  return samples;
}

/** A WAV file, for an audio element. @param {Float32Array} samples */
export function wavFile(samples) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const write = (/** @type {number} */ at, /** @type {string} */ text) =>
    Array.from(text).forEach((c, i) => {
      view.setUint8(at + i, c.charCodeAt(0));
    });
  write(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  write(8, "WAVEfmt ");
  // 16 bytes follow: PCM, one channel, rate, bytes a second, bytes and bits of a sample.
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, SAMPLE_RATE, true);
  view.setUint32(28, 2 * SAMPLE_RATE, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  write(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((x, i) => {
    view.setInt16(44 + 2 * i, 32767 * Math.max(-1, Math.min(1, x)), true);
  });
  return new Blob([view.buffer], { type: "audio/wav" });
}

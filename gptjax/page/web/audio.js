// Sound as a log-mel spectrogram, as in data/audio.py. Samples are at 16 kHz, in [-1, 1].

import { Matrix, multiply } from "./layers.js";

export const SAMPLE_RATE = 16000;
const [WINDOW, HOP] = [400, 160];

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
  const padded = new Float32Array(
    padsWithSilence ? nFrames * HOP : Math.max(samples.length, nFrames * HOP) + WINDOW,
  );
  padded.set(samples.subarray(0, padded.length));
  const mirrored = (/** @type {number} */ i) => {
    if (i < 0) return padded[-i];
    return i < padded.length ? padded[i] : padded[2 * padded.length - 2 - i];
  };
  const frames = new Matrix(nFrames, WINDOW);
  for (let t = 0; t < nFrames; t++) {
    for (let i = 0; i < WINDOW; i++) {
      const hann = 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / WINDOW);
      frames.row(t)[i] = hann * mirrored(HOP * t + i - WINDOW / 2);
    }
  }
  const [cos, sin] = [new Matrix(WINDOW, WINDOW / 2 + 1), new Matrix(WINDOW, WINDOW / 2 + 1)];
  for (let i = 0; i < WINDOW; i++) {
    for (let f = 0; f < cos.width; f++) {
      const angle = (2 * Math.PI * ((i * f) % WINDOW)) / WINDOW;
      cos.row(i)[f] = Math.cos(angle);
      sin.row(i)[f] = Math.sin(angle);
    }
  }
  const [real, imaginary] = [multiply(frames, cos), multiply(frames, sin)];
  const power = new Matrix(
    nFrames,
    cos.width,
    real.data.map((x, i) => x * x + imaginary.data[i] ** 2),
  );
  const mel = multiply(power, melFilters(config.n_mels));
  const log = mel.data.map((x) => Math.log10(Math.max(x, 1e-10)));
  const loudest = log.reduce((a, b) => Math.max(a, b), -Infinity);
  // Volume carries no words: the loudest value becomes 1, unless the model pads like Whisper.
  const shift = padsWithSilence ? 0 : 1 - (loudest + 4) / 4;
  return new Matrix(
    nFrames,
    config.n_mels,
    log.map((x) => (Math.max(x, loudest - 8) + 4) / 4 + shift),
  );
}

// A recording over time: its spectrogram, its words, and what the tokens looked at.

import { el, heatmap, largest } from "./drawing.js";
import { Matrix } from "./layers.js";

/** Log-mel values span 8 powers of ten, divided by 4. */
const RANGE = 2;

/**
 * @param {Matrix} mel  (T, M), a frame for every 10 ms
 * @param {string} label
 */
export function spectrogram(mel, label) {
  const picture = new Matrix(mel.width, mel.rows);
  const most = mel.data.reduce((a, b) => Math.max(a, b), -Infinity);
  for (let t = 0; t < mel.rows; t++) {
    mel.row(t).forEach((x, band) => {
      // High bands on top. The cube keeps noise pale.
      const share = 1 - (most - x) / RANGE;
      picture.row(mel.width - 1 - band)[t] = share ** 3;
    });
  }
  const canvas = heatmap(picture, label);
  canvas.className = "spectrogram";
  return canvas;
}

/** Words, and a ruler in seconds, under a spectrogram. */
export class Timeline {
  /**
   * @param {import("./transcription.js").Heard} heard
   * @param {number} rate  samples in a second
   * @param {string[]} names  of the tokens
   * @param {(word: number) => void} select
   * @param {(word: number) => void} play
   */
  constructor(heard, rate, names, select, play) {
    this.start = heard.first / rate;
    this.seconds = (heard.end - heard.first) / rate;
    this.words = heard.words;
    const end = (this.start + this.seconds).toFixed(2);
    const label = `spectrogram from ${this.start.toFixed(2)} to ${end} seconds, low tones below`;
    this.head = el("div", { class: "playhead hidden" });
    this.band = el("div", { class: "band hidden" });
    this.buttons = heard.words.map((word, i) => {
      const times = `${word.start.toFixed(2)} to ${word.end.toFixed(2)} seconds`;
      const on = () => select(i);
      return el(
        "button",
        {
          style: this.place(word),
          title: times,
          onclick: () => play(i),
          onfocus: on,
          onmouseenter: on,
        },
        word.text,
      );
    });
    this.map = el("div", { class: "map-over-time" });
    this.labels = names.map((name) => el("span", {}, name));
    const height = Math.min(1.4, 36 / Math.max(1, names.length));
    const tokens = el("div", { class: "names", style: `--row: ${height}rem` }, ...this.labels);
    if (height < 0.8) tokens.classList.add("small");
    this.map.style.height = `${height * names.length}rem`;
    const picture = el(
      "div",
      { class: "over-time" },
      spectrogram(heard.mel, label),
      this.band,
      this.head,
    );
    const wide = Math.max(3 * this.seconds, 3.3 * heard.words.length);
    this.element = el(
      "div",
      { class: "scroll" },
      el(
        "div",
        { class: "timeline", style: `min-width: ${wide.toFixed(1)}rem` },
        el("span", { class: "faint" }, "sound"),
        picture,
        el("span", { class: "faint" }, "words"),
        el("div", { class: "words", role: "group", "aria-label": "Words" }, ...this.buttons),
        el("span", { class: "faint" }, "s"),
        this.ruler(),
        tokens,
        this.map,
      ),
    );
  }

  /** @param {{start: number, end: number}} word */
  place({ start, end }) {
    const left = (100 * (start - this.start)) / this.seconds;
    const width = (100 * (end - start)) / this.seconds;
    return `left: ${left.toFixed(2)}%; width: ${width.toFixed(2)}%`;
  }

  ruler() {
    const step = this.seconds > 12 ? 2 : this.seconds > 4 ? 1 : 0.5;
    const ticks = [];
    for (let n = Math.ceil(this.start / step); n * step <= this.start + this.seconds; n++) {
      const left = (100 * (n * step - this.start)) / this.seconds;
      ticks.push(el("span", { style: `left: ${left.toFixed(2)}%` }, String(n * step)));
    }
    return el("div", { class: "ruler", "aria-hidden": "true" }, ...ticks);
  }

  /** @param {Matrix} matrix  (T, S) @param {string} name */
  showAttention(matrix, name) {
    const picture = heatmap(
      matrix,
      `cross-attention of ${name}, tokens down`,
      largest(matrix.data),
    );
    this.map.replaceChildren(picture);
  }

  /** Marks a word, and its tokens; -1: none. @param {number} chosen */
  mark(chosen) {
    const word = this.words[chosen];
    this.band.classList.toggle("hidden", !word);
    if (word) this.band.style.cssText = this.place(word);
    this.buttons.forEach((button, i) => {
      button.classList.toggle("chosen", i === chosen);
    });
    this.labels.forEach((label, t) => {
      label.classList.toggle("chosen", !!word && t >= word.first && t <= word.last);
    });
  }

  /** Moves the line that shows what is played; null hides it. @param {number | null} seconds */
  showPlaying(seconds) {
    this.head.classList.toggle("hidden", seconds === null);
    this.head.style.left = `${(100 * ((seconds ?? 0) - this.start)) / this.seconds}%`;
  }
}

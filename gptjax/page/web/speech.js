// Transcribe: from a recording to words, and where in it each word was heard.

import { decodeSound, SAMPLE_RATE, unpackClip, wavFile } from "./audio.js";
import { count, el, formula, visible } from "./drawing.js";
import { headChoices, headGrid } from "./heads.js";
import { Timeline } from "./timeline.js";
import { longestWindow, transcribe } from "./transcription.js";

class Listening {
  /** @param {import("./page.js").Run} run */
  constructor(run) {
    this.run = run;
    /** @type {import("./transcription.js").Heard | null} */
    this.heard = null;
    /** @type {Timeline | null} */
    this.timeline = null;
    /** Number of the recording that is read: an older one is dropped. */
    this.turn = 0;
    /** The time at which playing stops. */
    this.until = 0;
    this.player = /** @type {HTMLAudioElement} */ (el("audio", { preload: "auto" }));
    this.player.onplay = () => this.follow();
    this.play = el("button", { class: "main", onclick: () => this.playOrStop() }, "Play");
    this.file = /** @type {HTMLInputElement} */ (
      el("input", { type: "file", accept: "audio/*", class: "hidden", "aria-label": "Sound file" })
    );
    this.file.onchange = () => this.open(this.file.files?.[0]);
    this.note = el("p", { class: "warning", role: "status" });
    this.text = el("p", { class: "heard", "aria-live": "polite" });
    this.reference = el("p", { class: "faint" });
    this.word = el("p", { class: "faint", "aria-live": "polite" });
    const names = ["time", "grid", "equation"];
    /** @type {{[name: string]: HTMLElement}} */
    this.panels = Object.fromEntries(names.map((name) => [name, el("div")]));
  }

  /** Reads a sound file that was chosen or dropped. @param {File | undefined} file */
  async open(file) {
    this.file.value = "";
    if (!file) return;
    try {
      await this.listen(await decodeSound(await file.arrayBuffer()), file.name);
    } catch {
      this.forget();
      this.note.textContent = `${file.name} cannot be read as sound: choose a WAV, FLAC, OGG or MP3 file.`;
    }
  }

  /** Clears what was heard, which is not of the file that a message is about. */
  forget() {
    this.turn++;
    this.player.pause();
    this.heard = null;
    this.text.textContent = "";
    this.reference.textContent = "";
    this.clear();
  }

  /** Clears the pictures. */
  clear() {
    for (const panel of Object.values(this.panels)) panel.replaceChildren();
    this.word.textContent = "";
    this.timeline = null;
  }

  /**
   * @param {Float32Array} samples
   * @param {string} name
   * @param {string} [reference]  what was spoken
   */
  async listen(samples, name, reference = "") {
    const turn = ++this.turn;
    this.player.pause();
    this.note.textContent = `Listening to ${name} ...`;
    // The note is drawn before the model computes.
    await new Promise((resume) => setTimeout(resume, 20));
    if (turn !== this.turn) return;
    this.heard = transcribe(this.run, samples);
    this.reference.textContent = reference && `Spoken: ${reference}`;
    this.note.textContent = this.remark(samples);
    this.text.textContent = this.heard.text || "no words";
    URL.revokeObjectURL(this.player.src);
    this.player.src = URL.createObjectURL(wavFile(samples));
    this.draw();
  }

  /** What the listener should know about what was left out. @param {Float32Array} samples */
  remark(samples) {
    const { first, end, mel } = /** @type {import("./transcription.js").Heard} */ (this.heard);
    const { config, contents } = this.run;
    if (!mel.rows) return "This recording is silent, or shorter than 25 ms.";
    const longest = longestWindow(config, contents.tokenizer);
    const seconds = (samples.length / SAMPLE_RATE).toFixed(1);
    if (end < samples.length && samples.length - first > longest) {
      return `The model reads ${(longest / SAMPLE_RATE).toFixed(1)} seconds at a time. Of ${seconds} seconds, the first ${(end / SAMPLE_RATE).toFixed(1)} are used.`;
    }
    return "";
  }

  draw() {
    const heard = /** @type {import("./transcription.js").Heard} */ (this.heard);
    const { config, tokenizer, contents } = this.run;
    this.clear();
    if (!heard.mel.rows) return;
    const names = heard.ids.map((id) =>
      id === contents.tokenizer.end ? "end" : visible(tokenizer.name(id)),
    );
    const select = (/** @type {number} */ i) => this.select(i);
    const play = (/** @type {number} */ i) => {
      select(i);
      this.playPart(heard.words[i].start, heard.words[i].end);
    };
    this.timeline = new Timeline(heard, SAMPLE_RATE, names, select, play);
    this.panels.time.replaceChildren(this.timeline.element);
    if (!heard.onPath) return;
    const mean = { name: "the two heads that follow the sound best", short: "timing", alone: true };
    const choices = [{ ...mean, matrix: heard.onPath }, ...headChoices(heard.heads, config.n_head)];
    const show = (/** @type {number} */ i) => {
      this.timeline?.showAttention(choices[i].matrix, choices[i].name);
    };
    show(0);
    this.panels.grid.replaceChildren(headGrid(choices, config.n_head, 0, show));
    this.drawEquation(heard);
  }

  /** @param {import("./transcription.js").Heard} heard */
  drawEquation({ mel, onPath, ids }) {
    const { config } = this.run;
    const [width, nSource] = [config.n_embd, onPath?.width ?? 0];
    const k = width / config.n_head;
    const lines = [
      `sound: (${count(mel.rows)}, ${mel.width})  frames of 10 ms, mel bands`,
      `encoder: (${nSource}, ${width})  positions of 20 ms, width`,
      `softmax(q k^T / sqrt(${k})) v  q: (${ids.length}, ${k}) of the text, k and v: (${nSource}, ${k}) of the sound, in each of ${config.n_head} heads`,
    ];
    this.panels.equation.replaceChildren(formula(...lines));
  }

  /** Looks at a word. @param {number} i */
  select(i) {
    const word = this.heard?.words[i];
    if (!word) return;
    this.timeline?.mark(i);
    this.word.textContent = `“${word.text}” was heard from ${word.start.toFixed(2)} to ${word.end.toFixed(2)} s.`;
  }

  playOrStop() {
    if (!this.player.paused) return this.player.pause();
    if (!this.heard) return;
    this.playPart(this.heard.first / SAMPLE_RATE, this.heard.end / SAMPLE_RATE);
  }

  /** Plays from one second to another. @param {number} start @param {number} end */
  playPart(start, end) {
    this.player.currentTime = start;
    this.until = end;
    this.player.play();
  }

  /** Moves the line over the spectrogram while sound plays. */
  follow() {
    const { player } = this;
    if (player.currentTime >= this.until) player.pause();
    this.play.textContent = player.paused ? "Play" : "Stop";
    this.timeline?.showPlaying(player.paused ? null : player.currentTime);
    if (!player.paused) requestAnimationFrame(() => this.follow());
  }

  /** Files may be dropped anywhere on the page. @param {() => boolean} isShown */
  takeDrops(isShown) {
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      if (isShown()) this.open(event.dataTransfer?.files[0]);
    });
  }

  /** Reads the first bundled recording, or asks for one. */
  begin() {
    if (this.heard) return;
    const clip = this.run.contents.clips?.[0];
    if (clip) this.listen(unpackClip(clip.samples), "recording 1", clip.text);
    else this.note.textContent = "Choose a sound file, or drop one here.";
  }

  element() {
    const { config, contents } = this.run;
    const clips = (contents.clips ?? []).map((/** @type {any} */ clip, /** @type {number} */ i) => {
      const name = `recording ${i + 1}`;
      const take = () => this.listen(unpackClip(clip.samples), name, clip.text);
      return el("button", { onclick: take }, `Recording ${i + 1}`);
    });
    const choose = el("button", { onclick: () => this.file.click() }, "Choose a sound file");
    const { time, grid, equation } = this.panels;
    const section = el(
      "section",
      {},
      el(
        "p",
        {},
        "Take a recording, or drop a sound file on this page. The encoder hears all of it at once; then the decoder writes the words, one token after another.",
      ),
      el("div", { class: "controls" }, this.play, ...clips, choose, this.file),
      this.note,
      this.text,
      this.reference,
      el("h2", {}, "Where each word was heard"),
      el(
        "p",
        {},
        `The spectrogram shows how loud each of ${config.n_mels} bands of tones is, high ones on top. Below it, each token's cross-attention: the bluer, the more the token read that moment. Click a word to hear it.`,
      ),
      time,
      this.word,
      equation,
      el("h2", {}, "Every head"),
      el(
        "p",
        {},
        "Time across, tokens down. Some heads follow the sound from left to right: the times of words are from the two that do it best. 2.3 is head 3 of layer 2.",
      ),
      grid,
    );
    this.takeDrops(() => !section.classList.contains("hidden"));
    return section;
  }
}

/** @param {import("./page.js").Run} run @returns {import("./page.js").View} */
export function speechView(run) {
  const listening = new Listening(run);
  const show = () => listening.begin();
  return { id: "speech", title: "Transcribe", element: listening.element(), show };
}

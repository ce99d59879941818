// The page: reads its contents, makes the views that fit the model, and switches between them.

import { Probe } from "./attention.js";
import { logitAttribution } from "./attribution.js";
import { features } from "./audio.js";
import { count, el, repaint } from "./drawing.js";
import { forwardView } from "./forward.js";
import { learnView } from "./learn.js";
import { lookView } from "./look.js";
import { encoder, gpt, speechEncoder } from "./model.js";
import { pairsView } from "./pairs.js";
import {
  choose,
  crossWeights,
  mostLikely,
  probabilities,
  random,
  readText,
  transduce,
  Writer,
} from "./sampling.js";
import { speechView } from "./speech.js";
import { makeTokenizer } from "./tokenizer.js";
import { transcribe } from "./transcription.js";
import { readParams, unpack } from "./weights.js";
import { writeView } from "./write.js";

/**
 * What every view is given. source: the tokenizer of sources, for an encoder-decoder. tokens: of
 * the text that was written or looked at last. off: parts of the model that are switched off.
 * checkpoint: the parameters of another step.
 * @typedef {{contents: any, config: any, params: import("./layers.js").Params,
 *   tokenizer: import("./tokenizer.js").Tokenizer, source: import("./tokenizer.js").Tokenizer | null,
 *   tokens: number[], off: Set<string>,
 *   checkpoint: (step: number) => Promise<import("./layers.js").Params>}} Run
 * @typedef {{id: string, title: string, element: HTMLElement, show?: () => void, hide?: () => void}} View
 */

/** @returns {Promise<Run>} */
async function load() {
  const text = /** @type {HTMLElement} */ (document.getElementById("contents")).textContent;
  const contents = JSON.parse(/** @type {string} */ (text));
  const { config, weights, tokenizer: saved } = contents;
  const params = readParams(await unpack(weights.bytes), weights.index);
  const tokenizer = makeTokenizer(saved.target ?? saved);
  /** @type {Map<number, import("./layers.js").Params>} */
  const others = new Map([[contents.step, params]]);
  return {
    contents,
    config,
    params,
    tokenizer,
    source: saved.source ? makeTokenizer(saved.source) : null,
    tokens: contents.text ? tokenizer.encode(contents.text).ids : [],
    off: new Set(),
    checkpoint: async (step) => {
      const known = others.get(step);
      if (known) return known;
      const { bytes, index } = contents.checkpoints.find((/** @type {any} */ c) => c.step === step);
      others.set(step, readParams(await unpack(bytes), index, params));
      return /** @type {import("./layers.js").Params} */ (others.get(step));
    },
  };
}

/** @param {Run} run @returns {View[]} */
function makeViews(run) {
  switch (run.config.type) {
    case "EncoderDecoderConfig":
      return [pairsView(run), learnView(run)];
    case "SpeechConfig":
      return [speechView(run), learnView(run)];
    case "BigramConfig":
      return [writeView(run), learnView(run)];
  }
  return [writeView(run), lookView(run), learnView(run), forwardView(run)];
}

/** Shows one view, and the others not. @param {View[]} views @param {string} id */
function showView(views, id) {
  for (const view of views) {
    if (view.id !== id) view.hide?.();
  }
  for (const view of views) {
    const tab = /** @type {HTMLElement} */ (document.getElementById(`tab-${view.id}`));
    tab.setAttribute("aria-selected", String(view.id === id));
    tab.tabIndex = view.id === id ? 0 : -1;
    view.element.classList.toggle("hidden", view.id !== id);
    if (view.id === id) view.show?.();
  }
}

/** @param {View[]} views */
function makeTabs(views) {
  const tabs = /** @type {HTMLElement} */ (document.getElementById("tabs"));
  for (const [i, view] of views.entries()) {
    const move = (/** @type {KeyboardEvent} */ event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = views[(i + step + views.length) % views.length];
      showView(views, next.id);
      document.getElementById(`tab-${next.id}`)?.focus();
    };
    const attributes = { id: `tab-${view.id}`, role: "tab", "aria-controls": `view-${view.id}` };
    tabs.append(
      el(
        "button",
        { ...attributes, onclick: () => showView(views, view.id), onkeydown: move },
        view.title,
      ),
    );
    view.element.id = `view-${view.id}`;
    view.element.setAttribute("role", "tabpanel");
    view.element.setAttribute("aria-labelledby", `tab-${view.id}`);
  }
}

/** The first lines: what model this is, and how exact its numbers are. @param {Run} run */
function describe({ contents, config }) {
  const { format, loss } = contents.weights;
  const { n_encoder_layer: before, n_layer } = config;
  const layers = before
    ? `${before} encoder layers, ${n_layer} decoder layers`
    : `${n_layer} layers`;
  const size = n_layer ? `${layers}, ${config.n_head} heads, width ${config.n_embd}, ` : "";
  const facts = `${size}context ${config.block_size}; ${count(contents.parameters)} parameters at step ${count(contents.step)}.`;
  /** @type {HTMLElement} */ (document.getElementById("facts")).textContent = facts;
  const bits = contents.run_bits;
  const to = bits === "ternary" ? "-1, 0 or 1, times a scale," : `${bits} bits`;
  const were = bits === 32 ? "" : ` gptjax quantize had rounded them to ${to} before.`;
  let cost = "The weights are those of the run, float32.";
  if (format !== "float32") {
    cost = `The weights are rounded to ${format}. `;
    const change = loss.shown - loss.float32;
    const by = Math.abs(change) < 5e-5 ? "less than 0.0001" : change.toFixed(4).replace("-", "−");
    cost += loss.shown
      ? `That changes the loss by ${by} nats per token, measured on ${count(loss.tokens)} tokens of the validation split.`
      : "What that costs was not measured, because the run's data is not here.";
  }
  /** @type {HTMLElement} */ (document.getElementById("footer")).textContent =
    `Made by gptjax. The model runs in this page; nothing is sent anywhere. ${cost}${were}`;
}

/** A page that failed says so, and not only in the browser's console. @param {unknown} error */
function tellFailure(error) {
  const why = error instanceof Error ? error.message : error;
  /** @type {HTMLElement} */ (document.getElementById("failure")).textContent =
    `This page failed: ${why}`;
}

addEventListener("error", (event) => tellFailure(event.error ?? event.message));
addEventListener("unhandledrejection", (event) => tellFailure(event.reason));
const run = await load();
const views = makeViews(run);
describe(run);
makeTabs(views);
const glossary = /** @type {HTMLDetailsElement} */ (document.getElementById("glossary"));
/** @type {HTMLAnchorElement} */ (document.querySelector("header a")).onclick = () => {
  glossary.open = true;
};
document.getElementById("views")?.replaceChildren(...views.map((view) => view.element));
showView(views, views[0].id);
// Pictures keep the colours that they were drawn with.
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
  repaint(document.querySelectorAll("canvas")),
);
/** For tests, and for the browser's console. */
const sampling = { Writer, choose, mostLikely, probabilities, random, readText };
const models = { crossWeights, encoder, features, gpt, speechEncoder, transcribe, transduce };
Object.assign(globalThis, { gptjax: { run, views, Probe, logitAttribution, ...sampling, models } });

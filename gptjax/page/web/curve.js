// The loss curve of a run, drawn by hand.

import { count, svg } from "./drawing.js";

/**
 * step: of an evaluation or a training step.
 * @typedef {{step: number, seconds?: number, train_loss?: number, val_loss?: number}} Row
 */

const CURVE_HEIGHT = 300;
const BORDER = { left: 46, right: 14, top: 30, bottom: 42 };

/**
 * Nice numbers in a range, about n of them: multiples of 1, 2 or 5 times a power of ten.
 * @param {number} least
 * @param {number} most
 * @param {number} n
 */
export function ticks(least, most, n) {
  const rough = (most - least) / n || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((m) => m * power >= rough) ?? 10);
  const first = Math.ceil(least / step - 1e-9);
  const all = Array.from({ length: Math.max(0, Math.floor(most / step - first + 1e-9) + 1) });
  return all.map((_, i) => Number(((first + i) * step).toPrecision(10)));
}

/** 1, 2, 5, 10, ... in a range: the ticks of a wide logarithmic axis. @param {number} least @param {number} most */
function logTicks(least, most) {
  const all = [];
  for (let power = 10 ** Math.floor(Math.log10(least)); power <= most; power *= 10)
    for (const m of [1, 2, 5]) all.push(Number((m * power).toPrecision(3)));
  return all.filter((tick) => tick >= least && tick <= most);
}

/**
 * A picture of training and validation losses, with a mark at one step.
 *
 * The axis of the loss is logarithmic: the fall at the start is steep, and what comes after it
 * matters as much.
 * @param {Row[]} rows
 * @param {{width: number, at: number, checkpoints: number[], shown: number, guess: number | null,
 *   guessName: string}} options
 *   width: in pixels at a letter size of 16. at: the step that is looked at. checkpoints: steps whose weights the page
 *   has. shown: that of the page's model. guess: the loss of a model that knows nothing.
 */
export function lossCurve(rows, { width, at, checkpoints, shown, guess, guessName }) {
  const training = rows.filter((row) => row.train_loss !== undefined);
  const validation = rows.filter((row) => row.val_loss !== undefined);
  // A loss of 0 has no logarithm.
  const limit = (/** @type {number | undefined} */ loss) => Math.max(loss ?? 0, 1e-4);
  const losses = [
    ...training.map((r) => limit(r.train_loss)),
    ...validation.map((r) => limit(r.val_loss)),
  ];
  let [least, most] = [Math.min(...losses) / 1.05, Math.max(...losses) * 1.08];
  if (guess && guess < 2 * most) most = Math.max(most, guess * 1.08);
  const end = Math.max(1, ...rows.map((row) => row.step));
  const [w, h] = [width - BORDER.left - BORDER.right, CURVE_HEIGHT - BORDER.top - BORDER.bottom];
  const x = (/** @type {number} */ step) => BORDER.left + (w * step) / end;
  const y = (/** @type {number} */ loss) =>
    BORDER.top + (h * Math.log(most / loss)) / Math.log(most / least);
  const line = (/** @type {Row[]} */ points, /** @type {"train_loss" | "val_loss"} */ name) =>
    points.map((r) => `${x(r.step).toFixed(1)},${y(limit(r[name])).toFixed(1)}`).join(" ");
  const chosen = validation.find((row) => row.step === at);
  const label = chosen
    ? `Loss against the step, from ${losses[0].toFixed(2)} down to ${least.toFixed(2)}. At step ${at} the validation loss is ${chosen.val_loss?.toFixed(3)}.`
    : "Loss against the step";
  const picture = svg("svg", {
    viewBox: `0 0 ${width} ${CURVE_HEIGHT}`,
    role: "img",
    "aria-label": label,
  });
  const add = (
    /** @type {string} */ tag,
    /** @type {{[name: string]: any}} */ attributes,
    text = "",
  ) => picture.append(svg(tag, attributes, text));

  let lowest = CURVE_HEIGHT;
  for (const tick of most / least > 8 ? logTicks(least, most) : ticks(least, most, 8)) {
    if (lowest - y(tick) < 24) continue; // its number would touch the one below
    lowest = y(tick);
    add("line", { x1: x(0), x2: x(end), y1: y(tick), y2: y(tick), stroke: "var(--line)" });
    add(
      "text",
      { x: BORDER.left - 8, y: y(tick) + 4, "text-anchor": "end", class: "faint" },
      String(tick),
    );
  }
  for (const tick of ticks(0, end, Math.max(2, Math.round(w / 70)))) {
    const anchor = x(tick) > width - 24 ? "end" : "middle";
    add(
      "text",
      { x: x(tick), y: CURVE_HEIGHT - 20, "text-anchor": anchor, class: "faint" },
      count(tick),
    );
  }
  add(
    "text",
    { x: BORDER.left + w / 2, y: CURVE_HEIGHT - 3, "text-anchor": "middle", class: "faint" },
    "step",
  );
  add("text", { x: 0, y: 12, class: "faint" }, "loss, nats per token (log scale)");
  if (guess && guess < most) {
    const attributes = { stroke: "var(--faint)", "stroke-dasharray": "2 5" };
    add("line", { x1: x(0), x2: x(end), y1: y(guess), y2: y(guess), ...attributes });
    add(
      "text",
      { x: x(end), y: y(guess) - 5, "text-anchor": "end", class: "faint over" },
      guessName,
    );
  }
  if (at >= 0) {
    add("line", {
      x1: x(at),
      x2: x(at),
      y1: BORDER.top,
      y2: BORDER.top + h,
      stroke: "var(--faint)",
    });
  }
  const thin = { fill: "none", stroke: "var(--blue)", "stroke-width": 1.2, "stroke-opacity": 0.5 };
  add("polyline", { points: line(training, "train_loss"), ...thin });
  const strong = { fill: "none", stroke: "var(--orange)", "stroke-width": 2 };
  add("polyline", { points: line(validation, "val_loss"), ...strong });
  for (const row of validation) {
    const big = row.step === at;
    const look = { fill: big ? "var(--paper)" : "var(--orange)", stroke: "var(--orange)" };
    const place = { cx: x(row.step), cy: y(limit(row.val_loss)) };
    add("circle", { ...place, r: big ? 7 : 3.5, "stroke-width": big ? 3 : 0, ...look });
  }
  for (const step of checkpoints) {
    const size = step === shown ? 8 : 5;
    const path = `M ${x(step)} ${BORDER.top + h - 2 * size} l ${size} ${2 * size} h ${-2 * size} z`;
    add("path", { d: path, fill: "var(--green)" });
  }
  // The step that a click is nearest to, for those who would rather point than drag.
  const stepAt = (/** @type {number} */ clientX) => {
    const box = /** @type {SVGElement} */ (picture).getBoundingClientRect();
    return ((((clientX - box.left) * width) / box.width - BORDER.left) / w) * end;
  };
  return { picture: /** @type {SVGElement} */ (picture), stepAt };
}

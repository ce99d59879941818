// A text as its tokens, of which one is looked at.

import { el } from "./drawing.js";

/** Keys move from token to token. A token that is held stays when the mouse points at others. */
export class TokenText {
  /**
   * @param {string} label  for screen readers
   * @param {(at: number) => void} look  draws what depends on the token: it was chosen, held or freed
   * @param {{follows?: boolean}} [options]  follows: pointing at a token is enough to look at it
   */
  constructor(label, look, { follows = true } = {}) {
    this.look = look;
    /** @type {HTMLElement[]} */
    this.spans = [];
    /** The token that is looked at; -1: none. */
    this.at = -1;
    this.held = false;
    this.element = el("div", { class: "text", tabindex: 0, role: "group", "aria-label": label });
    this.element.onkeydown = (event) => this.press(event);
    this.element.onclick = (event) => this.click(this.find(event));
    if (follows) this.element.onmouseover = (event) => this.point(this.find(event));
  }

  /** Replaces the text. @param {string[]} pieces  one for each token */
  set(pieces) {
    this.at = -1;
    this.held = false;
    this.spans = pieces.map((piece) => el("span", { class: "token" }, piece));
    this.element.replaceChildren(...this.spans);
  }

  /** @param {HTMLElement} span */
  append(span) {
    this.spans.push(span);
    this.element.append(span);
  }

  /** Looks at a token. @param {number} at */
  select(at) {
    this.spans[this.at]?.classList.remove("chosen");
    this.at = at;
    this.spans[at].classList.add("chosen");
    this.look(at);
  }

  /** Looks at a token, and holds it. @param {number} at */
  hold(at) {
    this.held = true;
    this.select(at);
  }

  /** @param {MouseEvent} event */
  find(event) {
    return this.spans.indexOf(/** @type {HTMLElement} */ (event.target));
  }

  /** @param {number} at */
  point(at) {
    if (at >= 0 && at !== this.at && !this.held) this.select(at);
  }

  /** Holds a token, or frees it if it was held. @param {number} at */
  click(at) {
    if (at < 0) return;
    this.held = !(this.held && at === this.at);
    this.select(at);
  }

  /** @param {KeyboardEvent} event */
  press(event) {
    const { at } = this;
    const last = this.spans.length - 1;
    const places = {
      ArrowRight: at + 1,
      ArrowLeft: at - 1,
      Home: 0,
      End: last,
      Enter: at,
      Escape: at,
    };
    const to = places[/** @type {keyof places} */ (event.key)];
    if (to === undefined || last < 0) return;
    event.preventDefault();
    if (event.key === "Escape") this.held = false;
    if (event.key === "Enter") this.held = true;
    this.select(Math.max(0, Math.min(last, to)));
  }
}

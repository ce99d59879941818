// Text to token ids and back, as in data/tokenizer.py and data/bpe.py.

/**
 * encode: ids of a text and the parts of it that have none.
 * pieces: the text of each token; a character of several tokens belongs to its last one.
 * @typedef {{size: number, start: number, ends: number[], name: (id: number) => string,
 *   encode: (text: string) => {ids: number[], unknown: string[]},
 *   pieces: (ids: number[]) => string[]}} Tokenizer
 */

/** @param {any} saved  of the page @returns {Tokenizer} */
export function makeTokenizer(saved) {
  switch (saved.type) {
    case "char":
      return characters(saved);
    case "word":
      return words(saved);
    case "byte":
      return bytes(
        Array.from({ length: 256 }, (_, i) => [i]),
        saved,
        (text) => Array.from(utf8.encode(text)),
      );
    case "bpe":
      return bytePairs(saved);
  }
  throw new Error(`unknown tokenizer ${saved.type}`);
}

const utf8 = new TextEncoder();

/** @param {any} saved @returns {Tokenizer} */
function characters(saved) {
  const all = Array.from(/** @type {string} */ (saved.characters));
  const idOf = new Map(all.map((c, i) => [c, i]));
  return {
    size: all.length,
    start: saved.start,
    ends: [],
    name: (id) => all[id],
    encode: (text) => known(Array.from(text), idOf),
    pieces: (ids) => ids.map((id) => all[id]),
  };
}

/** @param {any} saved @returns {Tokenizer} */
function words(saved) {
  const all = /** @type {string[]} */ (saved.words);
  const idOf = new Map(all.map((word, i) => [word, i]));
  return {
    size: all.length,
    start: saved.start,
    ends: [],
    name: (id) => all[id],
    encode: (text) => known(text.split(/\s+/).filter(Boolean), idOf),
    pieces: (ids) => ids.map((id, i) => (i ? " " : "") + all[id]),
  };
}

/** @param {string[]} parts @param {Map<string, number>} idOf */
function known(parts, idOf) {
  const ids = parts.map((part) => idOf.get(part));
  return {
    ids: /** @type {number[]} */ (ids.filter((id) => id !== undefined)),
    unknown: [...new Set(parts.filter((part) => !idOf.has(part)))],
  };
}

/**
 * A tokenizer whose tokens are sequences of bytes.
 * @param {number[][]} tokens
 * @param {any} saved
 * @param {(text: string) => number[]} encode
 * @returns {Tokenizer}
 */
function bytes(tokens, saved, encode) {
  const ends = /** @type {number[]} */ (saved.ends ?? []);
  return {
    size: tokens.length,
    start: saved.start,
    ends,
    name: (id) => new TextDecoder().decode(Uint8Array.from(tokens[id] ?? [])) || `token ${id}`,
    encode: (text) => ({ ids: encode(text), unknown: [] }),
    pieces: (ids) => {
      const decoder = new TextDecoder();
      return ids.map((id) => decoder.decode(Uint8Array.from(tokens[id] ?? []), { stream: true }));
    },
  };
}

// Words of GPT-2: nothing is merged across their ends.
const WORDS = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

/**
 * Byte-pair encoding (Sennrich et al. 2016). Tokens are in the order in which they were merged, so
 * of two merges the one that makes the lower id comes first.
 * @param {any} saved  tokens: the bytes of each, as a string of characters 0 ... 255
 * @returns {Tokenizer}
 */
function bytePairs(saved) {
  const idOf = new Map(/** @type {string[]} */ (saved.tokens).map((token, i) => [token, i]));
  for (const special of saved.special) idOf.delete(saved.tokens[special]);
  const tokens = /** @type {string[]} */ (saved.tokens).map((token) =>
    Array.from(token, (c) => c.charCodeAt(0)),
  );
  const encodeWord = (/** @type {string} */ word) => {
    const parts = Array.from(utf8.encode(word), (byte) => String.fromCharCode(byte));
    for (;;) {
      let [best, at] = [Infinity, -1];
      for (let i = 0; i + 1 < parts.length; i++) {
        const id = idOf.get(parts[i] + parts[i + 1]);
        if (id !== undefined && id < best) [best, at] = [id, i];
      }
      if (at < 0) return parts.map((part) => /** @type {number} */ (idOf.get(part)));
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
  };
  return bytes(tokens, saved, (text) => (text.match(WORDS) ?? []).flatMap(encodeWord));
}

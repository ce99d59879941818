// From the numbers in the page to parameters: page/weights.py in reverse.

import { Matrix } from "./layers.js";

/**
 * One parameter in the page. offset: of its first byte. scales: of an int8 matrix, one for each
 * column or, if by_row, for each row.
 * @typedef {{path: string, rows: number, width: number, type: "float32" | "float16" | "int8",
 *   offset: number, scales?: number, by_row?: boolean}} Entry
 */

/** The bytes of a gzip file in base64. @param {string} text */
export async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

/**
 * The parameters as a tree. With `base`, the numbers are differences from it.
 * @param {ArrayBuffer} bytes
 * @param {Entry[]} index
 * @param {any} [base]
 */
export function readParams(bytes, index, base = null) {
  /** @type {import("./layers.js").Params} */
  const params = {};
  for (const entry of index) {
    const data = readArray(bytes, entry);
    const names = entry.path.split(".");
    let [node, from] = [params, base];
    for (const name of names.slice(0, -1)) {
      node[name] ??= {};
      [node, from] = [node[name], from?.[name]];
    }
    const last = names[names.length - 1];
    if (from)
      from[last].data.forEach((/** @type {number} */ x, /** @type {number} */ i) => {
        data[i] += x;
      });
    node[last] = new Matrix(entry.rows, entry.width, data);
  }
  return params;
}

/** @param {ArrayBuffer} bytes @param {Entry} entry */
function readArray(bytes, { rows, width, type, offset, scales, by_row }) {
  const n = rows * width;
  if (type === "float32") return new Float32Array(bytes.slice(offset, offset + 4 * n));
  if (type === "float16") {
    return Float32Array.from(new Uint16Array(bytes.slice(offset, offset + 2 * n)), fromFloat16);
  }
  const integers = new Int8Array(bytes, offset, n);
  const nScales = by_row ? rows : width;
  const at = /** @type {number} */ (scales);
  const scale = new Float32Array(bytes.slice(at, at + 4 * nScales));
  return Float32Array.from(
    integers,
    (x, i) => x * scale[by_row ? Math.floor(i / width) : i % width],
  );
}

/** @param {number} bits */
function fromFloat16(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const [exponent, fraction] = [(bits >> 10) & 31, bits & 1023];
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

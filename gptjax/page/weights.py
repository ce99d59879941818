"""Parameters as bytes for a page: float32, float16, or int8 as `gptjax quantize` rounds them.

web/weights.js reads them.
"""

import base64
import gzip
from typing import Any, Literal

import jax
import numpy as np

from gptjax.quantization.quant_array import Format, QuantArray, is_quantized, quantize_params
from gptjax.scale.sharding import by_path

WeightFormat = Literal["float32", "float16", "int8"]
INT8 = Format(bits=8)


class Packed:
    """Arrays one after the other, and an index that says where each begins."""

    def __init__(self) -> None:
        self.index: list[dict[str, Any]] = []
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, path: str, array: Any, form: WeightFormat) -> np.ndarray:
        """Appends an array, or a QuantArray. Returns it as the page will read it, float32."""
        if isinstance(array, QuantArray):
            integers, scale = _integers(array), np.asarray(array.scale_GN[0], np.float32)
            # A table is looked up by rows, and has a scale for each.
            scale = scale[:, None] if array.transposed else scale
            self._add_integers(path, integers, scale)
            return integers * scale
        dtype = np.float16 if form == "float16" else np.float32
        self._add_floats(path, np.asarray(array).astype(dtype))
        return np.asarray(array).astype(dtype).astype(np.float32)

    def add_difference(self, path: str, array: np.ndarray, base: np.ndarray) -> None:
        """Appends array, which is to be added to base. Vectors stay float32."""
        if array.ndim < 2:
            self._add_floats(path, array)
            return
        axis = 1 if path.rpartition(".")[2] == "table" else 0
        most = np.maximum(*(np.abs(x).max(axis, keepdims=True) for x in (base, array)))
        step = np.maximum(most / 63, 1e-30).astype(np.float32)
        self._add_integers(path, np.round(array / step).astype(np.int8), step)

    def _add_floats(self, path: str, array: np.ndarray) -> None:
        rows, width = array.shape if array.ndim == 2 else (1, array.size)
        entry = {"path": path, "rows": rows, "width": width, "type": array.dtype.name}
        self.index.append(entry | {"offset": self._append(array)})

    def _add_integers(self, path: str, array: np.ndarray, scale: np.ndarray) -> None:
        """scale: one for each column (N,) or (1, N), or one for each row (N, 1)."""
        rows, width = array.shape
        by_row = scale.ndim == 2 and scale.shape[1] == 1
        entry = {"path": path, "rows": rows, "width": width, "type": "int8", "by_row": by_row}
        entry |= {"offset": self._append(array), "scales": self._append(scale)}
        self.index.append(entry)

    def _append(self, array: np.ndarray) -> int:
        """Adds the bytes of an array at a multiple of 4. Returns where they begin."""
        content = np.ascontiguousarray(array).tobytes()
        content += b"\0" * (-len(content) % 4)
        self._parts.append(content)
        self._size += len(content)
        return self._size - len(content)

    def text(self) -> str:
        """All bytes, compressed, in base64."""
        return base64.b64encode(gzip.compress(b"".join(self._parts), 6, mtime=0)).decode()


def pack(params: Any, form: WeightFormat) -> tuple[dict[str, Any], Any]:
    """({"index", "bytes"}, the parameters as the page reads them)."""
    packed, numbers = Packed(), params
    if form == "int8":
        numbers = jax.jit(quantize_params, static_argnums=1)(params, INT8)
    leaves = jax.tree.leaves(numbers, is_leaf=is_quantized)
    shown = [packed.add(path, x, form) for path, x in zip(by_path(params), leaves, strict=True)]
    tree = jax.tree.unflatten(jax.tree.structure(params), shown)
    return {"index": packed.index, "bytes": packed.text()}, tree


def pack_difference(params: Any, shown: Any) -> dict[str, Any]:
    """Parameters as their difference from those that the page shows, in int8.

    A matrix is rounded to twice the steps that the weights themselves have as int8. Differences are
    smaller than weights, so most of these integers are small, and compress well.
    """
    base, packed = by_path(shown), Packed()
    for path, array in by_path(params).items():
        packed.add_difference(path, np.asarray(array, np.float32) - base[path], base[path])
    return {"index": packed.index, "bytes": packed.text()}


def _integers(matrix: QuantArray) -> np.ndarray:
    """The int8 of a matrix (K, N), or of a table (N, K)."""
    words_RN = np.asarray(matrix.words_RN)
    bytes_RN4 = words_RN.astype("<i4")[..., None].view(np.int8)
    integers_KN = bytes_RN4.transpose(0, 2, 1).reshape(-1, words_RN.shape[1])[: matrix.fan_in]
    return integers_KN.T if matrix.transposed else integers_KN

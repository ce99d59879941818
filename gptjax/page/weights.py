"""Parameters as bytes for a page: float32, float16, or int8 as `gptjax quantize` rounds them.

web/weights.js reads them.
"""

import base64
import gzip
from typing import Any, Literal

import jax
import numpy as np

from gptjax.quantization.quant_array import Format, QuantArray, quantize
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
        """Appends an array of one or two axes. Returns it as the page will read it, float32.

        As int8 a matrix has one scale per column, and a table one per row. Vectors become bfloat16
        there, as in a quantized run, and are stored as float32.
        """
        array = np.asarray(array, np.float32)
        rows, width = array.shape if array.ndim == 2 else (1, array.size)
        entry = {"path": path, "rows": rows, "width": width, "type": form}
        if form == "int8" and array.ndim == 2:
            by_row = _is_table(path)
            matrix = quantize(jax.numpy.asarray(array), INT8, transposed=by_row)
            entry |= {"by_row": by_row, "offset": self._append(_integers(matrix))}
            entry["scales"] = self._append(np.asarray(matrix.scale_GN[0], np.float32))
            shown = np.asarray(matrix.dequantize())
        else:
            if form == "int8":
                array = np.asarray(jax.numpy.asarray(array).astype("bfloat16"), np.float32)
            dtype = np.float16 if form == "float16" else np.float32
            entry |= {"type": np.dtype(dtype).name, "offset": self._append(array.astype(dtype))}
            shown = array.astype(dtype).astype(np.float32)
        self.index.append(entry)
        return shown

    def add_difference(self, path: str, array: np.ndarray, base: np.ndarray) -> None:
        """Appends array, which is to be added to base. Vectors stay float32."""
        rows, width = array.shape if array.ndim == 2 else (1, array.size)
        entry = {"path": path, "rows": rows, "width": width}
        if array.ndim == 2:
            by_row = _is_table(path)
            most = [np.abs(x).max(int(by_row), keepdims=True) for x in (base, array)]
            step = np.maximum(np.maximum(most[0], most[1]) / 127, np.float32(1e-30))
            integers = np.round(array / step).astype(np.int8)
            entry |= {"type": "int8", "by_row": by_row, "offset": self._append(integers)}
            entry["scales"] = self._append(step.astype(np.float32))
        else:
            entry |= {"type": "float32", "offset": self._append(array)}
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
    packed = Packed()
    shown = {path: packed.add(path, array, form) for path, array in by_path(params).items()}
    return {"index": packed.index, "bytes": packed.text()}, _like(params, shown)


def pack_difference(params: Any, shown: Any) -> dict[str, Any]:
    """Parameters as their difference from those that the page shows, in int8.

    A matrix is rounded to the steps that the weights themselves have as int8. Differences are
    smaller than weights, so most of these integers are small, and compress well.
    """
    base, packed = by_path(shown), Packed()
    for path, array in by_path(params).items():
        packed.add_difference(path, np.asarray(array, np.float32) - base[path], base[path])
    return {"index": packed.index, "bytes": packed.text()}


def _is_table(path: str) -> bool:
    return path.rpartition(".")[2] == "table"


def _integers(matrix: QuantArray) -> np.ndarray:
    """The int8 of a matrix (K, N), or of a table (N, K)."""
    words_RN = np.asarray(matrix.words_RN)
    bytes_RN4 = words_RN.astype("<i4")[..., None].view(np.int8)
    integers_KN = bytes_RN4.transpose(0, 2, 1).reshape(-1, words_RN.shape[1])[: matrix.fan_in]
    return integers_KN.T if matrix.transposed else integers_KN


def _like(params: Any, by_name: dict[str, np.ndarray]) -> Any:
    leaves, tree = jax.tree.flatten(params)
    assert len(leaves) == len(by_name)
    return jax.tree.unflatten(tree, list(by_name.values()))

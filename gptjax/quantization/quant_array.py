"""Matrices of 4- or 8-bit integers with scales, in place of a model's float32 kernels and tables.

`Linear` and `Embed` use a QuantArray like an array: `x @ kernel`, `table[ids]`. The integers become
floats inside that computation, a part at a time, so that a float copy of the weights never exists.

Integers are packed in int32 words, not stored as jnp.int4. XLA's CPU backend (jax 0.10) stores an
int4 in half a byte, but first unpacks the whole array to int8 or float32. That took at least four
times as long, and Array.nbytes counts a byte for each int4.

Array names end in their dimensions:
    M rows of x   K fan in   N columns   C chunks of K   R words of a chunk   G groups of K
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from gptjax.scale import devices

CHUNK = 32
"""Values that are multiplied and summed at a time: 8 words of int8, or 4 of int4."""


@dataclass(frozen=True)
class Format:
    """How the numbers of a model are stored."""

    bits: int
    """Bits of a weight. 4 and 8: integers with scales. 16: bfloat16. 32: float32."""
    group: int = 0
    """Consecutive weights of a column that share a scale. 0: the whole column."""
    activation_bits: int = 0
    """8: the inputs of matrix products are rounded to int8 too, with one scale per vector."""

    def __post_init__(self) -> None:
        """Raises ValueError for an invalid format."""
        if self.bits not in (4, 8, 16, 32):
            raise ValueError(f"bits is {self.bits}, but must be 4, 8, 16 or 32")
        if self.group % CHUNK or self.group < 0:
            raise ValueError(f"group is {self.group}, but must be a multiple of {CHUNK}, or 0")
        if self.activation_bits not in (0, 8):
            raise ValueError(f"activation_bits is {self.activation_bits}, but must be 0 or 8")


FLOAT32 = Format(bits=32)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QuantArray:
    """A matrix (K, N) of int4 or int8, with a scale for each column or each group in a column.

    words_RN: each int32 holds 32 / bits integers of a column, the first in the lowest bits.
    scale_GN: bfloat16. If `transposed`, this is the matrix (N, K): a table with rows to look up.
    """

    words_RN: Array
    scale_GN: Array
    fan_in: int = field(metadata={"static": True})
    format: Format = field(metadata={"static": True})
    transposed: bool = field(default=False, metadata={"static": True})

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.fan_in * self.words_RN.shape[1]

    @property
    def T(self) -> "QuantArray":  # noqa: N802 - as of an array
        return dataclasses.replace(self, transposed=not self.transposed)

    def astype(self, dtype: Any) -> "QuantArray":
        """Itself: a product has the dtype of the other factor."""
        return self

    def dequantize(self, dtype: Any = jnp.float32) -> Array:
        """The matrix (K, N), or (N, K) if transposed."""
        matrix_KN = _scaled(_unpack(self.words_RN, self.format.bits), self.scale_GN, dtype)
        matrix_KN = matrix_KN[: self.fan_in]
        return matrix_KN.T if self.transposed else matrix_KN

    def __getitem__(self, ids: Array) -> Array:
        """Rows of a table: ids (...) -> (..., K), float32."""
        assert self.transposed
        integers_KM = _unpack(self.words_RN[:, ids.reshape(-1)], self.format.bits)
        rows_KM = _scaled(integers_KM, self.scale_GN[:, ids.reshape(-1)], jnp.float32)
        return rows_KM[: self.fan_in].T.reshape(*ids.shape, self.fan_in)

    def __rmatmul__(self, x_MK: Array) -> Array:
        """x (M, K) times the matrix: (M, N), in x's dtype."""
        assert not self.transposed
        n_padding = self.words_RN.shape[0] * 32 // self.format.bits - self.fan_in
        x_MK = jnp.pad(x_MK, ((0, 0), (0, n_padding)))
        if not self.format.activation_bits:
            return self._multiply(x_MK)
        step_M1 = jnp.maximum(jnp.abs(x_MK).max(1, keepdims=True), 1e-30).astype(jnp.float32) / 127
        x_MK = jnp.round(x_MK / step_M1).astype(x_MK.dtype)
        return (self._multiply(x_MK) * step_M1).astype(x_MK.dtype)

    def _multiply(self, x_MK: Array) -> Array:
        bits, scale_GN, dtype = self.format.bits, self.scale_GN, x_MK.dtype
        if len(x_MK) <= devices.FEW_ROWS:
            return _multiply_few_rows(x_MK, self.words_RN, scale_GN, bits)
        # Words that do not depend on x would be unpacked before the loop over tokens, and XLA would
        # keep that float copy of all weights. XLA does not remove x * 0, because it may be NaN.
        integers_KN = _unpack(self.words_RN + (x_MK[0, 0] * 0).astype(jnp.int32), bits)
        if len(scale_GN) > 1:
            return x_MK @ _scaled(integers_KN, scale_GN, dtype)
        if self.format.activation_bits and not devices.on_cpu():  # int8 matrix units
            x_MK, integers_KN = x_MK.astype(jnp.int8), integers_KN.astype(jnp.int8)
            y_MN = jnp.matmul(x_MK, integers_KN, preferred_element_type=jnp.int32)
        else:  # also exact, up to 2^24
            y_MN = jnp.matmul(x_MK, integers_KN.astype(dtype), preferred_element_type=jnp.float32)
        return (y_MN * scale_GN.astype(jnp.float32)).astype(dtype)


def _multiply_few_rows(x_MK: Array, words_RN: Array, scale_GN: Array, bits: int) -> Array:
    """x times the matrix. It reads each word once and stores no float weights.

    One expression multiplies a row of x with a chunk of a column. XLA compiles it to a vectorised
    loop over N. It leaves K / 32 partial sums per column. Converting the matrix to float32 first
    would write and read four bytes for each int8.
    """
    dtype, per_word = x_MK.dtype, 32 // bits
    # Makes the words depend on x. Otherwise XLA unpacks all of them before the loop over tokens.
    words_RN, x_MK = lax.optimization_barrier((words_RN, x_MK))
    n_chunks = words_RN.shape[0] * per_word // CHUNK
    n_columns = words_RN.shape[1]
    x_MCRP = x_MK.astype(jnp.float32).reshape(len(x_MK), n_chunks, CHUNK // per_word, per_word)
    words_CRN = words_RN.reshape(n_chunks, CHUNK // per_word, n_columns)
    sums_MCN = jnp.float32(0)
    for r in range(CHUNK // per_word):
        for p in range(per_word):
            integers_CN = _integer(words_CRN[:, r], p, bits).astype(jnp.float32)
            sums_MCN += x_MCRP[:, :, r, p, None] * integers_CN
    scale_CN = jnp.repeat(scale_GN.astype(jnp.float32), n_chunks // len(scale_GN), axis=0)
    sums_MCN = lax.optimization_barrier(sums_MCN * scale_CN)
    # Ones come first. In the other order XLA's CPU backend takes ten times as long.
    return jnp.einsum("C,MCN->MN", jnp.ones(n_chunks), sums_MCN).astype(dtype)


def _integer(words: Array, place: int, bits: int) -> Array:
    """The signed integers at one place of each word, int32."""
    return (words << (32 - bits * (place + 1))) >> (32 - bits)


def _unpack(words_RN: Array, bits: int) -> Array:
    """(R, N) words -> the integers (K, N), int32."""
    integers = [_integer(words_RN, place, bits) for place in range(32 // bits)]
    return jnp.stack(integers, axis=1).reshape(-1, words_RN.shape[1])


def _scaled(integers_KN: Array, scale_GN: Array, dtype: Any) -> Array:
    n_groups, n_columns = scale_GN.shape
    grouped = integers_KN.reshape(n_groups, -1, n_columns) * scale_GN[:, None].astype(jnp.float32)
    return grouped.reshape(-1, n_columns).astype(dtype)


def quantize(matrix_KN: Array, form: Format, transposed: bool = False) -> QuantArray:
    """The nearest QuantArray to a matrix (K, N), or to a table (N, K) if transposed.

    The number of largest magnitude in a group becomes the most negative integer, which has no
    positive counterpart. The scale takes its sign. So int4 has 16 steps instead of 15, as in
    llama.cpp's Q4_0. Integers are rounded with the scale as it is stored, in bfloat16.
    """
    matrix_KN = (matrix_KN.T if transposed else matrix_KN).astype(jnp.float32)
    fan_in, n_columns = matrix_KN.shape
    column = -(-fan_in // CHUNK) * CHUNK
    group = min(form.group or column, column)
    matrix_KN = jnp.pad(matrix_KN, ((0, -fan_in % group), (0, 0)))
    grouped = matrix_KN.reshape(-1, group, n_columns)
    largest_GN = jnp.take_along_axis(grouped, jnp.abs(grouped).argmax(1, keepdims=True), 1)[:, 0]
    lowest = -(2 ** (form.bits - 1))
    scale_GN = (largest_GN / lowest).astype(jnp.bfloat16)
    divisor = jnp.where(scale_GN == 0, 1, scale_GN).astype(jnp.float32)[:, None]
    integers = jnp.clip(jnp.round(grouped / divisor), lowest, -lowest - 1).astype(jnp.int32)
    per_word = 32 // form.bits
    places = jnp.arange(per_word)[None, :, None] * form.bits
    fields = (integers.reshape(-1, per_word, n_columns) & (2**form.bits - 1)) << places
    return QuantArray(fields.sum(1, dtype=jnp.int32), scale_GN, fan_in, form, transposed)


def quantize_params(params: Any, form: Format) -> Any:
    """A model's parameters in a format: kernels and tables as QuantArrays, vectors as bfloat16.

    A kernel has a scale per output (or per group of inputs), a table one per row (or group).
    """
    if form == FLOAT32:
        return params

    def convert(path: tuple[Any, ...], p: Array) -> Any:
        if p.ndim < 2 or form.bits == 16:
            return p.astype(jnp.bfloat16)
        return quantize(p, form, transposed=path[-1].key == "table")

    return jax.tree_util.tree_map_with_path(convert, params)


def dequantize_params(params: Any) -> Any:
    """The float32 values of parameters in any format."""

    def convert(p: Any) -> Array:
        return p.dequantize() if isinstance(p, QuantArray) else p.astype(jnp.float32)

    return jax.tree.map(convert, params, is_leaf=lambda p: isinstance(p, QuantArray))


def is_quantized(x: Any) -> bool:
    return isinstance(x, QuantArray)


def parameter(
    module: nn.Module, name: str, init: Callable[..., Array], shape: tuple[int, ...]
) -> Any:
    """A parameter of a module: module.param(name, init, shape), or the QuantArray in its place.

    module.param refuses a QuantArray, because it has no shape.
    """
    value = module.get_variable("params", name)
    return value if isinstance(value, QuantArray) else module.param(name, init, shape)

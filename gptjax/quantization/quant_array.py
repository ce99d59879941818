"""Matrices of small integers with scales, in place of a model's float32 kernels and tables.

`Linear` and `Embed` use a QuantArray like an array: `x @ kernel`, `table[ids]`. The integers become
floats inside that computation, a part at a time, so that a float copy of the weights never exists.

Integers are packed in int32 words, not stored as jnp.int4. XLA's CPU backend (jax 0.10) stores an
int4 in half a byte, but first unpacks the whole array to int8 or float32. That took at least four
times as long, and Array.nbytes counts a byte for each int4.

Array names end in their dimensions:
    M rows of x   K fan in   N columns   C chunks of K   R words of a chunk   G groups of K
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from gptjax.scale import devices

CHUNK = 32
"""Values that are multiplied and summed at a time: 8 words of int8, 4 of int4, or 2 of int2."""
TRIED = 16
"""Scales that are tried for a group of int3 or int4."""
FIRST_SCALE = {"ternary": 1.0, 2: 0.6}
"""Times the mean magnitude. Ternary: BitNet's (arXiv:2402.17764). int2: best for a Gaussian."""
Bits = Literal["ternary", 2, 3, 4, 8, 16, 32]


@dataclass(frozen=True)
class Format:
    """How the numbers of a model are stored."""

    bits: Bits
    """Bits of a weight. 2 to 8: integers with scales. "ternary": -1, 0 or 1 with scales, in 1.6
    bits. 16: bfloat16. 32: float32."""
    group: int = 0
    """Consecutive weights of a column that share a scale. 0: the whole column."""
    activation_bits: int = 0
    """8: the inputs of matrix products are rounded to int8 too, with one scale per vector."""
    odd: bool = True
    """2 to 4 bits: the levels are odd, -15, -13, ... 15 of int4, not -8, -7, ... 7."""

    def __post_init__(self) -> None:
        """Raises ValueError for an invalid format."""
        if self.bits not in get_args(Bits):
            raise ValueError(f"bits is {self.bits}, but must be ternary, 2, 3, 4, 8, 16 or 32")
        if self.group % self.chunk or self.group < 0:
            raise ValueError(f"group is {self.group}, but must be a multiple of {self.chunk}, or 0")
        if self.activation_bits not in (0, 8):
            raise ValueError(f"activation_bits is {self.activation_bits}, but must be 0 or 8")

    @property
    def is_low(self) -> bool:
        """Below 4 bits: matrices outside of the blocks are int4."""
        return self.bits in ("ternary", 2, 3)

    @property
    def is_balanced(self) -> bool:
        """As many levels above zero as below."""
        return self.is_low or (self.bits == 4 and self.odd)

    @property
    def highest(self) -> int:
        """The highest level."""
        n_bits = 1 if self.bits == "ternary" else self.bits
        return 2**n_bits - 1 if self.is_balanced else 2 ** (n_bits - 1) - 1

    @property
    def per_word(self) -> int:
        """Integers in a word of 32 bits."""
        return 20 if self.bits == "ternary" else 32 // self.bits

    @property
    def chunk(self) -> int:
        """Values that are multiplied and summed at a time: CHUNK, or a word that does not fit."""
        return self.per_word if CHUNK % self.per_word else CHUNK


FLOAT32 = Format(bits=32)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QuantArray:
    """A matrix (K, N) of small integers, with a scale for each column or each group in a column.

    words_RN: each int32 holds `format.per_word` integers of a column; see `_pack`.
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
        matrix_KN = _scaled(_unpack(self.words_RN, self.format), self.scale_GN, dtype)
        return matrix_KN[: self.fan_in].T if self.transposed else matrix_KN[: self.fan_in]

    def __getitem__(self, ids: Array) -> Array:
        """Rows of a table: ids (...) -> (..., K), float32."""
        assert self.transposed
        integers_KM = _unpack(self.words_RN[:, ids.reshape(-1)], self.format)
        rows_KM = _scaled(integers_KM, self.scale_GN[:, ids.reshape(-1)], jnp.float32)
        return rows_KM[: self.fan_in].T.reshape(*ids.shape, self.fan_in)

    def __rmatmul__(self, x_MK: Array) -> Array:
        """x (M, K) times the matrix: (M, N), in x's dtype."""
        assert not self.transposed
        n_padding = self.words_RN.shape[0] * self.format.per_word - self.fan_in
        x_MK = jnp.pad(x_MK, ((0, 0), (0, n_padding)))
        if not self.format.activation_bits:
            return self._multiply(x_MK)
        step_M1 = jnp.maximum(jnp.abs(x_MK).max(1, keepdims=True), 1e-30).astype(jnp.float32) / 127
        x_MK = jnp.round(x_MK / step_M1).astype(x_MK.dtype)
        return (self._multiply(x_MK) * step_M1).astype(x_MK.dtype)

    def _multiply(self, x_MK: Array) -> Array:
        scale_GN, dtype = self.scale_GN, x_MK.dtype
        if len(x_MK) <= devices.FEW_ROWS:
            return _multiply_few_rows(x_MK, self.words_RN, scale_GN, self.format)
        # Words that do not depend on x would be unpacked before the loop over tokens, and XLA would
        # keep that float copy of all weights. XLA does not remove x * 0, because it may be NaN.
        integers_KN = _unpack(self.words_RN + (x_MK[0, 0] * 0).astype(jnp.int32), self.format)
        if len(scale_GN) > 1:
            return x_MK @ _scaled(integers_KN, scale_GN, dtype)
        if self.format.activation_bits and not devices.on_cpu():  # int8 matrix units
            x_MK, integers_KN = x_MK.astype(jnp.int8), integers_KN.astype(jnp.int8)
            y_MN = jnp.matmul(x_MK, integers_KN, preferred_element_type=jnp.int32)
        else:  # also exact, up to 2^24
            y_MN = jnp.matmul(x_MK, integers_KN.astype(dtype), preferred_element_type=jnp.float32)
        return (y_MN * scale_GN.astype(jnp.float32)).astype(dtype)


def _multiply_few_rows(x_MK: Array, words_RN: Array, scale_GN: Array, form: Format) -> Array:
    """x times the matrix. It reads each word once and stores no float weights.

    One expression multiplies a row of x with a chunk of a column. XLA compiles it to a vectorised
    loop over N. It leaves K / 32 partial sums per column. Converting the matrix to float32 first
    would write and read four bytes for each int8.
    """
    dtype, n_words = x_MK.dtype, form.chunk // form.per_word
    # Makes the words depend on x. Otherwise XLA unpacks all of them before the loop over tokens.
    words_RN, x_MK = lax.optimization_barrier((words_RN, x_MK))
    n_chunks, n_columns = words_RN.shape[0] // n_words, words_RN.shape[1]
    x_MCRP = x_MK.astype(jnp.float32).reshape(len(x_MK), n_chunks, n_words, form.per_word)
    words_CRN = words_RN.reshape(n_chunks, n_words, n_columns)
    sums_MCN = jnp.float32(0)
    for r in range(n_words):
        for p in range(form.per_word):
            integers_CN = _integer(words_CRN[:, r], p, form).astype(jnp.float32)
            sums_MCN += x_MCRP[:, :, r, p, None] * integers_CN
    scale_CN = jnp.repeat(scale_GN.astype(jnp.float32), n_chunks // len(scale_GN), axis=0)
    sums_MCN = lax.optimization_barrier(sums_MCN * scale_CN)
    # Ones come first. In the other order XLA's CPU backend takes ten times as long.
    return jnp.einsum("C,MCN->MN", jnp.ones(n_chunks), sums_MCN).astype(dtype)


def _pack(integers_KN: Array, form: Format) -> Array:
    """(K, N) integers -> int32 words (R, N), each of the next integers of a column.

    Numbers of bits: the first integer is in the lowest bits. Ternary: the word is 2^32 times the
    number 0.abc... in base 3, with the integers a, b, c, ... as its 20 digits.
    """
    fields = integers_KN.reshape(-1, form.per_word, integers_KN.shape[1])
    if form.bits != "ternary":
        fields = (fields >> form.is_balanced) & (2**form.bits - 1)
        places = jnp.arange(form.per_word)[:, None] * form.bits
        return (fields << places).sum(1, dtype=jnp.int32)
    powers = 3 ** jnp.arange(9, -1, -1)[:, None]
    high_RN, low_RN = ((half * powers).sum(1) for half in (fields[:, :10], fields[:, 10:]))
    # high / 3^10 + low / 3^20, times 2^32. What is rounded is small enough for float32.
    whole = round(2**32 / 3**10)
    rest = high_RN * (2**32 / 3**10 - whole) + low_RN * (2**32 / 3**20)
    return high_RN * whole + jnp.round(rest).astype(jnp.int32)


def _integer(words: Array, place: Any, form: Format) -> Array:
    """The signed integers at one place of each word, int32. place: an int, or an array of them."""
    if form.bits == "ternary":
        # Moves the point behind the digits before this one. They overflow.
        fraction, sixth = words * 3**place, 2**32 // 6
        return (fraction > sixth).astype(jnp.int32) - (fraction < -sixth).astype(jnp.int32)
    field = (words << (32 - form.bits * (place + 1))) >> (32 - form.bits)
    return 2 * field + 1 if form.is_balanced else field


def _unpack(words_RN: Array, form: Format) -> Array:
    """(R, N) words -> the integers (K, N), int32."""
    places_P1 = np.arange(form.per_word, dtype=np.int32)[:, None]  # one operation for all: fast
    return _integer(words_RN[:, None], places_P1, form).reshape(-1, words_RN.shape[1])


def _scaled(integers_KN: Array, scale_GN: Array, dtype: Any) -> Array:
    n_groups, n_columns = scale_GN.shape
    grouped = integers_KN.reshape(n_groups, -1, n_columns) * scale_GN[:, None].astype(jnp.float32)
    return grouped.reshape(-1, n_columns).astype(dtype)


@functools.partial(jax.jit, static_argnames=("form", "transposed"))
def quantize(matrix_KN: Array, form: Format, transposed: bool = False) -> QuantArray:
    """The nearest QuantArray to a matrix (K, N), or to a table (N, K) if transposed.

    Integers are rounded with the scale as it is stored, in bfloat16.
    """
    matrix_KN = (matrix_KN.T if transposed else matrix_KN).astype(jnp.float32)
    fan_in, n_columns = matrix_KN.shape
    column = -(-fan_in // form.chunk) * form.chunk
    group = min(form.group or column, column)
    matrix_KN = jnp.pad(matrix_KN, ((0, -fan_in % group), (0, 0)))
    grouped = matrix_KN.reshape(-1, group, n_columns)
    scale_GN = _scale(grouped, form).astype(jnp.bfloat16)
    integers_KN = _round(grouped, scale_GN, form).astype(jnp.int32).reshape(-1, n_columns)
    return QuantArray(_pack(integers_KN, form), scale_GN, fan_in, form, transposed)


def _scale(grouped: Array, form: Format) -> Array:
    """The scale (G, N) of each group of a column, (G, group, N).

    int8 (and int4 without odd levels): the number of largest magnitude becomes the most negative
    integer, which has no positive counterpart. So int4 has 16 steps, as in llama.cpp's Q4_0.
    Ternary, int2: the scale of least squared error for the integers that a first one gives. It
    follows the weights without jumps; with the search below, training ended at a higher loss.
    int3, int4: the scale of least squared error among a few. Clipping the largest number pays.
    """
    magnitude = jnp.abs(grouped)
    if not form.is_balanced:
        at_1N = magnitude.argmax(1, keepdims=True)
        return jnp.take_along_axis(grouped, at_1N, 1)[:, 0] / -(form.highest + 1)
    if form.bits in FIRST_SCALE:
        used = grouped != 0  # not what pads a column
        mean_GN = magnitude.sum(1) / jnp.maximum(used.sum(1), 1)
        levels = used * _round(grouped, FIRST_SCALE[form.bits] * mean_GN, form)
        return jnp.sum(grouped * levels, 1) / jnp.maximum(jnp.sum(levels**2, 1), 1)
    fractions = jnp.arange(1, TRIED + 1)[:, None, None] / TRIED
    scales_SGN = (magnitude.max(1) / form.highest * fractions).astype(jnp.bfloat16)

    def squared_error(scale_GN: Array) -> Array:
        rounded = _round(grouped, scale_GN, form) * scale_GN[:, None].astype(jnp.float32)
        return jnp.sum((rounded - grouped) ** 2, 1)

    best_1GN = lax.map(squared_error, scales_SGN).argmin(0, keepdims=True)
    return jnp.take_along_axis(scales_SGN, best_1GN, 0)[0]


def _round(grouped: Array, scale_GN: Array, form: Format) -> Array:
    """The nearest levels of a format, as float32, to the numbers of each group (G, group, N)."""
    x = grouped / jnp.where(scale_GN == 0, 1, scale_GN).astype(jnp.float32)[:, None]
    has_odd_levels = form.is_balanced and form.bits != "ternary"
    nearest = 2 * jnp.floor(x / 2) + 1 if has_odd_levels else jnp.round(x)
    lowest = -form.highest if form.is_balanced else -form.highest - 1
    return jnp.clip(nearest, lowest, form.highest)


def quantize_params(params: Any, form: Format) -> Any:
    """A model's parameters in a format: kernels and tables as QuantArrays, vectors as bfloat16.

    A kernel has a scale per output (or per group of inputs), a table one per row (or group).
    Fewer than 4 bits are for the matrices of blocks; others are int4. BitNet does alike.
    """
    if form == FLOAT32:
        return params

    def convert(path: tuple[Any, ...], p: Array) -> Any:
        if p.ndim < 2 or form.bits == 16:
            return p.astype(jnp.bfloat16)
        outside = "block_" not in jax.tree_util.keystr(path)
        here = dataclasses.replace(form, bits=4, group=CHUNK) if form.is_low and outside else form
        of_weights = dataclasses.replace(here, activation_bits=0)  # W8A8 shares int8's programs
        made = quantize(p, of_weights, transposed=path[-1].key == "table")
        return dataclasses.replace(made, format=here)

    return jax.tree_util.tree_map_with_path(convert, params)


def dequantize_params(params: Any) -> Any:
    """The float32 values of parameters in any format."""

    def convert(p: Any) -> Array:
        return p.dequantize() if is_quantized(p) else p.astype(jnp.float32)

    return jax.tree.map(convert, params, is_leaf=is_quantized)


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

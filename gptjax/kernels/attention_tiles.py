"""Tiles of attention: what the kernels of attention_programs.py load, compute and store.

Array names of a tile have no dimensions: its rows are queries (t) or sources (s), its columns the
head width, padded to a power of two.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as triton

from gptjax.kernels import dropout

Sources = tuple[Array, ...]

MASKED = -1e30
"""A score that no softmax gives weight; finite, so that a row of nothing else has no NaN."""
LOG2_E = math.log2(math.e)


class Tiling(NamedTuple):
    """Queries and sources that a program handles at a time, its warps and its pipeline stages.

    The defaults were the fastest of those in docs/benchmarks/kernel-race-gpu.json (an H200).
    """

    queries: int = 64
    sources: int = 64
    backward: int = 64
    warps: int = 4
    backward_warps: int = 4
    stages: int = 3
    backward_stages: int = 3


class Options(NamedTuple):
    """What a kernel is compiled for. `dropped` of 256 weights are dropped.

    qk_norm: queries and keys are divided by their root mean square first.
    """

    causal: bool
    dropped: int = 0
    tiling: Tiling = Tiling()
    interpret: bool = False
    qk_norm: bool = False


def places_of(sources: Sources) -> list[tuple[int, int]]:
    """(array, slot) of q, k and v."""
    places = [(i, slot) for i, source in enumerate(sources) for slot in range(source.shape[2])]
    if len(places) != 3:
        raise ValueError(f"sources have {len(places)} slots, but q, k and v are 3")
    return places


def check_masks(mask_BS: Array | None, options: Options) -> None:
    """Raises ValueError for causal attention with padding: a position would see nothing."""
    if options.causal and mask_BS is not None:
        raise ValueError("attention is causal or has a padding mask, not both; pass mask None")


def split(sources: Sources) -> tuple[Array, Array, Array]:
    """q (B, T, H, K), and k and v (B, S, H, K)."""
    q, k, v = (sources[i][:, :, slot] for i, slot in places_of(sources))
    return q, k, v


class Part(NamedTuple):
    """Columns of a head that are loaded as one tile: `width` of them, padded for tl.dot."""

    first: int
    width: int

    @property
    def padded(self) -> int:
        return max(16, pl.next_power_of_2(self.width))


class Tile(NamedTuple):
    """What all programs know. Lengths and widths are the true ones."""

    places: list[tuple[int, int]]
    n_target: int
    n_source: int
    width: int
    options: Options
    has_mask: bool
    has_rotary: bool

    @property
    def whole(self) -> Part:
        return Part(0, self.width)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Of queries and keys: two halves if they are rotated, which mixes one with the other."""
        half = self.width // 2
        return (Part(0, half), Part(half, half)) if self.has_rotary else (self.whole,)

    def may_pass_end(self, size: int, length: int) -> bool:
        """Whether a tile of `size` may reach past the end of `length` queries or sources.

        The backward grid covers the longer of the two: its last tiles are past the end of the
        shorter, even if its length is a multiple of the tile.
        """
        return length % size != 0 or self.n_target != self.n_source


def tile_of(sources: Sources, mask_BS: Array | None, rotary: Any, options: Options) -> Tile:
    check_masks(mask_BS, options)
    places = places_of(sources)
    n_target, n_source = (sources[places[i][0]].shape[1] for i in (0, 1))
    width = sources[0].shape[-1]
    has_mask, has_rotary = mask_BS is not None, rotary is not None
    return Tile(places, n_target, n_source, width, options, has_mask, has_rotary)


def block(wanted: int, length: int) -> int:
    """Tiles are powers of two, of 16 rows at least, which tensor cores want."""
    return min(wanted, max(16, pl.next_power_of_2(length)))


def rows_of(
    ref: Any, at: tuple[Any, ...], start: Any, size: int, length: int, t: Tile, part: Part
) -> Any:
    """(reference to rows start ... start + size - 1 of ref[at[0], :, *at[1:], part], what exists)

    The mask is None where every tile fits exactly, which saves the comparisons. An empty `at` is
    for an array (positions, columns).
    """
    rows, columns = start + jnp.arange(size), jnp.arange(part.padded)
    at = tuple(jnp.int32(index) for index in at)  # interpret mode takes no Python integers
    mask = None
    if t.may_pass_end(size, length):
        mask = jnp.broadcast_to((rows < length)[:, None], (size, part.padded))
    if part.width != part.padded:
        fits = jnp.broadcast_to((columns < part.width)[None], (size, part.padded))
        mask = fits if mask is None else mask & fits
    # Not a constant: Pallas refuses constants that pass the end, even where a mask hides it.
    first = part.first + 0 * start if part.first else 0
    view = ref.at[*at[:1], pl.ds(start, size), *at[1:], pl.ds(first, part.padded)]
    return view, mask


def load(
    ref: Any, at: tuple[Any, ...], start: Any, size: int, length: int, t: Tile, part: Part
) -> Array:
    """A tile (size, part.padded), zero outside of the array."""
    view, mask = rows_of(ref, at, start, size, length, t, part)
    return triton.load(view, mask=mask, other=None if mask is None else 0.0)


def store(
    ref: Any, at: tuple[Any, ...], start: Any, value: Array, length: int, t: Tile, part: Part
) -> None:
    view, mask = rows_of(ref, at, start, value.shape[0], length, t, part)
    triton.store(view, value.astype(ref.dtype), mask=mask)


def load_prepared(
    ref: Any, at: tuple[Any, ...], start: Any, size: int, length: int, t: Tile, angles: Any
) -> tuple[Array, ...]:
    """The parts of a tile of queries or keys, normalized and rotated as the options say.

    angles: references to the cosines and sines of rotary.py, each (T, K/2), or ().
    """
    x = tuple(load(ref, at, start, size, length, t, part) for part in t.parts)
    dtype = x[0].dtype
    if t.options.qk_norm:
        factor = norm_factor(x, t)
        x = tuple((part.astype(jnp.float32) * factor).astype(dtype) for part in x)
    if not t.has_rotary:
        return x
    cos, sin = (load(ref, (), start, size, length, t, t.parts[0]) for ref in angles)
    a, b = (part.astype(jnp.float32) for part in x)
    return (a * cos - b * sin).astype(dtype), (a * sin + b * cos).astype(dtype)


def norm_factor(x: tuple[Array, ...], t: Tile) -> Array:
    """1 / sqrt(mean of squares + 1e-5) of every row, (size, 1): see layers.rms_normalize."""
    squares = sum(jnp.sum(part.astype(jnp.float32) ** 2, -1) for part in x)
    return lax.rsqrt(squares / t.width + 1e-5)[:, None]  # pyright: ignore[reportOperatorIssue]


def store_gradient(
    ref: Any,
    d: tuple[Array, ...],
    loaded_ref: Any,
    at: tuple[Any, ...],
    start: Any,
    length: int,
    t: Tile,
    angles: Any,
) -> None:
    """Stores the gradient of what load_prepared loaded. d: of its result, in float32."""
    size = d[0].shape[0]
    if t.has_rotary:  # rotates back
        cos, sin = (load(ref, (), start, size, length, t, t.parts[0]) for ref in angles)
        a, b = d
        d = a * cos + b * sin, b * cos - a * sin
    if t.options.qk_norm:
        x = tuple(load(loaded_ref, at, start, size, length, t, part) for part in t.parts)
        factor = norm_factor(x, t)
        x = tuple(part.astype(jnp.float32) * factor for part in x)
        shared: Any = sum(jnp.sum(a * b, -1) for a, b in zip(d, x, strict=True))
        shared = (shared / t.width)[:, None]
        d = tuple(factor * (a - b * shared) for a, b in zip(d, x, strict=True))
    for value, part in zip(d, t.parts, strict=True):
        store(ref, at, start, value, length, t, part)


def vector(ref: Any, at: tuple[Any, ...], start: Any, size: int, length: int, t: Tile) -> Array:
    """ref[*at, start : start + size], zero outside of the array."""
    view = ref.at[*at, pl.ds(start, size)]
    if not t.may_pass_end(size, length):
        return triton.load(view)
    return triton.load(view, mask=start + jnp.arange(size) < length, other=0)


def tile_scores(
    q: tuple[Array, ...],
    k: tuple[Array, ...],
    span_t: Array,
    start_s: Any,
    mask_ref: Any,
    row: Any,
    t: Tile,
) -> tuple[Array, Array | None]:
    """(scores of a tile in units of log 2, which of its sources exist or None for all)."""
    n_sources = k[0].shape[0]
    span_s = start_s + jnp.arange(n_sources)
    scores: Any = sum(triton.dot(a, b, trans_b=True) for a, b in zip(q, k, strict=True))
    scores = scores * (t.width**-0.5 * LOG2_E)
    if t.options.causal:
        scores = jnp.where(span_t[:, None] >= span_s[None], scores, MASKED)
    if mask_ref is not None:
        seen = vector(mask_ref, (row,), start_s, n_sources, t.n_source, t)
        scores = jnp.where((seen != 0)[None], scores, MASKED)
    exists = None
    if t.may_pass_end(n_sources, t.n_source):
        exists = jnp.broadcast_to((span_s < t.n_source)[None], scores.shape)
    return scores, exists


def tile_words(
    stream: tuple[Any, Any], head: Any, word_rows: Array, span_s: Array, t: Tile
) -> Array:
    """The words of dropout.keep_mask in these of its rows, for these sources."""
    quarter = -(-t.n_target // 4)
    at = (head * quarter + word_rows).astype(jnp.uint32)[:, None] * jnp.uint32(t.n_source)
    at = at + span_s.astype(jnp.uint32)[None]
    return dropout.philox(at, stream[0], stream[1], dropout.MASK_ROUNDS)[0]


def tile_keep(stream: tuple[Any, Any], head: Any, span_t: Array, span_s: Array, t: Tile) -> Array:
    """dropout.keep_mask of a tile of weights."""
    row, shift = dropout.position_of(span_t, t.n_target)
    byte = tile_words(stream, head, row, span_s, t) >> shift.astype(jnp.uint32)[:, None]
    return (byte & jnp.uint32(255)) >= jnp.uint32(t.options.dropped)


def tile_stream(stream_ref: Any, row: Any, t: Tile) -> tuple[Any, Any]:
    return (stream_ref[row, 0], stream_ref[row, 1]) if t.options.dropped else (None, None)


def keep_factor(t: Tile) -> float:
    """What kept weights are multiplied by."""
    return dropout.N_LEVELS / (dropout.N_LEVELS - t.options.dropped)


def n_blocks_of(length: Any, size: int) -> Any:
    return lax.div(length + (size - 1), size)

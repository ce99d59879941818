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
    """What a kernel is compiled for. `dropped` of 256 weights are dropped."""

    causal: bool
    dropped: int = 0
    tiling: Tiling = Tiling()
    interpret: bool = False


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


class Tile(NamedTuple):
    """What all programs know. Lengths and widths are the true ones; P is K padded for tl.dot."""

    places: list[tuple[int, int]]
    n_target: int
    n_source: int
    width: int
    padded_width: int
    options: Options
    has_mask: bool

    def may_pass_end(self, size: int, length: int) -> bool:
        """Whether a tile of `size` may reach past the end of `length` queries or sources.

        The backward grid covers the longer of the two: its last tiles are past the end of the
        shorter, even if its length is a multiple of the tile.
        """
        return length % size != 0 or self.n_target != self.n_source


def tile_of(sources: Sources, mask_BS: Array | None, options: Options) -> Tile:
    check_masks(mask_BS, options)
    places = places_of(sources)
    n_target, n_source = (sources[places[i][0]].shape[1] for i in (0, 1))
    width = sources[0].shape[-1]
    padded = max(16, pl.next_power_of_2(width))
    return Tile(places, n_target, n_source, width, padded, options, mask_BS is not None)


def block(wanted: int, length: int) -> int:
    """Tiles are powers of two, of 16 rows at least, which tensor cores want."""
    return min(wanted, max(16, pl.next_power_of_2(length)))


def rows_of(ref: Any, at: tuple[Any, ...], start: Any, size: int, length: int, t: Tile) -> Any:
    """(reference to rows start ... start + size - 1 of ref[at[0], :, *at[1:]], mask of what exists)

    The mask is None where every tile fits exactly, which saves the comparisons.
    """
    rows, columns = start + jnp.arange(size), jnp.arange(t.padded_width)
    at = tuple(jnp.int32(index) for index in at)  # interpret mode takes no Python integers
    mask = None
    if t.may_pass_end(size, length):
        mask = jnp.broadcast_to((rows < length)[:, None], (size, t.padded_width))
    if t.width != t.padded_width:
        fits = jnp.broadcast_to((columns < t.width)[None], (size, t.padded_width))
        mask = fits if mask is None else mask & fits
    return ref.at[at[0], pl.ds(start, size), *at[1:], pl.ds(0, t.padded_width)], mask


def load(ref: Any, at: tuple[Any, ...], start: Any, size: int, length: int, t: Tile) -> Array:
    """A tile (size, P), zero outside of the array."""
    view, mask = rows_of(ref, at, start, size, length, t)
    return triton.load(view, mask=mask, other=None if mask is None else 0.0)


def store(ref: Any, at: tuple[Any, ...], start: Any, value: Array, length: int, t: Tile) -> None:
    view, mask = rows_of(ref, at, start, value.shape[0], length, t)
    triton.store(view, value.astype(ref.dtype), mask=mask)


def vector(ref: Any, at: tuple[Any, ...], start: Any, size: int, length: int, t: Tile) -> Array:
    """ref[*at, start : start + size], zero outside of the array."""
    view = ref.at[*at, pl.ds(start, size)]
    if not t.may_pass_end(size, length):
        return triton.load(view)
    return triton.load(view, mask=start + jnp.arange(size) < length, other=0)


def tile_scores(
    q: Array, k: Array, span_t: Array, start_s: Any, mask_ref: Any, row: Any, t: Tile
) -> tuple[Array, Array | None]:
    """(scores of a tile in units of log 2, which of its sources exist or None for all)."""
    span_s = start_s + jnp.arange(k.shape[0])
    scores = triton.dot(q, k, trans_b=True) * (t.width**-0.5 * LOG2_E)
    if t.options.causal:
        scores = jnp.where(span_t[:, None] >= span_s[None], scores, MASKED)
    if mask_ref is not None:
        seen = vector(mask_ref, (row,), start_s, k.shape[0], t.n_source, t)
        scores = jnp.where((seen != 0)[None], scores, MASKED)
    exists = None
    if t.may_pass_end(k.shape[0], t.n_source):
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

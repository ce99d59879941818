"""Attention in one kernel forward and one back, with dropout of the weights inside.

FlashAttention (Dao et al. 2022, arXiv:2205.14135; Dao 2023, arXiv:2307.08691) in Pallas, compiled
by Triton: scores live in registers alone, so that no array of T x S is ever in memory; the backward
pass computes them again from the kept log-sum-exp of each row. The dropout mask is that of
dropout.py, a function of the position, and so computed twice as well.

Queries, keys and values are read out of the arrays that matmuls make, without a transpose:
`sources` is a tuple of arrays (B, positions, n, H, K) whose slots, in order, are q, k and v: one
of three for self-attention, one and two for cross-attention, two and one where q and k are rotated
or normalised first.

`plain_attention` is the same in jnp. Pallas's Triton backend is deprecated as of JAX 0.11, but in
0.12 still; nothing outside this file knows of it.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as triton

from gptjax.kernels import dropout

Sources = tuple[Array, ...]
Kind = Literal["kernel", "cudnn", "plain"]

MASKED = -1e30
"""A score that no softmax gives weight; finite, so that a row of nothing else has no NaN."""
LOG2_E = math.log2(math.e)


class Tiling(NamedTuple):
    """Queries and sources that a program handles at a time, its warps and its pipeline stages."""

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


def choose(backend: str, dtype: Any, head_width: int, dropped: int, n_devices: int = 1) -> Kind:
    """Which attention to use, for `backend` of "gpu", "cpu" or "tpu".

    The kernels want 16-bit floats on one GPU, and heads whose tiles fit its registers. On several
    devices XLA does not know how to split an own kernel; cuDNN's it can, but that has no dropout.
    """
    if backend not in ("gpu", "cuda") or jnp.dtype(dtype).itemsize != 2:
        return "plain"
    if n_devices == 1 and head_width <= 128:
        return "kernel"
    return "cudnn" if not dropped and head_width <= 128 and head_width % 8 == 0 else "plain"


def _places(sources: Sources) -> list[tuple[int, int]]:
    """(array, slot) of q, k and v."""
    places = [(i, slot) for i, source in enumerate(sources) for slot in range(source.shape[2])]
    if len(places) != 3:
        raise ValueError(f"sources have {len(places)} slots, but q, k and v are 3")
    return places


def split(sources: Sources) -> tuple[Array, Array, Array]:
    """q (B, T, H, K), and k and v (B, S, H, K)."""
    q, k, v = (sources[i][:, :, slot] for i, slot in _places(sources))
    return q, k, v


def plain_attention(
    sources: Sources, streams_B2: Array | None, mask_BS: Array | None, options: Options
) -> Array:
    """What `attention` computes, in jnp: (B, T, H, K)."""
    q, k, v = split(sources)
    scores = jnp.einsum("BTHK,BSHK->BHTS", q, k, preferred_element_type=jnp.float32)
    scores = scores * q.shape[-1] ** -0.5
    if options.causal:
        n_target, n_source = scores.shape[2:]
        scores = jnp.where(jnp.tri(n_target, n_source, dtype=bool), scores, MASKED)
    if mask_BS is not None:
        scores = jnp.where(mask_BS[:, None, None], scores, MASKED)
    weights: Any = jax.nn.softmax(scores)
    if options.dropped and streams_B2 is not None:
        weights = dropout.dropout(weights, streams_B2, options.dropped)
    return jnp.einsum("BHTS,BSHK->BTHK", weights.astype(v.dtype), v)


def cudnn_attention(sources: Sources, mask_BS: Array | None, options: Options) -> Array:
    """The same by cuDNN, without dropout: (B, T, H, K)."""
    q, k, v = split(sources)
    mask = None if mask_BS is None else mask_BS[:, None, None]
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, is_causal=options.causal, implementation="cudnn"
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def attention(
    sources: Sources, streams_B2: Array | None, mask_BS: Array | None, options: Options
) -> Any:
    """softmax(q k / sqrt(K)) v, (B, T, H, K), by the kernels.

    streams_B2: of dropout.row_streams; may be None if nothing is dropped. mask_BS is true where a
    source may be seen. Raises ValueError if sources are not q, k and v.
    """
    return _forward(sources, streams_B2, mask_BS, options)[0]


class _Tile(NamedTuple):
    """What all programs know. Lengths and widths are the true ones; P is K padded for tl.dot."""

    places: list[tuple[int, int]]
    n_target: int
    n_source: int
    width: int
    padded_width: int
    options: Options
    has_mask: bool


def _tile_of(sources: Sources, mask_BS: Array | None, options: Options) -> _Tile:
    places = _places(sources)
    n_target, n_source = (sources[places[i][0]].shape[1] for i in (0, 1))
    width = sources[0].shape[-1]
    padded = max(16, pl.next_power_of_2(width))
    return _Tile(places, n_target, n_source, width, padded, options, mask_BS is not None)


def _block(wanted: int, length: int) -> int:
    """Tiles are powers of two, of 16 rows at least, which tensor cores want."""
    return min(wanted, max(16, pl.next_power_of_2(length)))


def _rows(ref: Any, at: tuple[Any, ...], start: Any, size: int, length: int, t: _Tile) -> Any:
    """(reference to rows start ... start + size - 1 of ref[at[0], :, *at[1:]], mask of what exists)

    The mask is None where the tile fits exactly, which spares the comparisons.
    """
    rows, columns = start + jnp.arange(size), jnp.arange(t.padded_width)
    at = tuple(jnp.int32(index) for index in at)  # interpret mode takes no Python integers
    mask = None
    if length % size:
        mask = jnp.broadcast_to((rows < length)[:, None], (size, t.padded_width))
    if t.width != t.padded_width:
        fits = jnp.broadcast_to((columns < t.width)[None], (size, t.padded_width))
        mask = fits if mask is None else mask & fits
    return ref.at[at[0], pl.ds(start, size), *at[1:], pl.ds(0, t.padded_width)], mask


def _load(ref: Any, at: tuple[Any, ...], start: Any, size: int, length: int, t: _Tile) -> Array:
    """A tile (size, P), zero outside of the array."""
    view, mask = _rows(ref, at, start, size, length, t)
    return triton.load(view, mask=mask, other=None if mask is None else 0.0)


def _store(ref: Any, at: tuple[Any, ...], start: Any, value: Array, length: int, t: _Tile) -> None:
    view, mask = _rows(ref, at, start, value.shape[0], length, t)
    triton.store(view, value.astype(ref.dtype), mask=mask)


def _vector(ref: Any, at: tuple[Any, ...], start: Any, size: int, length: int) -> Array:
    """ref[*at, start : start + size], zero outside of the array."""
    view = ref.at[*at, pl.ds(start, size)]
    if length % size == 0:
        return triton.load(view)
    return triton.load(view, mask=start + jnp.arange(size) < length, other=0)


def _scores(
    q: Array, k: Array, span_t: Array, start_s: Any, mask_ref: Any, row: Any, t: _Tile
) -> tuple[Array, Array | None]:
    """(scores of a tile in units of log 2, which of its sources exist or None for all)."""
    span_s = start_s + jnp.arange(k.shape[0])
    scores = triton.dot(q, k, trans_b=True) * (t.width**-0.5 * LOG2_E)
    if t.options.causal:
        scores = jnp.where(span_t[:, None] >= span_s[None], scores, MASKED)
    if mask_ref is not None:
        seen = _vector(mask_ref, (row,), start_s, k.shape[0], t.n_source)
        scores = jnp.where((seen != 0)[None], scores, MASKED)
    exists = None
    if t.n_source % k.shape[0]:
        exists = jnp.broadcast_to((span_s < t.n_source)[None], scores.shape)
    return scores, exists


def _words(stream: tuple[Any, Any], head: Any, word_rows: Array, span_s: Array, t: _Tile) -> Array:
    """The words of dropout.keep_mask in these of its rows, for these sources."""
    quarter = -(-t.n_target // 4)
    at = (head * quarter + word_rows).astype(jnp.uint32)[:, None] * jnp.uint32(t.n_source)
    at = at + span_s.astype(jnp.uint32)[None]
    return dropout.philox(at, stream[0], stream[1], dropout.MASK_ROUNDS)[0]


def _keep(stream: tuple[Any, Any], head: Any, span_t: Array, span_s: Array, t: _Tile) -> Array:
    """dropout.keep_mask of a tile of weights."""
    row, shift = dropout.position_of(span_t, t.n_target)
    byte = _words(stream, head, row, span_s, t) >> shift.astype(jnp.uint32)[:, None]
    return (byte & jnp.uint32(255)) >= jnp.uint32(t.options.dropped)


def _stream(stream_ref: Any, row: Any, t: _Tile) -> tuple[Any, Any]:
    return (stream_ref[row, 0], stream_ref[row, 1]) if t.options.dropped else (None, None)


def _factor(t: _Tile) -> float:
    """What kept weights are multiplied by."""
    return dropout.N_LEVELS / (dropout.N_LEVELS - t.options.dropped)


def _n_blocks(length: Any, size: int) -> Any:
    return lax.div(length + (size - 1), size)


def _forward_kernel(*refs: Any, t: _Tile, size_t: int, size_s: int) -> None:
    """One program: a tile of queries of one head, over all sources that it sees."""
    n = len({i for i, _ in t.places})
    stream_ref, mask_ref = refs[n], refs[n + 1] if t.has_mask else None
    y_ref, lse_ref = refs[-2:]
    (q_ref, q_slot), (k_ref, k_slot), (v_ref, v_slot) = ((refs[i], j) for i, j in t.places)
    # The last tiles of queries see the most sources: they start first.
    i = pl.num_programs(0) - 1 - pl.program_id(0)
    row, head = pl.program_id(1), pl.program_id(2)
    start_t = i * size_t
    span_t = start_t + jnp.arange(size_t)
    q = _load(q_ref, (row, q_slot, head), start_t, size_t, t.n_target, t)
    stream = _stream(stream_ref, row, t)

    def body(j: Any, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        y, largest, total = carry
        span_s = j * size_s + jnp.arange(size_s)
        k = _load(k_ref, (row, k_slot, head), j * size_s, size_s, t.n_source, t)
        scores, exists = _scores(q, k, span_t, j * size_s, mask_ref, row, t)
        new_largest = jnp.maximum(largest, scores.max(-1))
        weights = jnp.exp2(scores - new_largest[:, None])
        if exists is not None:
            weights = jnp.where(exists, weights, 0.0)
        shrink = jnp.exp2(largest - new_largest)
        total = shrink * total + weights.sum(-1)
        if t.options.dropped:
            keep = _keep(stream, head, span_t, span_s, t)
            weights = jnp.where(keep, weights, 0.0)
        v = _load(v_ref, (row, v_slot, head), j * size_s, size_s, t.n_source, t)
        y = shrink[:, None] * y + triton.dot(weights.astype(v.dtype), v)
        return y, new_largest, total

    n_blocks = -(-t.n_source // size_s)
    if t.options.causal:
        n_blocks = jnp.minimum(n_blocks, _n_blocks(start_t + size_t, size_s))
    zeros = jnp.zeros((size_t,), jnp.float32)
    start = (jnp.zeros((size_t, t.padded_width), jnp.float32), zeros + 2 * MASKED, zeros)
    y, largest, total = lax.fori_loop(0, n_blocks, body, start)
    y = y * (_factor(t) / total)[:, None]
    _store(y_ref, (row, head), start_t, y, t.n_target, t)
    lse_view = lse_ref.at[row, head, pl.ds(start_t, size_t)]
    mask = None if t.n_target % size_t == 0 else span_t < t.n_target
    triton.store(lse_view, largest + jnp.log2(total), mask=mask)


def _backward_kernel(*refs: Any, t: _Tile, size: int) -> None:
    """One program: the gradients of a tile of k and v over all queries, then of a tile of q over
    all sources. With a causal mask the two together are as much work for every tile."""
    n = len({i for i, _ in t.places})
    stream_ref, mask_ref = refs[n], refs[n + 1] if t.has_mask else None
    y_ref, dy_ref, lse_ref = refs[n + 1 + t.has_mask : n + 4 + t.has_mask]
    out = refs[n + 4 + t.has_mask :]
    (q_ref, q_slot), (k_ref, k_slot), (v_ref, v_slot) = ((refs[i], j) for i, j in t.places)
    (dq_ref, _), (dk_ref, _), (dv_ref, _) = ((out[i], j) for i, j in t.places)
    row, head, i = (pl.program_id(axis) for axis in range(3))
    stream = _stream(stream_ref, row, t)
    n_t, n_s, start = t.n_target, t.n_source, i * size
    quarter = -(-n_t // 4)
    span = start + jnp.arange(size)

    def of_queries(start_t: Any) -> tuple[Array, ...]:
        """q, dy, log-sum-exp and sum of y * dy of a tile of queries."""
        q = _load(q_ref, (row, q_slot, head), start_t, size, n_t, t)
        y = _load(y_ref, (row, head), start_t, size, n_t, t).astype(jnp.float32)
        dy = _load(dy_ref, (row, head), start_t, size, n_t, t)
        lse = _vector(lse_ref, (row, head), start_t, size, n_t)
        return q, dy, lse, jnp.sum(y * dy.astype(jnp.float32), -1)

    def of_sources(start_s: Any) -> tuple[Array, Array]:
        k = _load(k_ref, (row, k_slot, head), start_s, size, n_s, t)
        return k, _load(v_ref, (row, v_slot, head), start_s, size, n_s, t)

    def weights_of(q: Array, k: Array, lse: Array, start_t: Any, start_s: Any) -> Array:
        span_t = start_t + jnp.arange(size)
        scores, exists = _scores(q, k, span_t, start_s, mask_ref, row, t)
        weights = jnp.exp2(scores - lse[:, None])
        if exists is not None:
            weights = jnp.where(exists, weights, 0.0)
        if n_t % size:  # rows past the end have no log-sum-exp
            weights = jnp.where((span_t < n_t)[:, None], weights, 0.0)
        return weights

    zeros = jnp.zeros((size, t.padded_width), jnp.float32)
    k, v = of_sources(start)

    def add_query(start_t: Any, sums: tuple[Array, Array], keep: Array | None) -> Any:
        dk, dv = sums
        q, dy, lse, mean = of_queries(start_t)
        weights = weights_of(q, k, lse, start_t, start)
        d_weights = triton.dot(dy, v, trans_b=True) * _factor(t)
        kept = weights
        if keep is not None:
            kept, d_weights = (jnp.where(keep, x, 0.0) for x in (weights, d_weights))
        dv = dv + triton.dot(kept.astype(dy.dtype), dy, trans_a=True)
        d_scores = weights * (d_weights - mean[:, None])
        return dk + triton.dot(d_scores.astype(q.dtype), q, trans_a=True), dv

    if n_t % 4 == 0 and quarter % size == 0:  # tiles a quarter apart share their words

        def over_words(r: Any, sums: Any) -> Any:
            words = None
            if t.options.dropped:
                words = _words(stream, head, r * size + jnp.arange(size), span, t)

            def over_quarters(g: Any, sums: Any) -> Any:
                keep = None
                if words is not None:
                    byte = (words >> (8 * g).astype(jnp.uint32)) & jnp.uint32(255)
                    keep = byte >= jnp.uint32(t.options.dropped)
                return add_query(g * quarter + r * size, sums, keep)

            first = 0
            if t.options.causal:
                first = lax.div(jnp.maximum(start - r * size, 0) + (quarter - 1), quarter)
            return lax.fori_loop(first, 4, over_quarters, sums)

        dk, dv = lax.fori_loop(0, quarter // size, over_words, (zeros, zeros))
    else:

        def over_queries(j: Any, sums: Any) -> Any:
            keep = None
            if t.options.dropped:
                keep = _keep(stream, head, j * size + jnp.arange(size), span, t)
            return add_query(j * size, sums, keep)

        first = i if t.options.causal else 0
        dk, dv = lax.fori_loop(first, -(-n_t // size), over_queries, (zeros, zeros))
    _store(dk_ref, (row, k_slot, head), start, dk * t.width**-0.5, n_s, t)
    _store(dv_ref, (row, v_slot, head), start, dv * _factor(t), n_s, t)

    q, dy, lse, mean = of_queries(start)

    def over_sources(j: Any, dq: Array) -> Array:
        k, v = of_sources(j * size)
        weights = weights_of(q, k, lse, start, j * size)
        d_weights = triton.dot(dy, v, trans_b=True) * _factor(t)
        if t.options.dropped:
            keep = _keep(stream, head, span, j * size + jnp.arange(size), t)
            d_weights = jnp.where(keep, d_weights, 0.0)
        d_scores = weights * (d_weights - mean[:, None])
        return dq + triton.dot(d_scores.astype(k.dtype), k)

    n_blocks = -(-n_s // size)
    if t.options.causal:
        n_blocks = jnp.minimum(i + 1, n_blocks)
    dq = lax.fori_loop(0, n_blocks, over_sources, zeros)
    _store(dq_ref, (row, q_slot, head), start, dq * t.width**-0.5, n_t, t)


def _call(
    kernel: Callable[..., None],
    grid: tuple[int, ...],
    out_shape: Any,
    inputs: Any,
    options: Options,
    name: str,
) -> Any:
    backward = name.endswith("backward")
    tiling = options.tiling
    params = triton.CompilerParams(
        num_warps=tiling.backward_warps if backward else tiling.warps,
        num_stages=tiling.backward_stages if backward else tiling.stages,
    )
    return pl.pallas_call(
        kernel,
        grid=grid,
        out_shape=out_shape,
        compiler_params=params,
        interpret=options.interpret,
        name=name,
    )(*inputs)


def _inputs(sources: Sources, streams_B2: Array | None, mask_BS: Array | None) -> tuple[Any, ...]:
    if streams_B2 is None:
        streams_B2 = jnp.zeros((sources[0].shape[0], 2), jnp.uint32)
    mask = () if mask_BS is None else (mask_BS.astype(jnp.int32),)
    return (*sources, streams_B2, *mask)


def _forward(
    sources: Sources, streams_B2: Array | None, mask_BS: Array | None, options: Options
) -> tuple[Array, Array]:
    """(y (B, T, H, K), log-sum-exp of the scores in units of log 2, (B, H, T))."""
    t = _tile_of(sources, mask_BS, options)
    n_batch, _, _, n_head, width = sources[0].shape
    size_t = _block(options.tiling.queries, t.n_target)
    size_s = _block(options.tiling.sources, t.n_source)
    y = jax.ShapeDtypeStruct((n_batch, t.n_target, n_head, width), sources[0].dtype)
    lse = jax.ShapeDtypeStruct((n_batch, n_head, t.n_target), jnp.float32)
    return _call(
        functools.partial(_forward_kernel, t=t, size_t=size_t, size_s=size_s),
        (-(-t.n_target // size_t), n_batch, n_head),
        (y, lse),
        _inputs(sources, streams_B2, mask_BS),
        options,
        "attention_forward",
    )


def _attention_forward(
    sources: Sources, streams_B2: Array | None, mask_BS: Array | None, options: Options
) -> tuple[Array, Any]:
    y, lse = _forward(sources, streams_B2, mask_BS, options)
    return y, (sources, streams_B2, mask_BS, y, lse)


def _attention_backward(options: Options, residuals: Any, dy: Array) -> tuple[Any, None, None]:
    sources, streams_B2, mask_BS, y, lse = residuals
    t = _tile_of(sources, mask_BS, options)
    n_batch, n_head = sources[0].shape[0], sources[0].shape[3]
    longest = max(t.n_target, t.n_source)
    size = _block(options.tiling.backward, longest)
    d_sources = _call(
        functools.partial(_backward_kernel, t=t, size=size),
        (n_batch, n_head, -(-longest // size)),
        tuple(jax.ShapeDtypeStruct(source.shape, source.dtype) for source in sources),
        (*_inputs(sources, streams_B2, mask_BS), y, dy, lse),
        options,
        "attention_backward",
    )
    return tuple(d_sources), None, None


attention.defvjp(_attention_forward, _attention_backward)

"""The programs of the attention kernels, in Pallas: one forward, one backward."""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as triton

from gptjax.kernels.attention_tiles import (
    MASKED,
    Tile,
    keep_factor,
    load,
    load_prepared,
    n_blocks_of,
    store,
    store_gradient,
    tile_keep,
    tile_scores,
    tile_stream,
    tile_words,
    vector,
)


def forward_kernel(*refs: Any, t: Tile, size_t: int, size_s: int) -> None:
    """One program: a tile of queries of one head, over all sources that it sees."""
    n = len({i for i, _ in t.places})
    stream_ref, mask_ref, angles = refs_between(refs[n:], t)
    y_ref, lse_ref = refs[-2:]
    (q_ref, q_slot), (k_ref, k_slot), (v_ref, v_slot) = ((refs[i], j) for i, j in t.places)
    # The last tiles of queries see the most sources: they start first.
    i = pl.num_programs(0) - 1 - pl.program_id(0)
    row, head = pl.program_id(1), pl.program_id(2)
    start_t = i * size_t
    span_t = start_t + jnp.arange(size_t)
    q = load_prepared(q_ref, (row, q_slot, head), start_t, size_t, t.n_target, t, angles)
    stream = tile_stream(stream_ref, row, t)

    def body(j: Any, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        y, largest, total = carry
        span_s = j * size_s + jnp.arange(size_s)
        k = load_prepared(k_ref, (row, k_slot, head), j * size_s, size_s, t.n_source, t, angles)
        scores, exists = tile_scores(q, k, span_t, j * size_s, mask_ref, row, t)
        new_largest = jnp.maximum(largest, scores.max(-1))
        weights = jnp.exp2(scores - new_largest[:, None])
        if exists is not None:
            weights = jnp.where(exists, weights, 0.0)
        shrink = jnp.exp2(largest - new_largest)
        total = shrink * total + weights.sum(-1)
        if t.options.dropped:
            keep = tile_keep(stream, head, span_t, span_s, t)
            weights = jnp.where(keep, weights, 0.0)
        v = load(v_ref, (row, v_slot, head), j * size_s, size_s, t.n_source, t, t.whole)
        y = shrink[:, None] * y + triton.dot(weights.astype(v.dtype), v)
        return y, new_largest, total

    n_blocks = -(-t.n_source // size_s)
    if t.options.causal:
        n_blocks = jnp.minimum(n_blocks, n_blocks_of(start_t + size_t, size_s))
    zeros = jnp.zeros((size_t,), jnp.float32)
    start = (jnp.zeros((size_t, t.whole.padded), jnp.float32), zeros + 2 * MASKED, zeros)
    y, largest, total = lax.fori_loop(0, n_blocks, body, start)
    y = y * (keep_factor(t) / total)[:, None]
    store(y_ref, (row, head), start_t, y, t.n_target, t, t.whole)
    lse_view = lse_ref.at[row, head, pl.ds(start_t, size_t)]
    mask = span_t < t.n_target if t.may_pass_end(size_t, t.n_target) else None
    triton.store(lse_view, largest + jnp.log2(total), mask=mask)


def backward_kernel(*refs: Any, t: Tile, size: int) -> None:
    """One program: the gradients of a tile of k and v over all queries, then of a tile of q over
    all sources. With a causal mask the two together are as much work for every tile."""
    n = len({i for i, _ in t.places})
    stream_ref, mask_ref, angles = refs_between(refs[n:], t)
    (y_ref, dy_ref, lse_ref), out = refs[-n - 3 : -n], refs[-n:]
    (q_ref, q_slot), (k_ref, k_slot), (v_ref, v_slot) = ((refs[i], j) for i, j in t.places)
    (dq_ref, _), (dk_ref, _), (dv_ref, _) = ((out[i], j) for i, j in t.places)
    row, head, i = (pl.program_id(axis) for axis in range(3))
    stream = tile_stream(stream_ref, row, t)
    n_t, n_s, start = t.n_target, t.n_source, i * size
    quarter = -(-n_t // 4)
    span = start + jnp.arange(size)

    def of_queries(start_t: Any) -> tuple[tuple[Array, ...], Array, Array, Array]:
        """q, dy, log-sum-exp and sum of y * dy of a tile of queries."""
        q = load_prepared(q_ref, (row, q_slot, head), start_t, size, n_t, t, angles)
        y = load(y_ref, (row, head), start_t, size, n_t, t, t.whole).astype(jnp.float32)
        dy = load(dy_ref, (row, head), start_t, size, n_t, t, t.whole)
        lse = vector(lse_ref, (row, head), start_t, size, n_t, t)
        return q, dy, lse, jnp.sum(y * dy.astype(jnp.float32), -1)

    def of_sources(start_s: Any) -> tuple[tuple[Array, ...], Array]:
        k = load_prepared(k_ref, (row, k_slot, head), start_s, size, n_s, t, angles)
        return k, load(v_ref, (row, v_slot, head), start_s, size, n_s, t, t.whole)

    def weights_of(
        q: tuple[Array, ...], k: tuple[Array, ...], lse: Array, start_t: Any, start_s: Any
    ) -> Array:
        span_t = start_t + jnp.arange(size)
        scores, exists = tile_scores(q, k, span_t, start_s, mask_ref, row, t)
        weights = jnp.exp2(scores - lse[:, None])
        if t.has_mask:  # rows that see nothing weigh all sources the same, as in softmax
            weights = jnp.where((lse < MASKED / 2)[:, None], 1 / n_s, weights)
        if exists is not None:
            weights = jnp.where(exists, weights, 0.0)
        if t.may_pass_end(size, n_t):  # rows past the end have no log-sum-exp
            weights = jnp.where((span_t < n_t)[:, None], weights, 0.0)
        return weights

    def d_scores_of(weights: Array, d_weights: Array, mean: Array, lse: Array) -> Array:
        d_scores = weights * (d_weights - mean[:, None])
        if t.has_mask:  # the scores of rows that see nothing are constants
            d_scores = jnp.where((lse < MASKED / 2)[:, None], 0.0, d_scores)
        return d_scores

    def plus(sums: tuple[Array, ...], d_scores: Array, x: tuple[Array, ...], **options: Any) -> Any:
        """sums + d_scores x, for each part of queries or keys."""
        d_scores = d_scores.astype(x[0].dtype)
        return tuple(
            total + triton.dot(d_scores, part, **options)
            for total, part in zip(sums, x, strict=True)
        )

    zeros = jnp.zeros((size, t.whole.padded), jnp.float32)
    zeros_of_parts = tuple(jnp.zeros((size, part.padded), jnp.float32) for part in t.parts)
    k, v = of_sources(start)

    def add_query(start_t: Any, sums: tuple[Any, Array], keep: Array | None) -> Any:
        dk, dv = sums
        q, dy, lse, mean = of_queries(start_t)
        weights = weights_of(q, k, lse, start_t, start)
        d_weights = triton.dot(dy, v, trans_b=True) * keep_factor(t)
        kept = weights
        if keep is not None:
            kept, d_weights = (jnp.where(keep, x, 0.0) for x in (weights, d_weights))
        dv = dv + triton.dot(kept.astype(dy.dtype), dy, trans_a=True)
        d_scores = d_scores_of(weights, d_weights, mean, lse)
        return plus(dk, d_scores, q, trans_a=True), dv

    if n_t % 4 == 0 and quarter % size == 0:  # tiles a quarter apart share their words

        def over_words(r: Any, sums: Any) -> Any:
            words = None
            if t.options.dropped:
                words = tile_words(stream, head, r * size + jnp.arange(size), span, t)

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

        dk, dv = lax.fori_loop(0, quarter // size, over_words, (zeros_of_parts, zeros))
    else:

        def over_queries(j: Any, sums: Any) -> Any:
            keep = None
            if t.options.dropped:
                keep = tile_keep(stream, head, j * size + jnp.arange(size), span, t)
            return add_query(j * size, sums, keep)

        first = i if t.options.causal else 0
        dk, dv = lax.fori_loop(first, -(-n_t // size), over_queries, (zeros_of_parts, zeros))
    scale = t.width**-0.5
    dk = tuple(part * scale for part in dk)
    store_gradient(dk_ref, dk, k_ref, (row, k_slot, head), start, n_s, t, angles)
    store(dv_ref, (row, v_slot, head), start, dv * keep_factor(t), n_s, t, t.whole)

    q, dy, lse, mean = of_queries(start)

    def over_sources(j: Any, dq: tuple[Array, ...]) -> tuple[Array, ...]:
        k, v = of_sources(j * size)
        weights = weights_of(q, k, lse, start, j * size)
        d_weights = triton.dot(dy, v, trans_b=True) * keep_factor(t)
        if t.options.dropped:
            keep = tile_keep(stream, head, span, j * size + jnp.arange(size), t)
            d_weights = jnp.where(keep, d_weights, 0.0)
        d_scores = d_scores_of(weights, d_weights, mean, lse)
        return plus(dq, d_scores, k)

    n_blocks = -(-n_s // size)
    if t.options.causal:
        n_blocks = jnp.minimum(i + 1, n_blocks)
    dq = lax.fori_loop(0, n_blocks, over_sources, zeros_of_parts)
    dq = tuple(part * scale for part in dq)
    store_gradient(dq_ref, dq, q_ref, (row, q_slot, head), start, n_t, t, angles)


def refs_between(refs: Any, t: Tile) -> tuple[Any, Any, Any]:
    """The random streams, the mask or None, and the rotary angles or (): after the sources."""
    mask_ref = refs[1] if t.has_mask else None
    first = 1 + t.has_mask
    return refs[0], mask_ref, refs[first : first + 2] if t.has_rotary else ()

"""Attention in one kernel forward and one back, with dropout of the weights inside.

FlashAttention (Dao et al. 2022, arXiv:2205.14135; Dao 2023, arXiv:2307.08691) in Pallas, compiled
by Triton: scores live in registers alone, so that no array of T x S is ever in memory; the backward
pass computes them again from the kept log-sum-exp of each row. The dropout mask is that of
dropout.py, a function of the position, and so computed twice as well.

Queries, keys and values are read out of the arrays that matmuls make, without a transpose:
`sources` is a tuple of arrays (B, positions, n, H, K) whose slots, in order, are q, k and v: one
of three for self-attention, one and two for cross-attention. Where q and k are normalized or
rotated, the kernels do that to the tiles that they load, so that only the matmul's result is kept.

`plain_attention` is the same in jnp. Pallas's Triton backend is deprecated since JAX 0.11, but
still in 0.12. All files of this folder that call pallas_call use it.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as triton

from gptjax.kernels import dropout
from gptjax.kernels.attention_programs import backward_kernel, forward_kernel
from gptjax.kernels.attention_tiles import (
    MASKED,
    Options,
    Sources,
    block,
    check_masks,
    split,
    tile_of,
)

Kind = Literal["kernel", "cudnn", "plain"]


MOST_WIDTH = 128
"""Largest head width of the kernels, whose tiles must fit the registers, and of cuDNN."""


def choose(
    backend: str,
    dtype: Any,
    head_width: int,
    dropped: int,
    n_devices: int = 1,
    lengths: tuple[int, ...] = (),
) -> Kind:
    """Which attention to use, for `backend` of "gpu", "cpu" or "tpu".

    The kernels need 16-bit floats on one GPU. On several devices XLA does not know how to split a
    custom kernel. It can split cuDNN's, which has no dropout, and needs heads whose width is a
    multiple of 8 and even `lengths` (of targets and sources).
    """
    if backend != "gpu" or jnp.dtype(dtype).itemsize != 2 or head_width > MOST_WIDTH:
        return "plain"
    if n_devices == 1:
        return "kernel"
    return "cudnn" if not dropped and fits_cudnn(head_width, lengths) else "plain"


def fits_cudnn(head_width: int, lengths: tuple[int, ...]) -> bool:
    """Whether cuDNN takes heads of this width and sequences of these lengths."""
    return head_width % 8 == 0 and all(length % 2 == 0 for length in lengths)


def plain_attention(
    sources: Sources, streams_B2: Array | None, mask_BS: Array | None, options: Options
) -> Array:
    """What `attention` computes, in jnp, but for qk_norm and rotary: (B, T, H, K)."""
    check_masks(mask_BS, options)
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
    check_masks(mask_BS, options)
    q, k, v = split(sources)
    mask = None
    if mask_BS is not None:  # cuDNN takes no mask that is broadcast over the targets
        shape = (q.shape[0], 1, q.shape[1], k.shape[1])
        mask = jnp.broadcast_to(mask_BS[:, None, None], shape)
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, is_causal=options.causal, implementation="cudnn"
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attention(
    sources: Sources,
    streams_B2: Array | None,
    mask_BS: Array | None,
    rotary: tuple[Array, Array] | None,
    options: Options,
) -> Any:
    """softmax(q k / sqrt(K)) v, (B, T, H, K), by the kernels.

    streams_B2: of dropout.row_streams; may be None if nothing is dropped. mask_BS is true where a
    source may be seen; a row that sees none is the mean of all values. rotary: (cosines, sines) of
    rotary.py, each (T, K/2), by which q and k are rotated here; they have no gradient. Raises
    ValueError if sources are not q, k and v, and for a mask with options.causal.
    """
    return _forward(sources, streams_B2, mask_BS, rotary, options)[0]


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


def _inputs(
    sources: Sources, streams_B2: Array | None, mask_BS: Array | None, rotary: Any
) -> tuple[Any, ...]:
    if streams_B2 is None:
        streams_B2 = jnp.zeros((sources[0].shape[0], 2), jnp.uint32)
    mask = () if mask_BS is None else (mask_BS.astype(jnp.int32),)
    angles = () if rotary is None else tuple(angle.astype(jnp.float32) for angle in rotary)
    return (*sources, streams_B2, *mask, *angles)


# jax.jit here and around the backward pass: all layers call them with the same shapes, and so share
# what is traced and translated once. That is half of the time from Python to a program for XLA.
@functools.partial(jax.jit, static_argnames="options")
def _forward(
    sources: Sources,
    streams_B2: Array | None,
    mask_BS: Array | None,
    rotary: Any,
    options: Options,
) -> tuple[Array, Array]:
    """(y (B, T, H, K), log-sum-exp of the scores in units of log 2, (B, H, T))."""
    t = tile_of(sources, mask_BS, rotary, options)
    n_batch, _, _, n_head, width = sources[0].shape
    size_t = block(options.tiling.queries, t.n_target)
    size_s = block(options.tiling.sources, t.n_source)
    y = jax.ShapeDtypeStruct((n_batch, t.n_target, n_head, width), sources[0].dtype)
    lse = jax.ShapeDtypeStruct((n_batch, n_head, t.n_target), jnp.float32)
    return _call(
        functools.partial(forward_kernel, t=t, size_t=size_t, size_s=size_s),
        (-(-t.n_target // size_t), n_batch, n_head),
        (y, lse),
        _inputs(sources, streams_B2, mask_BS, rotary),
        options,
        "attention_forward",
    )


def _attention_forward(
    sources: Sources,
    streams_B2: Array | None,
    mask_BS: Array | None,
    rotary: Any,
    options: Options,
) -> tuple[Array, Any]:
    y, lse = _forward(sources, streams_B2, mask_BS, rotary, options)
    return y, (sources, streams_B2, mask_BS, rotary, y, lse)


@functools.partial(jax.jit, static_argnames="options")
def _attention_backward(
    options: Options, residuals: Any, dy: Array
) -> tuple[Any, None, None, None]:
    sources, streams_B2, mask_BS, rotary, y, lse = residuals
    t = tile_of(sources, mask_BS, rotary, options)
    n_batch, n_head = sources[0].shape[0], sources[0].shape[3]
    longest = max(t.n_target, t.n_source)
    size = block(options.tiling.backward, longest)
    d_sources = _call(
        functools.partial(backward_kernel, t=t, size=size),
        (n_batch, n_head, -(-longest // size)),
        tuple(jax.ShapeDtypeStruct(source.shape, source.dtype) for source in sources),
        (*_inputs(sources, streams_B2, mask_BS, rotary), y, dy, lse),
        options,
        "attention_backward",
    )
    return tuple(d_sources), None, None, None


attention.defvjp(_attention_forward, _attention_backward)

"""Attention by GPU kernels: the same as attention.py computes, without T x T arrays in memory.

These functions are called in the compact method of SelfAttention or CrossAttention. They read the
same parameters, "query", "key" and "value".
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from gptjax.config import GPTConfig
from gptjax.kernels import attention as kernels
from gptjax.kernels import choice, dropout
from gptjax.kernels.sums import spread
from gptjax.layers import Linear, rms_normalize
from gptjax.quantization.quant_array import is_quantized
from gptjax.rotary import Rotary, rotate


def attention_dropout(
    module: nn.Module, config: GPTConfig, streams_B2: Array | None
) -> tuple[int, Array | None]:
    """(weights dropped of 256, the random streams of this layer), or (0, None)."""
    dropped = 0 if streams_B2 is None else dropout.n_dropped(config.attention_dropout)
    if not dropped or streams_B2 is None:
        return 0, None
    return dropped, dropout.layer_streams(streams_B2, module.path)


def use_fused(module: Any, config: GPTConfig, dropped: int, *x: Array) -> bool:
    """Whether a kernel computes attention over whole sequences.

    x: targets and sources (B, length, D). Not where the attention weights are collected, which
    the kernel never writes.
    """
    width, lengths = config.n_embd // config.n_head, tuple(each.shape[1] for each in x)
    kind = choice.attention_kind(module.dtype, width, dropped, lengths)
    collected = module.is_mutable_collection("intermediates") or module.is_initializing()
    return kind != "plain" and not collected


def fused_sources(
    config: GPTConfig, dtype: Any, x_BTD: Array, source_BSD: Array | None
) -> kernels.Sources:
    """Queries, keys and values as the kernels read them: arrays (B, positions, n, H, K).

    One matmul makes all that come from the same vectors; their weights are put side by side.
    source_BSD: the encoder's output in cross-attention.
    """
    c = config

    def project(x: Array, *names: str) -> Array:
        parts = [
            Linear(c.n_embd, c.attention_bias, dtype=dtype, name=name).weights(x.shape[-1])
            for name in names
        ]
        x_ND = x.reshape(-1, x.shape[-1])
        w_DF = [kernel.astype(dtype) for kernel, _ in parts]
        if any(map(is_quantized, w_DF)):
            y = jnp.concatenate([x_ND @ w for w in w_DF], axis=1)
        else:
            y = x_ND @ jnp.concatenate(w_DF, axis=1)
        biases = [bias for _, bias in parts if bias is not None]
        if biases:
            y = y + spread(jnp.concatenate(biases), y)
        return y.reshape(*x.shape[:-1], len(names), c.n_head, -1)

    if source_BSD is None:
        return (project(x_BTD, "query", "key", "value"),)
    return project(x_BTD, "query"), project(source_BSD, "key", "value")


def fused_attention(
    config: GPTConfig,
    sources: kernels.Sources,
    causal: bool,
    mask_BS: Array | None,
    rotary: Rotary | None,
    dropped: int,
    streams_B2: Array | None,
) -> Array:
    """What the heads found, (B, T, H K), before the output projection."""
    now = choice.current()
    options = kernels.Options(causal, dropped, now.tiling, now.interpret, config.qk_norm)
    head_width, lengths = sources[0].shape[-1], tuple(source.shape[1] for source in sources)
    y_BTHK: Any
    if choice.attention_kind(sources[0].dtype, head_width, dropped, lengths) == "cudnn":
        prepared = prepare(config, sources, rotary)
        y_BTHK = kernels.cudnn_attention(prepared, mask_BS, options)
    else:
        y_BTHK = kernels.attention(sources, streams_B2, mask_BS, rotary, options)
    return y_BTHK.reshape(*y_BTHK.shape[:2], -1)


def prepare(config: GPTConfig, sources: kernels.Sources, rotary: Rotary | None) -> kernels.Sources:
    """The sources with queries and keys normalized and rotated: what the kernels do themselves."""
    if not config.qk_norm and rotary is None:
        return sources

    def of_heads(y_BTHK: Array) -> Array:
        y_BTHK = rms_normalize(y_BTHK) if config.qk_norm else y_BTHK
        if rotary is None:
            return y_BTHK
        cos, sin = (angle[:, None] for angle in rotary)
        return rotate(y_BTHK, (cos, sin))

    q, k, v = kernels.split(sources)
    return of_heads(q)[:, :, None], of_heads(k)[:, :, None], v[:, :, None]

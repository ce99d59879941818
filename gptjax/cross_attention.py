"""Cross-attention: how a decoder reads the output of an encoder (Vaswani et al. 2017, 3.2.3)."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from gptjax.attention import attend, merge, split_heads
from gptjax.cache import BlockCache, KeysValues
from gptjax.config import GPTConfig
from gptjax.fused_attention import attention_dropout, fused_attention, fused_sources, use_fused
from gptjax.kernels.dropout import weight_dropout
from gptjax.layers import Dropout, Linear, Norm, rms_normalize


class EncoderOutput(NamedTuple):
    """What a decoder sees of its encoder.

    x_BSD may be None once a cache has seen it. mask_BS is true at real positions, false at
    padding; None: all are real.
    """

    x_BSD: Array | None
    mask_BS: Array | None


class CrossAttention(nn.Module):
    """Multi-head attention from a decoder's positions to an encoder's: (B, T, D) -> (B, T, D).

    Keys and values come from `encoder_output.x_BSD` or, without it, from an earlier call. Returns
    (y_BTD, keys and values); in training a kernel may return None for them. Raises ValueError if
    there are neither.
    """

    config: GPTConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x_BTD: Array,
        encoder_output: EncoderOutput,
        keys_values: KeysValues | None,
        streams_B2: Array | None,
    ) -> tuple[Array, KeysValues | None]:
        c = self.config

        def project(name: str, x: Array) -> Array:
            y = Linear(c.n_embd, c.attention_bias, dtype=self.dtype, name=name)(x)
            y_BHSK = split_heads(y, c.n_head)
            return rms_normalize(y_BHSK) if c.qk_norm and name != "value" else y_BHSK

        x_BSD, mask_BS = encoder_output
        dropped, own_B2 = attention_dropout(self, c, streams_B2)
        output = Linear(c.n_embd, c.bias, c.zero_init, self.dtype, name="output")
        # Only in training: decoding needs the keys and values for later calls.
        if (
            streams_B2 is not None
            and x_BSD is not None
            and use_fused(self, c, dropped, x_BTD, x_BSD)
        ):
            sources = fused_sources(c, self.dtype, x_BTD, x_BSD)
            y_BTD = fused_attention(c, sources, False, mask_BS, None, dropped, own_B2)
            return output(y_BTD), None

        q_BHTK = project("query", x_BTD)
        if x_BSD is not None:
            keys_values = project("key", x_BSD), project("value", x_BSD)
        if keys_values is None:
            raise ValueError("cross-attention needs the encoder's output, or a cache that saw it")
        shape = (c.n_head, q_BHTK.shape[2], keys_values[0].shape[2])
        drop_weights = weight_dropout(own_B2, dropped, shape)

        def drop(weights_BHTS: Array) -> Array:
            self.sow("intermediates", "weights", weights_BHTS)
            return drop_weights(weights_BHTS, 0)

        mask = None if mask_BS is None else mask_BS[:, None, None, :]
        y_BHTK = attend(q_BHTK, *keys_values, mask, drop)
        return output(merge(y_BHTK)), keys_values


def add_cross_attention(
    config: GPTConfig,
    x_BTD: Array,
    encoder_output: EncoderOutput,
    cache: BlockCache | None,
    streams_B2: Array | None,
) -> tuple[Array, BlockCache | None]:
    """A residual branch of a decoder's Block, called in its compact method.

    Returns (x_BTD, the cache with the encoder's keys and values in it).
    """
    dtype = x_BTD.dtype
    y_BTD = Norm(config, dtype, name="cross_attention_norm")(x_BTD)
    earlier = None if cache is None else cache.encoder_keys_values
    attention = CrossAttention(config, dtype, name="cross_attention")
    y_BTD, keys_values = attention(y_BTD, encoder_output, earlier, streams_B2)
    if cache is not None:
        cache = cache._replace(encoder_keys_values=keys_values)
    return x_BTD + Dropout(config.dropout)(y_BTD, streams_B2), cache

"""Self-attention: how the positions of a sequence exchange information.

The key to array names (x_BTD) is at the top of layers.py.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from gptjax.cache import BlockCache
from gptjax.config import GPTConfig
from gptjax.fused_attention import attention_dropout, fused_attention, fused_sources, use_fused
from gptjax.kernels.dropout import weight_dropout
from gptjax.layers import Linear, rms_normalize
from gptjax.rotary import Rotary, rotate
from gptjax.scale.devices import query_chunks


def attend(
    q_BHTK: Array,
    k_BHSK: Array,
    v_BHSK: Array,
    mask: Array | None,
    drop: Callable[[Array], Array],
) -> Array:
    """Scaled dot-product attention: softmax(q k^T / sqrt(K)) v (Vaswani et al. 2017, eq. 1).

    Position t sees position s where mask is true. It broadcasts to (B, H, T, S). None: everything
    is seen. `drop` is applied to the weights (B, H, T, S). Returns y_BHTK.
    """
    # sqrt(K): a sum of K products would make the softmax too sharp. There are fewer q than scores.
    q_BHTK = q_BHTK * q_BHTK.shape[-1] ** -0.5
    # A score says how well the query of t fits the key of s. The softmax is computed in float32.
    scores_BHTS = jnp.einsum("BHTK,BHSK->BHTS", q_BHTK, k_BHSK).astype(jnp.float32)
    if mask is not None:
        # Not -inf: a row in which everything is masked would become NaN.
        scores_BHTS = jnp.where(mask, scores_BHTS, jnp.finfo(jnp.float32).min)
    # The weights of a position are positive and sum to 1 ...
    weights_BHTS = jax.nn.softmax(scores_BHTS).astype(v_BHSK.dtype)
    # ... so the result is a weighted average of the values that it sees.
    return drop(weights_BHTS) @ v_BHSK


def attend_causally(
    q_BHTK: Array, k_BHTK: Array, v_BHTK: Array, drop: Callable[..., Array]
) -> Array:
    """`attend`, where position t sees positions 0 ... t. Returns y_BHTK.

    On a CPU the queries are processed in chunks. A chunk needs only the keys up to its own end, so
    four chunks compute 5/8 of the scores. `drop` needs a chunk's start to find its dropout mask.
    """
    n = q_BHTK.shape[2]
    mask_TT = jnp.tril(jnp.ones((n, n), bool))  # [t, s] is true if s <= t
    chunks = []
    for i, j in query_chunks(n):
        q, k, v, mask = q_BHTK[:, :, i:j], k_BHTK[:, :, :j], v_BHTK[:, :, :j], mask_TT[i:j, :j]
        chunks.append(attend(q, k, v, mask, partial(drop, first=i)))
    return jnp.concatenate(chunks, axis=2)


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2.2): (B, T, D) -> (B, T, D).

    If causal, a position sees itself and earlier ones, and mask_BT must be None. Otherwise it sees
    all where mask_BT is true (padding is false). `rotary` rotates queries and keys. With a cache it
    also sees keys and values of earlier calls. streams_B2: see Dropout.

    Returns (y_BTD, the cache with the new keys and values in it).
    """

    config: GPTConfig
    causal: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x_BTD: Array,
        mask_BT: Array | None = None,
        rotary: Rotary | None = None,
        cache: BlockCache | None = None,
        streams_B2: Array | None = None,
    ) -> tuple[Array, BlockCache | None]:
        c = self.config
        if self.causal and mask_BT is not None:
            raise ValueError("attention is causal or has a padding mask, not both")
        dropped, own_B2 = attention_dropout(self, c, streams_B2)
        if cache is None and use_fused(self, c, dropped, x_BTD):
            # On a GPU: what `heads` computes, in one kernel and without T x T arrays in memory.
            sources = fused_sources(c, self.dtype, x_BTD, None)
            y_BTD = fused_attention(c, sources, self.causal, mask_BT, rotary, dropped, own_B2)
        else:
            n = x_BTD.shape[1]
            drop = weight_dropout(own_B2, dropped, (c.n_head, n, n))
            y_BTD, cache = self.heads(x_BTD, mask_BT, rotary, cache, drop)
        # A last linear map mixes the results of the heads.
        output = Linear(c.n_embd, c.bias, c.zero_init, self.dtype, name="output")
        return output(y_BTD), cache

    def heads(
        self,
        x_BTD: Array,
        mask_BT: Array | None,
        rotary: Rotary | None,
        cache: BlockCache | None,
        drop_weights: Callable[[Array, int], Array],
    ) -> tuple[Array, BlockCache | None]:
        """Returns (results of the heads, concatenated: (B, T, H K), the cache)."""
        c = self.config

        def project(name: str) -> Array:
            y_BTD = Linear(c.n_embd, c.attention_bias, dtype=self.dtype, name=name)(x_BTD)
            return split_heads(y_BTD, c.n_head)

        def drop(weights_BHTS: Array, first: int = 0) -> Array:
            # sow: `apply` returns the weights if its caller asks for them (to draw attention).
            self.sow("intermediates", "weights", weights_BHTS)
            return drop_weights(weights_BHTS, first)

        # Query: what a position looks for. Key: what it offers. Value: what it passes on.
        q_BHTK, k_BHTK, v_BHTK = project("query"), project("key"), project("value")
        if c.qk_norm:
            # Bounds the scores, so high learning rates are safe (Henry et al. 2020).
            q_BHTK, k_BHTK = rms_normalize(q_BHTK), rms_normalize(k_BHTK)
        if rotary is not None:
            q_BHTK, k_BHTK = rotate(q_BHTK, rotary), rotate(k_BHTK, rotary)

        if cache is not None:  # decoding: only the new positions are computed, without dropout
            mask_TS = cache.mask(x_BTD.shape[1])
            cache, k_BHSK, v_BHSK = cache.append(k_BHTK, v_BHTK)
            y_BHTK = attend(q_BHTK, k_BHSK, v_BHSK, mask_TS, drop)
        elif self.causal:
            y_BHTK = attend_causally(q_BHTK, k_BHTK, v_BHTK, drop)
        else:
            mask = None if mask_BT is None else mask_BT[:, None, None, :]
            y_BHTK = attend(q_BHTK, k_BHTK, v_BHTK, mask, drop)
        return merge(y_BHTK), cache


def split_heads(x_BTD: Array, n_head: int) -> Array:
    """(B, T, H K) -> (B, H, T, K): every head attends with a part of the width."""
    return x_BTD.reshape(*x_BTD.shape[:-1], n_head, -1).swapaxes(1, 2)


def merge(x_BHTK: Array) -> Array:
    """(B, H, T, K) -> (B, T, H K), the inverse of `split_heads`."""
    x_BTHK = x_BHTK.swapaxes(1, 2)
    return x_BTHK.reshape(*x_BTHK.shape[:-2], -1)

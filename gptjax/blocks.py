"""Attention, and the Block that every Transformer here is a stack of.

The key to array names (x_BTD) stands at the top of layers.py.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from gptjax.config import GPTConfig
from gptjax.layers import MLP, Dropout, Linear, Norm, rms_normalize
from gptjax.scale import devices

KeysValues = tuple[Array, Array]
"""Attention's keys and values, each (B, H, S, K)."""


class BlockCache(NamedTuple):
    """What a block remembers of the `length` positions that a decoder has seen so far.

    k and v are attention's keys and values, (B, H, S, K); attention_input and mlp_input are what
    the short convolutions read, (B, W - 1 + S, D), behind W - 1 rows of zeros. For a batch of one
    they have no axis B: with an axis of length 1 XLA's CPU backend would copy them at every token
    instead of writing one position. `memory` is the keys and values of cross-attention, made by
    the first call and read by every later one.
    """

    k: Array
    v: Array
    attention_input: Array | None
    mlp_input: Array | None
    length: Array
    memory: KeysValues | None = None

    @classmethod
    def empty(cls, batch_size: int, config: GPTConfig, dtype: Any) -> "BlockCache":
        """Room for block_size positions."""
        c = config
        axis_B = () if batch_size == 1 else (batch_size,)
        kv = jnp.zeros((*axis_B, c.n_head, c.block_size, c.n_embd // c.n_head), dtype)
        rows = None
        if c.short_conv:
            rows = jnp.zeros((*axis_B, c.short_conv - 1 + c.block_size, c.n_embd), dtype)
        return cls(kv, kv, rows, rows, jnp.int32(0))

    def take(self, rows_R: Array) -> "BlockCache":
        """The cache of R rows of the batch, some perhaps several times."""

        def take(x: Array, n_axes: int) -> Array:
            x = x.reshape(-1, *x.shape[x.ndim - n_axes :])[rows_R]  # with its axis B
            return x[0] if len(rows_R) == 1 else x

        inputs = (self.attention_input, self.mlp_input)
        attention_input, mlp_input = (None if x is None else take(x, 2) for x in inputs)
        memory = None if self.memory is None else (self.memory[0][rows_R], self.memory[1][rows_R])
        k, v = take(self.k, 3), take(self.v, 3)
        return BlockCache(k, v, attention_input, mlp_input, self.length, memory)


def write(old: Array, new: Array, position: Array) -> Array:
    """An array of BlockCache with new rows (B, ..., T, K) from `position` of its axis S on."""
    new = new.reshape(*old.shape[:-2], *new.shape[-2:])  # without B, where the cache has none
    return lax.dynamic_update_slice_in_dim(old, new, position, axis=-2)


class Attention(nn.Module):
    """Multi-head scaled dot-product attention (Vaswani et al. 2017, section 3.2).

    Queries come from x_BTD; keys and values from x_BTD itself or, in cross-attention, from a
    memory: vectors (B, S, D), or the keys and values that an earlier call returned for them.
    Query t sees source s where mask (anything that broadcasts to (B, 1, T, S)) is true, or else,
    if `causal`, where s is not later than t. A cache is for causal attention: the new keys and
    values are written behind those seen before, and S is its capacity. `rotary` is what
    `rotary_angles` returns for the positions of x.

    Returns (y_BTD, the keys and values attended to; with a cache, its arrays with the new ones in
    them). The weights, (B, H, T, S), are sown as "weights" for whoever makes "intermediates"
    mutable. Raises ValueError for a mask or a memory in causal attention, and for a cache in
    another.
    """

    config: GPTConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x_BTD: Array,
        memory: Array | KeysValues | None = None,
        mask: Array | None = None,
        causal: bool = False,
        rotary: tuple[Array, Array] | None = None,
        cache: BlockCache | None = None,
        rows_B: Array | None = None,
    ) -> tuple[Array, KeysValues]:
        if causal and not (mask is None and memory is None):
            raise ValueError("causal attention takes neither a mask nor a memory")
        if cache is not None and not causal:
            raise ValueError("a cache is for causal attention")
        c = self.config
        n_target = x_BTD.shape[1]
        start = jnp.int32(0) if cache is None else cache.length

        def heads(name: str, x: Array) -> Array:
            y = Linear(c.n_embd, c.attention_bias, dtype=self.dtype, name=name)(x)
            y = y.reshape(*x.shape[:-1], c.n_head, c.n_embd // c.n_head).swapaxes(1, 2)
            if c.qk_norm and name != "value":
                y = rms_normalize(y)
            return y if rotary is None or name == "value" else rotate(y, *rotary)

        q_BHTK = heads("query", x_BTD)
        if isinstance(memory, tuple):
            k, v = memory
        else:
            source_BSD = x_BTD if memory is None else memory
            k, v = heads("key", source_BSD), heads("value", source_BSD)
        if cache is not None:
            k, v = write(cache.k, k, start), write(cache.v, v, start)
        k_BHSK, v_BHSK = (x.reshape(-1, *x.shape[-3:]) for x in (k, v))

        def attend(q_BHTK: Array, k_BHSK: Array, v_BHSK: Array, mask: Array | None) -> Array:
            q_BHTK = q_BHTK * q_BHTK.shape[-1] ** -0.5
            scores_BHTS = jnp.einsum("BHTK,BHSK->BHTS", q_BHTK, k_BHSK).astype(jnp.float32)
            if mask is not None:
                scores_BHTS = jnp.where(mask, scores_BHTS, jnp.finfo(jnp.float32).min)
            weights_BHTS = jax.nn.softmax(scores_BHTS).astype(self.dtype)
            self.sow("intermediates", "weights", weights_BHTS)
            return Dropout(c.dropout)(weights_BHTS, rows_B) @ v_BHSK

        if causal and cache is None:
            mask = causal_mask(jnp.arange(n_target), n_target)
            # A chunk of queries leaves out the sources behind it, which none of them may see.
            y_BHTK = jnp.concatenate(
                [
                    attend(q_BHTK[:, :, i:j], k_BHSK[:, :, :j], v_BHSK[:, :, :j], mask[i:j, :j])
                    for i, j in devices.query_chunks(n_target)
                ],
                axis=2,
            )
        else:
            if causal:
                mask = causal_mask(start + jnp.arange(n_target), k_BHSK.shape[2])
            y_BHTK = attend(q_BHTK, k_BHSK, v_BHSK, mask)
        y_BTD = y_BHTK.swapaxes(1, 2).reshape(x_BTD.shape)
        y_BTD = Linear(c.n_embd, c.bias, c.zero_init, self.dtype, name="output")(y_BTD)
        return y_BTD, (k, v)


class ShortConv(nn.Module):
    """y_t = x_t + sum_j w_j x_(t-j), for each channel: (B, T, D) -> (B, T, D).

    A depthwise convolution, at first the identity, that shows each position its neighbours before
    attention has learned to look for them: the Canon layer of Allen-Zhu (2025, arXiv:2512.17351);
    with width 2 the token shift of RWKV (Peng et al. 2023, arXiv:2305.13048). If causal, j is
    1 ... width - 1; else the neighbours are half behind and half ahead, and those where mask_BT
    is false count as zero. Width 0 leaves x alone.

    The module is named after the array of the cache that keeps the inputs seen so far. Returns
    (y_BTD, cache with x in it).
    """

    width: int

    @nn.compact
    def __call__(
        self,
        x_BTD: Array,
        mask_BT: Array | None = None,
        causal: bool = False,
        cache: BlockCache | None = None,
    ) -> tuple[Array, BlockCache | None]:
        if not self.width:
            return x_BTD, cache
        n_batch, n_target, n_embd = x_BTD.shape
        n_after = 0 if causal else (self.width - 1) // 2
        n_before = self.width - 1 - n_after
        before = jnp.zeros((n_batch, n_before, n_embd), x_BTD.dtype)
        if cache is not None:
            name = str(self.name)
            seen = getattr(cache, name)
            before = lax.dynamic_slice_in_dim(seen, cache.length, n_before, axis=-2)
            before = before.reshape(n_batch, n_before, n_embd)
            cache = cache._replace(**{name: write(seen, x_BTD, n_before + cache.length)})
        seen_BTD = x_BTD if mask_BT is None else jnp.where(mask_BT[..., None], x_BTD, 0)
        after = jnp.zeros((n_batch, n_after, n_embd), x_BTD.dtype)
        window = jnp.concatenate([before, seen_BTD, after], axis=1)
        y_BTD = x_BTD
        for j in range(-n_after, n_before + 1):
            if j:  # vectors, as a norm's gain is: no weight decay, no Muon
                w_D = self.param(f"w_{j}", nn.initializers.zeros, (n_embd,)).astype(x_BTD.dtype)
                y_BTD = y_BTD + w_D * window[:, n_before - j : n_before - j + n_target]
        return y_BTD, cache


class Block(nn.Module):
    """Attention and MLP, each normalised before and added to the residual stream (pre-norm).

    Positions where mask_BT is false are seen by no other. With a memory, cross-attention to it
    comes between the two: vectors (B, S, D), seen where memory_mask_BS is true. A cache keeps the
    keys and values made of it, so later calls leave it out. The other arguments are those of
    `Attention`. Returns (y_BTD, cache), the cache None if none came in.
    """

    config: GPTConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x_BTD: Array,
        mask_BT: Array | None = None,
        memory_BSD: Array | None = None,
        memory_mask_BS: Array | None = None,
        causal: bool = False,
        rotary: tuple[Array, Array] | None = None,
        cache: BlockCache | None = None,
        rows_B: Array | None = None,
    ) -> tuple[Array, BlockCache | None]:
        c, dtype = self.config, self.dtype

        def over_heads_and_targets(mask_BS: Array | None) -> Array | None:
            return None if mask_BS is None else mask_BS[:, None, None]

        y_BTD = Norm(c, dtype, name="attention_norm")(x_BTD)
        conv = ShortConv(c.short_conv, name="attention_input")
        y_BTD, cache = conv(y_BTD, mask_BT, causal, cache)
        y_BTD, (k, v) = Attention(c, dtype, name="attention")(
            y_BTD,
            mask=over_heads_and_targets(mask_BT),
            causal=causal,
            rotary=rotary,
            cache=cache,
            rows_B=rows_B,
        )
        x_BTD = x_BTD + Dropout(c.dropout)(y_BTD, rows_B)

        memory = cache.memory if cache is not None and memory_BSD is None else memory_BSD
        if memory is not None:
            y_BTD = Norm(c, dtype, name="cross_attention_norm")(x_BTD)
            y_BTD, memory = Attention(c, dtype, name="cross_attention")(
                y_BTD,
                memory,
                over_heads_and_targets(memory_mask_BS),
                rows_B=rows_B,
            )
            x_BTD = x_BTD + Dropout(c.dropout)(y_BTD, rows_B)

        y_BTD = Norm(c, dtype, name="mlp_norm")(x_BTD)
        y_BTD, cache = ShortConv(c.short_conv, name="mlp_input")(y_BTD, mask_BT, causal, cache)
        y_BTD = MLP(c, dtype, name="mlp")(y_BTD)
        x_BTD = x_BTD + Dropout(c.dropout)(y_BTD, rows_B)
        if cache is not None:
            length = cache.length + x_BTD.shape[1]
            cache = cache._replace(k=k, v=v, length=length, memory=memory)
        return x_BTD, cache


def causal_mask(position_T: Array, n_source: int) -> Array:
    """mask_TS: the query at absolute position p sees the sources 0 ... p."""
    return jnp.arange(n_source) <= position_T[:, None]


def rotary_angles(position_T: Array, head_width: int) -> tuple[Array, Array]:
    """(cos, sin), each (T, K/2), of RoPE (Su et al. 2021, eq. 15) with base 10,000."""
    frequency = 10_000.0 ** -jnp.linspace(0, 1, head_width // 2, endpoint=False)
    angle = position_T[:, None] * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BHTK: Array, cos: Array, sin: Array) -> Array:
    """Turns each pair (x_i, x_{i + K/2}) of every head by its position's angle."""
    a, b = jnp.split(x_BHTK.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1).astype(x_BHTK.dtype)

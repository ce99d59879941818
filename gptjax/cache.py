"""The KV cache: what a decoder remembers of the tokens it has seen, as arrays of fixed size."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from gptjax.config import GPTConfig

KeysValues = tuple[Array, Array]
"""Attention's keys and values, each (B, H, S, K)."""


class BlockCache(NamedTuple):
    """The cache of one block, with room for block_size positions, of which `length` are filled.

    k and v are attention's keys and values, (B, H, S, K). attention_input and mlp_input are what
    the short convolutions read, (B, W - 1 + S, D), after W - 1 rows of zeros. For a batch of one
    they have no axis B: with an axis of length 1, XLA's CPU backend would copy the whole array at
    every token instead of writing one position. encoder_keys_values are the keys and values of
    cross-attention, made by the first call and read by later ones.
    """

    k: Array
    v: Array
    attention_input: Array | None
    mlp_input: Array | None
    length: Array
    encoder_keys_values: KeysValues | None = None

    @classmethod
    def empty(cls, batch_size: int, config: GPTConfig, dtype: Any) -> "BlockCache":
        """A cache with nothing in it."""
        c = config
        axis_B = () if batch_size == 1 else (batch_size,)
        kv = jnp.zeros((*axis_B, c.n_head, c.block_size, c.n_embd // c.n_head), dtype)
        inputs = None
        if c.short_conv:
            inputs = jnp.zeros((*axis_B, c.short_conv - 1 + c.block_size, c.n_embd), dtype)
        return cls(kv, kv, inputs, inputs, jnp.int32(0))

    def append(self, k_BHTK: Array, v_BHTK: Array) -> tuple["BlockCache", Array, Array]:
        """Writes keys and values of T new positions. Returns (cache, all k, all v), (B, H, S, K).

        `length` stays: the next call of the block starts where `advance` puts it.
        """
        k, v = _write(self.k, k_BHTK, self.length), _write(self.v, v_BHTK, self.length)
        k_BHSK, v_BHSK = (x.reshape(-1, *x.shape[-3:]) for x in (k, v))
        return self._replace(k=k, v=v), k_BHSK, v_BHSK

    def mask(self, n_target: int) -> Array:
        """mask_TS: new position t sees everything before it, and itself."""
        return jnp.arange(self.k.shape[-2]) <= (self.length + jnp.arange(n_target))[:, None]

    def append_input(self, name: str, x_BTD: Array, n_before: int) -> tuple["BlockCache", Array]:
        """Writes a short convolution's new inputs. Returns (cache, the n_before before them)."""
        n_batch, _, n_embd = x_BTD.shape
        inputs = getattr(self, name)
        before = lax.dynamic_slice_in_dim(inputs, self.length, n_before, axis=-2)
        inputs = _write(inputs, x_BTD, n_before + self.length)
        return self._replace(**{name: inputs}), before.reshape(n_batch, n_before, n_embd)

    def advance(self, n_target: int) -> "BlockCache":
        """Counts T new positions as seen."""
        return self._replace(length=self.length + n_target)

    def take(self, rows_R: Array) -> "BlockCache":
        """The cache of R rows of the batch; a row may be taken several times."""

        def take(x: Array, n_axes: int) -> Array:
            x = x.reshape(-1, *x.shape[x.ndim - n_axes :])[rows_R]  # with its axis B
            return x[0] if len(rows_R) == 1 else x

        inputs = (self.attention_input, self.mlp_input)
        attention_input, mlp_input = (None if x is None else take(x, 2) for x in inputs)
        encoder = self.encoder_keys_values
        if encoder is not None:
            encoder = (encoder[0][rows_R], encoder[1][rows_R])
        k, v = take(self.k, 3), take(self.v, 3)
        return BlockCache(k, v, attention_input, mlp_input, self.length, encoder)


Cache = tuple[BlockCache, ...]
"""One BlockCache per layer."""


def empty_cache(config: GPTConfig, batch_size: int, dtype: Any) -> Cache:
    """An empty cache of every layer of a decoder."""
    return (BlockCache.empty(batch_size, config, dtype),) * config.n_layer


def _write(old: Array, new: Array, position: Array) -> Array:
    """A cache's array with new rows (B, ..., T, K) from `position` of its axis S on."""
    new = new.reshape(*old.shape[:-2], *new.shape[-2:])  # without B, where the cache has none
    return lax.dynamic_update_slice_in_dim(old, new, position, axis=-2)

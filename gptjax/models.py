"""The models, each built from the same Blocks.

Every model is a Linen module that maps tokens to next-token logits:

    logits_BTV, cache = model.apply({"params": params}, tokens_BT, cache, deterministic, ...)

`cache` is None in training; for decoding it starts as `model.init_cache(batch_size)` and each
call hands in the last call's. float32 logits whatever the dtype. `deterministic=False` turns
dropout on and needs `rngs={"dropout": key}`.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from gptjax.config import BigramConfig, GPTConfig, ModelConfig
from gptjax.layers import Block, BlockCache, Embed, Linear, Norm, rotary_angles


class Bigram(nn.Module):
    """The logits of the next token are a row of a V x V table, chosen by this token."""

    config: BigramConfig
    vocab_size: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, tokens_BT: Array, cache: tuple[()] | None = None, deterministic: bool = True
    ) -> tuple[Array, tuple[()] | None]:
        logits_BTV = Embed(self.vocab_size, self.vocab_size, self.dtype, name="table")(tokens_BT)
        return logits_BTV.astype(jnp.float32), cache

    def init_cache(self, batch_size: int) -> tuple[()]:
        """A bigram remembers nothing."""
        return ()


class GPT(nn.Module):
    """A decoder-only Transformer (Radford et al. 2018); see GPTConfig for its options."""

    config: GPTConfig
    vocab_size: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens_BT: Array,
        cache: tuple[BlockCache, ...] | None = None,
        deterministic: bool = True,
    ) -> tuple[Array, tuple[BlockCache, ...] | None]:
        c, dtype = self.config, self.dtype
        n_target = tokens_BT.shape[1]
        if n_target > c.block_size:
            raise ValueError(f"{n_target} tokens do not fit block_size {c.block_size}")
        position_T = (cache[0].length if cache else 0) + jnp.arange(n_target)

        x_BTD = Embed(self.vocab_size, c.n_embd, dtype, name="token_embedding")(tokens_BT)
        rotary = None
        if c.position == "rotary":
            rotary = rotary_angles(position_T, c.n_embd // c.n_head)
        else:
            x_BTD += Embed(c.block_size, c.n_embd, dtype, name="position_embedding")(position_T)

        caches = []
        for i in range(c.n_layer):
            x_BTD, layer_cache = Block(c, dtype, name=f"block_{i}")(
                x_BTD,
                causal=True,
                rotary=rotary,
                cache=cache[i] if cache else None,
                deterministic=deterministic,
            )
            caches.append(layer_cache)

        x_BTD = Norm(c, dtype, name="final_norm")(x_BTD)
        logits_BTV = Linear(self.vocab_size, c.bias, c.zero_init, dtype, name="head")(x_BTD)
        logits_BTV = logits_BTV.astype(jnp.float32)
        if c.logit_softcap:
            logits_BTV = c.logit_softcap * jnp.tanh(logits_BTV / c.logit_softcap)
        return logits_BTV, tuple(caches) if cache else None

    def init_cache(self, batch_size: int) -> tuple[BlockCache, ...]:
        """An empty cache of block_size positions for every layer."""
        empty = BlockCache.empty(batch_size, self.config, self.dtype)
        return (empty,) * self.config.n_layer


Model = Bigram | GPT


def build(config: ModelConfig, vocab_size: int, dtype: Any = jnp.float32) -> Model:
    """The model that a configuration describes, without parameters."""
    match config:
        case BigramConfig():
            return Bigram(config, vocab_size, dtype)
        case GPTConfig():
            return GPT(config, vocab_size, dtype)


def init(model: Model, seed: int) -> Any:
    """Fresh parameters, a pure function of the model and the seed."""
    return jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, 1), jnp.int32))["params"]


def count(params: Any) -> int:
    """Number of parameters in a pytree of arrays or of their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))

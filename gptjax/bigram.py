"""The bigram: the first model of the original project. It is called as a GPT is."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from gptjax.config import BigramConfig
from gptjax.layers import Embed


class Bigram(nn.Module):
    """The logits of the next token are a row of a V x V table, chosen by the current token."""

    config: BigramConfig
    vocab_size: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, tokens_BT: Array, cache: tuple[()] | None = None, streams_B2: Array | None = None
    ) -> tuple[Array, tuple[()] | None]:
        logits_BTV = Embed(self.vocab_size, self.vocab_size, self.dtype, name="table")(tokens_BT)
        return logits_BTV.astype(jnp.float32), cache

    def init_cache(self, batch_size: int) -> tuple[()]:
        """A bigram remembers nothing."""
        return ()

"""The encoder-decoder Transformer: from a source sequence to a target sequence.

The model is called as a GPT is, with `source` and `source_mask` besides.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from gptjax.cache import Cache, empty_cache
from gptjax.config import GPTConfig
from gptjax.config_encoders import EncoderDecoderConfig
from gptjax.cross_attention import EncoderOutput
from gptjax.gpt import GPT, Block, add_positions, token_embedding
from gptjax.layers import Embed, Norm
from gptjax.rotary import Rotary


class EncoderDecoder(nn.Module):
    """The Transformer (Vaswani et al. 2017): an encoder, and a GPT that reads its output.

    `source` (B, S) may be left out once a cache has seen it. source_mask (B, S), true where there
    is a source token, goes with every call.
    """

    config: EncoderDecoderConfig
    vocab_size: int
    source_vocab_size: int
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        tokens_BT: Array,
        cache: Cache | None = None,
        streams_B2: Array | None = None,
        source: Array | None = None,
        source_mask: Array | None = None,
    ) -> tuple[Array, Cache | None]:
        c, dtype = self.config, self.dtype
        embed = token_embedding(c, self.vocab_size, dtype) if c.share_embeddings else None
        x_BSD = None
        if source is not None:
            encoder = Encoder(c, self.source_vocab_size, dtype, self.remat, embed, name="encoder")
            x_BSD = encoder(source, source_mask, streams_B2)
        decoder = GPT(c, self.vocab_size, dtype, self.remat, embed, name="decoder")
        return decoder(tokens_BT, cache, streams_B2, EncoderOutput(x_BSD, source_mask))

    def init_cache(self, batch_size: int) -> Cache:
        """An empty cache of block_size positions for every layer of the decoder."""
        return empty_cache(self.config, batch_size, self.dtype)


class Encoder(nn.Module):
    """Blocks in which every position sees every other one: (B, S) -> (B, S, D).

    mask_BS is false at padding, which may only be at the end of a row.
    """

    config: EncoderDecoderConfig
    vocab_size: int
    dtype: Any = jnp.float32
    remat: bool = False
    embedding: Embed | None = None

    @nn.compact
    def __call__(
        self, source_BS: Array, mask_BS: Array | None, streams_B2: Array | None = None
    ) -> Array:
        c = self.config
        embed = self.embedding or token_embedding(c, self.vocab_size, self.dtype)
        x_BSD, rotary = add_positions(c, embed(source_BS), 0, c.source_block_size)
        return encode(c, c.n_encoder_layer, self.remat, x_BSD, mask_BS, rotary, streams_B2)


def encode(
    config: GPTConfig,
    n_layer: int,
    remat: bool,
    x_BSD: Array,
    mask_BS: Array | None,
    rotary: Rotary | None,
    streams_B2: Array | None,
) -> Array:
    """The blocks and the last norm of an encoder, made in its compact method."""
    block_class = nn.remat(Block) if remat else Block
    for i in range(n_layer):
        block: Any = block_class(config, causal=False, dtype=x_BSD.dtype, name=f"block_{i}")
        x_BSD, _ = block(x_BSD, mask_BT=mask_BS, rotary=rotary, streams_B2=streams_B2)
    return Norm(config, x_BSD.dtype, name="final_norm")(x_BSD)

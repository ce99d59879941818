"""The GPT: token and position embeddings, a stack of Blocks, an output head.

It maps tokens to the logits of the next token at every position:

    logits_BTV, cache = model.apply({"params": params}, tokens_BT)

Only training gives it streams_B2 (see Dropout). In decoding the cache starts as
`model.init_cache(batch_size)`; each call gets what the last one returned. Logits are float32.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from gptjax.attention import SelfAttention
from gptjax.cache import BlockCache, Cache, empty_cache
from gptjax.config import GPTConfig
from gptjax.cross_attention import EncoderOutput, add_cross_attention
from gptjax.layers import MLP, Dropout, Embed, Linear, Norm
from gptjax.rotary import Rotary, rotary_angles
from gptjax.short_conv import ShortConv


class Block(nn.Module):
    """Attention, then an MLP, each added to the residual stream: (B, T, D) -> (B, T, D).

    Each is normalized at its input (pre-norm). The stream itself is only added to, never normalized
    or multiplied, so gradients reach the first block directly. Arguments as in SelfAttention.
    Returns (x_BTD, cache).
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
        encoder_output: EncoderOutput | None = None,
    ) -> tuple[Array, BlockCache | None]:
        c, causal, dtype = self.config, self.causal, self.dtype

        # Attention: positions exchange information.
        y_BTD = Norm(c, dtype, name="attention_norm")(x_BTD)
        conv = ShortConv(c.short_conv, causal, name="attention_input")  # the identity at width 0
        y_BTD, cache = conv(y_BTD, mask_BT, cache)
        attention = SelfAttention(c, causal, dtype, name="attention")
        y_BTD, cache = attention(y_BTD, mask_BT, rotary, cache, streams_B2)
        x_BTD = x_BTD + Dropout(c.dropout)(y_BTD, streams_B2)

        if encoder_output is not None:  # only in the decoder of an encoder-decoder
            x_BTD, cache = add_cross_attention(c, x_BTD, encoder_output, cache, streams_B2)

        # MLP: each position by itself.
        y_BTD = Norm(c, dtype, name="mlp_norm")(x_BTD)
        conv = ShortConv(c.short_conv, causal, name="mlp_input")
        y_BTD, cache = conv(y_BTD, mask_BT, cache)
        y_BTD = MLP(c, dtype, name="mlp")(y_BTD)
        x_BTD = x_BTD + Dropout(c.dropout)(y_BTD, streams_B2)

        if cache is not None:  # only here: attention and convolutions use the former length
            cache = cache.advance(x_BTD.shape[1])
        return x_BTD, cache


class GPT(nn.Module):
    """A decoder-only Transformer (Radford et al. 2018). Its options are in GPTConfig.

    remat: the backward pass recomputes the inside of every block instead of keeping it in memory.
    encoder_output: only in an encoder-decoder. Raises ValueError for more than block_size tokens.
    """

    config: GPTConfig
    vocab_size: int
    dtype: Any = jnp.float32
    remat: bool = False
    embedding: Embed | None = None

    @nn.compact
    def __call__(
        self,
        tokens_BT: Array,
        cache: Cache | None = None,
        streams_B2: Array | None = None,
        encoder_output: EncoderOutput | None = None,
    ) -> tuple[Array, Cache | None]:
        c, dtype = self.config, self.dtype
        n_target = tokens_BT.shape[1]
        if n_target > c.block_size:
            raise ValueError(f"{n_target} tokens do not fit block_size {c.block_size}")

        # Turn each token into a vector, and add (or prepare to rotate by) its position.
        embed = self.embedding or token_embedding(c, self.vocab_size, dtype)
        start = cache[0].length if cache else 0
        x_BTD, rotary = add_positions(c, embed(tokens_BT), start, c.block_size)

        block_class = nn.remat(Block) if self.remat else Block
        caches = []
        for i in range(c.n_layer):
            block: Any = block_class(c, causal=True, dtype=dtype, name=f"block_{i}")
            x_BTD, block_cache = block(
                x_BTD,
                rotary=rotary,
                cache=cache[i] if cache else None,
                streams_B2=streams_B2,
                encoder_output=encoder_output,
            )
            caches.append(block_cache)

        # A logit for every token of the vocabulary. Softmax makes probabilities of them.
        x_BTD = Norm(c, dtype, name="final_norm")(x_BTD)
        if streams_B2 is not None or self.is_initializing():  # in training
            for i in range(c.predict_ahead):
                ahead = Linear(self.vocab_size, c.bias, c.zero_init, dtype, name=f"ahead_{i}")
                self.sow("ahead", "logits", ahead(x_BTD))
        head = Linear(self.vocab_size, c.bias, c.zero_init, dtype, name="head")
        logits_BTV = (embed.attend(x_BTD) if c.tie_embeddings else head(x_BTD)).astype(jnp.float32)
        if c.logit_softcap:  # smoothly limited to +-cap, against overconfidence (Gemma 2)
            logits_BTV = c.logit_softcap * jnp.tanh(logits_BTV / c.logit_softcap)
        return logits_BTV, tuple(caches) if cache else None

    def init_cache(self, batch_size: int) -> Cache:
        """An empty cache of block_size positions for every layer."""
        return empty_cache(self.config, batch_size, self.dtype)


def token_embedding(config: GPTConfig, vocab_size: int, dtype: Any) -> Embed:
    """The table of token vectors, made in the compact method of the module that calls."""
    return Embed(vocab_size, config.n_embd, dtype, embedding_scale(config), name="token_embedding")


def embedding_scale(config: GPTConfig) -> float:
    """Standard deviation of tokens and positions alike: 0.02 if tied, as in GPT-2, else 1."""
    return 0.02 if config.tie_embeddings else 1.0


def add_positions(
    config: GPTConfig, x_BTD: Array, start: Array | int, n_positions: int
) -> tuple[Array, Rotary | None]:
    """Positions start ... start + T - 1, for vectors x_BTD. Called in a compact method.

    Returns (x_BTD with learned positions added, None), or (x_BTD, rotary angles).
    """
    position_T = start + jnp.arange(x_BTD.shape[1])
    if config.position == "rotary":
        return x_BTD, rotary_angles(position_T, config.n_embd // config.n_head)
    scale = embedding_scale(config)
    embed = Embed(n_positions, config.n_embd, x_BTD.dtype, scale, name="position_embedding")
    return x_BTD + embed(position_T), None

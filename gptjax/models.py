"""The models, each built from the same Blocks.

Every model is a Linen module that maps tokens to next-token logits:

    logits_BTV, cache = model.apply({"params": params}, tokens_BT, cache, rows_B, ...)

`cache` is None in training; for decoding it starts as `model.init_cache(batch_size)` and each
call hands in the last call's. float32 logits whatever the dtype. rows_B, the numbers of the rows
in the batch of the step, turns dropout on and needs `rngs={"dropout": key}`. `remat` has the
backward pass compute the inside of every block again, instead of keeping it.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from gptjax.blocks import Block, BlockCache, rotary_angles
from gptjax.config import BigramConfig, GPTConfig, ModelConfig
from gptjax.config_encoders import EncoderDecoderConfig, SpeechConfig
from gptjax.data.tokenizer import PairTokenizer, Tokenizer
from gptjax.layers import Embed, Linear, Norm

Cache = tuple[BlockCache, ...]


class Bigram(nn.Module):
    """The logits of the next token are a row of a V x V table, chosen by this token."""

    config: BigramConfig
    vocab_size: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, tokens_BT: Array, cache: tuple[()] | None = None, rows_B: Array | None = None
    ) -> tuple[Array, tuple[()] | None]:
        logits_BTV = Embed(self.vocab_size, self.vocab_size, self.dtype, name="table")(tokens_BT)
        return logits_BTV.astype(jnp.float32), cache

    def init_cache(self, batch_size: int) -> tuple[()]:
        """A bigram remembers nothing."""
        return ()


class GPT(nn.Module):
    """A decoder-only Transformer (Radford et al. 2018); see GPTConfig for its options.

    As the decoder of an EncoderDecoder its blocks also attend to a memory (B, S, D), and it may
    be lent a token embedding.
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
        rows_B: Array | None = None,
        memory_BSD: Array | None = None,
        memory_mask_BS: Array | None = None,
    ) -> tuple[Array, Cache | None]:
        c, dtype = self.config, self.dtype
        n_target = tokens_BT.shape[1]
        if n_target > c.block_size:
            raise ValueError(f"{n_target} tokens do not fit block_size {c.block_size}")
        start = cache[0].length if cache else 0

        embed = self.embedding or token_embedding(c, self.vocab_size, dtype)
        x_BTD, rotary = add_positions(c, embed(tokens_BT), start, c.block_size)
        caches = []
        for i in range(c.n_layer):
            layer_cache = cache[i] if cache else None
            x_BTD, layer_cache = block(self, i)(
                x_BTD, None, memory_BSD, memory_mask_BS, True, rotary, layer_cache, rows_B
            )
            caches.append(layer_cache)

        x_BTD = Norm(c, dtype, name="final_norm")(x_BTD)
        if c.tie_embeddings:
            logits_BTV = embed.attend(x_BTD)
        else:
            logits_BTV = Linear(self.vocab_size, c.bias, c.zero_init, dtype, name="head")(x_BTD)
        logits_BTV = logits_BTV.astype(jnp.float32)
        if c.logit_softcap:
            logits_BTV = c.logit_softcap * jnp.tanh(logits_BTV / c.logit_softcap)
        return logits_BTV, tuple(caches) if cache else None

    def init_cache(self, batch_size: int) -> Cache:
        """An empty cache of block_size positions for every layer."""
        return empty_cache(self.config, batch_size, self.dtype)


class Encoder(nn.Module):
    """Blocks in which every position sees every other that is no padding: (B, S) -> (B, S, D).

    mask_BS is false at the padding, which may only be at the end of a row.
    """

    config: EncoderDecoderConfig
    vocab_size: int
    dtype: Any = jnp.float32
    remat: bool = False
    embedding: Embed | None = None

    @nn.compact
    def __call__(
        self, source_BS: Array, mask_BS: Array | None, rows_B: Array | None = None
    ) -> Array:
        c, dtype = self.config, self.dtype
        embed = self.embedding or token_embedding(c, self.vocab_size, dtype)
        x_BSD, rotary = add_positions(c, embed(source_BS), 0, c.source_block_size)
        for i in range(c.n_encoder_layer):
            x_BSD, _ = block(self, i)(x_BSD, mask_BS, None, None, False, rotary, None, rows_B)
        return Norm(c, dtype, name="final_norm")(x_BSD)


class EncoderDecoder(nn.Module):
    """The Transformer (Vaswani et al. 2017): an encoder, and a GPT that attends to its output.

    `source` (B, S) may be left out once a cache has seen it; source_mask (B, S), true where there
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
        rows_B: Array | None = None,
        source: Array | None = None,
        source_mask: Array | None = None,
    ) -> tuple[Array, Cache | None]:
        c, dtype = self.config, self.dtype
        embed = token_embedding(c, self.vocab_size, dtype) if c.share_embeddings else None
        memory_BSD = None
        if source is not None:
            encoder = Encoder(c, self.source_vocab_size, dtype, self.remat, embed, name="encoder")
            memory_BSD = encoder(source, source_mask, rows_B)
        decoder = GPT(c, self.vocab_size, dtype, self.remat, embed, name="decoder")
        return decoder(tokens_BT, cache, rows_B, memory_BSD, source_mask)

    def init_cache(self, batch_size: int) -> Cache:
        """An empty cache of block_size positions for every layer of the decoder."""
        return empty_cache(self.config, batch_size, self.dtype)


class SpeechEncoder(nn.Module):
    """Two convolutions over time, of which the second halves it, then Blocks.

    (B, T, M) log-mel frames of 10 ms -> (B, S, D), S = ceil(T / 2). Frames where mask_BT is false
    are padding, which may only be at the end of a row.
    """

    config: SpeechConfig
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, mel_BTM: Array, mask_BT: Array | None, rows_B: Array | None = None) -> Array:
        c, dtype = self.config, self.dtype

        def convolve(x_BTC: Array, stride: int, name: str) -> Array:
            """Frames 2 s - 1 ... 2 s + 1, zero outside the sound, in one matmul."""
            if mask_BT is not None:
                x_BTC = jnp.where(mask_BT[..., None], x_BTC, 0)
            padded = jnp.pad(x_BTC, ((0, 0), (1, 1), (0, 0)))
            n = x_BTC.shape[1]
            window = jnp.concatenate([padded[:, j : j + n : stride] for j in range(3)], -1)
            y = Linear(c.n_embd, dtype=dtype, name=name)(window)
            return jax.nn.gelu(y, approximate=False)

        x_BSD = convolve(convolve(mel_BTM.astype(dtype), 1, "conv_1"), 2, "conv_2")
        mask_BS = None if mask_BT is None else half(mask_BT)
        n_source = x_BSD.shape[1]
        if n_source > c.source_block_size:
            raise ValueError(f"{n_source} positions do not fit {c.source_block_size}")
        rotary = None
        if c.position == "rotary":
            rotary = rotary_angles(jnp.arange(n_source), c.n_embd // c.n_head)
        else:
            x_BSD = x_BSD + sinusoids(n_source, c.n_embd).astype(dtype)
        for i in range(c.n_encoder_layer):
            x_BSD, _ = block(self, i)(x_BSD, mask_BS, None, None, False, rotary, None, rows_B)
        return Norm(c, dtype, name="final_norm")(x_BSD)


class SpeechRecognizer(nn.Module):
    """Whisper (Radford et al. 2022): a SpeechEncoder, and a GPT that attends to its output.

    `source` (B, T, M) is a log-mel spectrogram, which may be left out once a cache has seen it;
    source_mask (B, T), true where there is sound, goes with every call.
    """

    config: SpeechConfig
    vocab_size: int
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        tokens_BT: Array,
        cache: Cache | None = None,
        rows_B: Array | None = None,
        source: Array | None = None,
        source_mask: Array | None = None,
    ) -> tuple[Array, Cache | None]:
        c, dtype = self.config, self.dtype
        memory_BSD = None
        if source is not None:
            encoder = SpeechEncoder(c, dtype, self.remat, name="encoder")
            memory_BSD = encoder(source, source_mask, rows_B)
        mask_BS = None if source_mask is None else half(source_mask)
        decoder = GPT(c, self.vocab_size, dtype, self.remat, name="decoder")
        return decoder(tokens_BT, cache, rows_B, memory_BSD, mask_BS)

    def init_cache(self, batch_size: int) -> Cache:
        """An empty cache of block_size positions for every layer of the decoder."""
        return empty_cache(self.config, batch_size, self.dtype)


def block(model: GPT | Encoder | SpeechEncoder, i: int) -> Any:
    """Block i of a model, to be called in its compact method, all arguments by position."""
    causal = 5  # the place of this one, counted from self, which decides what is traced
    cls: Any = nn.remat(Block, static_argnums=(causal,)) if model.remat else Block
    return cls(model.config, model.dtype, name=f"block_{i}")


def half(mask_BT: Array) -> Array:
    """The mask of frames as one of the encoder's positions, each at an even frame."""
    return mask_BT[:, ::2]


def sinusoids(n_positions: int, width: int) -> Array:
    """Fixed positions (S, D): sines, then cosines, of wavelengths 2 pi ... 10,000 * 2 pi.

    In the order of Whisper; Vaswani et al. 2017, section 3.5, has them side by side.
    """
    frequency = 10_000.0 ** -jnp.linspace(0, 1, width // 2)
    angle = jnp.arange(n_positions)[:, None] * frequency
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


def empty_cache(config: GPTConfig, batch_size: int, dtype: Any) -> Cache:
    """Room for block_size positions in every layer of a decoder."""
    return (BlockCache.empty(batch_size, config, dtype),) * config.n_layer


def token_embedding(config: GPTConfig, vocab_size: int, dtype: Any) -> Embed:
    """The table of token vectors; of small ones if they are the rows of the output head, too."""
    return Embed(vocab_size, config.n_embd, dtype, embedding_scale(config), name="token_embedding")


def embedding_scale(config: GPTConfig) -> float:
    """Of tokens and positions alike, as in GPT-2: large positions would drown small tokens."""
    return 0.02 if config.tie_embeddings else 1.0


def add_positions(
    config: GPTConfig, x_BTD: Array, start: Array | int, n_positions: int
) -> tuple[Array, tuple[Array, Array] | None]:
    """Tells the vectors of positions start ... start + T - 1 where they are.

    Returns (x_BTD, None) with learned positions added or, untouched, (x_BTD, rotary angles). To
    be called in a module's compact method.
    """
    position_T = start + jnp.arange(x_BTD.shape[1])
    if config.position == "rotary":
        return x_BTD, rotary_angles(position_T, config.n_embd // config.n_head)
    scale = embedding_scale(config)
    embed = Embed(n_positions, config.n_embd, x_BTD.dtype, scale, name="position_embedding")
    return x_BTD + embed(position_T), None


Model = Bigram | GPT | EncoderDecoder | SpeechRecognizer


def build(
    config: ModelConfig,
    vocabulary: Tokenizer | int,
    dtype: Any = jnp.float32,
    remat: bool = False,
) -> Model:
    """The model that a configuration describes, without parameters.

    vocabulary: the tokenizer or, of a model without an encoder, the number of its tokens.
    """
    vocab_size = vocabulary if isinstance(vocabulary, int) else vocabulary.vocab_size
    match config:
        case BigramConfig():
            return Bigram(config, vocab_size, dtype)
        case EncoderDecoderConfig():
            assert isinstance(vocabulary, PairTokenizer)
            return EncoderDecoder(config, vocab_size, vocabulary.source_vocab_size, dtype, remat)
        case SpeechConfig():
            return SpeechRecognizer(config, vocab_size, dtype, remat)
        case GPTConfig():
            return GPT(config, vocab_size, dtype, remat)
    raise TypeError(f"{type(config).__name__} describes no model")


def init(model: Model, seed: int) -> Any:
    """Fresh parameters, a pure function of the model and the seed."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    match model:
        case EncoderDecoder():
            inputs = {"source": tokens}
        case SpeechRecognizer():
            inputs = {"source": jnp.zeros((1, 2, model.config.n_mels))}
        case _:
            inputs = {}
    return jax.jit(model.init)(jax.random.key(seed), tokens, **inputs)["params"]


def count(params: Any) -> int:
    """Number of parameters in a pytree of arrays, of their shapes, or of what stands for them."""
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: hasattr(leaf, "size"))
    return sum(leaf.size for leaf in leaves)

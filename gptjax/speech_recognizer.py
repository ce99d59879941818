"""The speech recognizer: from a log-mel spectrogram to text, with Whisper's architecture.

The model is called as a GPT is, with `source` and `source_mask` besides.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from gptjax.cache import Cache, empty_cache
from gptjax.config_encoders import SpeechConfig
from gptjax.cross_attention import EncoderOutput
from gptjax.encoder_decoder import encode
from gptjax.gpt import GPT
from gptjax.layers import Linear
from gptjax.rotary import rotary_angles


class SpeechRecognizer(nn.Module):
    """Whisper (Radford et al. 2022): a SpeechEncoder, and a GPT that reads its output.

    `source` (B, T, M) is a log-mel spectrogram, which may be left out once a cache has seen it.
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
        streams_B2: Array | None = None,
        source: Array | None = None,
        source_mask: Array | None = None,
    ) -> tuple[Array, Cache | None]:
        c, dtype = self.config, self.dtype
        x_BSD = None
        if source is not None:
            encoder = SpeechEncoder(c, dtype, self.remat, name="encoder")
            x_BSD = encoder(source, source_mask, streams_B2)
            in_training = streams_B2 is not None or self.is_initializing()
            if c.predict_frames and in_training:  # see data/frame_targets.py
                head = Linear(self.vocab_size, c.bias, c.zero_init, dtype, name="frame_head")
                self.sow("frames", "logits", head(x_BSD))
        mask_BS = None if source_mask is None else every_second_frame(source_mask)
        decoder = GPT(c, self.vocab_size, dtype, self.remat, name="decoder")
        return decoder(tokens_BT, cache, streams_B2, EncoderOutput(x_BSD, mask_BS))

    def init_cache(self, batch_size: int) -> Cache:
        """An empty cache of block_size positions for every layer of the decoder."""
        return empty_cache(self.config, batch_size, self.dtype)


class SpeechEncoder(nn.Module):
    """Two convolutions over time, the second with stride 2, then Blocks.

    (B, T, M) log-mel frames of 10 ms -> (B, S, D), S = ceil(T / 2). Frames where mask_BT is false
    are padding, which may only be at the end of a row. Raises ValueError for a recording longer
    than source_block_size positions.
    """

    config: SpeechConfig
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, mel_BTM: Array, mask_BT: Array | None, streams_B2: Array | None = None
    ) -> Array:
        c = self.config

        def convolve(x_BTC: Array, stride: int, name: str) -> Array:
            """A convolution of width 3, zero outside the recording, as one matmul."""
            if mask_BT is not None:
                x_BTC = jnp.where(mask_BT[..., None], x_BTC, 0)
            padded = jnp.pad(x_BTC, ((0, 0), (1, 1), (0, 0)))
            n = x_BTC.shape[1]
            window = jnp.concatenate([padded[:, j : j + n : stride] for j in range(3)], -1)
            y = Linear(c.n_embd, dtype=self.dtype, name=name)(window)
            return jax.nn.gelu(y, approximate=False)

        x_BSD = convolve(convolve(mel_BTM.astype(self.dtype), 1, "conv_1"), 2, "conv_2")
        n_source = x_BSD.shape[1]
        if n_source > c.source_block_size:
            raise ValueError(f"{n_source} positions do not fit {c.source_block_size}")
        rotary = None
        if c.position == "rotary":
            rotary = rotary_angles(jnp.arange(n_source), c.n_embd // c.n_head)
        else:
            x_BSD = x_BSD + sinusoids(n_source, c.n_embd).astype(self.dtype)
        mask_BS = None if mask_BT is None else every_second_frame(mask_BT)
        return encode(c, c.n_encoder_layer, self.remat, x_BSD, mask_BS, rotary, streams_B2)


def every_second_frame(mask_BT: Array) -> Array:
    """The mask of frames as one of the encoder's positions."""
    return mask_BT[:, ::2]


def sinusoids(n_positions: int, width: int) -> Array:
    """Fixed positions (S, D): sines, then cosines, of wavelengths 2 pi ... 10,000 * 2 pi.

    In the order of Whisper. Vaswani et al. 2017, section 3.5, interleaves them.
    """
    frequency = 10_000.0 ** -jnp.linspace(0, 1, width // 2)
    angle = jnp.arange(n_positions)[:, None] * frequency
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)

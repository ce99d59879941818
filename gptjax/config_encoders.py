"""What a run with an encoder sets besides a GPT's fields: pairs of sequences, and speech."""

from dataclasses import dataclass
from typing import Literal

from gptjax.config import BigramConfig, DataConfig, GPTConfig, TextDataConfig


@dataclass(frozen=True)
class EncoderDecoderConfig(GPTConfig):
    """A GPT whose blocks also attend to the output of an encoder.

    The GPT's fields describe the decoder; block_size is its longest target. The encoder has the
    same width, heads and options.
    """

    n_encoder_layer: int = 6
    """Blocks of the encoder."""
    source_block_size: int = 256
    """Longest source, in tokens."""
    share_embeddings: bool = False
    """One vocabulary and one embedding table for source and target."""


@dataclass(frozen=True)
class SpeechConfig(GPTConfig):
    """A speech recognizer with Whisper's architecture.

    The GPT's fields describe the decoder; block_size is its longest text. The encoder has the
    same width, heads and options. With learned positions in the decoder, the encoder's are
    sinusoidal.
    """

    n_encoder_layer: int = 6
    """Blocks of the encoder."""
    n_mels: int = 80
    """Bands of the log-mel spectrogram."""
    source_block_size: int = 1500
    """Longest recording, in positions of 20 ms. Longer ones are cut into windows."""
    pad_source: bool = False
    """Pad every recording with silence to the longest, without a mask, as Whisper does."""
    predict_frames: bool = False
    """Training: a further output head, which tells the token that sounds at every position."""


@dataclass(frozen=True)
class PairsDataConfig(DataConfig):
    """Pairs of a source and a target. The default is CMUdict: spellings and pronunciations."""

    name: Literal["cmudict", "cmudict_stress"] = "cmudict"
    """Data set to fetch when no path is given; cmudict_stress keeps the stress marks."""
    source_tokenizer: Literal["char", "word", "byte", "gpt2", "bpe"] = "char"
    """Tokenizer of the sources."""


@dataclass(frozen=True)
class SpeechDataConfig(DataConfig):
    """Recordings and their transcripts. The default is the Free Spoken Digit Dataset."""

    name: Literal["fsdd", "librispeech", "espeak"] = "fsdd"
    """fsdd: spoken digits. librispeech: needs a path. espeak: speaks the lines of a text."""
    synthetic_clips: int = 10_000
    """espeak: number of recordings to synthesize. They are kept in the cache."""
    extra_clips: int = 0
    """Training clips to add: eSpeak's voices read the texts of the others (extra: espeak)."""
    string_clips: int = 1
    """Join 1 to this many recordings of one speaker into an example, drawn anew every time."""
    on_broken: Literal["stop", "skip"] = "stop"
    """Recordings that cannot be decoded: stop before training and name them, or leave them out.
    stop is the default, because less data than you believe is worse than a line to read."""
    hold_out: str = ""
    """A speaker who is never trained on; the test split."""
    speed_change: float = 0.0
    """Training: play up to this share faster or slower."""
    tempo_change: float = 0.0
    """Training: speak up to this share faster or slower, at the same pitch."""
    voice_change: float = 0.0
    """Training: move all formants up or down by up to this share, as if others spoke."""
    channel_change: float = 0.0
    """Training: share of examples as if from another microphone and room."""
    noise: float = 0.0
    """Training: share of examples with white noise added."""
    spec_masks: int = 0
    """Training: number of masked time spans, and of masked frequency bands (SpecAugment)."""


DATA_OF_MODEL = {
    BigramConfig: TextDataConfig,
    GPTConfig: TextDataConfig,
    EncoderDecoderConfig: PairsDataConfig,
    SpeechConfig: SpeechDataConfig,
}
"""The kind of data that each kind of model is trained on."""

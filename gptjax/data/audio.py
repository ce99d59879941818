"""Sound files as samples, and samples as log-mel spectrograms.

Samples are float32 in [-1, 1] at 16 kHz, one channel.
"""

import functools
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gptjax.config_encoders import SpeechConfig
from gptjax.errors import UserError, import_extra

SAMPLE_RATE = 16_000
WINDOW, HOP = 400, 160
"""25 ms and 10 ms, in samples."""
N_MELS = 80
N_WIDTHS = 4
"""Clips are padded to a multiple of 1/4 of the window, because every batch shape compiles anew."""
RATES = (1_000, 768_000)
"""Lowest and highest possible sample rate, in Hz. Any other value in a header is wrong."""
NEEDS = "sound needs"


def read(path: Path) -> np.ndarray:
    """The samples (N,) of a sound file, channels averaged, resampled to 16 kHz. "-" is stdin.

    Reads WAV, FLAC, OGG, MP3 and other formats of libsndfile. Raises UserError for a file that is
    missing, broken or empty, has an impossible sample rate, or samples that are not finite.
    """
    soundfile, soxr = import_extra("soundfile", NEEDS), import_extra("soxr", NEEDS)
    from_stdin = path == Path("-")
    if not from_stdin and not path.is_file():
        raise UserError(f"{path} is no file; name a WAV, FLAC, OGG or MP3")
    try:
        # An open file, because libsndfile accepts only file names that are UTF-8.
        with io.BytesIO(sys.stdin.buffer.read()) if from_stdin else path.open("rb") as file:
            samples_NC, rate = soundfile.read(file, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: named .raw
        raise _unreadable(Path("stdin") if from_stdin else path, error) from None
    if not RATES[0] <= rate <= RATES[1]:
        raise UserError(f"{path} has a rate of {rate:,} Hz, which no sound has; convert it again")
    if not np.isfinite(samples_NC).all():
        raise UserError(f"{path} has samples that are no numbers; convert it again")
    samples_N = samples_NC.mean(1)
    if len(samples_N):
        samples_N = soxr.resample(samples_N, rate, SAMPLE_RATE).astype(np.float32)
    if not len(samples_N):
        raise UserError(f"{path} has no samples; leave it out")
    return samples_N


def _unreadable(path: Path, error: Exception) -> UserError:
    why = getattr(error, "error_string", "no header")
    return UserError(f"{path} cannot be read as sound ({why}); convert it to WAV or FLAC")


@functools.cache
def mel_filters(n_mels: int = N_MELS) -> np.ndarray:
    """Triangular filters (WINDOW / 2 + 1, M) that sum power over frequencies into mel bands.

    Slaney's mel scale (Auditory Toolbox, 1998): linear up to 1 kHz, logarithmic above, where 27
    mels are a factor of 6.4. Every triangle has area one.
    """
    step = np.log(6.4) / 27

    def to_hz(mel: np.ndarray) -> np.ndarray:
        return np.where(mel < 15, 200 / 3 * mel, 1000 * np.exp(step * (mel - 15)))

    nyquist = SAMPLE_RATE / 2
    edges = to_hz(np.linspace(0, 15 + np.log(nyquist / 1000) / step, n_mels + 2))
    frequency_F1 = np.linspace(0, nyquist, WINDOW // 2 + 1)[:, None]
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    rising = (frequency_F1 - low) / (middle - low)
    falling = (high - frequency_F1) / (high - middle)
    triangles_FM = np.maximum(0, np.minimum(rising, falling))
    return (triangles_FM * 2 / (high - low)).astype(np.float32)


def log_mel(samples_BN: Array, n_mels: int = N_MELS) -> Array:
    """Log-mel spectrogram (B, T, M) of samples (B, N), T = N // HOP, as in Whisper.

    Frame t is centred on sample HOP * t; the clip is mirrored at its ends. x is log10 of the power,
    at least the clip's maximum - 8. The result is (x + 4) / 4.
    """
    n_frames = samples_BN.shape[-1] // HOP
    mirrored_BN = jnp.pad(samples_BN, ((0, 0), (WINDOW // 2, WINDOW // 2)), mode="reflect")
    index_TW = HOP * np.arange(n_frames)[:, None] + np.arange(WINDOW)
    hann_W = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    frames_BTW = mirrored_BN[:, index_TW] * hann_W.astype(np.float32)
    power_BTF = jnp.abs(jnp.fft.rfft(frames_BTW)) ** 2
    # HIGHEST, because a GPU would otherwise round the power to a 10-bit mantissa.
    mel_BTM = jnp.matmul(power_BTF, mel_filters(n_mels), precision=jax.lax.Precision.HIGHEST)
    log_BTM = jnp.log10(jnp.maximum(mel_BTM, 1e-10))
    loudest_B11 = log_BTM.max((1, 2), keepdims=True)
    return (jnp.maximum(log_BTM, loudest_B11 - 8) + 4) / 4


def longest_clip(model: SpeechConfig) -> int:
    """Samples that fit in the encoder, which has a position for every two frames."""
    return 2 * model.source_block_size * HOP


def padded_frames(n_frames: int, model: SpeechConfig) -> int:
    """Frames that a clip is padded to: a multiple of 1/N_WIDTHS of the window, or the window."""
    longest = 2 * model.source_block_size
    if model.pad_source:
        return longest
    quarter = -(-model.source_block_size // N_WIDTHS) * 2
    return min(longest, max(1, -(-n_frames // quarter)) * quarter)


def features(
    clips: Sequence[np.ndarray], model: SpeechConfig, width: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Log-mel spectrograms (B, T, M) of clips of samples (N,), and their mask (B, T).

    All are padded to `width` frames; by default to what the longest clip needs. Each clip is
    normalized by its loudest value, unless the model pads like Whisper (`pad_source`).
    """
    n_frames = np.array([max(1, len(samples_N) // HOP) for samples_N in clips])
    width = width or padded_frames(int(n_frames.max()), model)
    # Silence after the end, so that a clip's last frames do not depend on its padding.
    behind = 0 if model.pad_source else WINDOW
    samples_BN = np.zeros((len(clips), width * HOP + behind), np.float32)
    for row, samples_N in zip(samples_BN, clips, strict=True):
        row[: len(samples_N)] = samples_N
    mel_BTM = np.asarray(_log_mel(samples_BN, model.n_mels))[:, :width]
    mask_BT = np.arange(width) < n_frames[:, None]
    if model.pad_source:
        return mel_BTM, np.ones_like(mask_BT)
    # Volume carries no words: the loudest value of every clip becomes 1, the cut-off -1.
    mel_BTM = mel_BTM - mel_BTM.max((1, 2), keepdims=True) + 1
    return np.where(mask_BT[..., None], mel_BTM, 0), mask_BT


_log_mel = jax.jit(log_mel, static_argnums=1)


def duration(path: Path) -> float:
    """Length of a sound file in seconds, from its header. Raises UserError if that is broken."""
    soundfile = import_extra("soundfile", NEEDS)
    try:
        with path.open("rb") as file:
            return soundfile.info(file).duration
    except (soundfile.LibsndfileError, TypeError) as error:
        raise _unreadable(path, error) from None

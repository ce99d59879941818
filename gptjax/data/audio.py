"""Sound files as samples, and samples as log-mel spectrograms.

Samples are float32 in [-1, 1] at 16 kHz, one channel.
"""

import functools
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gptjax.config_encoders import SpeechConfig
from gptjax.data import other_sound
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
SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".aif")
SUFFIXES += (".m4a", ".mp4", ".aac", ".webm", ".wma", ".amr")
"""Names of sound files end so. Those of the second line need PyAV or ffmpeg."""
UNKNOWN_FORMAT = 1
"""Error code of libsndfile."""
N_NAMED = 5
"""Files left out that a message names. It counts the others."""
STREAMED = 0x7FFF_0000
"""A WAV that was written to a pipe has this length or more in its header."""
LEAST_SHARE = 0.98
"""A header may promise a little more than there is; below this share a sound was cut off."""
MOST_BYTES = 1 << 30
"""Longest sound from stdin, which is read into memory as a whole."""
# What reading may raise besides an error of libsndfile. TypeError: a file named .raw. ValueError:
# a NUL byte in the name.
UNREADABLE = OSError, MemoryError, TypeError, ValueError


def read(path: Path) -> np.ndarray:
    """The samples (N,) of a sound file, channels averaged, resampled to 16 kHz. "-" is stdin.

    Reads WAV, FLAC, OGG, MP3 and other formats of libsndfile; all that PyAV or ffmpeg know, if one
    is installed. Raises UserError for a file that is missing, broken or empty, has an impossible
    sample rate, or samples that are not finite.
    """
    return read_checked(path)[0]


def read_checked(path: Path) -> tuple[np.ndarray, str]:
    """As `read`; and a message if the file has less sound than its header promises, else ""."""
    soundfile, soxr = import_extra("soundfile", NEEDS), import_extra("soxr", NEEDS)
    from_stdin = path == Path("-")
    try:
        if not from_stdin and not path.is_file():
            raise UserError(f"{path} is no file; name a WAV, FLAC, OGG or MP3")
        # An open file, because libsndfile accepts only file names that are UTF-8.
        with _stdin() if from_stdin else path.open("rb") as file:
            try:
                with soundfile.SoundFile(file) as sound:
                    samples_NC = sound.read(dtype="float32", always_2d=True)
                    rate, promised = sound.samplerate, _promised_seconds(sound)
            except soundfile.LibsndfileError as error:
                if error.code != UNKNOWN_FORMAT:
                    raise
                file.seek(0)
                samples_NC, rate, promised = other_sound.decode(path, file)
    except (soundfile.LibsndfileError, other_sound.Unreadable, *UNREADABLE) as error:
        raise _unreadable(Path("stdin") if from_stdin else path, error) from None
    if not RATES[0] <= rate <= RATES[1]:
        raise UserError(f"{path} has a rate of {rate:,} Hz, which no sound has; convert it again")
    if not np.isfinite(samples_NC).all():
        raise UserError(f"{path} has samples that are no numbers; convert it again")
    samples_N = samples_NC.mean(1)
    if len(samples_N):
        samples_N = soxr.resample(samples_N, rate, SAMPLE_RATE).astype(np.float32)
    if not len(samples_N):
        raise UserError(f"{path} has no samples: it is empty or cut off; leave it out")
    there = len(samples_NC) / rate
    if there >= LEAST_SHARE * promised:
        return samples_N, ""
    lengths = f"its header promises {promised:.1f} s, and it has {there:.1f} s"
    return samples_N, f"{path} is cut off: {lengths}; copy it again"


def _promised_seconds(sound: Any) -> float:
    """Length of an open sound file by its header. libsndfile corrects that of a WAV."""
    data = re.search(r"^data : (\d+) \(should be (\d+)\)", sound.extra_info, re.MULTILINE)
    there = sound.frames / sound.samplerate
    if not data or int(data[1]) >= STREAMED:
        return there
    return there * int(data[1]) / max(1, int(data[2]))


def _stdin() -> io.BytesIO:
    content = sys.stdin.buffer.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise UserError(f"stdin is longer than {MOST_BYTES >> 20} MiB; cut it, or name a file")
    return io.BytesIO(content)


def _unreadable(path: Path, error: Exception) -> UserError:
    why = "no header"
    if isinstance(error, OSError):
        why = error.strerror or str(error)
    elif isinstance(error, MemoryError):
        why = "more samples than fit in memory"
    elif isinstance(error, other_sound.Unreadable):
        why = str(error)
    elif isinstance(error, RuntimeError):  # of libsndfile
        why = getattr(error, "error_string", str(error))
    return UserError(
        f"{path} cannot be read as sound ({why}): cut off, damaged, or of an unknown format; copy "
        "it again, or convert it to WAV or FLAC"
    )


def say_left_out(folder: Path, files: Sequence[Path], why: str) -> None:
    """Names files of a folder that are not used, if there are any; hidden ones are no surprise."""
    names = [str(file.relative_to(folder)) for file in files if not file.name.startswith(".")]
    if names:
        more = f" and {len(names) - N_NAMED:,} more" * (len(names) > N_NAMED)
        counted = "1 file" if len(names) == 1 else f"{len(names):,} files"
        what = f"{counted} in {folder}, {why}: {', '.join(names[:N_NAMED])}{more}"
        print(f"left out: {what}", file=sys.stderr, flush=True)


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


@functools.partial(jax.jit, static_argnums=1)
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
    mel_BTM = np.asarray(log_mel(samples_BN, model.n_mels))[:, :width]
    mask_BT = np.arange(width) < n_frames[:, None]
    if model.pad_source:
        return mel_BTM, np.ones_like(mask_BT)
    # Volume carries no words: the loudest value of every clip becomes 1, the cut-off -1.
    mel_BTM = mel_BTM - mel_BTM.max((1, 2), keepdims=True) + 1
    return np.where(mask_BT[..., None], mel_BTM, 0), mask_BT


def sample_rate(path: Path) -> int:
    """Sample rate of a sound file in Hz, at most SAMPLE_RATE, that of everything that is read."""
    soundfile = import_extra("soundfile", NEEDS)
    try:
        with path.open("rb") as file:
            return min(soundfile.info(file).samplerate, SAMPLE_RATE)
    except soundfile.LibsndfileError:  # a format of PyAV or ffmpeg
        return SAMPLE_RATE


def duration(path: Path) -> float:
    """Length of a sound file in seconds, by its header. Raises UserError if that is broken."""
    soundfile = import_extra("soundfile", NEEDS)
    try:
        with path.open("rb") as file:
            return soundfile.info(file).duration
    except soundfile.LibsndfileError as error:
        if error.code == UNKNOWN_FORMAT:
            return len(read(path)) / SAMPLE_RATE
        raise _unreadable(path, error) from None
    except UNREADABLE as error:
        raise _unreadable(path, error) from None

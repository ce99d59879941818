"""Recordings varied for training: other speeds, voices, microphones, noise, masks.

For a recognizer that will hear people whom it was not trained on. Samples are (N,) float32 at
16 kHz, spectrograms (T, M) float32, whose values are log10 of power, divided by 4 (see
audio.log_mel). Everything is a pure function of a random generator or key.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gptjax.config_encoders import SpeechDataConfig
from gptjax.data.audio import NEEDS, SAMPLE_RATE
from gptjax.errors import import_extra

NOISE_DB = (5.0, 40.0)
"""Range of the signal-to-noise ratio of added noise."""
N_POINTS = 5
"""A channel's gains and noise are random at so many points of the mel axis, and straight lines
between them."""
GAIN = 0.12
"""Standard deviation of a channel's gains. 0.25 are 10 dB."""
FLOOR = -1.0, -0.2
"""Range of the level of a channel's noise, where the clip's loudest value is 1, its softest -1."""
FLOOR_SHAPE = 0.1
"""Standard deviation of that level over the mel axis."""
RANGE = 2.0
"""Of the values of a clip: 8 powers of ten."""
# Longest masks of SpecAugment, as shares of the batch's frames and of the mel bands.
TIME_SHARE, BAND_SHARE = 0.06, 0.15


def vary_samples(
    samples_N: np.ndarray, c: SpeechDataConfig, speed: float, rng: np.random.Generator
) -> np.ndarray:
    """A clip at another speed, with noise in a share of the clips."""
    if c.speed_change:
        samples_N = change_speed(samples_N, speed)
    if rng.random() < c.noise:
        samples_N = add_noise(samples_N, rng, rng.uniform(*NOISE_DB))
    return samples_N


def vary_spectrograms(
    mel_BTM: np.ndarray,
    mask_BT: np.ndarray,
    c: SpeechDataConfig,
    rngs: Sequence[np.random.Generator],
) -> np.ndarray:
    """Other voices and channels, then masks. Padding, where mask_BT is false, keeps its value."""
    varied_BTM = mel_BTM.copy()
    for mel_TM, mask_T, rng in zip(varied_BTM, mask_BT, rngs, strict=True):
        if c.voice_change:
            mel_TM[mask_T] = change_voice(mel_TM[mask_T], rng, c.voice_change)
        if rng.random() < c.channel_change:
            mel_TM[mask_T] = change_channel(mel_TM[mask_T], rng)
    if c.spec_masks:
        seeds_B = np.array([rng.integers(2**31) for rng in rngs])
        varied_BTM = np.asarray(mask_spectrograms(varied_BTM, seeds_B, c.spec_masks))
    return varied_BTM


def change_speed(samples_N: np.ndarray, factor: float) -> np.ndarray:
    """The clip played `factor` times as fast, which also raises its pitch (Ko et al. 2015)."""
    return import_extra("soxr", NEEDS).resample(samples_N, SAMPLE_RATE * factor, SAMPLE_RATE)


def change_tempo(
    mel_BTM: np.ndarray, mask_BT: np.ndarray, tempo_B: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each clip spoken tempo_B times as fast, and the new masks. Pitch and formants stay.

    New frames lie on straight lines between old ones. A clip takes at most the whole array.
    """
    changed_BTM, n_frames = np.zeros_like(mel_BTM), mask_BT.shape[1]
    old_B = mask_BT.sum(1)
    new_B = np.clip(np.round(old_B / tempo_B).astype(int), 1, n_frames)
    for changed_TM, mel_TM, n_old, n_new in zip(changed_BTM, mel_BTM, old_B, new_B, strict=True):
        at = np.linspace(0, n_old - 1, n_new, dtype=np.float32)[:, None]
        before = at.astype(int)[:, 0]
        after, share = np.minimum(before + 1, n_old - 1), at - before[:, None]
        changed_TM[:n_new] = mel_TM[before] * (1 - share) + mel_TM[after] * share
    return changed_BTM, np.arange(n_frames) < new_B[:, None]


def add_noise(samples_N: np.ndarray, rng: np.random.Generator, ratio_db: float) -> np.ndarray:
    """Adds white noise, ratio_db decibels below the clip's mean power. Silence stays silent."""
    power = np.mean(samples_N.astype(np.float64) ** 2) / 10 ** (ratio_db / 10)
    noise = rng.standard_normal(len(samples_N), np.float32)
    return samples_N + np.float32(np.sqrt(power)) * noise


def change_voice(mel_TM: np.ndarray, rng: np.random.Generator, most: float) -> np.ndarray:
    """A vocal tract that is up to `most` (a share) longer or shorter: all formants move.

    Vocal tract length perturbation (Jaitly & Hinton 2013), as a stretch of the mel axis. Bands from
    beyond its end repeat the last one. The loudest value stays as it was.
    """
    bands = np.arange(mel_TM.shape[1])
    at = np.minimum(bands * np.exp(rng.uniform(-most, most)), bands[-1])
    low = at.astype(int)
    high, share = np.minimum(low + 1, bands[-1]), at - low
    return _as_loud(mel_TM[:, low] * (1 - share) + mel_TM[:, high] * share, mel_TM.max())


def change_channel(mel_TM: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another microphone and room: random gains, and a steady noise that hides what is softer.

    The loudest value stays as it was, and the softest ones are at most RANGE below it.
    """
    n_mels, loudest = mel_TM.shape[1], mel_TM.max()
    gain_M = _line(rng.normal(0, GAIN, N_POINTS), n_mels)
    floor_M = rng.uniform(*FLOOR) + _line(rng.normal(0, FLOOR_SHAPE, N_POINTS), n_mels)
    power_TM = 10 ** (4 * (mel_TM + gain_M)) + 10 ** (4 * (floor_M + loudest - 1))
    return _as_loud(np.log10(power_TM) / 4, loudest)


def _as_loud(mel_TM: np.ndarray, loudest: float) -> np.ndarray:
    """Moved so that the largest value is `loudest`, with softest values as in log_mel."""
    return np.maximum(mel_TM - mel_TM.max() + loudest, loudest - RANGE).astype(np.float32)


def _line(values: np.ndarray, n: int) -> np.ndarray:
    """n values on straight lines between these, which are evenly spaced."""
    places = np.linspace(0, len(values) - 1, n)
    return np.interp(places, np.arange(len(values)), values)


@functools.partial(jax.jit, static_argnums=2)
def mask_spectrograms(mel_BTM: Array, seeds_B: Array, n_masks: int) -> Array:
    """SpecAugment with n_masks masks of time and n_masks of frequency; each clip has its seed."""
    keys_B = jax.vmap(jax.random.key)(seeds_B)
    _, n_frames, n_bands = mel_BTM.shape
    longest = round(TIME_SHARE * n_frames), round(BAND_SHARE * n_bands)
    masks = n_masks, longest[0], n_masks, longest[1]
    return jax.vmap(lambda mel_TM, key: spec_augment(mel_TM, key, *masks))(mel_BTM, keys_B)


def spec_augment(
    mel_TM: Array, key: Array, n_times: int, most_frames: int, n_bands: int, most_bands: int
) -> Array:
    """SpecAugment (Park et al. 2019): spans of time and of frequency become the clip's mean.

    There are n_times spans of up to most_frames frames, and n_bands of up to most_bands bands,
    each of random length at a random place.
    """
    n_frames, n_mels = mel_TM.shape

    def spans(key: Array, n: int, size: int, most: int) -> Array:
        """(size,), true inside n random spans."""
        length_key, start_key = jax.random.split(key)
        length_N1 = jax.random.randint(length_key, (n, 1), 0, min(most, size) + 1)
        start_N1 = jnp.floor(jax.random.uniform(start_key, (n, 1)) * (size - length_N1 + 1))
        at = jnp.arange(size)
        return ((start_N1 <= at) & (at < start_N1 + length_N1)).any(0)

    time_key, band_key = jax.random.split(key)
    hidden_T = spans(time_key, n_times, n_frames, most_frames)
    hidden_M = spans(band_key, n_bands, n_mels, most_bands)
    return jnp.where(hidden_T[:, None] | hidden_M, mel_TM.mean(), mel_TM)

"""Augmentation: recordings varied for training, as pure functions of a random generator or key."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gptjax.data.audio import NEEDS, SAMPLE_RATE
from gptjax.errors import import_extra

NOISE_DB = (5.0, 40.0)
"""Range of the signal-to-noise ratio of added noise."""
# Longest masks of SpecAugment, as shares of the batch's frames and of the mel bands.
TIME_SHARE, BAND_SHARE = 0.06, 0.15


def change_speed(samples_N: np.ndarray, factor: float) -> np.ndarray:
    """The clip played `factor` times as fast, which also raises its pitch (Ko et al. 2015)."""
    return import_extra("soxr", NEEDS).resample(samples_N, SAMPLE_RATE * factor, SAMPLE_RATE)


def add_noise(samples_N: np.ndarray, rng: np.random.Generator, ratio_db: float) -> np.ndarray:
    """Adds white noise, ratio_db decibels below the clip's mean power. Silence stays silent."""
    power = np.mean(samples_N.astype(np.float64) ** 2) / 10 ** (ratio_db / 10)
    noise = rng.standard_normal(len(samples_N), np.float32)
    return samples_N + np.float32(np.sqrt(power)) * noise


@functools.partial(jax.jit, static_argnums=2)
def mask_spectrograms(mel_BTM: Array, keys_B: Array, n_masks: int) -> Array:
    """SpecAugment with n_masks masks of time and n_masks of frequency; each clip has its key."""
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

"""Sound: files as they are read, features as Whisper's in transformers, variations that repeat."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from gptjax.data import audio, augmentation
from gptjax.errors import UserError

soundfile = pytest.importorskip("soundfile", reason="an extra: pip install -e '.[speech]'")
audio_utils = pytest.importorskip(
    "transformers.audio_utils", reason="an extra: pip install -e '.[import]'"
)
pytest.importorskip("soxr", reason="an extra: pip install -e '.[speech]'")

RECORDINGS = Path(__file__).parents[2] / "shared/speech/fsdd/recordings"


def tone(seconds: float = 0.5, rate: int = 16_000, frequency: float = 440) -> np.ndarray:
    time = np.arange(int(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate: int = 16_000, **options: str) -> Path:
    soundfile.write(path, samples, rate, **options)
    return path


# --- reading


@pytest.mark.parametrize(
    ("name", "subtype", "tolerance"),
    [
        ("a.wav", "PCM_U8", 2.0**-7),
        ("a.wav", "PCM_16", 2.0**-15),
        *(("a.wav", subtype, 1e-6) for subtype in ("PCM_24", "PCM_32", "FLOAT", "DOUBLE")),
        ("a.flac", "PCM_16", 1e-4),
        ("a.ogg", "VORBIS", 0.05),
        ("a.mp3", "MPEG_LAYER_III", 0.05),
    ],
)
def test_every_format_gives_the_same_samples(
    tmp_path: Path, name: str, subtype: str, tolerance: float
) -> None:
    path = write(tmp_path / name, tone(), subtype=subtype)
    samples = audio.read(path)
    assert samples.dtype == np.float32
    # An MP3 is padded.
    assert 8000 <= len(samples) <= (9200 if name == "a.mp3" else 8000)
    assert audio.duration(path) == pytest.approx(0.5, abs=0.075 if name == "a.mp3" else 0)
    middle = slice(2000, 6000) if name in ("a.ogg", "a.mp3") else slice(None)
    np.testing.assert_allclose(samples[middle], tone()[middle], atol=tolerance)


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 48_000])
def test_every_rate_becomes_16_khz_with_the_same_pitch(tmp_path: Path, rate: int) -> None:
    samples = audio.read(write(tmp_path / "a.wav", tone(rate=rate), rate))
    assert abs(len(samples) - 8000) <= 1
    middle = slice(500, 7500)  # a filter rings at the ends
    np.testing.assert_allclose(samples[middle], tone()[middle], atol=2e-3)


def test_channels_are_averaged(tmp_path: Path) -> None:
    both = np.stack([tone(), np.zeros_like(tone())], axis=1)
    samples = audio.read(write(tmp_path / "a.wav", both, subtype="FLOAT"))
    np.testing.assert_allclose(samples, tone() / 2, atol=1e-6)


def test_what_is_no_sound_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("not sound")
    write(tmp_path / "empty.wav", np.zeros(0, np.float32))
    write(tmp_path / "short.wav", np.zeros(1, np.float32), 96_000)
    (tmp_path / "a.raw").write_bytes(bytes(1000))
    for rate in (1, 2_000_000_000):
        write(tmp_path / f"{rate}.wav", tone(), rate)
    write(tmp_path / "nan.wav", np.array([0, np.nan], np.float32), subtype="FLOAT")
    whole = write(tmp_path / "whole.flac", tone()).read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[:30])
    for name, words in (
        ("missing.wav", "is no file"),
        (".", "is no file"),
        ("text.wav", "cannot be read as sound"),
        ("cut.flac", "cannot be read as sound"),
        ("a.raw", "cannot be read as sound"),
        ("1.wav", "has a rate of 1 Hz"),
        ("2000000000.wav", "has a rate of 2,000,000,000 Hz"),
        ("empty.wav", "has no samples"),
        ("short.wav", "has no samples"),
        ("nan.wav", "are no numbers"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            audio.read(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


# --- features


def clips() -> list[np.ndarray]:
    """Noise, a tone that begins in silence and, where they are, real recordings."""
    rng = np.random.default_rng(0)
    made = [rng.standard_normal(16_000).astype(np.float32) * 0.1]
    made.append(np.concatenate([np.zeros(4000, np.float32), tone()]))
    return made + [audio.read(path) for path in sorted(RECORDINGS.glob("*_7.wav"))[::20]]


def test_log_mel_equals_that_of_transformers() -> None:
    of_mel = {"norm": "slaney", "mel_scale": "slaney", "sampling_rate": 16_000}
    filters = audio_utils.mel_filter_bank(audio.WINDOW // 2 + 1, 80, 0, 8000, **of_mel)
    window = audio_utils.window_function(audio.WINDOW, "hann")
    np.testing.assert_allclose(audio.mel_filters(), filters, atol=1e-7)
    if not RECORDINGS.is_dir():
        print(f"without the recordings: {RECORDINGS} is not there")
    for samples in clips():
        n_frames = len(samples) // audio.HOP
        power = audio_utils.spectrogram(
            samples.astype(np.float64),
            window,
            audio.WINDOW,
            audio.HOP,
            power=2.0,
            mel_filters=filters,
        ).T
        log = np.log10(np.maximum(power[:n_frames], 1e-10))
        expected = (np.maximum(log, log.max() - 8) + 4) / 4
        ours = audio.log_mel(samples[None])
        assert ours.shape == (1, n_frames, 80)
        np.testing.assert_allclose(ours[0], expected, atol=1e-4)


def test_a_tone_lights_the_band_that_it_lies_in() -> None:
    centres = audio.mel_filters().argmax(0) * 16_000 / audio.WINDOW
    for frequency in (300, 1000, 4000):
        mel = audio.log_mel(tone(frequency=frequency)[None])[0].mean(0)
        assert abs(centres[int(mel.argmax())] - frequency) < 0.06 * frequency + 40
    silence = audio.log_mel(np.zeros((1, 1600), np.float32))
    assert silence.shape == (1, 10, 80)
    assert np.unique(silence).size == 1


# --- variations

KEY = jax.random.key(3)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def spec_augment(mel_BTM: Any, key: Any, *masks: int) -> Any:
    """Each clip with a key of its own."""
    keys_B = jax.random.split(key, len(mel_BTM))
    return jax.vmap(lambda mel_TM, key: augmentation.spec_augment(mel_TM, key, *masks))(
        mel_BTM, keys_B
    )


@pytest.mark.slow
def test_spec_augment_hides_stretches_of_time_and_frequency() -> None:
    mel = np.random.default_rng(3).normal(3, 1, (200, 50, 80)).astype(np.float32)
    hidden = np.asarray(spec_augment(mel, KEY, 2, 10, 1, 20))
    np.testing.assert_array_equal(hidden, spec_augment(mel, KEY, 2, 10, 1, 20))
    assert (hidden != spec_augment(mel, jax.random.key(4), 2, 10, 1, 20)).any()
    changed = hidden != mel
    mean = np.broadcast_to(mel.mean((1, 2))[:, None, None], mel.shape)
    np.testing.assert_allclose(hidden[changed], mean[changed], rtol=1e-5)
    frames, bands = changed.all(2), changed.all(1)
    np.testing.assert_array_equal(changed, frames[:, :, None] | bands[:, None, :])
    assert frames.sum(1).max() <= 20
    assert bands.sum(1).max() <= 20
    # Each length from 0 to most is as likely; overlaps take a little.
    assert 8 < frames.sum(1).mean() <= 11
    assert 8 < bands.sum(1).mean() < 12
    assert frames.any(0).all()  # every frame is hidden in one clip or another
    np.testing.assert_array_equal(spec_augment(mel, KEY, 0, 10, 0, 20), mel)
    all_of_it = spec_augment(mel[:, :5], KEY, 1, 100, 0, 1)  # more than there is
    assert np.isfinite(all_of_it).all()


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1])
def test_speed_changes_length_and_pitch(factor: float) -> None:
    fast = augmentation.change_speed(tone(), factor)
    assert len(fast) == pytest.approx(8000 / factor, abs=1)
    spectrum = np.abs(np.fft.rfft(fast * np.hanning(len(fast))))
    assert spectrum.argmax() * 16_000 / len(fast) == pytest.approx(440 * factor, abs=3)


def test_tempo_changes_the_length_and_nothing_else() -> None:
    mask = np.arange(12) < np.array([[4], [8], [8], [1]])
    mel = np.where(mask[..., None], np.arange(12)[:, None] + np.array([0.0, 0.5]), 0)
    tempo = np.array([0.5, 2.0, 0.5, 1.5])
    changed, new_mask = augmentation.change_tempo(mel.astype(np.float32), mask, tempo)
    assert new_mask.sum(1).tolist() == [8, 4, 12, 1]  # the third takes the whole array
    for row, (was, n) in enumerate(zip(mask.sum(1), new_mask.sum(1), strict=True)):
        line = np.linspace(0, was - 1, n)[:, None] + np.array([0.0, 0.5])
        np.testing.assert_allclose(changed[row, :n], line, rtol=1e-6)
        assert not changed[row, n:].any()
    same, _ = augmentation.change_tempo(changed, new_mask, np.ones(4))
    np.testing.assert_array_equal(same, changed)


def test_noise_is_as_loud_as_asked_for_and_repeats() -> None:
    clip = tone()
    noisy, again = (augmentation.add_noise(clip, np.random.default_rng(5), 20) for _ in range(2))
    np.testing.assert_array_equal(noisy, again)
    assert noisy.dtype == np.float32
    noise = noisy - clip
    ratio = 10 * np.log10(np.mean(clip**2) / np.mean(noise**2))
    assert ratio == pytest.approx(20, abs=0.3)
    silence = np.zeros(100, np.float32)
    np.testing.assert_array_equal(augmentation.add_noise(silence, np.random.default_rng(0), 20), 0)


def test_another_voice_moves_the_formants() -> None:
    mel = np.full((7, 80), -1, np.float32)
    mel[:, 37:44] = 1
    peaks = set()
    for seed in range(20):
        varied = augmentation.change_voice(mel, np.random.default_rng(seed), 0.2)
        assert varied.dtype == np.float32
        assert varied.shape == mel.shape
        assert (varied.min(), varied.max()) == (-1, 1)
        peaks.add(int(np.flatnonzero(varied[0] == 1).mean()))
    assert 32 <= min(peaks) < 36
    assert 44 < max(peaks) <= 49
    np.testing.assert_array_equal(augmentation.change_voice(mel, np.random.default_rng(0), 0), mel)


def test_another_channel_has_a_noise_floor_and_is_as_loud() -> None:
    mel = augmentation_clip()
    for seed in range(20):
        varied = augmentation.change_channel(mel, np.random.default_rng(seed))
        again = augmentation.change_channel(mel, np.random.default_rng(seed))
        np.testing.assert_array_equal(varied, again)
        assert varied.max() == pytest.approx(mel.max(), abs=1e-6)
        assert varied.min() >= mel.max() - 2 - 1e-6
        # What is soft is hidden, and what is loud is heard; gains are lines over the bands.
        assert varied.std(axis=0)[mel.std(axis=0) == 0].max(initial=0) < 1e-6
        assert np.corrcoef(varied.ravel(), mel.ravel())[0, 1] > 0.5
    floors = [augmentation.change_channel(mel, np.random.default_rng(s)).min() for s in range(50)]
    assert max(floors) - min(floors) > 0.3


def augmentation_clip() -> np.ndarray:
    return np.asarray(audio.log_mel(tone(1.0)[None]))[0]


def test_a_clip_s_features_do_not_depend_on_a_louder_one_beside_it() -> None:
    rng = np.random.default_rng(0)
    loud_N = rng.standard_normal(8000).astype(np.float32)
    both_BTM = audio.log_mel(np.stack([1e-3 * loud_N, loud_N]))
    np.testing.assert_allclose(both_BTM[0], audio.log_mel(1e-3 * loud_N[None])[0], atol=1e-5)

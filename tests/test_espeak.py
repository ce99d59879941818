"""Synthetic speech: the same bytes every time, whole or not at all."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptjax.config import Config, TrainConfig
from gptjax.config_encoders import SpeechConfig, SpeechDataConfig
from gptjax.data import dataset, espeak, recordings, speech
from gptjax.errors import UserError
from gptjax.runs import resuming, run_directory

pytest.importorskip("espeakng_loader", reason="an extra: pip install -e '.[espeak]'")
soundfile = pytest.importorskip("soundfile", reason="an extra: pip install -e '.[speech]'")

TEXTS = ["yes", "no", "the rain in Spain stays mainly in the plain", "how many?"]


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(espeak, "CHUNK", 4)


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.mark.slow
def test_the_files_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    espeak.make(TEXTS, 10, 1, tmp_path / "a", n_workers=1)
    espeak.make(TEXTS, 10, 1, tmp_path / "b", n_workers=3)
    espeak.make(TEXTS, 10, 2, tmp_path / "c")
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert len(a) == 12
    assert a == b
    assert a != c
    assert not list(tmp_path.glob("*.part*"))


def test_the_manifest_has_all_texts_and_long_texts_sound_longer(tmp_path: Path) -> None:
    clips = recordings.find_clips(espeak.make(TEXTS, 12, 1, tmp_path / "a"))
    for epoch in range(3):
        assert {clip.text for clip in clips[4 * epoch : 4 * epoch + 4]} == set(TEXTS)
    assert len({clip.speaker for clip in clips}) > 2
    seconds: dict[str, list[float]] = {text: [] for text in TEXTS}
    for clip in clips:
        samples_N, rate = soundfile.read(clip.path, dtype="float32")
        assert rate == 16_000
        assert samples_N.ndim == 1
        assert np.abs(samples_N).max() > 0.05
        seconds[clip.text].append(len(samples_N) / rate)
    assert min(seconds[TEXTS[2]]) > max(seconds["yes"])


def test_what_is_there_is_kept_and_nothing_else_is_overwritten(tmp_path: Path) -> None:
    manifest = espeak.make(TEXTS, 3, 1, tmp_path / "a")
    before = manifest.stat().st_mtime_ns
    assert espeak.make(TEXTS, 3, 1, tmp_path / "a") == manifest
    assert manifest.stat().st_mtime_ns == before
    for texts, n_clips, seed in ((TEXTS, 4, 1), (TEXTS, 3, 2), (TEXTS[1:], 3, 1)):
        with pytest.raises(UserError, match="holds something else"):
            espeak.make(texts, n_clips, seed, tmp_path / "a")
    assert manifest.stat().st_mtime_ns == before


def test_another_process_that_is_faster_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speak, other = espeak._speak, tmp_path / "other"

    def then_the_other_is_there(pool: Any, rows: Any, part: Path, rate: int) -> Iterator[int]:
        yield from speak(pool, rows, part, rate)
        other.rename(part.with_suffix(""))

    espeak.make(TEXTS, 3, 1, other)
    monkeypatch.setattr(espeak, "_speak", then_the_other_is_there)
    manifest = espeak.make(TEXTS, 3, 1, tmp_path / "same")
    assert manifest.is_file()
    manifest.parent.rename(other)
    with pytest.raises(UserError, match="different cannot be written"):
        espeak.make(TEXTS[1:], 3, 1, tmp_path / "different")
    assert [path.name for path in tmp_path.iterdir()] == ["different"]


@pytest.mark.parametrize("text", ["...", "\x01"])
def test_a_text_without_sound_is_named_and_leaves_nothing(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="has no sound"):
        espeak.make(["yes", text], 2, 1, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_it_is_a_source_of_training_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTJAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "lines.txt").write_text("\n".join(TEXTS) + "\n")
    config = Config(
        model=SpeechConfig(block_size=8 * 8, source_block_size=300),
        data=SpeechDataConfig(
            name="espeak", path=tmp_path / "lines.txt", synthetic_clips=30, val_fraction=0.2
        ),
        train=TrainConfig(batch_size=4),
    )
    first, again = speech.load(config), speech.load(config)
    assert sum(first.sizes.values()) == 30
    assert first.sha256 == again.sha256
    batch = first.batch(config, 0)
    assert batch["source"].shape[0] == 4
    text = first.tokenizer.target.decode(batch["targets"][0][batch["loss_weights"][0] > 0][:-1])
    assert text in TEXTS


@pytest.mark.slow
def test_extra_voices_read_the_training_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTJAX_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "recordings"
    folder.mkdir()
    tone_N = 0.5 * np.sin(np.arange(4000) / 5)
    for digit, take in itertools.product(range(3), range(0, 12, 3)):
        soundfile.write(folder / f"{digit}_anna_{take}.wav", tone_N, 8000)
    config = Config(
        model=SpeechConfig(block_size=16, source_block_size=300),
        data=SpeechDataConfig(path=folder, tokenizer="word", string_clips=2, extra_clips=9),
        train=TrainConfig(batch_size=4),
    )
    more, alone = dataset.load(config), dataset.load(config, to_train=False)
    assert isinstance(more, speech.SpeechData)
    assert isinstance(alone, speech.SpeechData)
    assert more.train[: len(alone.train)] == alone.train
    assert (more.val, more.test, more.sha256) == (alone.val, alone.test, alone.sha256)
    extra = more.train[len(alone.train) :]
    assert len(extra) == 9
    assert {clip.text for clip in extra} == {clip.text for clip in alone.train}
    assert {clip.speaker for clip in extra} <= set(espeak.VOICES)
    assert {soundfile.info(clip.path).samplerate for clip in extra} == {8000}
    assert "9 clips by eSpeak" in more.source
    more.batch(config, 0)
    # A run without a list of its recordings: evaluating it makes no voices, and finds its data.
    with run_directory.new_run(tmp_path / "run") as part:
        run_directory.describe_run(part, config, more)
    resuming.check_same_data(tmp_path / "run", alone)


@pytest.mark.parametrize(
    ("content", "clips", "words"),
    [
        (None, 3, "missing.txt"),
        ("\n \n", 3, "0 texts and 3 clips make no speech"),
        ("one\n", 0, "1 texts and 0 clips make no speech"),
    ],
)
def test_bad_input_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, clips: int, words: str
) -> None:
    monkeypatch.setenv("GPTJAX_CACHE", str(tmp_path / "cache"))
    path = tmp_path / ("missing.txt" if content is None else "lines.txt")
    if content is not None:
        path.write_text(content)
    data = SpeechDataConfig(name="espeak", path=path, synthetic_clips=clips)
    with pytest.raises(UserError, match=words):
        speech.load(Config(model=SpeechConfig(), data=data))
    assert not (tmp_path / "cache").exists()

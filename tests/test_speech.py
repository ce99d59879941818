"""Speech as data: splits, strings, reproducible batches, and folders that are refused."""

import dataclasses
import errno
import hashlib
import io
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import Refused, check_rows

from gptjax import command_line, config_json, models, training
from gptjax.commands import evaluate, sample_speech
from gptjax.config import Config, TrainConfig
from gptjax.config_encoders import SpeechConfig, SpeechDataConfig
from gptjax.data import audio, downloads, recording_checks, recordings, speech
from gptjax.data.audio import HOP, SAMPLE_RATE
from gptjax.data.batches import Batch
from gptjax.data.recordings import Clip
from gptjax.data.speech import SpeechData
from gptjax.data.tokenizer import SpeechTokenizer, WordTokenizer
from gptjax.decoding import transcription, word_alignment
from gptjax.errors import UserError
from gptjax.runs import checkpoints, run_directory

soundfile = pytest.importorskip("soundfile", reason="an extra: pip install -e '.[speech]'")
SHARED = Path(__file__).parents[2] / "shared/speech/fsdd"
RECORDINGS = SHARED / "recordings"
needs_recordings = pytest.mark.skipif(not RECORDINGS.is_dir(), reason=f"no {RECORDINGS}")
MODEL = SpeechConfig(
    n_encoder_layer=1, n_layer=1, n_head=2, n_embd=16, block_size=8, source_block_size=160
)
WINDOW = 2 * MODEL.source_block_size * HOP


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve takes of three digits by two speakers."""
    if not RECORDINGS.is_dir():
        pytest.skip(f"no {RECORDINGS}")
    path = tmp_path_factory.mktemp("fsdd")
    for speaker in ("george", "theo"):
        for digit in range(3):
            for take in range(12):
                name = f"{digit}_{speaker}_{take}.wav"
                (path / name).symlink_to(RECORDINGS / name)
    return path


def make_config(path: Path | None, seed: int = 7, batch_size: int = 8, **data: object) -> Config:
    fields = {"name": "fsdd", "tokenizer": "word", "path": path, **data}
    return Config(
        MODEL,
        SpeechDataConfig(**fields),  # pyright: ignore[reportArgumentType]
        train=TrainConfig(batch_size=batch_size),
        seed=seed,
    )


def load(path: Path | None, **data: object) -> SpeechData:
    return speech.load(make_config(path, **data))


VARIED = {
    "speed_change": 0.2,
    "tempo_change": 0.3,
    "voice_change": 0.1,
    "channel_change": 0.5,
    "noise": 0.5,
}
VARIED["spec_masks"] = 2


# --- batches


@pytest.mark.parametrize("string_clips", [1, 3])
def test_a_batch_is_a_function_of_seed_and_step(folder: Path, string_clips: int) -> None:
    config = make_config(folder, string_clips=string_clips, **VARIED)
    batch = speech.load(config).batch(config, 5)
    again = speech.load(config).batch(config, 5)
    for name, leaf in batch.items():
        np.testing.assert_array_equal(leaf, again[name], err_msg=name)
    for other in (
        speech.load(config).batch(config, 6),
        speech.load(config).batch(dataclasses.replace(config, seed=8), 5),
    ):
        same = other["source"].shape == batch["source"].shape
        assert not same or not np.array_equal(other["source"], batch["source"])


@pytest.mark.parametrize("string_clips", [1, 3])
def test_rows_hold_the_transcripts_between_end_tokens(folder: Path, string_clips: int) -> None:
    config = make_config(folder, string_clips=string_clips)
    dataset = speech.load(config)
    batch = dataset.batch(config, 2)
    assert batch["source"].shape[::2] == (8, 80)
    assert batch["source"].shape[:2] == batch["source_mask"].shape
    assert not batch["source"][~batch["source_mask"]].any()
    for tokens, targets, weights in zip(
        batch["tokens"], batch["targets"], batch["loss_weights"], strict=True
    ):
        n = int(weights.sum())
        assert weights[:n].all()
        assert tokens[0] == targets[n - 1] == dataset.tokenizer.end
        np.testing.assert_array_equal(tokens[1:n], targets[: n - 1])
        words = dataset.tokenizer.target.decode(targets[: n - 1]).split()
        assert 1 <= len(words) <= string_clips
        assert set(words) <= {"zero", "one", "two"}


@pytest.mark.slow
@pytest.mark.parametrize("string_clips", [1, 3])
def test_a_part_of_a_batch_is_what_it_is_of_the_whole(folder: Path, string_clips: int) -> None:
    # Both parts have two rows, so they share their executables.
    config = make_config(folder, batch_size=4, string_clips=string_clips, **VARIED)
    check_rows(speech.load(config), config)


def paths_read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Gets the path of every sound file that is read from now on."""
    read: list[Path] = []
    original = audio.read_checked

    def spy(path: Path) -> tuple[np.ndarray, str]:
        read.append(path)
        return original(path)

    monkeypatch.setattr(audio, "read_checked", spy)
    return read


def test_every_clip_comes_once_an_epoch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(folder, batch_size=6)
    dataset = speech.load(config)
    read = paths_read(monkeypatch)
    step = 0
    for epoch in range(2):
        counted: Counter[Path] = Counter()
        while set(counted) != {clip.path for clip in dataset.train}:
            read.clear()
            dataset.batch(config, step)
            counted.update(set(read))
            step += 1
            assert step < 30, epoch
        assert set(counted.values()) == {1}


def test_augmentation_changes_the_sound_and_not_the_text(folder: Path) -> None:
    plain = make_config(folder)
    batch = speech.load(plain).batch(plain, 0)
    for name, value in VARIED.items():
        config = make_config(folder, **{name: 0.9 if value == 0.5 else value})
        varied = speech.load(config).batch(config, 0)
        np.testing.assert_array_equal(varied["targets"], batch["targets"], err_msg=name)
        same = varied["source"].shape == batch["source"].shape
        assert not same or not np.array_equal(varied["source"], batch["source"]), name


def test_samples_are_read_only_when_a_batch_needs_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = paths_read(monkeypatch)
    config = make_config(folder)
    speech.load(config)  # decodes every file once
    read.clear()
    dataset = speech.load(config)
    assert read == []
    dataset.batch(config, 0)
    assert len(read) == config.train.batch_size


# --- splits


def test_the_official_split_is_by_the_number_of_the_take(folder: Path) -> None:
    dataset = load(folder)
    takes = {
        name: {int(clip.path.stem.split("_")[2]) for clip in getattr(dataset, name)}
        for name in ("train", "val", "test")
    }
    assert takes == {"test": set(range(5)), "val": {5, 6, 7}, "train": set(range(8, 12))}
    assert dataset.sizes == {"train_clips": 24, "val_clips": 18, "test_clips": 30}


def test_a_speaker_held_out_is_never_trained_on(folder: Path) -> None:
    dataset = load(folder, hold_out="theo")
    assert {clip.speaker for clip in (*dataset.train, *dataset.val)} == {"george"}
    assert {clip.speaker for clip in dataset.test} == {"theo"}
    assert len(dataset.test) == 36
    assert not any(clip.split == "test" for clip in (*dataset.train, *dataset.val))
    with pytest.raises(UserError, match=r"--data\.hold-out anna .*'george', 'theo'"):
        load(folder, hold_out="anna")


def test_test_strings_are_made_of_test_clips_alone_and_always_the_same(folder: Path) -> None:
    dataset, again = load(folder, string_clips=3), load(folder, string_clips=5)
    strings = dataset.test_strings(MODEL)
    assert len(strings) == 300
    of_speaker: dict[str, list[np.ndarray]] = {"george": [], "theo": []}
    for clip in dataset.test:
        of_speaker[clip.speaker].append(audio.read(clip.path))
    for string, same in zip(strings, again.test_strings(MODEL), strict=True):
        assert string.text == same.text
        np.testing.assert_array_equal(string.samples_N, same.samples_N)
        assert len(string.samples_N) <= WINDOW
    for string in strings[:20]:  # begins and ends with a whole test clip of its speaker
        ends = [0, 0]
        for word_N in of_speaker[string.speaker]:
            ends[0] += np.array_equal(string.samples_N[: len(word_N)], word_N)
            ends[1] += np.array_equal(string.samples_N[-len(word_N) :], word_N)
        assert ends == [1, 1]
    assert {len(string.text.split()) for string in strings} <= {1, 2, 3, 4, 5}
    assert sum(len(string.text.split()) >= 3 for string in strings) > 250


def test_strings_are_made_of_their_own_split_alone(tmp_path: Path) -> None:
    """Each split says a word of its own; that of the test split is no part of the vocabulary."""
    rows = [
        {"audio": tone(tmp_path / f"{split}{i}.wav"), "text": text, "split": split}
        for split, text in (("train", "one"), ("val", "two"), ("test", "three"))
        for i in range(3)
    ]
    config = make_config(write_manifest(tmp_path, rows), string_clips=3)
    dataset = speech.load(config)
    target = dataset.tokenizer.target

    def words(batch: Batch) -> set[str]:
        is_word = (batch["loss_weights"] > 0) & (batch["targets"] != dataset.tokenizer.end)
        return set(target.decode(batch["targets"][is_word]).split())

    assert set().union(*(words(dataset.batch(config, step)) for step in range(6))) == {"one"}
    assert set().union(*map(words, dataset.validation(config, 4))) == {"two"}
    assert {w for s in dataset.test_strings(MODEL) for w in s.text.split()} == {"three"}
    with pytest.raises(UserError):
        target.encode("three")


def test_two_words_are_separated_by_a_pause(tmp_path: Path) -> None:
    clips = [Clip(tmp_path / tone(tmp_path / "a.wav", 0.2), "one", "x", "train")]
    pool = recordings.Strings(clips, 4)
    for seed in range(10):
        string = pool.draw(np.random.default_rng(seed), 4, 20 * SAMPLE_RATE)
        string = string.read(recordings.read_word)
        assert len(string.text.split()) == 4
        pause = (len(string.samples_N) / SAMPLE_RATE - 4 * 0.2) / 3
        assert recordings.PAUSE_SECONDS[0] <= pause <= recordings.PAUSE_SECONDS[1]


def test_room_tone_is_the_quietest_part_of_the_clip() -> None:
    rng = np.random.default_rng(0)
    samples_N = rng.normal(size=8000).astype(np.float32)
    samples_N[3000:4000] *= 0.01
    tone_N = recordings.room_tone(samples_N, 5000)
    assert len(tone_N) == 5000
    assert 0 < np.abs(tone_N).max() < 0.05


# --- manifests and folders


def write_manifest(folder: Path, rows: Sequence[object]) -> Path:
    path = folder / "mine.jsonl"
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("\n".join(lines) + "\n")
    return path


def tone(path: Path, seconds: float = 0.3) -> str:
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * 440 * time), SAMPLE_RATE)
    return path.name


def test_a_manifest_gives_text_speaker_and_split(tmp_path: Path) -> None:
    rows = [
        {"audio": tone(tmp_path / f"{i}.flac"), "text": f"word {i}", "speaker": "a", "split": s}
        for i, s in enumerate(("train", "train", "val", "test"))
    ]
    dataset = load(write_manifest(tmp_path, rows))
    assert [clip.text for clip in dataset.train] == ["word 0", "word 1"]
    assert [clip.text for clip in (*dataset.val, *dataset.test)] == ["word 2", "word 3"]
    assert {clip.speaker for clip in dataset.train} == {"a"}


def test_clips_without_a_split_get_one_from_their_names(tmp_path: Path) -> None:
    rows = [{"audio": tone(tmp_path / f"{i}.wav"), "text": "a"} for i in range(60)]
    dataset = load(write_manifest(tmp_path, rows), val_fraction=0.2)
    turned = load(write_manifest(tmp_path, rows[::-1]), val_fraction=0.2)
    for name in ("train", "val", "test"):
        ours, theirs = getattr(dataset, name), getattr(turned, name)
        assert len(ours) > 2
        assert {clip.path for clip in ours} == {clip.path for clip in theirs}
    assert sum(dataset.sizes.values()) == 60


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{not json", "not JSON"),
        ('["a.wav", "text"]', "must be an object; a line is"),
        ({"audio": "a.wav"}, "no text; a line is"),
        ('{"audio": "a.wav", "text": "\\ud800"}', "half a surrogate pair"),
        ('{"audio": "a\\u0000.wav", "text": "x"}', "must be the name of a file"),
        ("[" * 100_000, "more than"),
        ({"audio": "missing.wav", "text": "x"}, r"audio missing\.wav is no file"),
        ({"audio": "a.wav", "text": " "}, "text is empty"),
        ({"audio": "a.wav", "text": "x", "split": "dev"}, "split dev is none of"),
    ],
)
def test_a_bad_line_of_a_manifest_is_named(tmp_path: Path, row: object, says: str) -> None:
    good = {"audio": tone(tmp_path / "a.wav"), "text": "x"}
    with pytest.raises(UserError, match=rf"mine\.jsonl, line 2:? .*{says}"):
        load(write_manifest(tmp_path, [good, row]))


def librispeech(folder: Path) -> Path:
    for subset, speaker in (("train-clean-5", "19"), ("dev-clean", "84"), ("test-clean", "61")):
        chapter = folder / subset / speaker / "198"
        lines = []
        for i in range(3):
            name = f"{speaker}-198-{i:04d}"
            tone(chapter / f"{name}.flac")
            lines.append(f"{name} THE {i} OF {subset.upper()}")
        (chapter / f"{speaker}-198.trans.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_a_folder_laid_out_as_librispeech(tmp_path: Path) -> None:
    dataset = load(librispeech(tmp_path), name="librispeech")
    texts = [clip.text for clip in dataset.train]
    assert texts == [f"THE {i} OF TRAIN-CLEAN-5" for i in range(3)]
    of = {name: {clip.speaker for clip in getattr(dataset, name)} for name in ("val", "test")}
    assert of == {"val": {"84"}, "test": {"61"}}


def test_a_line_of_transcripts_ends_at_a_line_feed_alone(tmp_path: Path) -> None:
    """Not at U+2028, which a text may have."""
    librispeech(tmp_path)
    listing = tmp_path / "dev-clean/84/198/84-198.trans.txt"
    listing.write_bytes(listing.read_bytes().replace(b" OF ", "\u2028OF\x85".encode()))
    assert load(tmp_path).val[0].text == "THE 0\u2028OF\x85DEV-CLEAN"


def test_a_transcript_without_its_recording_is_refused(tmp_path: Path) -> None:
    librispeech(tmp_path)
    (tmp_path / "dev-clean/84/198/84-198-0001.flac").unlink()
    with pytest.raises(UserError, match=r"84-198\.trans\.txt, line 2: .*no 84-198-0001\.flac"):
        load(tmp_path)


def test_a_folder_without_clips_and_a_path_that_is_not_there_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    for path, says in (
        (tmp_path, "has no clips"),
        (tmp_path / "missing", "does not exist"),
        (tmp_path / "a.txt", r"is no \.jsonl"),
    ):
        with pytest.raises(UserError, match=f"{says}; name a manifest"):
            load(path)
    with pytest.raises(UserError, match=r"--data\.path"):
        load(None, name="librispeech")


@pytest.mark.parametrize(
    ("text", "seconds", "says"),
    [("a b c d e f g h i", 0.3, "9 tokens, but --model.block-size 8 holds"),
     ("a", 4.0, r"4\.0 s long, more than the 3\.2 s")],
)  # fmt: skip
def test_a_clip_that_does_not_fit_the_model_is_refused(
    tmp_path: Path, text: str, seconds: float, says: str
) -> None:
    rows = [
        {"audio": tone(tmp_path / f"{i}.wav"), "text": "a", "split": split}
        for i, split in enumerate(("train", "val", "test"))
    ]
    long = tone(tmp_path / "long.wav", seconds)
    rows.append({"audio": long, "text": text, "split": "train"})
    with pytest.raises(UserError, match=rf"long\.wav.*{says}"):
        load(write_manifest(tmp_path, rows))


def test_a_truncated_wav_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    whole = (tmp_path / tone(tmp_path / "a.wav")).read_bytes()
    expected_N = audio.read(tmp_path / "a.wav")
    n_kept = len(expected_N) // 2
    (tmp_path / "a.wav").write_bytes(whole[: 44 + 2 * n_kept])
    np.testing.assert_array_equal(audio.read(tmp_path / "a.wav"), expected_N[:n_kept])
    (tmp_path / "a.wav").write_bytes(whole[:44])
    with pytest.raises(UserError, match="has no samples"):
        audio.read(tmp_path / "a.wav")


def test_errors_of_stdin_name_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (b"", b"no sound"):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        with pytest.raises(UserError, match=r"^stdin cannot be read as sound"):
            audio.read(Path("-"))


def test_a_folder_that_is_called_as_a_sound_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.wav").mkdir()
    with pytest.raises(UserError, match="has no audio files"):
        sample_speech._audio_files((tmp_path,))
    tone(tmp_path / "a.wav/b.WAV")
    assert sample_speech._audio_files((tmp_path,)) == [tmp_path / "a.wav/b.WAV"]


def test_the_last_word_is_timed_though_its_position_ends_behind_the_sound() -> None:
    """A position is 20 ms, and 13 of them hear 250 ms."""
    samples_N = np.ones(SAMPLE_RATE // 4, np.float32)
    last = word_alignment.Word("one", 0.24, 0.26)
    window = transcription.WindowTranscript(0, len(samples_N), "one", (last,), False)
    found = transcription._merge(samples_N, [window], times=True)
    assert found.text == "one"
    assert found.words == (word_alignment.Word("one", 0.24, 0.25),)


def test_less_than_25_ms_is_no_word() -> None:
    tok = SpeechTokenizer(WordTokenizer(["one"]))
    model = models.build(MODEL, tok)
    assert isinstance(model, models.SpeechRecognizer)
    lengths = (1, 80, audio.WINDOW - 1)
    clips = [np.full(n, 0.5, np.float32) for n in lengths]
    nothing = {}  # is computed with
    for found, n in zip(transcription.transcribe(model, nothing, tok, clips), lengths, strict=True):
        assert found == transcription.Transcript("", (), n / SAMPLE_RATE, False)


def test_a_run_finds_its_data_from_any_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    (tmp_path / "tiny.py").write_text(
        "from gptjax.config import *\nfrom gptjax.config_encoders import *\n"
        "config = Config(SpeechConfig(), SpeechDataConfig())\n"
    )
    arguments = ["--config", str(tmp_path / "tiny.py"), "--data.path", folder.name]
    parsed, _ = command_line.parse(arguments)
    assert parsed.data.path == folder
    assert config_json.from_json(config_json.to_json(parsed)).data.path == folder


def test_an_imported_run_is_evaluated_on_recordings_that_one_names(
    tmp_path: Path, refused: Refused
) -> None:
    pytest.importorskip("jiwer", reason="an extra: pip install -e '.[evaluate]'")
    tok = SpeechTokenizer(WordTokenizer(["one"]))
    params = {"kernel": np.zeros((2, 2), np.float32)}
    origin = {"source": "no data: weights imported from elsewhere", "sha256": "0"}
    with run_directory.new_run(tmp_path / "run") as part:
        checkpoints.save_finished(part, Config(MODEL, SpeechDataConfig()), tok, params, origin)
    assert "--data.path DIR" in refused(evaluate.main, tmp_path / "run")
    line = refused(evaluate.main, tmp_path / "run", "--data.path", tmp_path, "--split", "val")
    assert "--split val" in line


def test_broken_recordings_and_empty_splits_are_refused_before_training(tmp_path: Path) -> None:
    for take in range(3):  # takes 0 to 4 are for test
        tone(tmp_path / f"1_anna_{take}.wav")
    with pytest.raises(UserError, match="leave none for training"):
        load(tmp_path)
    for take in range(3, 12):
        tone(tmp_path / f"1_anna_{take}.wav")
    (tmp_path / "1_anna_9.wav").write_bytes(b"RIFF, but nothing more")
    with pytest.raises(UserError, match=r"1_anna_9\.wav cannot be read as sound"):
        load(tmp_path)


# --- recordings that break


def many(folder: Path, n: int = 12, suffix: str = ".flac") -> list[Path]:
    """n recordings in a manifest; the last two are for validation and test."""
    splits = ["train"] * (n - 2) + ["val", "test"]
    paths = [folder / f"{i}{suffix}" for i in range(n)]
    rows = [
        {"audio": tone(path, 0.3), "text": str(i), "split": split}
        for i, (path, split) in enumerate(zip(paths, splits, strict=True))
    ]
    write_manifest(folder, rows)
    return paths


def cut(path: Path) -> None:
    """As an interrupted copy: the header is whole, and a part of the sound is there."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for i in range(len(content) // 2, len(content) // 2 + 100):
        content[i] ^= 0x5A
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip, lambda p: p.write_bytes(b""), Path.unlink])
def test_a_broken_recording_is_found_before_training(
    tmp_path: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    paths, manifest = many(tmp_path), tmp_path / "mine.jsonl"
    load(manifest)
    damage(paths[3])
    with pytest.raises(UserError, match=r"3\.flac .*--data\.on-broken skip"):
        load(manifest)
    dataset = load(manifest, on_broken="skip")
    assert paths[3] not in {clip.path for clip in dataset.train}
    assert dataset.sizes == {"train_clips": 9, "val_clips": 1, "test_clips": 1}
    assert "left out: 1 of 12 recordings" in capsys.readouterr().err


def test_all_broken_recordings_are_counted_and_some_named(tmp_path: Path) -> None:
    for path in many(tmp_path)[:5]:
        cut(path)
    with pytest.raises(UserError, match=r"5 of 12 .*0\.flac .*1\.flac .*2\.flac .*and 2 more"):
        load(tmp_path / "mine.jsonl")


def test_a_recording_is_decoded_again_only_if_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, manifest = many(tmp_path), tmp_path / "mine.jsonl"
    cut(paths[3])
    read = paths_read(monkeypatch)
    for expected in (paths, [paths[3]]):  # a broken one is tried at every start
        read.clear()
        load(manifest, on_broken="skip")
        assert sorted(read) == sorted(expected)
    tone(paths[3], 0.4)
    tone(paths[5], 0.4)
    read.clear()
    dataset = load(manifest)
    assert sorted(read) == [paths[3], paths[5]]
    assert dataset.train[5].n_samples == 0.4 * SAMPLE_RATE


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"a": 1}', "[" * 100_000, "\0"])
def test_lengths_remembered_wrongly_are_measured_again(tmp_path: Path, content: str) -> None:
    many(tmp_path)
    load(tmp_path / "mine.jsonl")
    cache = recording_checks._cache_file(tmp_path)
    assert cache.is_file()
    cache.write_text(content)
    assert load(tmp_path / "mine.jsonl").train[0].n_samples == 0.3 * SAMPLE_RATE


@pytest.mark.parametrize("string_clips", [1, 3])
def test_a_recording_that_breaks_later_is_silence_without_loss(
    tmp_path: Path, string_clips: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """All other rows, and every shape, are what they would have been."""
    paths = many(tmp_path)
    config = make_config(tmp_path / "mine.jsonl", batch_size=10, string_clips=string_clips)
    dataset = speech.load(config)
    whole = dataset.batch(config, 0)
    recordings.read_word.cache_clear()
    cut(paths[3])
    batch = dataset.batch(config, 0)
    dataset.batch(config, 1)
    (three,) = dataset.tokenizer.target.encode("3")
    has = (batch["targets"] == three).any(1)
    assert 0 < has.sum() < 10
    assert not batch["loss_weights"][has].any()
    for name in ("source", "source_mask", "tokens", "targets", "loss_weights"):
        assert batch[name].shape == whole[name].shape
        np.testing.assert_array_equal(batch[name][~has], whole[name][~has], err_msg=name)
    assert np.isfinite(batch["source"]).all()
    err = capsys.readouterr().err
    assert err.count("skipped from now on") == err.count("\n") == 1
    assert "3.flac" in err


def test_a_step_whose_recordings_are_all_broken_changes_no_gradient(tmp_path: Path) -> None:
    path = many(tmp_path, 3)[0]
    config = make_config(tmp_path / "mine.jsonl", batch_size=2)
    dataset = speech.load(config)
    cut(path)
    batch = dataset.batch(config, 0)
    assert not batch["loss_weights"].any()
    model = models.build(MODEL, dataset.tokenizer)
    gradient = jax.jit(training.make_gradient(model, 2))
    shapes = jax.eval_shape(lambda: models.init(model, 0))
    params = jax.tree.map(lambda p: np.full(p.shape, 0.1, p.dtype), shapes)
    loss, grads = gradient(params, batch, jax.random.key(0))
    assert loss == 0
    assert all(not leaf.any() for leaf in jax.tree.leaves(grads))


def test_a_disk_that_is_gone_ends_the_run(tmp_path: Path) -> None:
    paths = many(tmp_path)
    config = make_config(tmp_path / "mine.jsonl")
    dataset = speech.load(config)
    for path in paths:
        path.unlink()
    with pytest.raises(UserError, match=r"none of 8 recordings .*is there"):
        dataset.batch(config, 0)


def test_a_recording_that_may_not_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a bad sector, or a file that belongs to somebody else."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    path = tmp_path / tone(tmp_path / "a.wav")
    monkeypatch.setattr(Path, "open", refuse)
    for function in (audio.read, audio.duration):
        with pytest.raises(UserError, match=r"a\.wav .*Input/output error"):
            function(path)


def test_stdin_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "MOST_BYTES", 1 << 20)
    with open("/dev/zero") as endless:
        monkeypatch.setattr("sys.stdin", endless)
        with pytest.raises(UserError, match="stdin is longer than 1 MiB"):
            audio.read(Path("-"))


# --- names that are not unique


def test_recordings_of_one_name_in_several_folders_are_split(tmp_path: Path) -> None:
    """By their path inside the data's folder, so that this folder can be moved."""
    found = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        rows = []
        for i in range(40):
            tone(folder / f"s{i}/audio.wav")
            rows.append({"audio": f"s{i}/audio.wav", "text": "a"})
        dataset = load(write_manifest(folder, rows), val_fraction=0.2)
        parts = (dataset.train, dataset.val, dataset.test)
        assert min(map(len, parts)) > 2
        found.append([[clip.path.parent.name for clip in part] for part in parts])
    assert found[0] == found[1]


def test_a_unique_name_keeps_the_split_that_it_had(tmp_path: Path) -> None:
    """Committed figures depend on it; one repeated name changes no other."""
    clips = [Clip(tmp_path / f"{i}.wav", "a") for i in range(50)]
    alone = recordings.split(clips, 0.2, "", "here", tmp_path)
    hashes = [hashlib.sha256(clip.path.name.encode()).hexdigest() for clip in clips]
    shares = [int(digest[:8], 16) / 16**8 for digest in hashes]
    assert len(alone[2]) == sum(share < 0.2 for share in shares)
    assert len(alone[1]) == sum(0.2 <= share < 0.4 for share in shares)
    twice = [Clip(tmp_path / f"{where}/0.wav", "a") for where in "xy"]
    mixed = recordings.split([*clips[1:], *twice], 0.2, "", "here", tmp_path)
    for part, others in zip(alone, mixed, strict=True):
        assert set(part) - set(mixed[0] + mixed[1] + mixed[2]) <= {clips[0]._replace(split="train"),
            clips[0]._replace(split="val"), clips[0]._replace(split="test")}  # fmt: skip
        assert set(others) - set(part) <= {c for c in others if c.path.name == "0.wav"}


def test_two_texts_of_one_file_are_in_one_split(tmp_path: Path) -> None:
    clips = [Clip(tmp_path / f"{where}/a.wav", text) for where in "xy" for text in ("1", "2")]
    for part in recordings.split(clips, 0.3, "", "here", tmp_path):
        assert len(part) % 2 == 0


# --- fetching


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zip as GitHub makes it, of recordings whose hash is the known one."""
    monkeypatch.setenv("GPTJAX_CACHE", str(tmp_path / "cache"))
    for take in range(12):
        tone(tmp_path / f"repository/recordings/1_anna_{take}.wav")
    digest = downloads.aggregate_sha256(tmp_path / "repository/recordings")
    monkeypatch.setattr(downloads, "FSDD_SHA256", digest)
    with zipfile.ZipFile(tmp_path / "fsdd.zip", "w") as content:
        for path in (tmp_path / "repository").rglob("*.wav"):
            content.write(path, Path("fsdd-1") / path.relative_to(tmp_path / "repository"))
    return tmp_path / "fsdd.zip"


def test_the_digits_are_fetched_once(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def retrieve(url: str, **_: object) -> str:
        calls.append(url)
        return str(archive)

    monkeypatch.setattr(downloads.pooch, "retrieve", retrieve)
    assert load(None).sizes == {"train_clips": 4, "val_clips": 3, "test_clips": 5}
    load(None)
    assert len(calls) == 1
    assert downloads.FSDD_COMMIT in calls[0]


def test_other_recordings_than_the_known_ones_are_refused(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "FSDD_SHA256", "0" * 64)
    monkeypatch.setattr(downloads.pooch, "retrieve", lambda *_, **__: str(archive))
    with pytest.raises(UserError, match="known SHA-256"):
        load(None)
    assert not (tmp_path / "cache/fsdd").exists()


def test_no_network_is_one_line(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(downloads.pooch, "retrieve", fail)
    with pytest.raises(UserError, match=r"could not fetch fsdd: .*ConnectionError.*--data\.path"):
        load(None)


@needs_recordings
def test_the_hash_of_the_recordings_is_the_published_one() -> None:
    digest = downloads.aggregate_sha256(RECORDINGS)
    assert digest in (SHARED / "AGGREGATE.txt").read_text()

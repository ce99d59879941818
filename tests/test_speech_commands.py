"""Speech models from training to every command, on a run that memorised four recordings."""

import io
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from conftest import Refused, edit_run
from matplotlib.axes import Axes

import gptjax
from gptjax import train
from gptjax.commands import evaluate, sample
from gptjax.data import audio, batches, recording_checks, recordings, speech
from gptjax.data.audio import HOP, SAMPLE_RATE
from gptjax.decoding import transcription
from gptjax.runs import metrics

soundfile = pytest.importorskip("soundfile", reason="an extra: pip install -e '.[speech]'")
pytest.importorskip("jiwer", reason="an extra: pip install -e '.[evaluate]'")
pytestmark = pytest.mark.slow
REPO = Path(__file__).parents[1]
RECORDINGS = REPO.parent / "shared/speech/fsdd/recordings"

# The window is so long that all clips are padded to one width and share every batch. With batches
# of a single width, each step undid what the previous one had learned.
CONFIG = """
from pathlib import Path
from gptjax.config import Config, OptimConfig, TrainConfig
from gptjax.config_encoders import SpeechConfig, SpeechDataConfig

config = Config(
    model=SpeechConfig(n_encoder_layer=1, n_layer=1, n_head=2, n_embd=64, block_size=8,
        source_block_size=240, dropout=0.0, position="rotary", norm="rmsnorm", bias=False),
    data=SpeechDataConfig(path=Path({path!r}), tokenizer="word"),
    optim=OptimConfig(learning_rate=3e-3, warmup_steps=5),
    train=TrainConfig(max_steps=40, batch_size=8, eval_interval=40, log_interval=1,
        sample_tokens=0),  # test_librispeech_end_to_end samples in training
)
"""
REFERENCES = {"0_george_0": "zero", "3_george_1": "three", "7_theo_2": "seven", "9_theo_3": "nine"}


def run_train(*arguments: object) -> None:
    train.main(list(map(str, arguments)))


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not RECORDINGS.is_dir():
        pytest.skip(f"no {RECORDINGS}")
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    pause = np.zeros(int(transcription.MARGIN_SECONDS * SAMPLE_RATE), np.float32)
    for name, text in REFERENCES.items():  # as a window of a longer sound has it
        samples_N = np.concatenate([pause, audio.read(RECORDINGS / f"{name}.wav"), pause])
        soundfile.write(folder / f"paused-{name}.wav", samples_N, SAMPLE_RATE)
        rows.append({"audio": f"paused-{name}.wav", "text": text, "split": "train"})
    for split in ("train", "val", "test"):
        for name, text in list(REFERENCES.items())[split == "val" :]:  # "zero" is not validated
            copy = folder / f"{split}-{name}.wav"
            copy.write_bytes((RECORDINGS / f"{name}.wav").read_bytes())
            speaker = name.split("_")[1]
            rows.append({"audio": copy.name, "text": text, "speaker": speaker, "split": split})
    (folder / "clips.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (folder / "four.py").write_text(CONFIG.format(path=str(folder / "clips.jsonl")))
    return folder / "four.py"


@pytest.fixture(scope="module")
def run(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "four"
    run_train("--config", config_file, "--run-dir", folder)
    return folder


def transcribe(
    capsys: pytest.CaptureFixture[str], run: Path, *arguments: object
) -> tuple[str, str]:
    capsys.readouterr()
    sample.main([str(run), "--audio", *map(str, arguments)])
    return capsys.readouterr()


def refuses(capsys: pytest.CaptureFixture[str], run: Path, *arguments: object) -> tuple[str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        sample.main([str(run), *map(str, arguments)])
    assert exit_info.value.code == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured


def test_four_clips_are_memorised(run: Path) -> None:
    losses = [row["val_loss"] for row in metrics.read_metrics(run) if "val_loss" in row]
    assert losses[-1] < 0.02  # 0.004 to 0.010 with the seeds that were tried
    found = evaluate.evaluate(evaluate.Evaluate(run))
    assert found["accuracy"] == 1.0, found["worst"]
    assert found["wer"] == found["cer"] == 0.0


def test_from_python_it_is_the_same(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = RECORDINGS / "7_theo_2.wav"
    loaded = gptjax.load(run)
    from_file, from_samples = loaded.transcribe(file), loaded.transcribe(audio.read(file))
    assert from_file == from_samples
    assert from_file.text in transcribe(capsys, run, file)[0]
    assert [word.text for word in from_file.words] == from_file.text.split()
    with pytest.raises(gptjax.UserError, match=r"nowhere\.wav"):
        loaded.transcribe("nowhere.wav")


def test_evaluate_prints_the_keys_that_scripts_read(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate.main([str(run), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert {"wer", "cer", "accuracy", "per_speaker", "wer_interval", "worst"} <= set(found)
    n_clips = {name: row["clips"] for name, row in found["per_speaker"].items()}
    assert n_clips == {"george": 2, "theo": 2}
    evaluate.main([str(run)])
    assert "95 % interval of WER" in capsys.readouterr().out


def test_evaluate_takes_every_clip_of_another_folder(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for take in (0, 6, 20):  # of all three splits
        name = f"0_george_{take}.wav"
        (tmp_path / name).write_bytes((RECORDINGS / "0_george_0.wav").read_bytes())
    evaluate.main([str(run), "--json", "--data.path", str(tmp_path)])
    found = json.loads(capsys.readouterr().out)
    assert found["clips"] == 3
    assert found["accuracy"] == 1.0
    with pytest.raises(SystemExit):
        evaluate.main([str(run), "--data.path", str(tmp_path / "missing")])
    assert "does not exist" in capsys.readouterr().err


def test_a_file_name_need_not_be_utf_8(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / os.fsdecode(b"bad\xff.wav")  # as sys.argv has it
    path.write_bytes((RECORDINGS / "7_theo_2.wav").read_bytes())
    assert transcribe(capsys, run, path)[0].startswith("seven")


def test_times_of_words_after_a_long_pause(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    word_N = audio.read(RECORDINGS / "7_theo_2.wav")
    samples_N = np.concatenate([np.zeros(5 * SAMPLE_RATE, np.float32), word_N])
    soundfile.write(tmp_path / "late.wav", samples_N, SAMPLE_RATE)
    out, _ = transcribe(capsys, run, tmp_path / "late.wav", "--json")
    (word,) = json.loads(out)["words"]
    assert word["text"] == "seven"
    assert 4.8 <= word["start"] < word["end"] <= 5.1 + len(word_N) / SAMPLE_RATE
    srt, _ = transcribe(capsys, run, tmp_path / "late.wav", "--format", "srt")
    assert re.fullmatch(r"1\n00:00:0[45],\d{3} --> 00:00:0[5-9],\d{3}\nseven\n", srt)


def test_strings_of_test_clips_are_evaluated(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model writes one of three to five words, so most words are wrong, but not all."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    edit_run(copy / "config.json", "data", string_clips=3)
    monkeypatch.setattr(speech, "N_TEST_STRINGS", transcription.BATCH_SIZE)  # of 300: one batch
    found = evaluate.evaluate(evaluate.Evaluate(copy))
    assert found["strings"]["strings"] == transcription.BATCH_SIZE
    assert found["wer"] == 0
    assert 0.1 < found["strings"]["wer"] < 1


def test_a_folder_and_json(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in REFERENCES:
        (tmp_path / f"{name}.wav").write_bytes((RECORDINGS / f"{name}.wav").read_bytes())
    (tmp_path / "notes.txt").write_text("no sound")
    out, err = transcribe(capsys, run, tmp_path, "--json", "--beam", "2")
    rows = [json.loads(line) for line in out.splitlines()]
    assert err == f"left out: 1 file in {tmp_path}, no sound: notes.txt\n"
    assert [row["text"] for row in rows] == [REFERENCES[name] for name in sorted(REFERENCES)]
    for row in rows:
        (word,) = row["words"]
        assert word["text"] == row["text"]
        assert 0 <= word["start"] < word["end"] <= row["seconds"] + 0.02
        assert row["step"] == 40


def test_stdin(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (RECORDINGS / "3_george_1.wav").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    out, _ = transcribe(capsys, run, "-")
    assert out.splitlines()[0] == "three"


def test_a_recording_longer_than_the_window_is_cut_into_windows(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pauses are longer than a window, so each window has one word, as in training."""
    pause = np.zeros(4 * SAMPLE_RATE, np.float32)
    parts, places = [], []
    for name in (*REFERENCES, *REFERENCES):
        word_N = audio.read(RECORDINGS / f"{name}.wav")
        first = sum(map(len, parts)) / SAMPLE_RATE
        places.append((REFERENCES[name], first, first + len(word_N) / SAMPLE_RATE))
        parts += [word_N, pause]
    samples_N = np.concatenate(parts)
    assert len(samples_N) > 5 * 240 * 2 * HOP
    soundfile.write(tmp_path / "long.wav", samples_N, SAMPLE_RATE)
    row = json.loads(transcribe(capsys, run, tmp_path / "long.wav", "--json")[0])
    assert row["text"] == " ".join(word["text"] for word in row["words"])
    found = [
        word["text"] == text and start - 0.15 <= (word["start"] + word["end"]) / 2 <= end + 0.15
        for text, start, end in places
        for word in row["words"]
    ]
    assert sum(found) == len(row["words"]) == len(places)


def test_silence_and_clipping(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "silence.wav", np.zeros(8000), SAMPLE_RATE)
    out, err = transcribe(capsys, run, tmp_path / "silence.wav")
    assert out == "\n"
    assert "clipped" not in err
    samples_N = audio.read(RECORDINGS / "9_theo_3.wav")
    loud = np.clip(20 * samples_N / np.abs(samples_N).max(), -1, 1)
    soundfile.write(tmp_path / "loud.wav", loud, SAMPLE_RATE, subtype="FLOAT")
    _, err = transcribe(capsys, run, tmp_path / "loud.wav")
    assert "loud.wav is clipped" in err


def test_a_file_that_cannot_be_read_does_not_stop_the_others(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = RECORDINGS / "9_theo_3.wav"
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), SAMPLE_RATE)
    for bad in ("broken.wav", "empty.wav", "missing.wav"):
        out, err = refuses(capsys, run, "--audio", tmp_path / bad)
        assert out == ""
        assert bad in err.splitlines()[-1]
        assert len(err.splitlines()) == 1
        out, err = refuses(capsys, run, "--audio", tmp_path / bad, good)
        assert "nine" in out
        assert bad in err


def test_options_of_the_other_models_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = RECORDINGS / "9_theo_3.wav"
    for arguments, says in (
        (["--audio", good, "--prompt", "x"], "--prompt is not for"),
        (["--audio", good, "--source", "x"], "--source is not for"),
        (["--audio", good, "--seed", "5"], "--seed is not for"),
        (["--audio", good, "--interactive"], "--interactive is not for"),
        ([], "--audio is missing"),
        (["--audio", tmp_path], "has no audio files"),
        (["--audio", good, "--beam", "0"], "--beam is 0"),
        (["--audio", "-", "-"], "- twice"),
    ):
        assert says in refuses(capsys, run, *arguments)[1]


def test_attention_draws_one_sound(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = RECORDINGS / "9_theo_3.wav"
    picture = tmp_path / "a.png"
    drawn = []
    imshow = Axes.imshow
    with mock.patch.object(Axes, "imshow", lambda *a, **k: drawn.append(a[1]) or imshow(*a, **k)):
        transcribe(capsys, run, good, "--attention", picture)
    mel_MT, weights_TS = drawn
    mel_TM = np.asarray(audio.log_mel(audio.read(good)[None])[0])
    np.testing.assert_allclose(mel_MT.T, mel_TM - mel_TM.max() + 1, atol=1e-2)
    assert len(weights_TS) == 2  # the word and the end
    assert np.all(weights_TS.sum(1) > 0.5)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 5000
    _, err = refuses(capsys, run, "--audio", good, good, "--attention", picture)
    assert "draws one recording, not 2" in err
    _, err = refuses(capsys, run, "--audio", good, "--attention", tmp_path / "a.gif")
    assert "must end in .png" in err


def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(
    config_file: Path, tmp_path: Path
) -> None:
    """With speed change, noise and masks: the batches of a step do not depend on the start."""
    line = ["--config", config_file, "--data.speed-change", "0.1", "--data.noise", "0.5"]
    line += ["--data.spec-masks", "2", "--train.eval-interval", "3", "--train.max-steps", "6"]
    run_train(*line, "--run-dir", tmp_path / "whole")
    # As if it had been killed after step 3, and continued in a new process.
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts/checkpoints/6")
    metrics_file = tmp_path / "parts/metrics.jsonl"
    rows = metrics_file.read_text().splitlines(keepends=True)
    metrics_file.write_text("".join(row for row in rows if json.loads(row)["step"] <= 3))
    batches._epoch.cache_clear()
    recordings.read_word.cache_clear()
    run_train(*line, "--run-dir", tmp_path / "parts")
    losses = [
        [row["train_loss"] for row in metrics.read_metrics(tmp_path / name) if "train_loss" in row]
        for name in ("whole", "parts")
    ]
    assert len(losses[0]) == 6
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_a_run_continues_when_recordings_broke_were_dropped_or_mended(
    run: Path,
    config_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    refused: Refused,
) -> None:
    """Its vocabulary is kept: that of the remaining texts alone would be another."""
    shutil.copytree(config_file.parent, tmp_path / "clips")
    shutil.copytree(run, tmp_path / "run")
    rows = (tmp_path / "clips/clips.jsonl").read_text().splitlines()
    manifest = tmp_path / "clips/clips.jsonl"
    broken = tmp_path / "clips/train-0_george_0.wav"
    line = ["--config", config_file, "--data.path", manifest, "--run-dir", tmp_path / "run"]

    def continues(max_steps: int, *flags: str) -> str:
        capsys.readouterr()
        run_train(*line, "--train.max-steps", max_steps, *flags)
        return capsys.readouterr().out

    def refuses(*flags: str) -> str:
        return refused(train.main, *line, *flags)

    whole = broken.read_bytes()
    # Broken: refused with its name and the fix; then left out.
    broken.write_bytes(b"RIFF")
    assert "train-0_george_0.wav" in refuses()
    found = continues(41, "--data.on-broken", "skip")
    assert "1 recording of another size: train-0_george_0.wav" in found
    assert "7 train clips" in found
    # Dropped, file and line: no text of "zero" is left to learn or to validate.
    broken.unlink()
    kept = [row for row in rows if "zero" not in row or '"test"' in row]
    manifest.write_text("\n".join(kept) + "\n")
    found = continues(42)
    assert "2 recordings dropped: paused-0_george_0.wav, train-0_george_0.wav" in found
    # Mended, and put back: as at the first start.
    broken.write_bytes(whole)
    manifest.write_text("\n".join(rows) + "\n")
    assert not re.search("recordings? (of another size|dropped)", continues(42))
    # Other data is refused as before.
    for row in (rows[0].replace('"zero"', '"one"'), rows[0].replace('"train"', '"val"')):
        manifest.write_text("\n".join([row, *rows[1:]]) + "\n")
        assert re.search("1 recording (new, or with another text|in another split)", refuses())


def test_a_recording_that_breaks_does_not_end_the_training(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the training split and in the validation split, after the check before the first step."""
    shutil.copytree(config_file.parent, tmp_path / "clips")
    measure = recording_checks.measure

    def then_break(*arguments: Any) -> Any:
        clips = measure(*arguments)
        for name in ("train-0_george_0", "val-3_george_1"):
            (tmp_path / f"clips/{name}.wav").write_bytes(b"RIFF")
        return clips

    line = ["--config", config_file, "--data.path", tmp_path / "clips/clips.jsonl"]
    line += ["--run-dir", tmp_path / "run", "--train.eval-interval", 2, "--train.max-steps", 4]
    with mock.patch.object(recording_checks, "measure", then_break):
        run_train(*line)
    said = capsys.readouterr().err
    assert said.count("skipped from now on") == 2
    losses = [
        row["val_loss"] for row in metrics.read_metrics(tmp_path / "run") if "val_loss" in row
    ]
    assert len(losses) == 3
    assert np.isfinite(losses).all()


@pytest.mark.parametrize(
    ("config", "name", "says"),
    [
        ("configs/digits_cpu.py", "tinyshakespeare", "invalid choice 'tinyshakespeare'"),
        ("configs/gpt_cpu.py", "fsdd", "Unrecognized options: --data.name"),
        ("configs/g2p_cpu.py", "fsdd", "invalid choice 'fsdd' for argument '--data.name'"),
        ("configs/librispeech.py", "librispeech", "name that with --data.path"),
        ("configs/digits_cpu.py", "fsdd --data.path /nowhere", "/nowhere does not exist"),
        ("configs/digits_cpu.py", "fsdd --data.noise 2", "--data.noise is 2.0"),
        ("configs/digits_cpu.py", "fsdd --data.tempo-change 1", "--data.tempo-change is 1.0"),
        (
            "configs/digits_cpu.py",
            "fsdd --model.pad-source",
            "--data.tempo-change is 0.5, but must be 0 with --model.pad-source",
        ),
        ("configs/digits_cpu.py", "fsdd --data.string-clips 0", "--data.string-clips is 0"),
    ],
)
def test_data_of_another_kind_or_missing_data_is_refused_in_one_line(
    tmp_path: Path, refused: Refused, config: str, name: str, says: str
) -> None:
    line = ["--config", REPO / config, "--run-dir", tmp_path / "run", "--data.name", *name.split()]
    assert says in refused(train.main, *line)
    assert not (tmp_path / "run").exists()


def test_librispeech_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """configs/librispeech.py, smaller: train, evaluate, transcribe."""
    if not RECORDINGS.is_dir():
        pytest.skip(f"no {RECORDINGS}")
    words = ("ZERO", "ONE", "TWO", "THREE")
    for subset, speaker, takes in (
        ("train-clean-100", "george", range(8, 14)),
        ("dev-clean", "theo", range(3)),
        ("test-clean", "lucas", range(3)),
    ):
        chapter = tmp_path / "LibriSpeech" / subset / speaker / "1"
        chapter.mkdir(parents=True)
        lines = []
        for digit, word in enumerate(words):
            for take in takes:
                name = f"{speaker}-1-{digit}{take:03d}"
                samples_N = audio.read(RECORDINGS / f"{digit}_{speaker}_{take}.wav")
                soundfile.write(chapter / f"{name}.flac", samples_N, SAMPLE_RATE)
                lines.append(f"{name} {word} {word}")
        (chapter / f"{speaker}-1.trans.txt").write_text("\n".join(lines) + "\n")
    folder, run = tmp_path / "LibriSpeech", tmp_path / "run"
    small = "--model.n-layer 1 --model.n-encoder-layer 1 --model.n-embd 32 --model.n-head 2"
    small += " --data.vocab-size 270 --model.block-size 16 --model.source-block-size 240"
    small += " --train.max-steps 4 --train.batch-size 8 --train.eval-interval 4"
    arguments = ["--config", REPO / "configs/librispeech.py", "--data.path", folder]
    run_train(*arguments, "--run-dir", run, *small.split())
    found = evaluate.evaluate(evaluate.Evaluate(run))
    assert found["clips"] == 12
    assert set(found["per_speaker"]) == {"lucas"}
    clips = sorted(folder.glob("test-clean/**/*.flac"))
    printed, _ = transcribe(capsys, run, *clips, "--json")
    rows = [json.loads(line) for line in printed.splitlines()]
    assert [row["audio"] for row in rows] == list(map(str, clips))

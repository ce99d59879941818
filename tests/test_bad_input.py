"""Bad input ends in one line on stderr, exit code 2 and nothing half-written."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import MAX_STEPS, TINY_RUN, Printed, Refused, edit_run

from gptjax import config_checks, config_json, setup, train, training
from gptjax.commands import evaluate, export, import_model, page, plot, prepare, quantize, sample
from gptjax.config import Config, GPTConfig, TrainConfig
from gptjax.data import downloads, text_files
from gptjax.decoding import sampling
from gptjax.errors import UserError, exit_codes
from gptjax.runs import checkpoints, plots, report, run_directory

REPO = Path(__file__).parents[1]


@pytest.fixture
def copied(text_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(text_run, tmp_path / "copy"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory that does not exist yet."""
    return tmp_path / "runs" / "new"


def snapshot(folder: Path) -> dict[Path, bytes | None]:
    """A file, or everything in a folder but the lock, which names its last user."""
    paths = (path for path in (folder, *folder.glob("**/*")) if path.name != "lock")
    return {path: path.read_bytes() if path.is_file() else None for path in paths if path.exists()}


@pytest.fixture
def refused_training(refused: Refused, text_file: Path, run: Path) -> Refused:
    """Calls `gptjax train`, expects it to refuse and to write nothing, and returns its line."""

    def call(*flags: object, data: Path = text_file, run_dir: Path = run) -> str:
        before = snapshot(run_dir)
        line = refused(train.main, *TINY_RUN, "--data.path", data, "--run-dir", run_dir, *flags)
        assert snapshot(run_dir) == before
        return line

    return call


@pytest.fixture
def train_again(printed: Printed, copied: Path, text_file: Path) -> Printed:
    """Calls `gptjax train` on the copy of the finished run, and returns what it prints."""

    def call(*flags: str, data: Path = text_file) -> str:
        return printed(train.main, *TINY_RUN, "--data.path", data, "--run-dir", copied, *flags)

    return call


# --- the command line and the config file


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--train.max-steps", "ten"], ["--train.max-steps", "int", "'ten'"]),
        (["--train.max-steps", "1.5"], ["--train.max-steps", "int", "'1.5'"]),
        (["--optim.learning-rate", "fast"], ["--optim.learning-rate", "float", "'fast'"]),
        (["--train.max-steps"], ["--train.max-steps", "Missing value"]),
        (["--model.activation", "silu"], ["--model.activation", "'silu'", "'relu2'"]),
        (["--data.tokenizer", "words"], ["--data.tokenizer", "'words'", "'word'", "'bpe'"]),
        (["--no-such-option", "1"], ["--no-such-option", "--help lists every option"]),
        (["extra"], ["extra"]),
        # Values of the right type that cannot work.
        (["--model.n-embd", "16", "--model.n-head", "3"], ["16 is not", "n-head 3", "2 heads"]),
        (["--model.n-layer", "0"], ["--model.n-layer is 0, but must be at least 1"]),
        (["--model.dropout", "1"], ["--model.dropout is 1.0, but must be in [0, 1)"]),
        (["--model.dropout", "nan"], ["--model.dropout is nan"]),
        (
            ["--model.training-temperature", "0"],
            ["--model.training-temperature is 0.0, but must be > 0"],
        ),
        (["--model.short-conv", "1"], ["--model.short-conv is 1, but must be 0, or at least 2"]),
        (["--data.windows", "epoch"], ["--data.windows", "random", "epochs"]),
        (["--optim.learning-rate", "nan"], ["--optim.learning-rate is nan, but must be > 0"]),
        (["--optim.learning-rate", "-1"], ["--optim.learning-rate is -1.0, but must be > 0"]),
        (["--optim.warmup-steps", "-1"], ["--optim.warmup-steps is -1, but must be >= 0"]),
        (["--optim.weight-decay", "inf"], ["weight-decay is inf, but must be >= 0 and finite"]),
        (["--train.batch-size", "0"], ["--train.batch-size is 0, but must be at least 1"]),
        (["--train.micro-batch-size", "3"], ["--train.micro-batch-size is 3", "divisor of 4"]),
        (["--data.val-fraction", "1"], ["--data.val-fraction is 1.0, but must be in (0, 1)"]),
        (["--train.attention", "kernel"], ["--train.attention kernel needs a GPU", "auto"]),
        (["--train.attention", "cudnn"], ["--train.attention cudnn needs a GPU", "auto"]),
        (["--seed", "-1"], ["--seed is -1, but must be in [0, 2**32)"]),
        # Sizes that would hang, or fill the memory.
        (
            ["--model.n-layer", "2147483647"],
            ["--model.n-layer is 2147483647, but", "at most 200"],
        ),
        (["--model.short-conv", "99999"], ["--model.short-conv is 99999, but must be at most"]),
        (["--model.n-embd", "2147483646"], ["--model.n-embd is 2147483646", "at most 1,000,000"]),
        (["--model.n-embd", "1000000"], ["its disk has", "checkpoints need"]),
        (["--train.batch-size", "1000000000"], ["512.0 GB of memory or more, and there is"]),
        (["--train.eval-batches", str(2**63)], [f"--train.eval-batches is {2**63}, but"]),
        (["--train.max-steps", str(2**31)], [f"{2**31}, but must be at most 2,147,483,647"]),
        (["--train.sample-tokens", str(2**40)], ["--train.sample-tokens is", "at most 1,000,000"]),
        (
            ["--optim.warmup-steps", str(2**64)],
            ["--optim.warmup-steps is", "at most 2,147,483,647"],
        ),
        (["--data.tokenizer", "bpe", "--data.vocab-size", str(2**31)], ["at most 10,000,000"]),
        (["--data.path", "/dev/zero"], ["--data.path /dev/zero: it is a device"]),
        (["--data.path", "~no_such_user/x"], ["there is no home folder ~no_such_user"]),
        (["--data.path", "a\0b"], ["the argument 'a\\x00b' has a NUL byte"]),
        (["--data.path", "a\ud800b"], ["the argument 'a\\ud800b' has", "half a surrogate pair"]),
    ],
    ids=lambda value: ascii(" ".join(value)[:40]) if isinstance(value, list) else None,
)
def test_bad_flags(refused_training: Refused, flags: list[str], words: list[str]) -> None:
    line = refused_training(*flags)
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("flags", "near"),
    [
        (["--optim.learning-rat", "1e-3"], "--optim.learning-rate FLOAT"),
        (["--learning-rate", "1e-3"], "--optim.learning-rate FLOAT"),
        (["--modle.n-layer=2"], "--model.n-layer INT"),
    ],
)
def test_a_misspelled_option_shows_similar_ones(
    refused_training: Refused, flags: list[str], near: str
) -> None:
    """tyro's box names the options that may be meant and describes them."""
    box = refused_training(*flags)
    for words in (flags[0], "Perhaps you meant", near, "(default: ", "gptjax train"):
        assert words in box


CONFIG = "from gptjax.config import *\nfrom gptjax.config_encoders import *\nconfig = Config({})\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("x = 1\n", ["must define `config = Config(...)`", "configs/gpt.py"]),
        ("config = {}\n", ["must define `config = Config(...)`"]),
        ("raise ValueError('of this')\n", ["fails with ValueError: of this"]),
        ("raise ValueError('line one\\nline two')\n", ["ValueError: line one line two"]),
        ("import sys\nsys.exit('enough')\n", ["fails with SystemExit: enough"]),
        ("def (\n", ["fails with SyntaxError"]),
        (CONFIG.format("train=TrainConfig(max_step=3)"), ["'max_step'", "max_steps"]),
        (CONFIG.format("optim=OptimConfig(lerning_rate=3)"), ["'lerning_rate'", "learning_rate"]),
        (CONFIG.format("train=TrainConfig(max_steps='3')"), ["--train.max-steps", "'3'", "int"]),
        (CONFIG.format("train=TrainConfig(remat=1)"), ["--train.remat", "1", "bool"]),
        (CONFIG.format("model=GPTConfig(n_layer=2.5)"), ["--model.n-layer", "2.5", "int"]),
        (CONFIG.format("model=GPTConfig(norm='batch')"), ["--model.norm", "'batch'", "rmsnorm"]),
        (CONFIG.format("model=TrainConfig()"), ["model", "TrainConfig", "GPTConfig"]),
        (CONFIG.format("run_dir=3"), ["'run_dir'", "option of the command line, --run-dir"]),
    ],
)
def test_bad_config_files(
    refused: Refused, tmp_path: Path, run: Path, content: str, words: list[str]
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(content)
    line = refused(train.main, "--config", path, "--run-dir", run)
    for word in (str(path), *words):
        assert word in line
    assert len(line) < 400
    assert not run.exists()


def test_numbers_that_python_takes_for_floats_are_floats(tmp_path: Path) -> None:
    """`learning_rate=1` in a config file is no error."""
    path = tmp_path / "mine.py"
    path.write_text(CONFIG.format("optim=OptimConfig(learning_rate=1)"))
    assert train.parse(["--config", str(path)])[0].optim.learning_rate == 1


def test_no_config_file_lists_those_there_are(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (REPO, tmp_path):
        monkeypatch.chdir(folder)
        line = refused(train.main)
        assert "--config is missing; name a file, or one of bigram, " in line
    assert list(tmp_path.iterdir()) == []


def test_two_config_files_are_one_too_many(refused: Refused) -> None:
    line = refused(train.main, "--config", "gpt", "--seed", 1, "--config=bigram")
    assert line == "error: --config is there twice, as gpt and bigram; give one"


def test_a_config_file_must_be_there_and_in_python(
    refused: Refused, run: Path, text_file: Path
) -> None:
    line = refused(train.main, "--config", REPO / "configs/gtp.py", "--run-dir", run)
    assert "configs/gtp.py does not exist" in line
    assert "configs/gpt.py" in line  # a neighbour
    os.mkfifo(run.parents[1] / "pipe.py")
    for path, kind in ((run.parents[1] / "pipe.py", "a pipe"), (Path("/dev/null"), "a device")):
        line = refused(train.main, "--config", path, "--run-dir", run)
        assert f"--config {path} is {kind}; config files there: " in line
    line = refused(train.main, "--config", text_file, "--run-dir", run)
    assert f"--config {text_file} is not a Python file" in line
    assert not run.exists()


# --- data


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (None, ["No such file or directory; name a UTF-8 text file"]),
        (b"", ["is empty; name a UTF-8 text file"]),
        (b"\xef\xbb\xbf", ["split has 0 tokens"]),  # nothing but a byte-order mark
        (b"caf\xc3\xa9 caf\xe9 creme " * 9, ["byte 0xe9 at offset 9; it is damaged UTF-8"]),
        (b"abc" * 15, ["validation split has 5 tokens, fewer than --model.block-size 16 + 1"]),
        (b"abc" * 5, ["training split has 13 tokens, fewer than --model.block-size 16 + 1"]),
    ],
    ids=["missing", "empty", "only-a-mark", "damaged", "short-validation", "short-training"],
)
def test_bad_data_files(
    refused_training: Refused, tmp_path: Path, raw: bytes | None, words: list[str]
) -> None:
    path = tmp_path / "data.txt"
    if raw is not None:
        path.write_bytes(raw)
    line = refused_training(data=path)
    for word in (str(path), *words):
        assert word in line


def test_a_folder_that_holds_no_token_files(refused_training: Refused, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    assert f"--data.path {folder} has no files" in refused_training(data=folder)
    (folder / "val.bin").touch()
    line = refused_training(data=folder)
    assert f"--data.path {folder} is not a folder of token files" in line
    assert "gptjax prepare" in line


def test_data_that_cannot_be_fetched(
    refused: Refused, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(name: str) -> Path:
        raise UserError(f"could not fetch {name}; pass it with --data.path FILE")

    monkeypatch.setattr(downloads, "fetch", nowhere)
    line = refused(train.main, *TINY_RUN, "--run-dir", run)
    assert "could not fetch tinyshakespeare" in line
    assert not run.exists()


def test_a_vocabulary_too_small_for_a_bpe(refused_training: Refused) -> None:
    line = refused_training("--data.tokenizer", "bpe", "--data.vocab-size", 100)
    assert "the vocabulary size of a BPE is 100, but must be at least 257" in line


# --- the run directory and the machine


def test_a_run_directory_that_is_a_file(refused_training: Refused, text_file: Path) -> None:
    line = refused_training(run_dir=text_file)
    assert f"--run-dir {text_file} is a file; name a folder" in line


def test_a_run_directory_that_cannot_be_made(refused_training: Refused, text_file: Path) -> None:
    # Below a file, and in /proc, not even root can make a folder.
    for place in (text_file / "run", Path("/proc/gptjax/run")):
        line = refused_training(run_dir=place)
        assert f"--run-dir {place} cannot be written (" in line
        assert line.endswith("; name another")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_run_directory_that_is_read_only(refused_training: Refused, run: Path) -> None:
    run.mkdir(parents=True, mode=0o500)
    assert f"--run-dir {run} cannot be written (Permission denied)" in refused_training()


def test_a_folder_with_other_things_in_it(refused_training: Refused, run: Path) -> None:
    run.mkdir(parents=True)
    (run / "thesis.tex").write_text("precious")
    words = f"--run-dir {run} has files but no config.json, so it is not a run; name another"
    assert words in refused_training()


def test_a_full_disk_is_found_before_anything_is_compiled(
    refused_training: Refused, run: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_late(*args: Any) -> None:
        raise AssertionError("the disk is checked first")

    usage = shutil.disk_usage(text_file)._replace(free=12_345_678)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(training, "make_train_steps", too_late)
    monkeypatch.setattr(setup, "Reporter", too_late)
    line = refused_training()
    assert f"--run-dir {run}: its disk has 12 MB free, but" in line
    assert "make room or name another folder" in line


@pytest.mark.parametrize(
    ("tracker", "module"), [("wandb", "wandb"), ("tensorboard", "tensorboardX")]
)
def test_a_tracker_that_is_not_installed(
    refused_training: Refused, monkeypatch: pytest.MonkeyPatch, tracker: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    line = refused_training(f"--{tracker}")
    assert f"--{tracker} needs the package {module}: pip install" in line


@pytest.mark.slow
def test_a_run_directory_in_use_is_left_to_its_trainer(
    refused_training: Refused, copied: Path
) -> None:
    with run_directory.locked(copied):
        line = refused_training(run_dir=copied)
    assert f"--run-dir {copied} is in use by process {os.getpid()};" in line


# --- continuing a run


def test_resume_without_a_checkpoint(refused_training: Refused, run: Path) -> None:
    line = refused_training("--resume")
    assert f"--resume: {run} has no checkpoint to continue; leave --resume out" in line


@pytest.mark.slow
def test_a_start_that_was_killed_before_its_first_checkpoint_can_be_repeated(
    run: Path, text_file: Path, printed: Printed
) -> None:
    """Whatever had been written by then, the folder is recognised as a run's."""
    (run / "checkpoints").mkdir(parents=True)
    (run / "lock").write_text("1")
    (run / "tokenizer.json").write_text("{}")
    (run / "environment.json.part").write_text("{")
    text = printed(train.main, *TINY_RUN, "--data.path", text_file, "--run-dir", run)
    assert "continuing" not in text
    assert (run / "config.json").exists()


@pytest.mark.parametrize(
    ("flags", "diff"),
    [
        (["--model.n-layer", "2"], ["model.n_layer 1 -> 2"]),
        (
            ["--model.n-head", "4", "--model.activation", "gelu"],
            ["model.n_head 2 -> 4", "model.activation relu -> gelu"],
        ),
        (["--optim.name", "muon"], ["optim.name adamw -> muon"]),
        (["--data.val-fraction", "0.2"], ["data.val_fraction 0.1 -> 0.2"]),
        (["--data.tokenizer", "byte"], ["vocabulary of 10 tokens -> another of 256"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_a_changed_architecture_is_refused_with_a_diff(
    refused_training: Refused, copied: Path, flags: list[str], diff: list[str]
) -> None:
    line = refused_training(*flags, run_dir=copied)
    for change in (str(copied), *diff):
        assert change in line
    # No other change is reported.
    assert line.count(" -> ") == len(diff)
    assert "undo that, or start a new run with another --run-dir" in line


@pytest.mark.parametrize("same_characters", [True, False])
def test_changed_data_is_refused_with_a_diff(
    refused_training: Refused, copied: Path, text_file: Path, tmp_path: Path, same_characters: bool
) -> None:
    text = text_file.read_text()
    other = tmp_path / "other.txt"
    other.write_text(text[::-1] if same_characters else text + "xyz")
    line = refused_training(data=other, run_dir=copied)
    had, want = text_files.read_text(text_file)[1], text_files.read_text(other)[1]
    assert f"data sha256 {had[:12]} -> {want[:12]} ({other})" in line
    assert ("vocabulary of 10 tokens -> another of 13" in line) != same_characters


@pytest.mark.slow
def test_another_split_of_prepared_data_is_refused(
    refused: Refused, text_file: Path, tmp_path: Path, run: Path
) -> None:
    """Token files hold the split themselves, where no flag shows that it changed."""
    prepared = tmp_path / "tokens"
    flags = ["--config", str(REPO / "configs/bigram.py"), "--train.max-steps", "1"]
    flags += ["--data.path", str(prepared), "--run-dir", str(run), "--train.sample-tokens", "0"]
    text_files.prepare((text_file,), prepared, "char", val_fraction=0.1)
    train.main(flags)
    shutil.rmtree(prepared)
    text_files.prepare((text_file,), prepared, "char", val_fraction=0.2)
    line = refused(train.main, *flags)
    assert "1,800 -> 1,600" in line


def test_the_same_text_from_another_place_continues(
    train_again: Printed, text_file: Path, tmp_path: Path
) -> None:
    moved = shutil.copy(text_file, tmp_path / "moved.txt")
    assert f"complete at step {MAX_STEPS}" in train_again(data=moved)


@pytest.mark.slow
def test_changed_fields_that_fit_the_arrays_are_logged(train_again: Printed, copied: Path) -> None:
    flags = ["--optim.learning-rate", "0.002", "--model.dropout", "0.3", "--train.max-steps", "6"]
    flags += ["--optim.grad-clip", "1"]  # the advice after a divergence
    flags += ["--model.training-temperature", "0.9"]
    printed = train_again("--resume", *flags)
    changes = [line for line in printed.splitlines() if line.startswith("changed since")]
    assert sorted(changes) == [
        "changed since the last start: model.dropout 0.1 -> 0.3",
        "changed since the last start: model.training_temperature 1.0 -> 0.9",
        "changed since the last start: optim.grad_clip 0.0 -> 1.0",
        "changed since the last start: optim.learning_rate 0.001 -> 0.002",
        "changed since the last start: train.max_steps 4 -> 6",
    ]
    assert "continuing at step 4" in printed
    rows = [row for row in report.read_metrics(copied) if "train_loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    rates = [row["learning_rate"] for row in rows]
    assert rates == pytest.approx([1e-3] * 4 + [2e-3] * 2)
    # The run has these values now, so the next start reports no change.
    assert "changed since" not in train_again(*flags)


def test_fewer_steps_than_the_run_has_done_train_nothing(
    train_again: Printed, copied: Path
) -> None:
    before = report.read_metrics(copied)
    assert f"complete at step {MAX_STEPS}" in train_again("--train.max-steps", "2")
    assert report.read_metrics(copied) == before


@pytest.mark.slow
def test_a_reader_that_leaves_does_not_end_the_training(run: Path, text_file: Path) -> None:
    command = [sys.executable, str(REPO / "train.py"), *TINY_RUN, "--data.path", str(text_file)]
    with subprocess.Popen(
        [*command, "--run-dir", str(run)], stdout=subprocess.PIPE, cwd=REPO
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=200) == 0
    assert any(row["step"] == MAX_STEPS for row in report.read_metrics(run))


def test_a_checkpoint_of_other_arrays_does_not_restore_partially(
    refused: Refused, copied: Path
) -> None:
    """As when somebody edits config.json so that it fits the command."""
    edit_run(copied / "config.json", "model", n_layer=2)
    line = refused(sample.main, copied)
    assert "does not fit the model" in line
    assert "block_1" in line


# --- sampling


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--prompt", "aQb!bQ"], ["'Q' at 1, '!' at 3 (positions count from 0)", "'\\n abcdefgh'"]),
        (["--prompt", "ab\udcff"], ["--prompt", "position 2"]),  # how Python decodes bad UTF-8
        (["--temperature", "-0.1"], ["--temperature is -0.1, but must be finite and >= 0"]),
        (["--temperature", "nan"], ["--temperature is nan, but must be finite and >= 0"]),
        (["--temperature", "inf"], ["--temperature is inf, but must be finite and >= 0"]),
        (["--top-k", "-1"], ["--top-k is -1, but must be in [0, 10], the vocabulary"]),
        (["--top-k", "11"], ["--top-k is 11, but must be in [0, 10], the vocabulary"]),
        (["--top-p", "0"], ["--top-p is 0.0, but must be in (0, 1]"]),
        (["--top-p", "1.01"], ["--top-p is 1.01, but must be in (0, 1]"]),
        (["--top-p", "nan"], ["--top-p is nan, but must be in (0, 1]"]),
        (["--step", "3"], ["--step 3 is not there; ", " has best, latest, 2, 4"]),
        (["--step", "last"], ["--step last is not there; ", " has best, latest, 2, 4"]),
        (["--step", "-2"], ["--step -2 is not there; "]),
        (["--max-new-tokens", "0"], ["--max-new-tokens is 0, but must be at least 1"]),
        (["--num-samples", "0"], ["--num-samples is 0, but must be at least 1"]),
        (["--seed", "-1"], ["--seed is -1, but must be in [0, 2**32)"]),
        (["--temprature", "1"], ["--temprature", "--temperature"]),
        (["--prompt-file", "/nowhere"], ["--prompt-file /nowhere: No such file or directory"]),
        (["--prompt", "a", "--prompt-file", "b"], ["--prompt and --prompt-file", "give one"]),
        (["--prompt", "a", "--interactive"], ["--prompt is not for", "asks for each line with"]),
        (["--prompt-file", "a", "--interactive"], ["--prompt-file is not for", "--interactive; "]),
        (["--greedy", "--top-k", "1"], ["--top-k is not for", "most likely token with --greedy"]),
        (["--prompt-file", "/dev/zero"], ["--prompt-file /dev/zero: it is a device"]),
        (["--prompt-file", "a\0b"], ["the argument 'a\\x00b' has a NUL byte"]),
        (["--attention", "\ud800.png"], ["the argument '\\ud800.png' has"]),
        (["--num-samples", str(10**9)], ["--num-samples 1000000000 needs", "and there is"]),
        (["--max-new-tokens", str(2**32)], ["4294967296, but must be at most 2,147,483,647"]),
    ],
    ids=lambda value: ascii(" ".join(value)[:40]),
)
def test_bad_sampling_flags(
    refused: Refused, text_run: Path, flags: list[str], words: list[str]
) -> None:
    line = refused(sample.main, text_run, *flags)
    for word in words:
        assert word in line


@pytest.mark.parametrize("flag", ["--beam", "--length-penalty"])
def test_a_run_on_text_is_measured_without_a_search(
    refused: Refused, tmp_path: Path, flag: str
) -> None:
    (tmp_path / "config.json").write_text(config_json.to_json(Config()))
    line = refused(evaluate.main, tmp_path, flag, 2)
    assert line.startswith(f"error: {flag} is not for {tmp_path}, which continues a text, ")


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_loaded(
    text_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    def too_late(*args: Any) -> None:
        raise AssertionError("the place is checked first")

    monkeypatch.setattr(checkpoints, "load_params", too_late)
    monkeypatch.setattr(plots, "plot", too_late)
    monkeypatch.setattr(text_files, "_train_tokenizer", too_late)
    (tmp_path / "x.html").mkdir()
    (tmp_path / "x.png").mkdir()
    (tmp_path / "file").touch()
    draw = sample.main, text_run, "--prompt", "abc", "--attention"
    for main, *argv, place in (
        (page.main, text_run, "--out", "none/x.html"),
        (page.main, text_run, "--out", "x.html"),
        (page.main, text_run, "--out", "/proc/x.html"),
        (plot.main, text_run, "--out", "none/x.png"),
        (plot.main, text_run, "--out", "x.png"),
        (*draw, "none/x.png"),
        (*draw, "x.png"),
        (*draw, "/proc/x.png"),
        (export.main, text_run, "--to", "safetensors", "--out", "file/out"),
        (quantize.main, text_run, "--out", "file/out"),
        (prepare.main, text_run / "config.json", "--out", "file/out"),
    ):
        line = refused(main, *argv, tmp_path / place)
        assert str(tmp_path / place) in line
        assert "name a" in line
        if "none" in place:
            assert f"there is no folder {tmp_path}/none" in line
    assert {path.name for path in tmp_path.rglob("*")} == {"x.html", "x.png", "file"}


def test_a_tilde_is_the_home_folder_in_every_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    """A shell leaves a ~ alone in quotes and after --option=, and then a folder ~ was made."""
    monkeypatch.setenv("HOME", str(tmp_path))
    content = CONFIG.format("data=TextDataConfig(path=Path('~/a.txt'))")
    (tmp_path / "mine.py").write_text("from pathlib import Path\n" + content)
    config, launch = train.parse(["--config", "~/mine.py", "--run-dir=~/runs/x"])
    assert config.data.path == tmp_path / "a.txt"
    assert launch.run_dir == tmp_path / "runs/x"
    for main, *argv in (
        (sample.main, "~/none"),
        (evaluate.main, "~/none"),
        (plot.main, "~/none"),
        (import_model.main, "gpt2", "~/none", "--out", "~/run"),
        (prepare.main, "--out", tmp_path / "out", "--tokenizer", "char", "~/none"),
    ):
        assert f"{tmp_path}/none" in refused(main, *argv)


def test_more_than_fits_into_memory_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text_file: Path
) -> None:
    monkeypatch.setattr(text_files, "host_memory", lambda: 900)
    with pytest.raises(UserError, match=r"too much for a memory of 0\.0 MB; make token"):
        text_files.read_text(text_file)
    with pytest.raises(SystemExit) as stop, exit_codes():
        np.zeros(1 << 50)
    assert stop.value.code == 1
    assert "error: there is not enough memory; Unable to allocate" in capsys.readouterr().err


@pytest.mark.parametrize(("memory", "named"), [(100, "model.block-size 8"), (700, "batch-size 4")])
def test_a_batch_that_does_not_fit_names_what_is_too_large(
    memory: int, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_checks, "host_memory", lambda: memory)
    config = Config(model=GPTConfig(block_size=8), train=TrainConfig(batch_size=4))
    with pytest.raises(UserError, match=f"{named} needs"):
        config_checks.check_memory(config)


def test_a_device_without_memory_is_one_line(
    refused: Refused, text_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")

    monkeypatch.setattr(sampling, "generate", full)
    line = refused(sample.main, text_run, "--json")  # prints nothing before it samples
    assert "out of memory on " in line
    assert "fewer --num-samples" in line


def test_a_prompt_file_that_is_not_utf8(refused: Refused, text_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes(b"abc\xff")
    line = refused(sample.main, text_run, "--prompt-file", path)
    assert f"--prompt-file {path} is not UTF-8 at byte offset 3" in line


def test_a_run_directory_to_sample_from_must_be_one(
    refused: Refused, tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"{tmp_path}/none does not exist" in refused(sample.main, tmp_path / "none")
    assert "runs here: none" in refused(sample.main, tmp_path / "none")
    assert f"{tmp_path} is not a run directory" in refused(sample.main, tmp_path)
    assert f"{text_file} is a file" in refused(sample.main, text_file)
    (tmp_path / "runs/one").mkdir(parents=True)
    (tmp_path / "runs/one/config.json").touch()
    assert "runs here: runs/one" in refused(sample.main, tmp_path / "none")
    assert "Missing" in refused(sample.main)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"type": "Config", "colour": 1}'])
def test_a_run_directory_with_foreign_files(
    refused: Refused, copied: Path, name: str, content: str
) -> None:
    (copied / name).write_text(content)
    assert name in refused(sample.main, copied)


def test_a_run_without_a_checkpoint_yet(refused: Refused, copied: Path) -> None:
    shutil.rmtree(copied / "checkpoints")
    line = refused(sample.main, copied)
    assert f"{copied} has no checkpoint yet; let it train to its first evaluation" in line
    (copied / "checkpoints").mkdir()
    assert refused(sample.main, copied) == line


def test_a_bad_prompt_does_not_end_a_conversation(
    text_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("abQ\nabc\n"))
    sample.main([str(text_run), "--interactive", "--max-new-tokens", "4"])
    printed = capsys.readouterr()
    (line,) = (line for line in printed.err.splitlines() if line.startswith("error: "))
    assert "'Q' at 2" in line
    assert "prompt> abc" in printed.out


# --- input that looks wrong but is allowed


def test_an_empty_prompt_is_the_start_token(
    text_run: Path, printed: Printed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prompts: list[np.ndarray] = []
    generate = sampling.generate

    def spy(model: Any, params: Any, prompt_BT: np.ndarray, *rest: Any) -> Any:
        prompts.append(prompt_BT)
        return generate(model, params, prompt_BT, *rest)

    monkeypatch.setattr(sampling, "generate", spy)
    (tmp_path / "empty.txt").touch()
    for flags in ([], ["--prompt", ""], ["--prompt-file", str(tmp_path / "empty.txt")]):
        printed(sample.main, text_run, "--max-new-tokens", 4, *flags)
        tok = run_directory.read_tokenizer(text_run)
        assert tok.decode(prompts[-1][0]) == "\n"
        assert prompts[-1].shape == (1, 1)
    assert len(prompts) == 3


def test_a_prompt_longer_than_the_context_keeps_its_tail(
    text_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """block_size is 16: the same last 16 tokens are continued the same way, and only those."""
    head, tail = "abcdefgh" * 3, "hgfe dcba hgfe d"
    flags = ["--json", "--max-new-tokens", "8", "--num-samples", "16"]
    continued = []
    for prompt in (head + tail, tail, tail + head):
        capsys.readouterr()
        sample.main([str(text_run), "--prompt", prompt, *flags])
        printed = capsys.readouterr()
        continued.append([json.loads(line)["text"] for line in printed.out.splitlines()])
        notice = f"the prompt has {len(prompt)} tokens; the model reads its last 16\n"
        assert printed.err == (notice if len(prompt) > 16 else "")
    assert continued[0] == continued[1] != continued[2]

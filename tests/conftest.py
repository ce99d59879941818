"""Fixtures of the whole suite: a tiny model on real text, cheap to compile."""

import functools
import gc
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Set before jax is imported. The suite tests the CPU path, also on a machine with a GPU; what a
# test compiles, the next one (and the processes that tests start) finds in a cache.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile far more than they compute; the optimizer of machine code is LLVM's to test, and
# XLA's older emitters are quicker to compile for.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1"
    # Many devices on few cores wait long for each other.
    " --xla_cpu_collective_call_terminate_timeout_seconds=300",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # PyTorch's threads would spin while they wait
gc.set_threshold(20_000)  # as the commands do
_CACHE = Path(tempfile.mkdtemp(prefix="gptjax-tests-"))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import forked
import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

from gptjax import models, train
from gptjax.config import Config, GPTConfig
from gptjax.data import recording_checks
from gptjax.data.texts import TextData
from gptjax.runs import plots


class NotDrawn(Figure):
    """To draw a run's losses takes matplotlib half a second, and most tests train a run."""

    def savefig(self, path: Path, **how: Any) -> None:
        if path.name.startswith("loss.png"):
            path.touch()
        else:
            super().savefig(path, **how)


plots.Figure = NotDrawn


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses are drawn, too."""
    monkeypatch.setattr(plots, "Figure", Figure)


def pytest_unconfigure() -> None:
    forked.stop_server()
    shutil.rmtree(_CACHE, ignore_errors=True)


# The files that take longest come first: a worker takes a whole file, and one that begins late
# would keep the others waiting at the end.
LONGEST = (
    *("test_processes.py", "test_layouts.py", "test_end_to_end.py", "test_quantize.py"),
    *("test_speech_commands.py", "test_notebook.py", "test_benchmarks.py"),
    *("test_gpu_benchmarks.py", "test_evaluate.py", "test_quant_array.py", "test_training.py"),
    *("test_ensemble.py", "test_drills.py", "test_page_encoders.py", "test_page.py"),
    *("test_wheel.py", "test_import_gpt2.py", "test_export.py", "test_importers.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


TINY = GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=16, dropout=0.0)
MODERN = GPTConfig(
    n_layer=2,
    n_head=2,
    n_embd=16,
    block_size=16,
    dropout=0.0,
    position="rotary",
    norm="rmsnorm",
    activation="relu2",
    qk_norm=True,
    short_conv=3,
    logit_softcap=15.0,
    bias=False,
)
VOCAB_SIZE = 20


@pytest.fixture(params=[TINY, MODERN], ids=["seed", "modern"])
def gpt_config(request: pytest.FixtureRequest) -> GPTConfig:
    """The seed's architecture and the modern one, both tiny."""
    return request.param


@pytest.fixture
def model(gpt_config: GPTConfig) -> models.GPT:
    return models.GPT(gpt_config, VOCAB_SIZE)


@pytest.fixture
def params(model: models.GPT) -> dict:
    """Initial parameters, scaled up so that greedy choices are far from ties, none at zero."""
    return jax.tree.map(lambda p: 2 * p if p.any() else p + 0.5, models.init(model, seed=3))


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model: models.Model, params: Any, tokens: Any) -> jax.Array:
    """(B, T, V). One program for each model and shape."""
    return model.apply({"params": params}, tokens)[0]


@pytest.fixture
def tokens() -> np.ndarray:
    """(3, 16), each row with distinct tokens."""
    rng = np.random.default_rng(0)
    return np.stack([rng.permutation(VOCAB_SIZE)[:16] for _ in range(3)]).astype(np.int32)


def check_rows(dataset: Any, config: Config) -> None:
    """That what a process makes of its rows alone is what they are of the whole batch."""
    batch_size = config.train.batch_size

    def batches(rows: slice) -> Iterator[dict[str, np.ndarray]]:
        for step in range(5):
            yield {name: leaf[None] for name, leaf in dataset.batch(config, step, rows).items()}
        yield from dataset.validation(config, batch_size, rows)
        if isinstance(dataset, TextData):
            yield from dataset.sampled_validation(config, batch_size, rows)

    for rows in (slice(0, 2), slice(2, batch_size)):
        for part, whole in zip(batches(rows), batches(slice(None)), strict=True):
            for name, leaf in whole.items():
                np.testing.assert_allclose(part[name], leaf[:, rows], 1e-5, 1e-5, err_msg=name)


@pytest.fixture(autouse=True)
def recordings_are_remembered_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in the user's cache folder."""

    def cache_file(folder: Path) -> Path:
        return _CACHE / "recordings" / f"{str(folder).replace('/', '-')[-200:]}.json"

    monkeypatch.setattr(recording_checks, "_cache_file", cache_file)


def edit_run(path: Path, section: str, /, **fields: Any) -> None:
    """Edits a JSON file of a run, and deletes its checksum, as its error message says."""
    content = json.loads(path.read_text())
    content[section].update(fields)
    content.pop("crc32", None)
    path.write_text(json.dumps(content))


# A run on text that trains in seconds. An RMSNorm compiles sooner than a LayerNorm.
MAX_STEPS = 4
TINY_RUN = (
    f"--config {Path(__file__).parents[1]}/configs/debug.py "
    "--model.n-layer 1 --model.n-head 2 --model.n-embd 16 --model.block-size 16 "
    "--model.norm rmsnorm --model.dropout 0.1 --train.batch-size 4 --train.eval-interval 2 "
    "--train.eval-batches 1 --train.log-interval 1 --train.sample-tokens 8 "
    f"--train.max-steps {MAX_STEPS} --optim.learning-rate 1e-3"
).split()


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 random characters, ten different ones."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    alphabet = "abcdefgh \n"
    path.write_text(alphabet + "".join(random.Random(0).choices(alphabet, k=1990)))
    return path


@pytest.fixture(scope="session")
def text_run(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A finished tiny run on text. Tests that may change it use a copy."""
    run = tmp_path_factory.mktemp("trained") / "run"
    train.main([*TINY_RUN, "--data.path", str(text_file), "--run-dir", str(run)])
    return run


# Calls `main` of a command, expects it to refuse, and returns what it said.
Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    def call(main: Callable[[list[str]], None], *argv: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in argv])
        printed = capsys.readouterr()
        assert stop.value.code == 2
        assert printed.out == ""
        if "Perhaps you meant" in printed.err:  # tyro's box of similar options
            return printed.err
        (line,) = printed.err.splitlines()
        assert line.startswith("error: ")
        assert printed.err == line + "\n"
        return line

    return call


# Calls `main` of a command, and returns what it printed on standard output.
Printed = Callable[..., str]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    def call(main: Callable[[list[str]], None], *argv: object) -> str:
        capsys.readouterr()
        main([str(argument) for argument in argv])
        return capsys.readouterr().out

    return call

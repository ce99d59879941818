"""gptjax quantize: what becomes of a run, what its card says, and what is refused."""

import functools
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import forked
import jax
import numpy as np
import pytest
from conftest import Refused, edit_run

from gptjax import evaluation, models, train
from gptjax.commands import evaluate, quantize, sample
from gptjax.config import Config, TrainConfig
from gptjax.config_encoders import (
    EncoderDecoderConfig,
    PairsDataConfig,
    SpeechConfig,
    SpeechDataConfig,
)
from gptjax.data import dataset as data
from gptjax.data.tokenizer import CharTokenizer
from gptjax.decoding import beam_search, sampling
from gptjax.errors import UserError
from gptjax.quantization import card as quantization_card
from gptjax.quantization import quant_array
from gptjax.quantization.fine_tuning import fine_tune
from gptjax.quantization.quant_array import FLOAT32, Format, quantize_params
from gptjax.runs import checkpoints, run_directory
from gptjax.runs.stored_arrays import shapes_of

pytestmark = pytest.mark.slow
RECORDINGS = Path(__file__).parents[2] / "shared/speech/fsdd/recordings"
INT8, INT4, BF16 = Format(8), Format(4, group=32), Format(16)
INT3, INT2, TERNARY = Format(3), Format(2), Format("ternary")
GREEDY = sampling.Sampler(temperature=0)
dequantize_params = jax.jit(quant_array.dequantize_params)


def n_bytes(params: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))


def random_params(model: models.Model, size: float) -> Any:
    """None at zero. To initialize them would compile each shape."""
    rng = np.random.default_rng(0)

    def made(path: tuple[Any, ...], p: Any) -> Any:
        normal = rng.standard_normal(p.shape)
        return np.float32((0.5 if path[-1].key == "table" else size) * normal + (p.ndim == 1))

    return jax.tree_util.tree_map_with_path(made, models.shapes(model))


STEPS = 60
CONFIG = """
from pathlib import Path
from gptjax.config import *

config = Config(
    model=GPTConfig(
        n_layer=1, n_head=2, n_embd=32, block_size=16, dropout=0.0, norm="rmsnorm", bias=False
    ),
    data=TextDataConfig(path=Path({path!r})),
    optim=OptimConfig(learning_rate=1e-2),
    train=TrainConfig(
        max_steps={steps}, batch_size=16, eval_interval={steps}, eval_batches=0, sample_tokens=0,
    ),
)
"""


SMALL: Any = {"n_layer": 1, "n_head": 2, "n_embd": 32, "dropout": 0.0, "bias": False}


def untrained(folder: Path, config: Config) -> Path:
    """A run of random parameters."""
    dataset = data.load(config)
    model = models.build(config.model, dataset.tokenizer)
    origin = {"source": dataset.source, "sha256": dataset.sha256, **dataset.sizes}
    params = random_params(model, 0.2)
    with run_directory.new_run(folder / "run") as part:
        checkpoints.save_finished(part, config, dataset.tokenizer, params, origin)
    return folder / "run"


@pytest.fixture(scope="module", autouse=True)
def losses_of_a_model_share_programs() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "make_sums", functools.cache(evaluation.make_sums))
        yield


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve words in any order: within a word, each letter tells the next."""
    folder = tmp_path_factory.mktemp("config")
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(3, 6))) for _ in range(12)]
    (folder / "text.txt").write_text(" ".join(rng.choices(words, k=600)))
    config = CONFIG.format(path=str(folder / "text.txt"), steps=STEPS)
    (folder / "tiny.py").write_text(config)
    return folder / "tiny.py"


@pytest.fixture(scope="module")
def run(config_file: Path) -> Path:
    """A finished run on text."""
    folder = config_file.parent / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "init", lambda model, seed: random_params(model, 0.1))
        train.main(["--config", str(config_file), "--run-dir", str(folder)])
    return folder


# Leaves out of cards all rows but those it is given and what is saved, and the speed of these.
MeasureOnly = Callable[..., None]


@pytest.fixture
def measure_only(monkeypatch: pytest.MonkeyPatch) -> MeasureOnly:
    """Each format and batch size would be compiled for a row."""

    def patch(*names: str) -> None:
        formats = {name: quantization_card.FORMATS[name] for name in names}
        monkeypatch.setattr(quantization_card, "FORMATS", formats)
        rates = lambda named, *_: dict.fromkeys(named, 1000.0)  # noqa: E731
        monkeypatch.setattr(quantization_card, "decoding_rates", rates)

    return patch


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but the lock, which names its last user; of folders the name."""
    paths = (path for path in folder.rglob("*") if path.name != "lock")
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in paths
    }


@pytest.fixture(scope="module")
def run8(run: Path) -> Iterator[Path]:
    """The same of int8, with the whole card: speed is measured too, but of a first token, and of
    two formats: each would be compiled for each batch size."""
    before = snapshot(run)
    measured = quantization_card.decoding_rates

    def rates(named: dict[str, Any]) -> dict[str, float]:
        timed = {name: named[name] for name in ("float32", "int8")}
        return dict.fromkeys(named, 1.0) | measured(timed)

    out = run.parent / "run8"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantization_card, "ROUNDS", 1)
        patch.setattr(quantization_card, "SECONDS_PER_ROUND", 0)
        patch.setattr(quantization_card, "DECODED_TOKENS", 1)
        patch.setattr(quantization_card, "decoding_rates", rates)
        quantize.main([str(run), "--bits", "8", "--out", str(out)])
    assert snapshot(run) == before
    made = snapshot(out)
    yield out
    assert snapshot(out) == made  # no test here changes it


def card(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of quantization.json by their names."""
    rows = json.loads((folder / "quantization.json").read_text())
    return {row["format"]: row for row in rows}


def model_of(folder: Path) -> Any:
    tok = run_directory.read_tokenizer(folder)
    return models.build(run_directory.read_config(folder).model, tok)


def params_of(folder: Path) -> Any:
    return checkpoints.load_params(folder, model_of(folder))[1]


def parts_of(folder: Path) -> tuple[Any, Any, Any, Config]:
    """(model, parameters, data set, configuration), as fine_tune takes them."""
    config = run_directory.read_config(folder)
    return model_of(folder), params_of(folder), data.load(config), config


def val_loss(folder: Path) -> float:
    return evaluate.evaluate(evaluate.Evaluate(folder))["val_loss"]


def test_a_quantized_run_is_a_run_of_parameters_alone(run: Path, run8: Path) -> None:
    files = {"config.json", "tokenizer.json", "environment.json", "format.json"}
    assert {p.name for p in run8.iterdir()} == {*files, "quantization.json", "checkpoints"}
    (checkpoint,) = (run8 / "checkpoints").iterdir()
    best = checkpoints.Checkpoints(run / "checkpoints").best()
    assert checkpoint.name == str(best)  # of the checkpoint that was quantized
    inside = {p.name for p in checkpoint.iterdir()}
    assert "params" in inside
    assert "opt_state" not in inside
    assert not list(run.parent.rglob("*.part"))
    assert run_directory.read_format(run8) == INT8
    assert (run8 / "tokenizer.json").read_bytes() == (run / "tokenizer.json").read_bytes()
    assert run_directory.read_config(run8) == run_directory.read_config(run)
    of_training, of_small = (run_directory.read_environment(r)["data"] for r in (run, run8))
    assert of_small == of_training
    expected = quantize_params(params_of(run), INT8)
    jax.tree.map(np.testing.assert_array_equal, params_of(run8), expected)


def test_a_card_has_a_row_for_each_format(run: Path, run8: Path) -> None:
    rows = card(run8)
    names = ["float32", "bf16", "int8", "int4", "int3", "int2", "ternary"]
    assert list(rows) == [*names, "W8A8"]
    sizes = {"disk_bytes", "memory_bytes"}
    rates = {"tokens_per_second_1", "tokens_per_second_32"}
    for row in rows.values():
        assert row.keys() == {"format", "step", "bits", "val_loss", "delta"} | sizes | rates
        assert row["delta"] == pytest.approx(row["val_loss"] - rows["float32"]["val_loss"])
        assert all(row[name] > 0 for name in rates)
        assert row["memory_bytes"] < row["disk_bytes"] < row["memory_bytes"] + 50_000
    params = params_of(run)
    count = models.count(params)
    assert rows["float32"]["memory_bytes"] == 4 * count
    assert rows["bf16"]["memory_bytes"] == 2 * count
    assert rows["int8"]["memory_bytes"] == rows["W8A8"]["memory_bytes"]
    forms = zip(names[2:], (INT8, INT4, INT3, INT2, TERNARY), strict=True)
    for name, form in forms:
        assert rows[name]["memory_bytes"] == n_bytes(shapes_of(model_of(run), form))
        assert rows[name]["bits"] == pytest.approx(8 * rows[name]["memory_bytes"] / count, 1e-2)
    found = [rows[name]["bits"] for name in names]
    assert found[:2] == [32, 16]
    assert 8 < found[2] < 10
    assert 4 < found[3] < 6
    assert found == sorted(found, reverse=True)
    deltas = {name: abs(row["delta"]) for name, row in rows.items()}
    assert deltas["float32"] == 0
    assert 0 < deltas["bf16"] < 0.01
    assert 0 < deltas["int8"] < 0.01
    assert 0 < deltas["W8A8"] < 0.01
    assert rows["W8A8"]["val_loss"] != rows["int8"]["val_loss"]
    assert deltas["int8"] < rows["int4"]["delta"] < 0.3


def test_a_card_says_what_is_slower_and_by_what_margin() -> None:
    rates = {"float32": (100, 1000), "bf16": (96, 951), "int8": (94, 2000), "int4": (200, 500)}
    rows = [
        {"format": name, "tokens_per_second_1": one, "tokens_per_second_32": many}
        for name, (one, many) in rates.items()
    ]
    says = "slower than float32 by more than 5%: int8 at batch 1 (0.94), int4 at batch 32 (0.50)"
    assert quantization_card.slower(rows) == says
    assert quantization_card.slower(rows[:2]) == "slower than float32 by more than 5%: none"


def test_a_card_tells_the_bytes_that_are_on_disk(run8: Path) -> None:
    files = (p for p in (run8 / "checkpoints").glob("*/params/**/*") if p.is_file())
    assert card(run8)["int8"]["disk_bytes"] == sum(p.stat().st_size for p in files)


def test_evaluate_finds_the_losses_of_the_card(run: Path, run8: Path) -> None:
    for folder, name in ((run, "float32"), (run8, "int8")):
        record = evaluate.evaluate(evaluate.Evaluate(folder))
        assert record["val_loss"] == pytest.approx(card(run8)[name]["val_loss"], abs=1e-6)
        assert record["parameters"] == models.count(params_of(run))


def test_a_quantized_run_writes_text(
    run: Path, run8: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    n_parameters = models.count(params_of(run))
    capsys.readouterr()
    sample.main([str(run8), "--prompt", "a", "--greedy", "--max-new-tokens", "12"])
    printed = capsys.readouterr()
    assert f"{run8} step {card(run8)['int8']['step']}, {n_parameters:,} param" in printed.err
    tok = run_directory.read_tokenizer(run8)
    assert isinstance(tok, CharTokenizer)
    prompt = np.asarray(tok.encode("a"))[None]
    ids = sampling.complete(model_of(run8), params_of(run8), prompt, 12, sampler=GREEDY)
    assert printed.out.rstrip("\n").endswith(tok.decode(ids[0]))


@pytest.mark.parametrize(
    ("flags", "name", "form"),
    [
        ("--bits 16", "bf16", BF16),
        ("--bits 4 --group 0", "int4 g0", Format(4)),
        ("--group 64", "int8 g64", Format(8, group=64)),
        ("--bits 4 --activations 8", "W4A8", Format(4, 32, 8)),
        ("--bits ternary", "ternary", TERNARY),
    ],
)
def test_each_format_is_saved_as_it_was_measured(
    run: Path,
    tmp_path: Path,
    measure_only: MeasureOnly,
    capsys: pytest.CaptureFixture[str],
    flags: str,
    name: str,
    form: Format,
) -> None:
    out = tmp_path / "out"
    measure_only("float32")
    quantize.main([str(run), *flags.split(), "--out", str(out)])
    printed = capsys.readouterr().out
    assert f"{name} in {out}\n" in printed
    assert "slower than float32 by more than 5%: none\n" in printed
    assert run_directory.read_format(out) == form
    rows = card(out)
    assert val_loss(out) == pytest.approx(rows[name]["val_loss"], abs=1e-6)
    assert n_bytes(params_of(out)) == rows[name]["memory_bytes"]


@pytest.fixture(scope="module")
def tuned(run: Path) -> Any:
    """The parameters of the run after 30 more steps that round nothing."""
    return fine_tune(*parts_of(run), FLOAT32, STEPS, 30)


def test_fine_tuning_with_rounded_weights_wins_back_what_rounding_cost(
    run: Path,
    run8: Path,
    tuned: Any,
    tmp_path: Path,
    measure_only: MeasureOnly,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls: list[Any] = []

    def known(*args: Any, **teacher: Any) -> Any:
        calls.append(args)
        return fine_tune(*args, **teacher) if teacher else tuned  # which are the same steps

    monkeypatch.setattr(quantize, "fine_tune", known)
    before, out = snapshot(run), tmp_path / "out"
    measure_only("float32", "int4")
    quantize.main([str(run), "--bits", "4", "--qat-steps", "30", "--out", str(out)])
    printed = capsys.readouterr().out
    assert snapshot(run) == before
    rows, of_8 = card(out), card(run8)
    for name in ("float32", "int4"):
        assert rows[name]["val_loss"] == of_8[name]["val_loss"]
    assert rows["int4+QAT"]["val_loss"] < rows["int4"]["val_loss"] - 0.01
    assert val_loss(out) == pytest.approx(rows["int4+QAT"]["val_loss"], abs=1e-6)
    model, params, dataset, config = parts_of(run)
    # The same bits again.
    again = fine_tune(model, params, dataset, config, INT4, STEPS, 30, tuned)
    jax.tree.map(np.testing.assert_array_equal, params_of(out), quantize_params(again, INT4))
    (*plain_parts, form, step, n_steps), rounded = calls
    assert (form, step, n_steps) == (FLOAT32, STEPS, 30)
    assert all(a is b for a, b in zip(plain_parts, rounded, strict=False))
    # It is not that the run had not learned enough: as many steps that round nothing do less.
    mean_loss = evaluation.make_evaluate(model)
    plain = mean_loss(quantize_params(tuned, INT4), dataset.validation(config, 16))
    assert rows["int4+QAT"]["val_loss"] < plain - 0.001
    # The card says what they reach, and what int4 loses to them.
    assert rows["float32+steps"].keys() == rows["float32"].keys()
    fair = rows["float32+steps"]["val_loss"]
    assert fair == pytest.approx(mean_loss(tuned, dataset.validation(config, 16)), abs=1e-6)
    assert fair < rows["float32"]["val_loss"]
    lost = rows["int4+QAT"]["val_loss"] - fair
    assert (
        f"int4+QAT compared with float32+steps, which trained for as many steps: {lost:+.5f}"
        in printed
    )


def test_a_teacher_and_rounded_weights_win_back_most_of_what_ternary_costs(
    run: Path, tuned: Any
) -> None:
    """The teacher is the run itself, after as many steps that round nothing."""
    model, params, dataset, config = parts_of(run)
    mean_loss = evaluation.make_evaluate(model)

    def loss(params: Any) -> float:
        return mean_loss(quantize_params(params, TERNARY), dataset.validation(config, 16))

    arguments = model, params, dataset, config
    alone, taught = (fine_tune(*arguments, TERNARY, STEPS, 30, t) for t in (None, tuned))
    assert loss(params) - loss(tuned) > -0.1  # further steps alone do not help
    assert loss(alone) < loss(params) - 0.1
    assert loss(taught) < loss(params) - 0.1
    assert loss(taught) != loss(alone)


def test_an_older_run_of_int4_is_what_it_was(run: Path, tmp_path: Path) -> None:
    """Its levels are -8 ... 7. Its format.json does not say so."""
    config, tok = run_directory.read_config(run), run_directory.read_tokenizer(run)
    older = quantize_params(params_of(run), Format(4, 32, odd=False))
    origin = run_directory.read_environment(run)["data"]
    files = {"format.json": {"bits": 4, "group": 32, "activation_bits": 0}}
    with run_directory.new_run(tmp_path / "out") as part:
        checkpoints.save_finished(part, config, tok, older, origin, files)
    loaded = params_of(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, loaded, older)
    jax.tree.map(np.testing.assert_array_equal, dequantize_params(loaded), dequantize_params(older))


def test_a_copy_has_no_heads_that_predict_ahead(
    run: Path, tmp_path: Path, measure_only: MeasureOnly
) -> None:
    """Only training uses them."""
    config = run_directory.read_config(run)
    config = replace(config, model=replace(config.model, predict_ahead=2))
    ahead = untrained(tmp_path, config)
    params = params_of(ahead)
    measure_only("float32")
    quantize.main([str(ahead), "--out", str(tmp_path / "out")])
    small = params_of(tmp_path / "out")
    assert {"ahead_0", "ahead_1"} == params.keys() - small.keys()
    kept = models.without_training_heads(params)
    assert card(tmp_path / "out")["float32"]["memory_bytes"] == n_bytes(kept)
    jax.tree.map(np.testing.assert_array_equal, small, quantize_params(kept, INT8))


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be measured or trained: what cannot be is refused before."""

    def fail(*_: object) -> None:
        raise AssertionError("computed something")

    monkeypatch.setattr(quantization_card, "measure", fail)
    monkeypatch.setattr(quantize, "fine_tune", fail)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--group 33", ["--group is 33", "a multiple of 32"]),
        ("--group -32", ["--group is -32", "a multiple of 32"]),
        ("--qat-steps -1", ["--qat-steps is -1", "0 or more"]),
        ("--bits 3 --group 32", ["--group is 32", "a multiple of 10"]),
        ("--bits ternary --group 32", ["--group is 32", "a multiple of 20"]),
        ("--bits 16 --qat-steps 5", ["--qat-steps 5", "--bits 8 or less"]),
        ("--bits 16 --group 32", ["--bits 16", "--group"]),
        ("--bits 16 --activations 8", ["--bits 16", "--activations"]),
        ("--bits 5", ["--bits", "5"]),
        ("--bits 1.58", ["--bits", "1.58", "ternary"]),
        ("--activations 4", ["--activations", "4"]),
        ("--step 7", ["--step 7 is not there"]),
        ("--bit 8", ["--bit"]),
    ],
)
def test_an_option_that_cannot_be_is_refused(
    run: Path, tmp_path: Path, idle: None, refused: Refused, flags: str, words: list[str]
) -> None:
    line = refused(quantize.main, run, "--out", tmp_path / "out", *flags.split())
    assert all(word in line for word in words), line
    assert not list(tmp_path.iterdir())


def test_a_run_that_cannot_be_is_refused(
    run: Path, run8: Path, tmp_path: Path, idle: None, refused: Refused
) -> None:
    out = tmp_path / "out"
    assert "is quantized already" in refused(quantize.main, run8, "--out", out)
    assert "is not a run directory" in refused(quantize.main, tmp_path, "--out", out)
    assert "does not exist" in refused(quantize.main, tmp_path / "none", "--out", out)
    assert "out" in refused(quantize.main, run)
    assert not list(tmp_path.iterdir())


def test_other_data_is_refused(run: Path, tmp_path: Path, idle: None, refused: Refused) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "copy"))
    path = tmp_path / "text.txt"
    path.write_text((run.parent / "text.txt").read_text() + " a")
    edit_run(copied / "config.json", "data", path=str(path))
    line = refused(quantize.main, copied, "--out", tmp_path / "out")
    assert "was trained on other data" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["out", "out.part"])
def test_what_is_in_the_way_is_refused_at_once(
    run: Path, tmp_path: Path, idle: None, refused: Refused, name: str
) -> None:
    """A folder of another, or what a save that was killed left of it."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine").write_text("precious")
    before = snapshot(tmp_path)
    assert f"{tmp_path / name} exists" in refused(quantize.main, run, "--out", tmp_path / "out")
    assert snapshot(tmp_path) == before


def test_a_folder_that_cannot_be_made_is_refused_at_once(
    run: Path, tmp_path: Path, idle: None, refused: Refused
) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for out in ("", "/", tmp_path / "file" / "out", tmp_path / "link", "/proc/out"):
        line = refused(quantize.main, run, "--out", out)
        assert "exists; remove it" in line or "cannot be made in" in line
    assert (tmp_path / "file").read_text() == "precious"


def test_an_imported_run_has_no_data_to_be_measured_on(
    run: Path, tmp_path: Path, idle: None, refused: Refused
) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "copy"))
    environment = run_directory.read_environment(run)
    environment["data"] = {"source": "no data: weights imported", "sha256": "0"}
    (copied / "environment.json").write_text(json.dumps(environment))
    assert "was imported" in refused(quantize.main, copied, "--out", tmp_path / "out")
    (copied / "environment.json").unlink()
    assert "environment.json cannot be read" in refused(
        quantize.main, copied, "--out", tmp_path / "out"
    )


def test_fine_tuning_that_diverges_saves_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "copy"))
    edit_run(copied / "config.json", "optim", learning_rate=1e30)
    edit_run(copied / "config.json", "model", dropout=0.1)
    flags = ["--bits", "4", "--qat-steps", "4", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        quantize.main([str(copied), *flags])
    assert stop.value.code == 1
    assert "nothing is saved" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_training_does_not_continue_a_quantized_run(
    config_file: Path, run8: Path, tmp_path: Path, refused: Refused
) -> None:
    copied = Path(shutil.copytree(run8, tmp_path / "copy"))
    before = snapshot(copied)
    line = refused(train.main, "--config", config_file, "--run-dir", copied)
    assert "imported or quantized" in line
    assert snapshot(copied) == before


@pytest.mark.parametrize(
    "content",
    [
        '{"bits": 8',
        "[]",
        "{}",
        "\xff",
        '{"bits": 8, "group": 0, "activation_bits": 0, "grup": 32}',
        '{"bits": 5, "group": 0, "activation_bits": 0}',
        '{"bits": "ternary", "group": 32, "activation_bits": 0}',
        '{"bits": 4, "group": 32, "activation_bits": 0, "odd": 5}',
    ],
)
def test_a_broken_format_is_one_clear_line(
    run8: Path, tmp_path: Path, refused: Refused, content: str
) -> None:
    copied = Path(shutil.copytree(run8, tmp_path / "copy"))
    (copied / "format.json").write_bytes(content.encode("latin-1"))
    out = tmp_path / "out"
    for main, flags in (
        (sample.main, ["--max-new-tokens", "4"]),
        (evaluate.main, []),
        (quantize.main, ["--out", out]),
    ):
        assert f"{copied}/format.json" in refused(main, copied, *flags)
    assert not out.exists()


def test_a_run_that_fails_midway_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise UserError("enough")

    monkeypatch.setattr(run_directory, "describe", fail)
    monkeypatch.setattr(quantization_card, "measure", lambda *_: [{"format": "int8"}])
    with pytest.raises(UserError, match="enough"):
        quantize.quantize(quantize.Quantize(run, tmp_path / "out"))
    assert not list(tmp_path.iterdir())


SECOND = """
import sys
from gptjax.commands import quantize

def fail(*_):
    raise AssertionError("computed something")

quantize.card.measure = quantize.fine_tune = fail
quantize.main(sys.argv[1:])
"""


def test_of_two_processes_with_one_name_the_second_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first still computes; which takes its name nevertheless."""
    out = tmp_path / "out"
    flags = [str(run), "--out", str(out)]
    found: list[subprocess.CompletedProcess[str]] = []

    def card(*_: object) -> list[dict[str, Any]]:
        found.append(forked.run("-c", SECOND, *flags))
        assert [path.name for path in tmp_path.iterdir()] == ["out.part"]
        return [{"format": "int8", "val_loss": 0.0}]

    monkeypatch.setattr(quantization_card, "measure", card)
    monkeypatch.setattr(quantization_card, "table", lambda *_, **__: "")
    quantize.main(flags)
    (second,) = found
    assert second.returncode == 2
    (line,) = second.stderr.splitlines()
    assert f"{out}.part exists: another process is making {out}" in line
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert run_directory.read_format(out) == INT8
    n_parameters = models.count(params_of(run))
    assert models.count(params_of(out)) == n_parameters


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: signal.Signals
) -> None:
    def card(*_: object) -> None:
        assert (tmp_path / "new/out.part").is_dir()
        os.kill(os.getpid(), signum)
        time.sleep(5)
        raise AssertionError("went on")

    # Who started the tests may have had SIGINT ignored, as nohup in the background does.
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(quantization_card, "measure", card)
    try:
        with pytest.raises(SystemExit) as stop:
            quantize.main([str(run), "--out", str(tmp_path / "new/out")])
    finally:
        signal.signal(signal.SIGINT, ours)
    assert stop.value.code == 128 + signum
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) == before


def test_text_is_decoded_as_much_as_is_counted(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization_card, "DECODED_TOKENS", 20)  # over the end of the context
    model, params, dataset, config = parts_of(run)
    assert quantization_card.decoder(model, dataset, config, 1)(params) == 20
    assert quantization_card.decoder(model, dataset, config, 3)(params) == 60


@pytest.fixture(scope="module")
def pairs_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on pairs: letters and their capitals, backwards."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = random.Random(0)
    sources = {"".join(rng.choices("abcd", k=4)): None for _ in range(600)}
    lines = [f"{source}\t{' '.join(source[::-1].upper())}\n" for source in sources]
    (folder / "pairs.tsv").write_text("".join(lines))
    config = Config(
        EncoderDecoderConfig(**SMALL, n_encoder_layer=1, block_size=8, source_block_size=8),
        PairsDataConfig(path=folder / "pairs.tsv", tokenizer="word", val_fraction=0.2),
        train=TrainConfig(batch_size=16),
    )
    return untrained(folder, config)


def test_a_run_on_pairs_is_quantized(
    pairs_run: Path, tmp_path: Path, measure_only: MeasureOnly, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    measure_only("float32")
    quantize.main([str(pairs_run), "--out", str(out)])
    assert abs(card(out)["int8"]["delta"]) < 0.01
    model, params, dataset, _ = parts_of(out)
    sources, tok = list(dataset.val)[:8], dataset.tokenizer
    found = beam_search.transduce(model, dequantize_params(params), tok, sources)
    (tmp_path / "sources.txt").write_text("\n".join(sources))
    capsys.readouterr()
    sample.main([str(out), "--source-file", str(tmp_path / "sources.txt")])
    lines = [f"{source}\t{best[0].text}" for source, best in zip(sources, found, strict=True)]
    assert capsys.readouterr().out.splitlines() == lines
    assert len({best[0].text for best in found}) > 1


def test_targets_are_decoded_as_much_as_is_counted(pairs_run: Path) -> None:
    model, params, dataset, config = parts_of(pairs_run)
    one, all_at_once = (
        quantization_card.decoder(model, dataset, config, n)(params) for n in (1, 16)
    )
    assert one == all_at_once
    assert 16 <= one <= 16 * 8


@pytest.fixture(scope="module")
def speech_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on spoken digits that has seen none of them."""
    pytest.importorskip("soundfile", reason="an extra: pip install -e '.[speech]'")
    if not RECORDINGS.is_dir():
        pytest.skip(f"no {RECORDINGS}")
    folder = tmp_path_factory.mktemp("speech")
    words = {"0": "zero", "3": "three", "7": "seven", "9": "nine"}
    rows = [
        {"audio": str(RECORDINGS / f"{digit}_george_{take}.wav"), "text": text, "split": split}
        for digit, text in words.items()
        for take, split in enumerate(("train", "val", "test"))
    ]
    (folder / "clips.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    config = Config(
        SpeechConfig(**SMALL, n_encoder_layer=1, block_size=16, n_mels=20, source_block_size=80),
        SpeechDataConfig(path=folder / "clips.jsonl", tokenizer="word"),
        train=TrainConfig(batch_size=4),
    )
    return untrained(folder, config)


def test_a_run_on_speech_is_quantized(
    speech_run: Path, tmp_path: Path, measure_only: MeasureOnly
) -> None:
    out = tmp_path / "out"
    measure_only("float32")
    quantize.main([str(speech_run), "--out", str(out)])
    assert abs(card(out)["int8"]["delta"]) < 0.01
    model, params, dataset, config = parts_of(out)
    decode = quantization_card.decoder(model, dataset, config, 16)
    assert 16 <= decode(params) <= 16 * 16

"""gptjax == PyTorch, with copied weights; and the machinery of the race."""

import argparse
import dataclasses
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import MODERN, TINY, VOCAB_SIZE

torch = pytest.importorskip("torch", reason="PyTorch is an extra: pip install -e '.[torch]'")

from benchmarks import ablate, compare, ladders, parity, race, rounds, torch_gpt  # noqa: E402
from gptjax import models  # noqa: E402
from gptjax.config import (  # noqa: E402
    BigramConfig,
    Config,
    GPTConfig,
    OptimConfig,
    TrainConfig,
)
from gptjax.config_files import load_file  # noqa: E402
from gptjax.data.texts import TextData  # noqa: E402
from gptjax.data.tokenizer import CharTokenizer  # noqa: E402
from gptjax.errors import UserError  # noqa: E402

GELU = dataclasses.replace(TINY, activation="gelu", bias=False)
GPT2 = dataclasses.replace(TINY, activation="gelu_tanh", attention_bias=True, tie_embeddings=True)
GATED = dataclasses.replace(MODERN, activation="swiglu", bias=True)
TIED = dataclasses.replace(TINY, tie_embeddings=True)
LONG = dataclasses.replace(MODERN, block_size=100)  # attention in chunks, on a CPU
CONFIGS = [BigramConfig(block_size=16), TINY, MODERN, GELU, GPT2, GATED, TIED, LONG]
ROOT = Path(__file__).parent.parent
IDS = ["bigram", "seed", "modern", "gelu", "gpt2", "gated", "tied", "long"]
TOKENS = np.random.default_rng(0).integers(0, VOCAB_SIZE, 2000).astype(np.int32)
DATA = TextData(TOKENS, TOKENS, CharTokenizer("abcdefghijklmnopqrst"), "random", "")


def config_of(model: BigramConfig | GPTConfig, **optim: float) -> Config:
    return Config(model, optim=OptimConfig(**optim), train=TrainConfig(batch_size=4))


@pytest.mark.slow
@pytest.mark.parametrize("model", CONFIGS, ids=IDS)
def test_logits_and_every_gradient_equal_pytorchs(model):
    config = config_of(model)
    batch, _ = parity.batch_off_the_kink(config, VOCAB_SIZE, TOKENS)
    rows = parity.logits_and_gradients(model, VOCAB_SIZE, batch, seed=1)
    assert {row["twin"] for row in rows} >= {"bigram" if model is CONFIGS[0] else "tuned"}
    assert len(rows) == (2 if model == TINY else 1)
    for row in rows:
        assert row["logits"] <= parity.LOGITS
        assert row["gradients"] <= parity.GRADIENTS


@pytest.mark.slow
@pytest.mark.parametrize("model", [CONFIGS[0], TINY, MODERN], ids=IDS[:3])
def test_thirty_steps_of_adamw_follow_pytorchs(model):
    config = config_of(model, learning_rate=3e-3, beta2=0.99, weight_decay=0.1, warmup_steps=5)
    curves = parity.loss_curves(config, DATA, n_steps=30)
    ours = curves.pop("gptjax")
    assert len(set(ours)) == 30
    for theirs in curves.values():
        assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= parity.LOSSES


@pytest.mark.slow
def test_parity_fails_when_a_weight_differs(monkeypatch):
    """The comparison can fail: one weight of the twin, off by a hundredth."""
    original = torch_gpt.tuned_weights

    def damaged(params):
        weights = original(params)
        weights["blocks.0.mlp_hidden.weight"][0, 0] += 0.01
        return weights

    monkeypatch.setattr(torch_gpt, "tuned_weights", damaged)
    batch, _ = parity.batch_off_the_kink(config_of(TINY), VOCAB_SIZE, TOKENS)
    rows = {r["twin"]: r for r in parity.logits_and_gradients(TINY, VOCAB_SIZE, batch, seed=1)}
    assert rows["tuned"]["logits"] > parity.LOGITS
    assert rows["original style"]["logits"] <= parity.LOGITS


def test_a_state_dict_of_the_original_writes_the_same_greedy_text():
    assert parity.same_greedy_text(TINY, VOCAB_SIZE, n_tokens=TINY.block_size - 1, seed=5)


def test_weights_survive_the_way_there_and_back():
    params = jax.device_get(models.init(models.GPT(TINY, VOCAB_SIZE), seed=1))
    config, back = torch_gpt.params_from_original(torch_gpt.original_weights(params, TINY))
    assert dataclasses.replace(config, dropout=TINY.dropout) == TINY
    jax.tree.map(np.testing.assert_array_equal, params, back)


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_a_foreign_state_dict_is_refused_by_name(change):
    weights = torch_gpt.OriginalGPT(TINY, VOCAB_SIZE).state_dict()
    if change == "missing":
        del weights["blocks.1.ln2.bias"]
        name = "blocks.1.ln2.bias"
    else:
        weights["blocks.0.rotary.weight"] = torch.zeros(3)
        name = "blocks.0.rotary.weight"
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        torch_gpt.params_from_original(weights)


def test_flops_per_token_of_the_original_gpt():
    assert race.flops_per_token(GPTConfig(), 65) == pytest.approx(70.9e6, rel=1e-3)


@pytest.mark.slow
def test_a_tiny_race_measures_every_competitor(tmp_path, monkeypatch):
    """That without dropout runs the same code, so it only gets its competitors."""
    path = tmp_path / "text.txt"
    path.write_text("To be, or not to be, that is the question.\n" * 20)
    fast = [c for c in race.COMPETITORS if c[3] is None and c[4] == "float32"]
    monkeypatch.setattr(race, "COMPETITORS", fast)
    monkeypatch.setattr(rounds, "SECONDS_PER_TURN", 0.05)
    started, real = [], rounds.race

    def race_with_dropout(module, competitors, n_rounds):
        started.append([row["name"] for row in competitors])
        return real(module, competitors, n_rounds) if len(started) == 2 else []

    monkeypatch.setattr(rounds, "race", race_with_dropout)
    config = Config(TINY, train=TrainConfig(batch_size=4))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=path))
    record = race.measure(config, argparse.Namespace(rounds=1))
    assert [r["dropout"] for r in record["races"]] == [0.0, 0.2]
    assert started == 2 * [[c[0] for c in fast]]
    rows = record["races"][1]["rows"]
    assert [row["name"] for row in rows] == [c[0] for c in fast]
    for row in rows:
        assert "error" not in row
        assert len(row["seconds_per_unit"]) == 1
        assert min(row["median"], row["peak_bytes"], row["matmul_rate"]) > 0
    assert "PyTorch, original style" in race.table(record)


DIES_LATER = """
import sys
print('{"first": 0.1, "second": 0.1, "warm_up": 1, "quantum": 1}', flush=True)
sys.stdin.readline()
sys.exit("out of memory")
"""


@pytest.mark.slow
def test_a_competitor_that_dies_in_a_round_keeps_its_row(tmp_path, monkeypatch):
    (tmp_path / "dies_later.py").write_text(DIES_LATER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (row,) = rounds.race("dies_later", [{"name": "PyTorch"}], rounds=2)
    assert row["error"] == "out of memory"
    assert "failed" in race.verdict({"rows": [row]})


@pytest.mark.slow
def test_a_failing_competitor_keeps_its_row():
    # json.tool takes the competitor for a file to read, and fails.
    (row,) = rounds.race("json.tool", [{"name": "none such"}], rounds=1)
    assert row["error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["race", "--config", "configs/gpt_cpu.py"], "--optim.name adamw"),
        (["race", "--config", "configs/bigram.py"], "bigram"),
        (["parity", "--config", "configs/gpt.py", "--rounds", "0"], "--rounds"),
        (["parity", "--config", "configs/none.py"], "does not exist"),
        (["train", "--config", "configs/gpt.py", "--recipe", "none.py"], "does not exist"),
        (
            ["race", "--config", "configs/gpt.py", "--json", "/proc/none/x.json"],
            "cannot be written",
        ),
        (["race", "--config", "configs/gpt.py", "--json", "x.png"], "must end in .json"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(refused, monkeypatch, arguments, message):
    monkeypatch.chdir(ROOT)
    assert message in refused(compare.main, *arguments)


@pytest.mark.slow
def test_the_command_writes_figures_and_a_plot(tmp_path, monkeypatch, printed):
    path = tmp_path / "text.txt"
    path.write_text("All the world's a stage, and all the men and women merely players.\n" * 200)
    out = tmp_path / "parity.json"
    monkeypatch.chdir(ROOT)
    options = ["--config", "configs/bigram.py", "--data.path", path, "--json", out]
    assert "passed" in printed(compare.main, "parity", *options)
    assert json.loads(out.read_text())["passed"] is True
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("which", "shipped"), [("cpu", "gpt_cpu"), ("gpu", "gpt_fast")])
def test_a_ladder_leads_from_the_original_to_the_shipped_configuration(which, shipped):
    ladder = ladders.LADDERS[which]
    bottom, top = (ablate.config_of(ladder, ladder.rungs[i].name, steps=100) for i in (0, -1))
    assert torch_gpt.is_original_style(bottom.model)
    target = load_file(ROOT / "configs" / f"{shipped}.py")
    if which == "cpu":  # the ladder was measured before these changes
        model = dataclasses.replace(target.model, training_temperature=1.0)
        optim = dataclasses.replace(target.optim, learning_rate=6e-3)
        target = dataclasses.replace(target, model=model, optim=optim)
    assert (top.model, top.data, top.optim) == (target.model, target.data, target.optim)
    assert top.train.batch_size == target.train.batch_size


@pytest.mark.slow
def test_a_tiny_ladder_is_measured_and_goes_on_where_it_was_cut(tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be, that is the question.\n" * 40)
    base = f"--config configs/bigram.py --data.path {text}"
    rungs = (ladders.Rung("bottom", "", ""), ladders.Rung("fast", "--optim.learning-rate 0.1", ""))
    tiny = ladders.Ladder(note="", base=base, steps=4, rungs=rungs, text_share=0.5)
    monkeypatch.setattr(ablate, "LADDERS", {"tiny": tiny})
    monkeypatch.setattr(ablate, "ROUNDS", 1)
    monkeypatch.setattr(ablate, "STEPS_PER_ROUND", 2)
    core = min(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {core})  # one worker process
    monkeypatch.setattr(ablate, "SEEDS", (1, 2))
    path = tmp_path / "ladder.json"
    record = ablate.measure("tiny", path, steps=None)
    assert not ablate.missing(record)
    assert json.loads(path.read_text()) == record
    assert len({run["val_loss"] for run in record["runs"]}) == len(record["runs"]) >= 4
    cut = {**record, "runs": record["runs"][1:]}
    path.write_text(json.dumps(cut))

    def train_here(ladder, wanted):
        return [result | ablate.final_losses(ladder, config) for result, config in wanted]

    monkeypatch.setattr(ablate, "train_all", train_here)
    again = ablate.measure("tiny", path, steps=None)
    assert again["runs"][:-1] == cut["runs"]
    repeated, first = again["runs"][-1], record["runs"][0]
    assert repeated["val_loss"] == pytest.approx(first["val_loss"], abs=1e-4)
    table = ablate.table(again)
    assert "| + fast |" in table
    ablate.plot(again, tmp_path / "ladder.png")
    assert (tmp_path / "ladder.png").stat().st_size > 1000


def test_a_ladder_is_not_mixed_with_another(tmp_path):
    path = tmp_path / "ladder.json"
    ladder = ladders.LADDERS["short"]
    record = {
        "options": ablate.options(ladder),
        "steps": 1,
        "milliseconds": {rung.name: [1.0] for rung in ladder.rungs},
        "runs": [],
    }
    path.write_text(json.dumps(record))
    assert len(ablate.missing(ablate.read(path))) == 3 * len(ladder.rungs)
    for which, steps in (("cpu", None), ("short", 2)):
        with pytest.raises(UserError, match="holds another ladder or length"):
            ablate.measure(which, path, steps)
    for text in ("{}", path.read_text()[:50]):
        path.write_text(text)
        with pytest.raises(UserError, match="holds no ladder"):
            ablate.measure("short", path, steps=None)

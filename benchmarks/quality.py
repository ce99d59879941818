"""Validation loss against steps and against seconds: gptjax and PyTorch, from one initialisation.

Both train the same configuration on the same batches, from the same weights; PyTorch's twin is the
tuned one, compiled on a GPU. Seconds are those of training, compiling included, evaluation not.
Further configurations (--recipe) join as curves of gptjax alone.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

from benchmarks import environment, torch_gpt
from gptjax import config as config_module
from gptjax import data, devices, models, optim, training
from gptjax.config import BigramConfig, Config, load_file
from gptjax.errors import UserError

Curve = dict[str, Any]


def follow(
    name: str,
    config: Config,
    text: data.TextData,
    run: Callable[[data.Batch, range], None],
    val_loss: Callable[[], float],
) -> Curve:
    """Steps, seconds and val_loss at every evaluation of a training.

    run(batches, steps) trains on the first len(steps) of batches, leaves (K, B, T), and waits.
    """
    c = config.train
    curve: Curve = {"step": [], "seconds": [], "val_loss": []}
    seconds, step = 0.0, 0
    while True:
        if step % c.eval_interval == 0 or step == c.max_steps:
            loss = val_loss()
            curve["step"].append(step)
            curve["seconds"].append(round(seconds, 2))
            curve["val_loss"].append(loss)
            print(f"{name} step {step}  {seconds:.0f} s  val_loss {loss:.4f}", file=sys.stderr)
        if step == c.max_steps:
            return curve
        next_evaluation = (step // c.eval_interval + 1) * c.eval_interval
        steps = range(step, min(step + c.steps_per_dispatch, next_evaluation, c.max_steps))
        start = time.perf_counter()
        batches = data.training_batches(
            text.train,
            config.model.block_size,
            c.batch_size,
            config.seed,
            steps,
            c.steps_per_dispatch,
        )
        run(batches, steps)
        seconds += time.perf_counter() - start
        step = steps.stop


def train_gptjax(config: Config, text: data.TextData) -> Curve:
    """The curve of gptjax."""
    c = config.train
    model = models.build(config.model, text.tokenizer.vocab_size, devices.compute_dtype(c))
    optimizer = optim.build(config.optim, c.max_steps)
    micro_batch_size = devices.micro_batch_size(c, config.model)
    state = training.init_state(models.init(model, config.seed), optimizer)
    train_steps = training.make_train_steps(model, optimizer, micro_batch_size, config.seed)
    mean_loss = training.make_evaluate(model)

    def run(batches: data.Batch, steps: range) -> None:
        nonlocal state
        state, metrics = train_steps(state, batches, len(steps))
        jax.block_until_ready(metrics)

    def val_loss() -> float:
        split = data.whole_split(text.val, config.model.block_size, micro_batch_size)
        return mean_loss(state.params, split)

    return follow("gptjax", config, text, run, val_loss)


def train_torch(config: Config, text: data.TextData) -> Curve:
    """The curve of the tuned twin, from gptjax's initial weights."""
    assert not isinstance(config.model, BigramConfig)
    c = config.train
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(config.seed)
    torch.set_float32_matmul_precision("high")
    vocab_size = text.tokenizer.vocab_size
    params = models.init(models.build(config.model, vocab_size), config.seed)
    twin = torch_gpt.TunedGPT(config.model, vocab_size)
    twin.load_state_dict(torch_gpt.tuned_weights(params))
    twin = twin.to(device)
    mode = "default" if device == "cuda" else None
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    trainer = torch_gpt.Trainer(twin, config.optim, compile_mode=mode, dtype=dtype)
    rate = optim.schedule(config.optim, c.max_steps, config.optim.learning_rate)
    rates = np.asarray(jax.vmap(rate)(np.arange(c.max_steps)))

    def run(batches: data.Batch, steps: range) -> None:
        tokens, targets = (
            torch.from_numpy(batches[k][: len(steps)]).to(device).long()
            for k in ("tokens", "targets")
        )
        losses = [
            trainer.step(tokens[i], targets[i], float(rates[step])) for i, step in enumerate(steps)
        ]
        losses[-1].item()  # waits

    def val_loss() -> float:
        return evaluate_torch(twin, text.val, config.model.block_size)

    return follow("PyTorch", config, text, run, val_loss)


@torch.no_grad()
def evaluate_torch(model: torch.nn.Module, tokens: np.ndarray, block_size: int) -> float:
    """Mean loss over the whole split, as gptjax's."""
    device = next(model.parameters()).device
    model.eval()
    loss = weight = 0.0
    for group in data.whole_split(tokens, block_size, 16):
        for i in range(len(group["weights"])):
            inputs, targets = (
                torch.from_numpy(group[k][i]).to(device).long() for k in ("tokens", "targets")
            )
            weights = torch.from_numpy(group["weights"][i]).to(device)
            losses = torch.nn.functional.cross_entropy(
                model(inputs).flatten(0, 1), targets.flatten(), reduction="none"
            )
            loss += float((losses * weights.flatten()).sum())
            weight += float(weights.sum())
    model.train()
    return loss / weight


def measure(config: Config, arguments: argparse.Namespace) -> dict[str, Any]:
    """The curves, by name."""
    if isinstance(config.model, BigramConfig):
        raise UserError("time to quality is of GPTs; name another --config")
    text = data.load(config.data, config.model.block_size)
    record = {
        "config": json.loads(config_module.to_json(config)),
        "environment": environment.describe(),
        "curves": {
            "PyTorch, tuned": train_torch(config, text),
            "gptjax": train_gptjax(config, text),
        },
    }
    if arguments.recipe:
        recipe = load_file(arguments.recipe)
        recipe_text = dataclasses.replace(recipe.data, path=config.data.path)
        curve = train_gptjax(recipe, data.load(recipe_text, recipe.model.block_size))
        record["curves"][f"gptjax, {arguments.recipe}"] = curve
    return record


def table(record: dict[str, Any]) -> str:
    lines = ["| | steps | seconds of training | best val_loss |", "|---|---|---|---|"]
    for name, curve in record["curves"].items():
        lines.append(
            f"| {name} | {curve['step'][-1]:,} | {curve['seconds'][-1]:.0f} | "
            f"{min(curve['val_loss']):.4f} |"
        )
    return "\n".join(lines)


def plot(record: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True)
    for name, curve in record["curves"].items():
        left.plot(curve["step"][1:], curve["val_loss"][1:], marker="o", markersize=3, label=name)
        right.plot(curve["seconds"][1:], curve["val_loss"][1:], marker="o", markersize=3)
    left.set_xlabel("step")
    right.set_xlabel("seconds of training")
    left.set_ylabel("val_loss (nats per token)")
    left.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)

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


def train_gptjax(config: Config, text: data.TextData) -> Curve:
    """Steps, seconds and val_loss at every evaluation."""
    c, block_size = config.train, config.model.block_size
    model = models.build(config.model, text.tokenizer.vocab_size, devices.compute_dtype(c))
    optimizer = optim.build(config.optim, c.max_steps)
    micro_batch_size = devices.micro_batch_size(c, config.model)
    state = training.init_state(models.init(model, config.seed), optimizer)
    train_steps = training.make_train_steps(model, optimizer, micro_batch_size, config.seed)
    mean_loss = training.make_evaluate(model)
    curve = new_curve()
    seconds, step = 0.0, 0
    while True:
        if step % c.eval_interval == 0 or step == c.max_steps:
            split = data.whole_split(text.val, block_size, micro_batch_size)
            add(curve, "gptjax", step, seconds, mean_loss(state.params, split))
        if step == c.max_steps:
            return curve
        next_evaluation = (step // c.eval_interval + 1) * c.eval_interval
        end = min(step + c.steps_per_dispatch, next_evaluation, c.max_steps)
        start = time.perf_counter()
        batches = data.training_batches(
            text.train,
            block_size,
            c.batch_size,
            config.seed,
            range(step, end),
            c.steps_per_dispatch,
        )
        state, metrics = train_steps(state, batches, end - step)
        jax.block_until_ready(metrics)
        seconds += time.perf_counter() - start
        step = end


def train_torch(config: Config, text: data.TextData) -> Curve:
    """The same, by the tuned twin, with gptjax's initial weights."""
    assert not isinstance(config.model, BigramConfig)
    c, block_size = config.train, config.model.block_size
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
    curve = new_curve()
    seconds = 0.0
    step = 0
    while True:
        if step % c.eval_interval == 0 or step == c.max_steps:
            add(curve, "PyTorch", step, seconds, evaluate_torch(twin, text.val, block_size))
        if step == c.max_steps:
            return curve
        next_evaluation = (step // c.eval_interval + 1) * c.eval_interval
        end = min(step + c.steps_per_dispatch, next_evaluation, c.max_steps)
        start = time.perf_counter()
        batches = data.training_batches(
            text.train, block_size, c.batch_size, config.seed, range(step, end), end - step
        )
        tokens, targets = (
            torch.from_numpy(batches[k]).to(device).long() for k in ("tokens", "targets")
        )
        for i in range(end - step):
            loss = trainer.step(tokens[i], targets[i], float(rates[step + i]))
        loss.item()  # waits
        seconds += time.perf_counter() - start
        step = end


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


def new_curve() -> Curve:
    return {"step": [], "seconds": [], "val_loss": []}


def add(curve: Curve, name: str, step: int, seconds: float, val_loss: float) -> None:
    for key, value in (("step", step), ("seconds", round(seconds, 2)), ("val_loss", val_loss)):
        curve[key].append(value)
    print(f"{name} step {step}  {seconds:.0f} s  val_loss {val_loss:.4f}", file=sys.stderr)


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

"""Validation loss by steps and by seconds: gptjax and PyTorch from the same initial weights.

Both train the same configuration on the same batches. PyTorch runs the tuned GPT, compiled on a
GPU. Seconds include compiling and exclude evaluation. Every --recipe adds a curve of gptjax. Run
it by `python -m benchmarks.compare train`.
"""

import argparse
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from benchmarks import environment
from gptjax import config_json, evaluation, models, optim, training
from gptjax.config import BigramConfig, Config
from gptjax.config_files import load_file
from gptjax.data import dataset as data
from gptjax.data import texts
from gptjax.data.batches import Batch
from gptjax.drawing import COLORS, MARKERS, label_ends, save
from gptjax.errors import UserError
from gptjax.scale import devices

Curve = dict[str, Any]
Run = Callable[[Batch, range], None]
"""run(batches, steps) trains on the first len(steps) batches, leaves (K, B, T), and waits."""
MeanLoss = Callable[[np.ndarray], float]
"""The exact mean loss over these tokens, in adjacent windows."""


def losses(text: texts.TextData, mean_loss: MeanLoss) -> dict[str, float]:
    """On the whole validation split and on its halves; recipes are chosen by the first half."""
    middle = len(text.val) // 2
    return {
        "val_loss": mean_loss(text.val),
        "first_half": mean_loss(text.val[:middle]),
        "second_half": mean_loss(text.val[middle:]),
    }


def train(config: Config, text: texts.TextData, run: Run, last: int, first: int = 0) -> float:
    """Trains from step `first` to `last`; returns the seconds that took."""
    start = time.perf_counter()
    capacity = devices.STEPS_PER_DISPATCH
    for step in range(first, last, capacity):
        steps = range(step, min(step + capacity, last))
        run(data.training_batches(text, config, steps, capacity), steps)
    return time.perf_counter() - start


def follow(
    name: str,
    config: Config,
    text: texts.TextData,
    trainer: Callable[[], tuple[Run, MeanLoss]],
) -> Curve:
    """Steps, seconds and losses at every evaluation of a training.

    `seconds` include set-up and compiling and exclude evaluation; `wall_seconds` include all.
    """
    c = config.train
    curve: Curve = {"step": []}
    start = time.perf_counter()
    run, mean_loss = trainer()
    seconds, step = time.perf_counter() - start, 0
    while True:
        row = {"step": step, "seconds": round(seconds, 2), **losses(text, mean_loss)}
        row["wall_seconds"] = round(time.perf_counter() - start, 2)
        for key, value in row.items():
            curve.setdefault(key, []).append(value)
        print(f"{name} step {step}  {seconds:.0f} s  {row['val_loss']:.4f}", file=sys.stderr)
        if step == c.max_steps:
            return curve
        last = min(step + c.eval_interval, c.max_steps)
        seconds += train(config, text, run, last, step)
        step = last


def gptjax_trainer(config: Config, text: texts.TextData) -> tuple[Run, MeanLoss]:
    """Trains and evaluates with gptjax."""
    c = config.train
    model = models.build(config.model, text.tokenizer.vocab_size, devices.compute_dtype(c))
    optimizer = optim.build(config.optim, c.max_steps)
    micro_batch_size = devices.micro_batch_size(c, config.model, config.model.block_size)
    state = training.init_state(models.init(model, config.seed), optimizer)
    train_steps = training.make_train_steps(model, optimizer, micro_batch_size, config.seed)
    evaluate = evaluation.make_evaluate(model)

    def run(batches: Batch, steps: range) -> None:
        nonlocal state
        state, metrics = train_steps(state, batches, len(steps))
        jax.block_until_ready(metrics)

    def mean_loss(tokens: np.ndarray) -> float:
        split = texts.whole_split(tokens, config.model.block_size, micro_batch_size)
        return evaluate(state.params, split)

    return run, mean_loss


def torch_trainer(config: Config, weights: dict[str, Any]) -> tuple[Run, MeanLoss]:
    """Trains and evaluates the tuned PyTorch GPT, from these weights."""
    import torch

    from benchmarks import torch_gpt

    assert not isinstance(config.model, BigramConfig)
    c, block_size = config.train, config.model.block_size
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(config.seed)
    torch.set_float32_matmul_precision("high")
    twin = torch_gpt.TunedGPT(config.model, vocab_size=len(weights["token_embedding.weight"]))
    twin.load_state_dict(weights)
    twin = twin.to(device)
    mode = "default" if device == "cuda" else None
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    trainer = torch_gpt.Trainer(twin, config.optim, compile_mode=mode, dtype=dtype)
    rate = optim.schedule(config.optim, c.max_steps, config.optim.learning_rate)
    rates = np.asarray(jax.vmap(rate)(np.arange(c.max_steps)))

    def run(batches: Batch, steps: range) -> None:
        tokens, targets = (
            torch.from_numpy(batches[k][: len(steps)]).to(device).long()
            for k in ("tokens", "targets")
        )
        losses = [
            trainer.step(tokens[i], targets[i], float(rates[step])) for i, step in enumerate(steps)
        ]
        losses[-1].item()  # waits

    return run, lambda tokens: evaluate_torch(twin, tokens, block_size)


def evaluate_torch(model: Any, tokens: np.ndarray, block_size: int) -> float:
    """Mean loss of a PyTorch model over the whole split, computed as gptjax does."""
    import torch

    device = next(model.parameters()).device
    model.eval()
    loss = weight = 0.0
    for group in texts.whole_split(tokens, block_size, 16):
        for i in range(len(group["loss_weights"])):
            inputs, targets = (
                torch.from_numpy(group[k][i]).to(device).long() for k in ("tokens", "targets")
            )
            weights = torch.from_numpy(group["loss_weights"][i]).to(device)
            with torch.no_grad():
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
        raise UserError("time to quality is measured of GPTs; name the --config of one")
    from benchmarks import torch_gpt

    text = data.load(config)
    model = models.build(config.model, text.tokenizer.vocab_size)
    weights = torch_gpt.tuned_weights(models.init(model, config.seed))
    curves = {
        "PyTorch, tuned": follow("PyTorch", config, text, lambda: torch_trainer(config, weights)),
        "gptjax": follow("gptjax", config, text, lambda: gptjax_trainer(config, text)),
    }
    for path in arguments.recipe:
        recipe = load_file(path)
        recipe = dataclasses.replace(
            recipe, data=dataclasses.replace(recipe.data, path=config.data.path)
        )
        text = data.load(recipe)
        trainer = functools.partial(gptjax_trainer, recipe, text)
        curves[f"gptjax, {path}"] = follow(str(path), recipe, text, trainer)
    return {
        "config": json.loads(config_json.to_json(config)),
        "environment": environment.describe(),
        "curves": curves,
    }


def table(record: dict[str, Any]) -> str:
    lines = [
        "| | steps | seconds of training | with evaluations | val_loss at the end | its second "
        "half | best val_loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, curve in record["curves"].items():
        lines.append(
            f"| {name} | {curve['step'][-1]:,} | {curve['seconds'][-1]:.0f} | "
            f"{curve['wall_seconds'][-1]:.0f} | {curve['val_loss'][-1]:.4f} | "
            f"{curve['second_half'][-1]:.4f} | {min(curve['val_loss']):.4f} |"
        )
    return "\n".join(lines)


def plot(record: dict[str, Any], path: Path) -> None:
    """Validation loss by steps and by seconds, without the losses before training.

    By steps, PyTorch and gptjax are one curve, so PyTorch's is dashed and drawn a little higher.
    """
    figure = Figure(figsize=(11.5, 5), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    raised = ScaledTranslation(0, 4 / 72, figure.dpi_scale_trans)
    ends, labels = [], []
    for i, (name, curve) in enumerate(record["curves"].items()):
        torch = name.startswith("PyTorch")
        look: dict[str, Any] = {"color": COLORS[i], "marker": MARKERS[i], "markersize": 5}
        look |= {"linestyle": "--" if torch else "-", "linewidth": 1.8, "zorder": 3 if torch else 2}
        losses = curve["val_loss"][1:]
        shift = {"transform": left.transData + raised} if torch else {}
        left.plot(curve["step"][1:], losses, **look, **shift)
        right.plot(curve["seconds"][1:], losses, **look)
        ends.append((curve["seconds"][-1], losses[-1]))
        short = name.replace("configs/", "").removesuffix(".py")
        labels.append(f"{short}  {losses[-1]:.4f}")
    left.set(xlabel="step", ylabel="val_loss (nats per token)")
    right.set(xlabel="seconds of training")
    note = "by step, PyTorch (dashed) and gptjax are equal:\nPyTorch is drawn 4 points higher"
    left.text(0.98, 0.98, note, ha="right", va="top", transform=left.transAxes)
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    label_ends(right, ends, labels, COLORS[: len(ends)])
    save(figure, path)

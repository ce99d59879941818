"""Do gptjax and PyTorch compute the same, from the same weights on the same batches?

In float32 without dropout. Differences are relative: the largest difference of two arrays, divided
by the largest absolute value. gptjax is compared with the tuned PyTorch GPT and, where the
configuration allows, with the original. Run it by `python -m benchmarks.compare parity`.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks import environment, torch_gpt
from gptjax import models, optim, training
from gptjax.config import BigramConfig, Config, GPTConfig
from gptjax.data import dataset as data
from gptjax.data import texts
from gptjax.data.batches import TRAINING, Batch
from gptjax.decoding import sampling
from gptjax.decoding.sampling import Sampler
from gptjax.drawing import COLORS, DASHES, save
from gptjax.errors import UserError

LOGITS, GRADIENTS, LOSSES = 1e-5, 1e-4, 1e-3
N_STEPS = 100
# The derivative of ReLU jumps at 0. Rounding differs by this much between two orders of summation,
# so an input this close to 0 may get either derivative, and both gradients are right.
KINK = 4e-7
# A high learning rate makes any rounding grow from step to step. So gptjax also trains with initial
# parameters moved by their last bit, and PyTorch's losses may be this many times as far away.
DRIFT_FACTOR, MOVED = 10, "gptjax, last bits moved"


def twins(config: BigramConfig | GPTConfig, params: Any, vocab_size: int) -> dict[str, Any]:
    """The PyTorch models of a configuration, by name, with these weights."""
    if isinstance(config, BigramConfig):
        made = {"bigram": torch_gpt.TorchBigram(config, vocab_size)}
        weights = {"bigram": torch_gpt.bigram_weights(params)}
    else:
        made = {"tuned": torch_gpt.TunedGPT(config, vocab_size)}
        weights = {"tuned": torch_gpt.tuned_weights(params)}
        if torch_gpt.is_original_style(config):
            made["original style"] = torch_gpt.OriginalGPT(config, vocab_size)
            weights["original style"] = torch_gpt.original_weights(params, config)
    for name, twin in made.items():
        twin.load_state_dict(weights[name])
    return made


def weights_of(name: str, config: BigramConfig | GPTConfig, tree: Any) -> dict[str, torch.Tensor]:
    """A gptjax pytree of parameters or gradients as a state_dict of the twin of this name."""
    if name == "bigram":
        return torch_gpt.bigram_weights(tree)
    assert isinstance(config, GPTConfig)
    if name == "tuned":
        return torch_gpt.tuned_weights(tree)
    return torch_gpt.original_weights(tree, config)


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference over the largest absolute value."""
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30))


def initial(model: models.Model, seed: int) -> Any:
    """Initial parameters; those that start at zero are random, because zeros stop gradients."""
    rng = np.random.default_rng(seed)

    def nonzero(p: jax.Array) -> jax.Array:
        return p if p.any() else jnp.asarray(rng.normal(0, 0.05, p.shape), p.dtype)

    return jax.tree.map(nonzero, models.init(model, seed))


def logits_and_gradients(
    config: BigramConfig | GPTConfig, vocab_size: int, batch: Batch, seed: int
) -> list[dict[str, Any]]:
    """One row per twin: relative differences of the logits and of the worst gradient leaf."""
    model = models.build(config, vocab_size)
    params = initial(model, seed)
    logits, _ = jax.jit(model.apply)({"params": params}, batch["tokens"])
    loss_and_weight = jax.value_and_grad(training.cross_entropy, argnums=1, has_aux=True)
    (_, weight), grads = jax.jit(loss_and_weight, static_argnums=0)(model, params, batch)
    grads = jax.tree.map(lambda g: np.asarray(g / weight), grads)
    tokens, targets = (torch.from_numpy(batch[k]).long() for k in ("tokens", "targets"))
    rows = []
    for name, twin in twins(config, params, vocab_size).items():
        twin.eval()
        theirs = twin(tokens)
        torch_gpt.loss_of(twin, tokens, targets).backward()
        ours = weights_of(name, config, grads)
        leaves = {
            leaf: difference(ours[leaf].numpy(), p.grad.numpy())
            for leaf, p in twin.named_parameters()
        }
        worst = max(leaves, key=lambda leaf: leaves[leaf])
        rows.append(
            {
                "twin": name,
                "logits": difference(np.asarray(logits), theirs.detach().numpy()),
                "gradients": leaves[worst],
                "worst_leaf": worst,
                "n_leaves": len(leaves),
            }
        )
    return rows


def batch_off_the_kink(config: Config, vocab_size: int, tokens: np.ndarray) -> tuple[Batch, int]:
    """(batch, number): the first batch, of one sequence, without a ReLU input at its kink."""
    has_kink = isinstance(config.model, GPTConfig) and config.model.activation == "relu"
    nearest: list[float] = []
    twin = None
    if has_kink:
        params = initial(models.build(config.model, vocab_size), config.seed)
        twin = twins(config.model, params, vocab_size)["tuned"]
        for block in twin.blocks:
            block.mlp_hidden.register_forward_hook(
                lambda module, inputs, h: nearest.append(h.abs().min().item())
            )
    for step in range(1000):
        batch = texts.random_batch(tokens, config.model.block_size, 1, config.seed, TRAINING, step)
        if twin is None:
            return batch, step
        nearest.clear()
        with torch.no_grad():
            twin(torch.from_numpy(batch["tokens"]).long())
        if min(nearest) > KINK:
            return batch, step
    raise UserError("every batch has a ReLU input at its kink; try another --seed")


def loss_curves(
    config: Config, text: texts.TextData, n_steps: int = N_STEPS
) -> dict[str, list[float]]:
    """Train losses of gptjax and of each twin, of the same steps on the same batches."""
    vocab_size = text.tokenizer.vocab_size
    model = models.build(config.model, vocab_size)
    params = jax.device_get(models.init(model, config.seed))
    optimizer = optim.build(config.optim, n_steps)
    batches = data.training_batches(text, config, range(n_steps), n_steps)
    batch_size = config.train.batch_size
    train_steps = training.make_train_steps(model, optimizer, batch_size, config.seed)
    rng = np.random.default_rng(config.seed)
    moved = jax.tree.map(
        lambda p: np.nextafter(p, rng.choice(np.float32([-9, 9]), p.shape)), params
    )
    curves = {}
    for name, initial_params in (("gptjax", params), (MOVED, moved)):
        # train_steps donates the state, so it gets a copy; the twins need the parameters as well.
        initial_params = jax.tree.map(lambda p: jnp.array(p, jnp.float32), initial_params)
        state = training.init_state(initial_params, optimizer)
        _, metrics = train_steps(state, batches, n_steps)
        curves[name] = np.asarray(metrics.loss).tolist()
    rate = optim.schedule(config.optim, n_steps, config.optim.learning_rate)
    for name, twin in twins(config.model, params, vocab_size).items():
        trainer = torch_gpt.Trainer(twin.train(), config.optim, fused=name == "tuned")
        curves[name] = [
            trainer.step(
                torch.from_numpy(batches["tokens"][i]).long(),
                torch.from_numpy(batches["targets"][i]).long(),
                float(rate(i)),
            ).item()
            for i in range(n_steps)
        ]
    return curves


def same_greedy_text(config: GPTConfig, vocab_size: int, n_tokens: int, seed: int) -> bool:
    """Whether gptjax continues a prompt as the original does whose state_dict it loaded."""
    torch.manual_seed(seed)
    twin = torch_gpt.OriginalGPT(config, vocab_size).eval()
    loaded, params = torch_gpt.params_from_original(twin.state_dict())
    prompt = np.zeros((1, 1), np.int32)
    ours = sampling.complete(
        models.GPT(loaded, vocab_size), params, prompt, n_tokens, sampler=Sampler(temperature=0)
    )
    start = torch.from_numpy(prompt).long()
    theirs = torch_gpt.generate(twin, start, n_tokens, config.block_size, greedy=True)
    return theirs[0, 1:].tolist() == ours[0].tolist()


def small(config: Config) -> Config:
    """The same architecture and optimizer, small enough for a hundred steps in seconds."""
    model = config.model
    if isinstance(model, GPTConfig):
        model = dataclasses.replace(model, n_layer=2, n_head=4, n_embd=64, block_size=64)
    train = dataclasses.replace(config.train, batch_size=8)
    return dataclasses.replace(config, model=model, train=train)


def measure(config: Config, arguments: argparse.Namespace | None = None) -> dict[str, Any]:
    """The record of a whole comparison; `passed` says whether every difference is small."""
    if isinstance(config.model, GPTConfig):
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, dropout=0.0))
    text = data.load(config)
    vocab_size, block_size = text.tokenizer.vocab_size, config.model.block_size
    batch, n_skipped = batch_off_the_kink(config, vocab_size, text.train)
    with jax.default_matmul_precision("highest"):
        rows = logits_and_gradients(config.model, vocab_size, batch, config.seed)
        curves = loss_curves(small(config), text)
        ours = np.array(curves["gptjax"])
        drift = float(np.abs(ours - curves[MOVED]).max())
        allowed = max(LOSSES, DRIFT_FACTOR * drift)
        for row in rows:
            row["losses"] = float(np.abs(ours - curves[row["twin"]]).max())
        record = {
            "model": dataclasses.asdict(config.model),
            "curve_model": dataclasses.asdict(small(config).model),
            "rows": rows,
            "batches_skipped_at_the_kink_of_relu": n_skipped,
            "curves": curves,
            "drift_of_rounding": drift,
            "losses_allowed": allowed,
            "environment": environment.describe(),
        }
        passed = all(
            row["logits"] <= LOGITS and row["gradients"] <= GRADIENTS and row["losses"] <= allowed
            for row in rows
        )
        if isinstance(config.model, GPTConfig) and torch_gpt.is_original_style(config.model):
            same = same_greedy_text(config.model, vocab_size, block_size - 1, config.seed)
            record["same_greedy_text"] = same
            passed = passed and same
    return record | {"passed": passed}


def table(record: dict[str, Any]) -> str:
    allowed = record.get("losses_allowed", LOSSES)
    lines = [
        f"| PyTorch twin | logits (<= {LOGITS:.0e}) | worst of all gradient leaves "
        f"(<= {GRADIENTS:.0e}) | losses of {N_STEPS} steps (<= {allowed:.0e}) |",
        "|---|---|---|---|",
    ]
    for row in record["rows"]:
        lines.append(
            f"| {row['twin']} | {row['logits']:.1e} | {row['gradients']:.1e} "
            f"({row['n_leaves']} leaves) | {row['losses']:.1e} |"
        )
    curves = record["curve_model"]
    if curves != record["model"]:
        layers, width, context = (curves[key] for key in ("n_layer", "n_embd", "block_size"))
        lines += [
            "",
            f"The losses are of a small model with the same options: {layers} layers, width "
            f"{width}, context {context}. Logits and gradients are of the whole model.",
        ]
    if "same_greedy_text" in record:
        same = "the same" if record["same_greedy_text"] else "ANOTHER"
        lines += [
            "",
            f"A state_dict of the original, loaded into gptjax, writes {same} greedy text.",
        ]
    if allowed > LOSSES:
        drift = record["drift_of_rounding"]
        lines += ["", f"Moving the last bits of the parameters moves the losses by {drift:.1e}."]
    lines += ["", "passed" if record["passed"] else "FAILED"]
    return "\n".join(lines)


def plot(record: dict[str, Any], path: Path) -> None:
    """The losses of all, and how far those of PyTorch are from those of gptjax."""
    figure = Figure(figsize=(8, 5.5), dpi=110, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    ours = np.array(record["curves"]["gptjax"])
    steps = np.arange(1, len(ours) + 1)
    top.plot(steps, ours, label="gptjax (wide, below)", color=COLORS[0], linewidth=5, alpha=0.35)
    look: dict[str, Any] = {"linewidth": 1.4}
    for i, (name, losses) in enumerate(record["curves"].items()):
        if name not in ("gptjax", MOVED):
            label = f"PyTorch, {name}"
            look |= {"color": COLORS[i % len(COLORS)], "linestyle": DASHES[i % len(DASHES)]}
            top.plot(steps, losses, label=label, **look)
            bottom.semilogy(steps, np.maximum(np.abs(ours - losses), 1e-8), label=label, **look)
    bottom.axhline(
        record.get("losses_allowed", LOSSES), color="grey", linestyle=":", label="allowed"
    )
    top.set_ylabel("train loss (nats)")
    bottom.set_ylabel("difference from gptjax\n(at least 1e-8 is drawn)")
    bottom.set_xlabel("step")
    for axes in (top, bottom):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, path)

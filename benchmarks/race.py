"""Milliseconds per training step of gptjax and of PyTorch in its fastest forms.

Each competitor trains the same model on the same text with batches of the same shape, from its own
random weights. Making batches, forward, backward and AdamW are timed; evaluation and checkpoints
are not; compiling has its own column. Run it by `python -m benchmarks.compare race`.
"""

import argparse
import dataclasses
import functools
import json
from typing import Any

import numpy as np

from benchmarks import environment, rounds
from gptjax import config_json
from gptjax.config import BigramConfig, Config, GPTConfig
from gptjax.data import dataset as data
from gptjax.data.dataset import prefetch
from gptjax.data.texts import TextData
from gptjax.errors import UserError

# name, side, style, compile mode, dtype
COMPETITORS = [
    ("gptjax float32", "gptjax", "", None, "float32"),
    ("gptjax bfloat16", "gptjax", "", None, "bfloat16"),
    ("PyTorch, original style", "torch", "original", None, "float32"),
    ("PyTorch, tuned", "torch", "tuned", None, "float32"),
    ("PyTorch, tuned, compiled", "torch", "tuned", "default", "float32"),
    ("PyTorch, tuned, CUDA graphs", "torch", "tuned", "reduce-overhead", "float32"),
    ("PyTorch, tuned, bfloat16", "torch", "tuned", None, "bfloat16"),
    ("PyTorch, tuned, compiled, bfloat16", "torch", "tuned", "default", "bfloat16"),
    ("PyTorch, tuned, CUDA graphs, bfloat16", "torch", "tuned", "reduce-overhead", "bfloat16"),
]


def measure(config: Config, arguments: argparse.Namespace) -> dict[str, Any]:
    """Two races: without dropout, and with the config's (0.2, the original's, if it has none)."""
    if isinstance(config.model, BigramConfig):
        raise UserError("a bigram's step is too short to be timed; race a GPT, for example gpt.py")
    if config.optim.name != "adamw":
        raise UserError("the PyTorch twin trains with AdamW; add --optim.name adamw")
    # Fetches the text once, before competitors start; bad input is refused here.
    text = data.load(config)
    import torch

    from benchmarks import torch_gpt

    record = {
        "config": json.loads(config_json.to_json(config)),
        "flops_per_token": flops_per_token(config.model, text.tokenizer.vocab_size),
        "environment": environment.describe(),
        "races": [],
    }
    for dropout in (0.0, config.model.dropout or 0.2):
        model = dataclasses.replace(config.model, dropout=dropout)
        text_json = config_json.to_json(dataclasses.replace(config, model=model))
        competitors = []
        for name, side, style, mode, dtype in COMPETITORS:
            if style == "original" and not torch_gpt.is_original_style(model):
                continue
            if mode == "reduce-overhead" and not torch.cuda.is_available():
                continue
            fields = {"name": name, "side": side, "style": style, "mode": mode, "dtype": dtype}
            competitors.append(fields | {"config": text_json})
        rows = rounds.race("benchmarks.race", competitors, arguments.rounds)
        record["races"].append({"dropout": dropout, "rows": rows})
    return record


def flops_per_token(config: GPTConfig, vocab_size: int) -> int:
    """Of forward and backward: 6 per parameter of a matmul, and 12 T D per layer for attention.

    As in Chowdhery et al. 2022 (PaLM), appendix B, which counts masked scores, too.
    """
    d = config.n_embd
    matmuls = config.n_layer * 12 * d * d + vocab_size * d
    return 6 * matmuls + 12 * config.n_layer * config.block_size * d


# --- one competitor, in its own process


@dataclasses.dataclass
class RandomTokens:
    """Stands for a tokenizer where the text is random tokens."""

    vocab_size: int


def text_of(config: Config, vocab_size: int | None) -> Any:
    """The config's text or, with a vocab_size, random tokens."""
    if vocab_size is None:
        return data.load(config)
    tokens = np.random.default_rng(0).integers(0, vocab_size, 1 << 20).astype(np.int32)
    tokenizer: Any = RandomTokens(vocab_size)
    return TextData(tokens, tokens, tokenizer, "random tokens", "")


def matmul_size(config: Config) -> int:
    """Size of the matmul that measures the rate. It is smaller for the tiny models of the tests."""
    assert isinstance(config.model, GPTConfig)
    return min(2048, 16 * config.model.n_embd)


def serve_gptjax(config: Config, dtype: str, vocab_size: int | None = None) -> None:
    import jax
    import jax.numpy as jnp

    from gptjax import models, optim, training
    from gptjax.scale import devices, sharding
    from gptjax.scale.mesh import make_mesh, n_row_groups, put

    text = text_of(config, vocab_size)
    c = config.train
    model = models.build(config.model, text.tokenizer.vocab_size, jnp.dtype(dtype))
    optimizer = optim.build(config.optim, c.max_steps)
    mesh = make_mesh(config)
    micro_batch_size = devices.micro_batch_size(
        c, config.model, config.model.block_size, n_row_groups(mesh)
    )
    state = training.init_state(models.init(model, config.seed), optimizer)
    state = jax.device_put(state, sharding.shardings(state, mesh))
    train_steps = training.make_train_steps(model, optimizer, micro_batch_size, config.seed, mesh)
    n_params = models.count(state.params)
    capacity = devices.steps_per_dispatch(
        n_params, c.batch_size * config.model.block_size, mesh.size
    )
    # As in training: an accelerator's program is compiled for whole dispatches.
    quantum = 1 if devices.on_cpu() else capacity
    step = 0

    def load_batches(steps: range) -> Any:
        batches = data.training_batches(text, config, steps, capacity)
        return len(steps), put(batches, c.batch_size, mesh)

    def run(n_steps: int) -> None:
        nonlocal state, step
        last = step + n_steps
        groups = [range(i, min(i + capacity, last)) for i in range(step, last, capacity)]
        for n, batches in prefetch(load_batches, groups):
            state, metrics = train_steps(state, batches, n)
        jax.block_until_ready(metrics.loss)
        step = last

    size = matmul_size(config)
    rounds.serve(run, quantum, quantum, lambda: devices.matmul_rate(jnp.dtype(dtype), size))


def serve_torch(
    config: Config, style: str, mode: str | None, dtype: str, vocab_size: int | None = None
) -> None:
    import torch

    from benchmarks import torch_gpt

    assert isinstance(config.model, GPTConfig)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if style == "tuned":
        torch.set_float32_matmul_precision("high")  # TF32 on a GPU, as JAX does by default
    text = text_of(config, vocab_size)
    torch.manual_seed(config.seed)
    kind = torch_gpt.OriginalGPT if style == "original" else torch_gpt.TunedGPT
    model = kind(config.model, text.tokenizer.vocab_size).to(device)
    torch_dtype = getattr(torch, dtype)
    trainer = torch_gpt.Trainer(model, config.optim, style == "tuned", mode, torch_dtype)
    tokens = torch.from_numpy(text.train.astype("int64")).to(device)

    def run(n_steps: int) -> None:
        for _ in range(n_steps):
            windows = torch_gpt.random_windows(
                tokens, config.model.block_size, config.train.batch_size
            )
            loss = trainer.step(*windows)
        loss.item()

    # CUDA graphs are recorded at the second and third call.
    size = matmul_size(config)
    rate = functools.partial(torch_gpt.matmul_rate, torch_dtype, device, size)
    rounds.serve(run, 3 if mode else 1, 1, rate)


def table(record: dict[str, Any]) -> str:
    return "\n\n".join(race_table(record, race) for race in record["races"])


def race_table(record: dict[str, Any], race: dict[str, Any]) -> str:
    """One row per competitor, and the winner."""
    c = record["config"]
    tokens = c["train"]["batch_size"] * c["model"]["block_size"]
    best = fastest(race, "PyTorch")
    lines = [
        f"Dropout {race['dropout']:g}:",
        "",
        "| | ms/step, median (least to most) | tokens/s | compared with PyTorch at its best | "
        "of the matmul rate | compiling | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in race["rows"]:
        if "error" in row:
            lines.append(f"| {row['name']} | failed: {row['error']} | | | | | |")
            continue
        flops = record["flops_per_token"] * tokens / row["median"]
        ahead = f"{best['median'] / row['median']:.2f}x" if best else ""
        lines.append(
            f"| {row['name']} | {1e3 * row['median']:.1f} ({1e3 * row['least']:.1f} to "
            f"{1e3 * row['most']:.1f}) | {tokens / row['median']:,.0f} | "
            f"{ahead} | {flops / row['matmul_rate']:.0%} | "
            f"{max(0.0, row['compile_seconds']):.0f} s | {row['peak_bytes'] / 2**20:,.0f} MiB |"
        )
    return "\n".join([*lines, "", verdict(race)])


def fastest(race: dict[str, Any], side: str, dtypes: str = "any") -> dict[str, Any] | None:
    """The fastest row whose name starts with `side`, of "any" dtype or "float32"; None if none."""
    rows = [r for r in race["rows"] if r["name"].startswith(side) and "error" not in r]
    if dtypes == "float32":
        rows = [r for r in rows if "bfloat16" not in r["name"]]
    return min(rows, key=lambda row: row["median"], default=None)


def verdict(race: dict[str, Any]) -> str:
    """gptjax at its best against PyTorch at its best, in any dtype and in float32."""
    overall, float32 = (
        sentence(fastest(race, "gptjax", dtypes), fastest(race, "PyTorch", dtypes))
        for dtypes in ("any", "float32")
    )
    none_in_float32 = all("bfloat16" in row["name"] for row in race["rows"])
    return overall if none_in_float32 or overall == float32 else f"{overall} In float32: {float32}"


def sentence(ours: dict[str, Any] | None, theirs: dict[str, Any] | None) -> str:
    """The faster of two rows, and by how much."""
    if ours is None or theirs is None:
        return "One side failed."
    ratio = theirs["median"] / ours["median"]
    if abs(ratio - 1) < 0.02:
        return f"{ours['name']} and {theirs['name']} are level ({ratio:.2f}x)."
    winner, loser = (ours, theirs) if ratio > 1 else (theirs, ours)
    return f"{winner['name']} wins: {max(ratio, 1 / ratio):.2f}x as fast as {loser['name']}."


if __name__ == "__main__":
    spec = rounds.competitor(__doc__ or "")
    run_config = config_json.from_json(spec["config"])
    if spec["side"] == "gptjax":
        serve_gptjax(run_config, spec["dtype"], spec.get("vocab_size"))
    else:
        options = (spec["style"], spec["mode"], spec["dtype"], spec.get("vocab_size"))
        serve_torch(run_config, *options)

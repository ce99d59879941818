"""Tokens per second of sampling: gptjax, PyTorch without a KV cache, Hugging Face with one.

All have random weights of the same sizes and continue a prompt of one token at temperature 1. Run
it by `python -m benchmarks.compare sample`.
"""

import argparse
import functools
import json
from typing import Any

import numpy as np

from benchmarks import environment, rounds
from gptjax import config_json
from gptjax.config import Config, GPTConfig
from gptjax.errors import UserError

VOCAB_SIZE = 65  # tiny-Shakespeare's
BATCH_SIZES = (1, 32)
COMPETITORS = {
    "gptjax": "gptjax, KV cache",
    "original": "PyTorch, original style, no cache",
    "tuned": "PyTorch, tuned, no cache",
    "transformers": "Hugging Face GPT-2, KV cache",
}


def measure(config: Config, arguments: argparse.Namespace) -> dict[str, Any]:
    """One race per batch size."""
    from benchmarks import torch_gpt

    if not isinstance(config.model, GPTConfig):
        raise UserError("sampling is measured of GPTs; name the --config of one")
    if arguments.tokens >= config.model.block_size:
        # Hugging Face's GPT-2 has learned positions, so it cannot go past block_size.
        arguments.tokens = config.model.block_size - 1
    if arguments.tokens < 1:
        raise UserError("--model.block-size is 1, but the race needs at least 2")
    sides = dict(COMPETITORS)
    if not torch_gpt.is_original_style(config.model):
        del sides["original"]
    races = []
    for batch_size in BATCH_SIZES:
        competitors = [
            {
                "name": name,
                "side": side,
                "batch_size": batch_size,
                "tokens": arguments.tokens,
                "config": config_json.to_json(config),
            }
            for side, name in sides.items()
        ]
        rows = rounds.race("benchmarks.decode", competitors, arguments.rounds)
        races.append({"batch_size": batch_size, "rows": rows})
    return {
        "config": json.loads(config_json.to_json(config)),
        "tokens": arguments.tokens,
        "environment": environment.describe(),
        "races": races,
    }


def serve_gptjax(config: Config, batch_size: int, n_tokens: int) -> None:
    from gptjax import models
    from gptjax.decoding import sampling
    from gptjax.scale import devices

    model = models.build(config.model, VOCAB_SIZE, devices.compute_dtype(config.train))
    params = models.init(model, config.seed)
    prompt = np.zeros((batch_size, 1), np.int32)

    def run(n: int) -> None:
        for seed in range(n):
            sampling.complete(model, params, prompt, n_tokens, seed=seed)

    rounds.serve(run)


def torch_device() -> tuple[str, Any]:
    """Device and dtype for PyTorch: the same that gptjax chooses."""
    import torch

    return ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)


def serve_uncached(config: Config, batch_size: int, n_tokens: int, style: str) -> None:
    import torch

    from benchmarks import torch_gpt

    assert isinstance(config.model, GPTConfig)
    device, dtype = torch_device()
    kind = torch_gpt.OriginalGPT if style == "original" else torch_gpt.TunedGPT
    model = kind(config.model, VOCAB_SIZE).to(device, dtype).eval()
    prompt = torch.zeros((batch_size, 1), dtype=torch.long, device=device)

    def run(n: int) -> None:
        for _ in range(n):
            torch_gpt.generate(model, prompt, n_tokens, config.model.block_size, False).cpu()

    rounds.serve(run)


def serve_transformers(config: Config, batch_size: int, n_tokens: int) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    assert isinstance(config.model, GPTConfig)
    c = config.model
    device, dtype = torch_device()
    sizes = GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_positions=c.block_size,
        n_embd=c.n_embd,
        n_layer=c.n_layer,
        n_head=c.n_head,
        activation_function="relu",
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
        attn_implementation="sdpa",
    )
    torch.manual_seed(config.seed)
    model = GPT2LMHeadModel(sizes).to(device, dtype).eval()
    prompt = torch.zeros((batch_size, 1), dtype=torch.long, device=device)

    @torch.inference_mode()
    def run(n: int) -> None:
        for _ in range(n):
            model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=n_tokens,
                min_new_tokens=n_tokens,
                do_sample=True,
                top_k=0,
                use_cache=True,
            ).cpu()

    rounds.serve(run)


def table(record: dict[str, Any]) -> str:
    """Tokens per second of every competitor; * marks those too slow to be measured twice."""
    races = record["races"]
    lines = [
        f"Tokens per second, {record['tokens']} tokens after a prompt of one:",
        "",
        "| | " + " | ".join(f"batch {race['batch_size']}" for race in races) + " |",
        "|---|" + "---|" * len(races),
    ]
    for i, row in enumerate(races[0]["rows"]):
        cells = [cell(record, race, race["rows"][i]) for race in races]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(record: dict[str, Any], race: dict[str, Any], row: dict[str, Any]) -> str:
    ours = race["rows"][0]
    if "error" in row:
        return f"failed: {row['error']}"
    rate = race["batch_size"] * record["tokens"] / row["median"]
    star = "*" if len(row["seconds_per_unit"]) < 2 else ""
    if row is ours or "error" in ours:
        return f"{rate:,.0f}{star}"
    return f"{rate:,.0f}{star} (gptjax is {row['median'] / ours['median']:.1f}x as fast)"


SERVERS = {
    "gptjax": serve_gptjax,
    "original": functools.partial(serve_uncached, style="original"),
    "tuned": functools.partial(serve_uncached, style="tuned"),
    "transformers": serve_transformers,
}

if __name__ == "__main__":
    spec = rounds.competitor(__doc__ or "")
    run_config = config_json.from_json(spec["config"])
    SERVERS[spec["side"]](run_config, spec["batch_size"], spec["tokens"])

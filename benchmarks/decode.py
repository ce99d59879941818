"""Tokens per second of sampling: gptjax, PyTorch without a cache, Hugging Face with one.

All have random weights of the same sizes and continue a prompt of one token, drawing from the
distribution at temperature 1.
"""

import argparse
import json
import sys
from typing import Any

import numpy as np

from benchmarks import environment, rounds
from gptjax import config as config_module
from gptjax.config import Config, GPTConfig
from gptjax.errors import UserError

VOCAB_SIZE = 65  # tiny-Shakespeare's
BATCH_SIZES = (1, 32)
COMPETITORS = {
    "gptjax": "gptjax, KV cache",
    "uncached": "PyTorch, seed style, no cache",
    "transformers": "Hugging Face GPT-2, KV cache",
}


def measure(config: Config, arguments: argparse.Namespace) -> dict[str, Any]:
    """One race per batch size."""
    if not isinstance(config.model, GPTConfig):
        raise UserError("the sampling race is of GPTs; name another --config")
    if arguments.tokens >= config.model.block_size:
        # The tokens that Hugging Face's GPT-2, with learned positions, can make without a slide.
        arguments.tokens = config.model.block_size - 1
    races = []
    for batch_size in BATCH_SIZES:
        competitors = [
            {
                "name": name,
                "side": side,
                "batch_size": batch_size,
                "tokens": arguments.tokens,
                "config": config_module.to_json(config),
            }
            for side, name in COMPETITORS.items()
        ]
        rows = rounds.race("benchmarks.decode", competitors, arguments.rounds)
        races.append({"batch_size": batch_size, "rows": rows})
    return {
        "config": json.loads(config_module.to_json(config)),
        "tokens": arguments.tokens,
        "environment": environment.describe(),
        "races": races,
    }


def serve_gptjax(config: Config, batch_size: int, n_tokens: int) -> None:
    from gptjax import devices, models, sampling

    model = models.build(config.model, VOCAB_SIZE, devices.compute_dtype(config.train))
    params = models.init(model, config.seed)
    prompt = np.zeros((batch_size, 1), np.int32)

    def run(n: int) -> None:
        for seed in range(n):
            sampling.complete(model, params, prompt, n_tokens, seed=seed)

    rounds.serve(run)


def serve_uncached(config: Config, batch_size: int, n_tokens: int) -> None:
    import torch

    from benchmarks import torch_gpt

    assert isinstance(config.model, GPTConfig)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = torch_gpt.SeedGPT if torch_gpt.is_seed_style(config.model) else torch_gpt.TunedGPT
    model = kind(config.model, VOCAB_SIZE).to(device).eval()
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
    device = "cuda" if torch.cuda.is_available() else "cpu"
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
    model = GPT2LMHeadModel(sizes).to(device).eval()
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
    lines = [
        f"Tokens per second, {record['tokens']} tokens after a prompt of one:",
        "",
        "| | batch 1 | batch 32 |",
        "|---|---|---|",
    ]
    for i, name in enumerate(COMPETITORS.values()):
        cells = []
        for race in record["races"]:
            row, ours = race["rows"][i], race["rows"][0]
            if "error" in row:
                cells.append(f"failed: {row['error']}")
                continue
            rate = race["batch_size"] * record["tokens"] / row["median"]
            ahead = "" if i == 0 else f" (gptjax is {row['median'] / ours['median']:.1f}x as fast)"
            cells.append(f"{rate:,.0f}{ahead}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


SERVERS = {
    "gptjax": serve_gptjax,
    "uncached": serve_uncached,
    "transformers": serve_transformers,
}

if __name__ == "__main__":
    spec = json.loads(sys.argv[1])
    run_config = config_module.from_json(spec["config"])
    SERVERS[spec["side"]](run_config, spec["batch_size"], spec["tokens"])

"""How much memory training will take on each device, before anything is compiled."""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from gptjax.config import Config, GPTConfig
from gptjax.errors import UserError
from gptjax.models import Model
from gptjax.scale import devices, sharding
from gptjax.scale.mesh import n_row_groups

LESS = (
    "less memory is needed with a smaller --train.micro-batch-size, with --train.remat, or with "
    "--mesh.fsdp over more devices"
)


def estimate(
    config: Config, model: Model, state: Any, micro_batch_size: int, tokens_per_sequence: float
) -> tuple[int, int]:
    """Bytes on each device of the training state, and about how many more a step works in.

    state: shapes with their shardings. The second sum is of the gradients, of the weights in use,
    of what the backward pass wants of every block (all of it, or with remat what enters the block
    and all of one), and of the logits.
    """
    mesh = jax.tree.leaves(state)[0].sharding.mesh
    gradients = sharding.bytes_per_device(state.params)
    if micro_batch_size < config.train.batch_size:
        gradients *= 2  # those of a micro-batch, and the sum
    n_tokens = micro_batch_size / n_row_groups(mesh) * tokens_per_sequence
    logits = 3 * 4 * n_tokens * model.vocab_size  # float32: themselves, their softmax, its gradient
    c, n_model = config.model, mesh.shape["model"]
    blocks = 0.0
    if isinstance(c, GPTConfig):
        itemsize = np.dtype(model.dtype).itemsize
        n_blocks = c.n_layer + getattr(c, "n_encoder_layer", 0)
        # Both norms, the residual stream and sums into it; heads and hidden values are shared out.
        inside = 6 * c.n_embd + (5 * c.n_embd + 3 * c.hidden_width) / n_model
        inside += 3 * c.n_head * min(c.block_size, tokens_per_sequence) / n_model
        kept = n_blocks * inside
        if config.train.remat:
            kept = n_blocks * c.n_embd + inside
        blocks = itemsize * n_tokens * kept
    work = gradients + _weights_in_use(state.params, model) + logits + blocks
    return sharding.bytes_per_device(state), int(work)


def _weights_in_use(params: Any, model: Model) -> float:
    """Bytes of the copies that a device computes with, next to its part of the float32 ones.

    All of them in bfloat16; or where fsdp gathers them, those of two blocks and what is in none.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    mesh, itemsize = leaves[0][1].sharding.mesh, np.dtype(model.dtype).itemsize
    blocks: dict[str, int] = {}
    for path, leaf in leaves:
        block = re.search(r"^(.*\.)?block_\d+\.", sharding.path_of(path))
        name = block[0] if block else ""
        blocks[name] = blocks.get(name, 0) + leaf.size
    n_parameters = sum(blocks.values())
    if mesh.shape["fsdp"] > 1:
        outside = blocks.pop("", 0)
        n_parameters = outside + sum(sorted(blocks.values())[-2:])
    elif itemsize == 4:  # those at rest will do
        return 0
    return itemsize * n_parameters / mesh.shape["model"]


def limit() -> int:
    """Bytes that a device may use."""
    device = jax.local_devices()[0]
    if stats := device.memory_stats():
        return int(stats.get("bytes_limit", 0))
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return whole // jax.local_device_count()


def describe(
    config: Config, model: Model, state: Any, micro_batch_size: int, tokens_per_sequence: float
) -> str:
    """The estimate in words, with advice where it does not fit."""
    held, work = estimate(config, model, state, micro_batch_size, tokens_per_sequence)
    text = f"memory of each device: {_size(held)} of state, about {_size(work)} to work in"
    if held + work > limit():
        text += f"; it has {_size(limit())}, so this may not fit: {LESS}"
    return text


@contextlib.contextmanager
def advice() -> Iterator[None]:
    """Turns what JAX raises when memory runs out into a UserError that says what to change."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(f"out of memory on {devices.describe()}: {LESS}") from None


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"

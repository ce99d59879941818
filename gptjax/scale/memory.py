"""How much memory training needs on each device, estimated before anything is compiled."""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any, Protocol

import jax
import numpy as np

from gptjax.config import Config, GPTConfig
from gptjax.errors import UserError
from gptjax.scale import devices, sharding
from gptjax.scale.mesh import n_row_groups

LESS = (
    "less memory is needed with a smaller --train.micro-batch-size, with --train.remat, or with "
    "--mesh.fsdp over more devices"
)


class Sized(Protocol):
    """What an estimate needs of a model."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def dtype(self) -> Any: ...


def estimate(
    config: Config,
    model: Sized,
    state: Any,
    micro_batch_size: int,
    tokens_per_sequence: float,
    fused: bool = False,
) -> tuple[int, int]:
    """(bytes of the training state, bytes that a step needs besides) on each device.

    state: shapes with their shardings. A step needs gradients, weights in the model's dtype, what
    the backward pass reads of every block, and the logits. fused: kernels compute the attention, as
    choice.is_fused says.
    """
    mesh = jax.tree.leaves(state)[0].sharding.mesh
    gradients = sharding.bytes_per_device(state.params)
    if micro_batch_size < config.train.batch_size:
        gradients *= 2  # those of one micro-batch, and their sum
    n_tokens = micro_batch_size / n_row_groups(mesh) * tokens_per_sequence
    if not devices.on_cpu():  # there an ensemble's members train one after the other
        n_tokens *= config.train.members
    n_model, itemsize = mesh.shape["model"], np.dtype(model.dtype).itemsize
    work = gradients + _weights_in_use(state.params, itemsize)
    n_heads = 1 + (config.model.predict_ahead if isinstance(config.model, GPTConfig) else 0)
    work += n_heads * n_tokens * logits_bytes(model.vocab_size, n_model, itemsize if fused else 0)
    if isinstance(config.model, GPTConfig):
        work += n_tokens * activation_bytes(
            config.model, tokens_per_sequence, itemsize, n_model, config.train.remat, fused
        )
    return sharding.bytes_per_device(state), int(work)


def logits_bytes(vocab_size: int, n_model: int = 1, fused_itemsize: int = 0) -> float:
    """Bytes for each token of the logits, their softmax and their gradient, in float32.

    With fused_itemsize only of the logits and their gradient, which have that many bytes each: see
    kernels/cross_entropy.py. The model axis splits them if it divides the vocabulary.
    """
    one = 2 * fused_itemsize or 3 * 4
    return one * vocab_size / (n_model if vocab_size % n_model == 0 else 1)


def activation_bytes(
    c: GPTConfig,
    length: float,
    itemsize: int,
    n_model: int = 1,
    remat: bool = False,
    fused: bool = False,
) -> float:
    """Bytes for each token that the forward pass of all blocks keeps for the backward pass.

    length: tokens of a sequence. remat keeps the input of every block, and the rest of one. fused:
    a kernel computes the attention, and keeps no weights.
    """
    n_blocks = c.n_layer + getattr(c, "n_encoder_layer", 0)
    # Two norms, the residual stream and what is added to it are whole on every device. The model
    # axis splits heads (query, key, value, output), hidden values and attention weights.
    block = 6 * c.n_embd + (5 * c.n_embd + 3 * c.hidden_width) / n_model
    if not fused:
        block += 3 * c.n_head * min(c.block_size, length) / n_model
    return itemsize * (n_blocks * c.n_embd + block if remat else n_blocks * block)


def _weights_in_use(params: Any, itemsize: int) -> float:
    """Bytes of the copies of weights that a device computes with.

    All of them in bfloat16. With fsdp: those of two blocks, and of what is in no block.
    """
    arrays = sharding.by_path(params)
    mesh = next(iter(arrays.values())).sharding.mesh
    blocks: dict[str, int] = {}
    for path, array in arrays.items():
        block = re.search(r"^(.*\.)?block_\d+\.", path)
        name = block[0] if block else ""
        blocks[name] = blocks.get(name, 0) + array.size
    n_parameters = sum(blocks.values())
    if mesh.shape["fsdp"] > 1:
        outside = blocks.pop("", 0)
        n_parameters = outside + sum(sorted(blocks.values())[-2:])
    elif itemsize == 4:  # the parameters themselves are float32
        return 0
    return itemsize * n_parameters / mesh.shape["model"]


def limit() -> int:
    """Bytes of memory that a device may use."""
    device = jax.local_devices()[0]
    if stats := device.memory_stats():
        return int(stats.get("bytes_limit", 0))
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return whole // jax.local_device_count()


def describe(
    config: Config,
    model: Sized,
    state: Any,
    micro_batch_size: int,
    tokens_per_sequence: float,
    fused: bool = False,
) -> str:
    """The estimate in words, with advice if it does not fit."""
    held, work = estimate(config, model, state, micro_batch_size, tokens_per_sequence, fused)
    text = f"memory of each device: {_size(held)} of state, about {_size(work)} to work in"
    if held + work > limit():
        text += f"; it has {_size(limit())}, so this may not fit: {LESS}"
    return text


@contextlib.contextmanager
def advice(less: str = LESS) -> Iterator[None]:
    """Turns JAX's error for lack of memory into a UserError that says what to change.

    less: what needs less memory.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(f"out of memory on {devices.describe()}: {less}") from None


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"

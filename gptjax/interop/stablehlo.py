"""A model as a StableHLO program with the weights in it, which needs JAX but not gptjax to run."""

from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from gptjax.config import GPTConfig
from gptjax.config_encoders import EncoderDecoderConfig, SpeechConfig
from gptjax.errors import UserError
from gptjax.kernels import choice
from gptjax.models import Model

PLATFORMS = ("cpu", "cuda")
LARGEST_PROGRAM = 2_000_000_000
"""Bytes of weights. The program is a flatbuffer, whose offsets have 31 bits."""


def forward_program(model: Model, params: Any) -> jax.export.Exported:
    """A program that computes logits (B, T, V) from tokens (B, T), for any B and T.

    A model with an encoder also takes a source (B, S), or mel frames (B, S, M), and source_mask
    (B, S). T and S are at most the model's block sizes. Raises UserError for weights that are too
    large for a program.
    """
    n_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    if n_bytes > LARGEST_PROGRAM:
        raise UserError(
            f"a program holds at most {LARGEST_PROGRAM / 1e9:.0f} GB, but the weights have "
            f"{n_bytes / 1e9:.1f} GB; export --to safetensors"
        )

    def forward(tokens_BT: jax.Array, *source: jax.Array) -> jax.Array:
        inputs = dict(zip(("source", "source_mask"), source, strict=False))
        return model.apply({"params": params}, tokens_BT, **inputs)[0]

    config = model.config
    limits = [f"t <= {config.block_size}"] if isinstance(config, GPTConfig) else []
    if isinstance(config, SpeechConfig):  # the encoder's second convolution halves the frames
        limits.append(f"s <= {2 * config.source_block_size}")
    elif isinstance(config, EncoderDecoderConfig):
        limits.append(f"s <= {config.source_block_size}")
    batch, target, source = jax.export.symbolic_shape("b, t, s", constraints=limits)
    inputs = [jax.ShapeDtypeStruct((batch, target), jnp.int32)]
    if isinstance(config, SpeechConfig):
        inputs.append(jax.ShapeDtypeStruct((batch, source, config.n_mels), jnp.float32))
    elif isinstance(config, EncoderDecoderConfig):
        inputs.append(jax.ShapeDtypeStruct((batch, source), jnp.int32))
    if len(inputs) > 1:
        inputs.append(jax.ShapeDtypeStruct((batch, source), jnp.bool_))
    with choice.using(choice.PLAIN):  # kernels of this machine's GPU would run nowhere else
        return jax.export.export(jax.jit(forward), platforms=PLATFORMS)(*inputs)

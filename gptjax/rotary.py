"""Rotary position embeddings (RoPE, Su et al. 2021): positions as rotations of queries and keys."""

import jax.numpy as jnp
from jax import Array

Rotary = tuple[Array, Array]
"""(cos, sin) of each position's rotary angles, each (T, K/2)."""


def rotary_angles(position_T: Array, head_width: int) -> Rotary:
    """(cos, sin), each (T, K/2), of RoPE (Su et al. 2021, eq. 15) with base 10,000."""
    frequency = 10_000.0 ** -jnp.linspace(0, 1, head_width // 2, endpoint=False)
    angle = position_T[:, None] * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BHTK: Array, rotary: Rotary) -> Array:
    """Rotates each pair (x_i, x_{i + K/2}) of every head by its position's angle.

    The product of a rotated query and key then depends on their distance only.
    """
    cos, sin = rotary
    a, b = jnp.split(x_BHTK.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1).astype(x_BHTK.dtype)

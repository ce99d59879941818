"""Dropout masks as a pure function of (key, row of the batch, position in the row)."""

import jax
import jax.numpy as jnp
from jax import Array, lax


def dropout(x: Array, rate: float, key: Array, rows_B: Array) -> Array:
    """x (B, ...) with a share `rate` zeroed, and the rest scaled to keep the mean.

    The mask of a row depends on the key and on its number in rows_B alone. One random byte decides
    for each number, so the rate is rounded to a multiple of 1/256: JAX's generator makes 32 bits at
    a time, and on a CPU making them all would cost as much as a third of the step.
    """
    n_dropped = min(round(256 * rate), 255)
    if not n_dropped:
        return x
    *inner, width = x.shape[1:]

    def words(row: Array) -> Array:
        return jax.random.bits(jax.random.fold_in(key, row), (*inner, -(-width // 4)))

    bytes_ = lax.bitcast_convert_type(jax.vmap(words)(rows_B), jnp.uint8)
    bytes_ = bytes_.reshape(*x.shape[:-1], -1)[..., :width]
    return jnp.where(bytes_ < n_dropped, 0, x * (256 / (256 - n_dropped)))

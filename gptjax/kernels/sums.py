"""Gradients that are sums over many positions, summed in float32 whatever a model computes in.

JAX sums the gradient of a broadcast, and of a lookup, in the dtype of the result. In bfloat16, with
its 8 bits, a sum of thousands stops growing long before its end.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def spread(w_D: Array, like: Array) -> Array:
    """w_D at every position of `like` (..., D), in its dtype."""
    return _spread(w_D, like.shape, jnp.dtype(like.dtype).name)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _spread(w_D: Array, shape: tuple[int, ...], dtype: str) -> Array:
    return jnp.broadcast_to(w_D.astype(dtype), shape)


def _spread_forward(w_D: Array, shape: tuple[int, ...], dtype: str) -> tuple[Array, None]:
    return _spread(w_D, shape, dtype), None


def _spread_backward(shape: tuple[int, ...], dtype: str, _: None, d: Array) -> tuple[Array]:
    return (jnp.sum(d, tuple(range(d.ndim - 1)), dtype=jnp.float32),)


_spread.defvjp(_spread_forward, _spread_backward)


def lookup(table_VD: Any, ids: Array, dtype: Any) -> Array:
    """The rows of a float32 or quantized table, in `dtype`: ids (...) -> (..., D)."""
    if isinstance(table_VD, Array):
        return _lookup(table_VD, ids, jnp.dtype(dtype).name)
    return table_VD.astype(dtype)[ids].astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _lookup(table_VD: Array, ids: Array, dtype: str) -> Array:
    return table_VD.astype(dtype)[ids]


def _lookup_forward(table_VD: Array, ids: Array, dtype: str) -> tuple[Array, tuple[Array, int]]:
    return _lookup(table_VD, ids, dtype), (ids, table_VD.shape[0])


def _lookup_backward(dtype: str, residuals: tuple[Array, int], d: Array) -> tuple[Array, None]:
    ids, n_rows = residuals
    zeros_VD = jnp.zeros((n_rows, d.shape[-1]), jnp.float32)
    return zeros_VD.at[ids].add(d.astype(jnp.float32)), None


_lookup.defvjp(_lookup_forward, _lookup_backward)

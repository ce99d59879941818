"""Fewer kernels in a train step: a GPU takes microseconds to start one, however little it does.

XLA makes one kernel of operations on arrays of one shape only if they read some array in common. A
model has dozens of small arrays, each cast and each updated by itself, in a kernel of its own. So
`share_array` gives them an array in common, and `global_norm` adds up what these kernels return. A
step of configs/gpt.py has about 100 kernels less for it. The values are the same.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from gptjax.scale import devices

SMALL = 2**18
"""Numbers in an array. The kernel of a larger one takes longer than its start."""


def share_array(loss: Callable[..., Any]) -> Callable[..., Any]:
    """`loss(params, ...)` with each small parameter multiplied by the same 1, and so its gradient.

    The 1 is one of two in an array, because XLA does not count a number as an array in common.
    """
    if devices.on_cpu():
        return loss

    def loss_of_multiplied(params: Any, *rest: Any) -> Any:
        ones = lax.optimization_barrier(jnp.ones(2))  # behind the barrier XLA does not know it is 1
        shared = jax.tree.map(lambda p: p * ones[0] if p.size < SMALL else p, params)
        return loss(shared, *rest)

    return loss_of_multiplied


def global_norm(tree: Any) -> Array:
    """The square root of the sum of the squares of all numbers in a tree of arrays."""
    if devices.on_cpu() or devices.n_devices() > 1:  # rows that are spread would have to be sent
        return optax.tree.norm(tree)
    # Sums of rows are made where a gradient is used, and those of all arrays are summed at once.
    # XLA would sum each array by itself, in two kernels, if the barrier did not stop it.
    sums = [jnp.sum(x * x, axis=-1).ravel() if x.ndim > 1 else x * x for x in jax.tree.leaves(tree)]
    return jnp.sqrt(jnp.sum(lax.optimization_barrier(jnp.concatenate(sums))))

"""The mean loss over a validation split, and the check for numbers that are not finite."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh

from gptjax.models import Model
from gptjax.scale import sharding
from gptjax.training import Batch, Params, cross_entropy


def make_evaluate(
    model: Model, mesh: Mesh | None = None
) -> Callable[[Params, Iterable[Batch]], float]:
    """Returns evaluate(params, batches) -> mean loss in nats per token; see mean_loss."""
    return functools.partial(mean_loss, make_sums(model, mesh))


def make_sums(model: Model, mesh: Mesh | None = None) -> Any:
    """Returns the jitted sums(params, batches) -> (losses (K,), weights (K,)), leaves (K, B, ...).

    `sums.lower` compiles it ahead of time.
    """

    @jax.jit
    def sums(params: Params, batches: Batch) -> tuple[Array, Array]:
        def loss(params: Params, batch: Batch) -> tuple[Array, Array]:
            return cross_entropy(model, params, batch)

        loss = sharding.gather_for_use(loss, mesh, model.dtype)
        losses_and_weights = lax.map(lambda batch: loss(params, batch), batches)
        return sharding.replicate(losses_and_weights, mesh)

    return sums


def mean_loss(
    sums: Callable[[Params, Batch], Any], params: Params, batches: Iterable[Batch]
) -> float:
    """The mean loss of batches, dicts of arrays (K, B, ...).

    Exact: a sum of losses over a sum of weights, added up on the host in float64.
    """
    loss = weight = 0.0
    for group in batches:
        losses, weights = jax.device_get(sums(params, group))
        loss += float(losses.sum(dtype="float64"))
        weight += float(weights.sum(dtype="float64"))
    return loss / weight


@jax.jit
def all_finite(tree: Any) -> Array:
    """Whether every number of a pytree is finite. Checked before anything is saved."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()

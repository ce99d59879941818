"""The train step: loss, gradient, update, scanned on the device. And exact evaluation.

A batch is one dict for every model: `tokens` (B, T) int32, `targets` (B, T) int32 and
`loss_weights` (B, T) float32, the last zero where a target does not count (padding); a model with an
encoder also gets `source` (B, S) and `source_mask` (B, S). Everything that is random is a pure
function of the seed and the step, so a run that stops and resumes repeats itself bit for bit.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.sharding import Mesh

from gptjax.models import Model
from gptjax.scale import devices, sharding

Batch = dict[str, Any]
Params = Any


class TrainState(NamedTuple):
    """All that changes in training: arrays alone. Model and optimizer are closed over."""

    step: Array
    params: Params
    opt_state: Any


class StepMetrics(NamedTuple):
    """What one step reports, float32: mean loss in nats per token, norm of its gradient."""

    loss: Array
    grad_norm: Array


def cross_entropy(
    model: Model,
    params: Params,
    batch: Batch,
    dropout_key: Array | None = None,
    rows_B: Array | None = None,
) -> tuple[Array, Array]:
    """Sum of weighted losses (nats) and sum of weights. Dropout is on if there is a key.

    rows_B then are the numbers that the rows have in the batch of the step, by default 0 ... B - 1.
    Sums, not means: they add up exactly over micro-batches, devices and ragged batches.
    """
    rngs = None
    if dropout_key is not None:
        rngs = {"dropout": dropout_key}
        rows_B = jnp.arange(len(batch["targets"])) if rows_B is None else rows_B
    source = {name: batch[name] for name in ("source", "source_mask") if name in batch}
    logits_BTV, _ = model.apply(
        {"params": params}, batch["tokens"], rows_B=rows_B, rngs=rngs, **source
    )
    losses_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, batch["targets"])
    return jnp.sum(losses_BT * batch["loss_weights"]), jnp.sum(batch["loss_weights"])


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.int32(0), params, optimizer.init(params))


def make_train_steps(
    model: Model,
    optimizer: optax.GradientTransformation,
    micro_batch_size: int,
    seed: int,
    mesh: Mesh | None = None,
) -> Callable[[TrainState, Batch, int], tuple[TrainState, StepMetrics]]:
    """Returns train_steps(state, batches, n_steps) -> (state, metrics), one device dispatch.

    batches: leaves of shape (K, B, ...), of which the first n_steps <= K are used; metrics:
    leaves (K,). The global batch B is worked through in micro-batches whose gradients add up.
    `state` is donated, and split over the mesh as sharding.py says. Every random number is drawn
    from (seed, step, row of the batch), whatever the micro-batches and devices.
    """

    def loss(
        params: Params, batch: Batch, dropout_key: Array, rows_B: Array
    ) -> tuple[Array, Array]:
        return cross_entropy(model, params, batch, dropout_key, rows_B)

    gathered_loss = sharding.gather_for_use(loss, mesh, model.dtype)
    loss_and_gradient = jax.value_and_grad(gathered_loss, has_aux=True)

    def gradient(state: TrainState, batch: Batch) -> tuple[Array, Params]:
        batch_size = batch["targets"].shape[0]
        n_micro = batch_size // micro_batch_size
        step_key = jax.random.fold_in(jax.random.key(seed), state.step)

        # Micro-batch i takes rows i, i + n_micro, ...: each device keeps its share of every one.
        def split(x: Array) -> Array:
            return x.reshape(micro_batch_size, n_micro, *x.shape[1:]).swapaxes(0, 1)

        def accumulate(sums: Any, xs: tuple[Array, Batch]) -> tuple[Any, None]:
            rows_B, micro_batch = xs
            (loss, weight), grads = loss_and_gradient(state.params, micro_batch, step_key, rows_B)
            grads = sharding.constrain(grads, mesh)
            return jax.tree.map(jnp.add, sums, (loss, weight, grads)), None

        zeros = (jnp.float32(0), jnp.float32(0), jax.tree.map(jnp.zeros_like, state.params))
        micro_batches = jax.tree.map(split, (jnp.arange(batch_size), batch))
        sums, _ = lax.scan(accumulate, zeros, micro_batches)
        loss, weight, grads = sums
        return loss / weight, jax.tree.map(lambda g: g / weight, grads)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        loss, grads = gradient(state, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = StepMetrics(loss, optax.tree.norm(grads))
        state = TrainState(state.step + 1, params, opt_state)
        return sharding.constrain(state, mesh), metrics

    def train_steps(
        state: TrainState, batches: Batch, n_steps: int
    ) -> tuple[TrainState, StepMetrics]:
        def body(i: Any, carry: tuple[TrainState, StepMetrics]) -> tuple[TrainState, StepMetrics]:
            state, history = carry
            state, metrics = train_step(state, jax.tree.map(lambda x: x[i], batches))
            return state, jax.tree.map(lambda h, m: h.at[i].set(m), history, metrics)

        empty = jnp.full(batches["targets"].shape[0], jnp.nan, jnp.float32)
        state, history = lax.fori_loop(0, n_steps, body, (state, StepMetrics(empty, empty)))
        return state, sharding.replicate(history, mesh)

    # On a CPU the number of steps is data, so that one executable serves every number (and
    # gives the same bits); an accelerator runs a loop of known length without asking the host.
    static = () if devices.on_cpu() else ("n_steps",)
    return jax.jit(train_steps, donate_argnums=0, static_argnames=static)


def make_evaluate(
    model: Model, mesh: Mesh | None = None
) -> Callable[[Params, Iterable[Batch]], float]:
    """Returns evaluate(params, batches) -> mean loss in nats per token.

    batches: an iterable of dicts with leaves (K, B, ...), all of one shape. Exact: a sum of
    losses over a sum of weights, accumulated on the host in float64.
    """

    @jax.jit
    def sums(params: Params, batches: Batch) -> tuple[Array, Array]:
        def loss(params: Params, batch: Batch) -> tuple[Array, Array]:
            return cross_entropy(model, params, batch)

        of_params = sharding.gather_for_use(loss, mesh, model.dtype)
        of_batches = lax.map(lambda batch: of_params(params, batch), batches)
        return sharding.replicate(of_batches, mesh)

    def evaluate(params: Params, batches: Iterable[Batch]) -> float:
        loss = weight = 0.0
        for group in batches:
            losses, weights = jax.device_get(sums(params, group))
            loss += float(losses.sum(dtype="float64"))
            weight += float(weights.sum(dtype="float64"))
        return loss / weight

    return evaluate


@jax.jit
def all_finite(tree: Any) -> Array:
    """Whether every number of a pytree is finite: asked before anything is saved."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()

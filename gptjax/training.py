"""The train step: loss, gradient, update. One call to the device runs many of them.

A batch is one dict for every model: `tokens` (B, T) int32, `targets` (B, T) int32, the token that
follows each token (targets[:, t] is tokens[:, t + 1]), and `loss_weights` (B, T) float32, zero
where a target does not count (padding). Everything random is a pure function of the seed and the
step, so a resumed run has the same batches and dropout masks as one that was not stopped.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.sharding import Mesh

from gptjax.ensemble import Ensemble, one_model
from gptjax.kernels.cross_entropy import (
    TRAINING_HEADS,
    distillation_losses,
    gradient_of_training_heads,
    token_losses,
)
from gptjax.kernels.dropout import row_streams
from gptjax.kernels.merging import global_norm, share_array
from gptjax.models import Model, source_of, training_temperature
from gptjax.scale import devices, sharding

Batch = dict[str, Any]
Params = Any


class TrainState(NamedTuple):
    """Everything that changes in training, as arrays. Model and optimizer are constants."""

    step: Array
    params: Params
    opt_state: Any


class StepMetrics(NamedTuple):
    """What one step reports, float32: mean loss in nats per token, norm of its gradient."""

    loss: Array
    grad_norm: Array


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.int32(0), params, optimizer.init(params))


def cross_entropy(
    model: Model,
    params: Params,
    batch: Batch,
    dropout_key: Array | None = None,
    rows_B: Array | None = None,
) -> tuple[Array, Array]:
    """(sum of weight * loss in nats, sum of weights). A key turns dropout on.

    rows_B: the numbers of these rows in the whole batch, for dropout; by default 0 ... B - 1. Sums,
    because means over micro-batches with different padding could not be added.
    """
    forward = partial(model.apply, {"params": params}, batch["tokens"], **source_of(batch))
    if dropout_key is None:
        (logits_BTV, _), sown = forward(), {}
    else:
        rows_B = jnp.arange(len(batch["targets"])) if rows_B is None else rows_B
        streams_B2 = row_streams(dropout_key, rows_B)
        (logits_BTV, _), sown = forward(streams_B2=streams_B2, mutable=TRAINING_HEADS)
    # -log softmax(logits)[target]: 0 if the model is sure and right, ln V if it knows nothing.
    temperature = 1.0 if dropout_key is None else training_temperature(model)
    losses_BT = token_losses(logits_BTV / temperature, batch["targets"])
    if "teacher" in batch:  # probabilities (B, T, V) of a trained model
        losses_BT = (losses_BT + distillation_losses(logits_BTV, batch["teacher"])) / 2
    loss_sum = jnp.sum(losses_BT * batch["loss_weights"])
    loss_sum += gradient_of_training_heads(sown, batch)  # its value is 0, its gradient is not
    return loss_sum, jnp.sum(batch["loss_weights"])


def make_gradient(
    model: Model,
    micro_batch_size: int,
    mesh: Mesh | None = None,
    teacher: Callable[[Batch], Array] | None = None,
) -> Callable[[Params, Batch, Array], tuple[Array, Params]]:
    """Returns gradient(params, batch, dropout_key) -> (mean loss, its gradient).

    The batch is processed in micro-batches whose gradients add up, so that the activations of a
    large batch need not fit in memory (or, on a CPU, in its caches) at once.
    """

    # Several devices: each keeps a part of the parameters, and gathers the rest for use.
    loss_of_one = partial(cross_entropy, one_model(model))
    loss_function = share_array(sharding.gather_for_use(loss_of_one, mesh, model.dtype))
    # has_aux: the gradient of the first result. Returns ((loss_sum, weight_sum), grads).
    loss_and_gradient = jax.value_and_grad(loss_function, has_aux=True)
    if isinstance(model, Ensemble):
        loss_and_gradient = model.each_gradient(loss_and_gradient)

    def gradient(params: Params, batch: Batch, dropout_key: Array) -> tuple[Array, Params]:
        batch_size = batch["targets"].shape[0]
        n_micro = batch_size // micro_batch_size

        # Micro-batch i gets rows i, i + n_micro, i + 2 n_micro ... A device holds contiguous rows:
        # rows 0 ... 3 of 8 are all on the first of two devices; rows 0, 2, 4, 6 are on both.
        def split(x: Array) -> Array:
            return x.reshape(micro_batch_size, n_micro, *x.shape[1:]).swapaxes(0, 1)

        def micro_gradient(rows_B: Array, micro_batch: Batch) -> Any:
            if teacher:
                micro_batch = micro_batch | {"teacher": teacher(micro_batch)}
            sums, grads = loss_and_gradient(params, micro_batch, dropout_key, rows_B)
            return sums, sharding.constrain(grads, mesh)

        def accumulate(total: Any, rows_and_micro_batch: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, micro_gradient(*rows_and_micro_batch)), None

        rows_and_batch = (jnp.arange(batch_size), batch)
        if n_micro == 1:
            total = micro_gradient(*rows_and_batch)
        else:
            zeros = (jnp.float32(0), jnp.float32(0)), jax.tree.map(jnp.zeros_like, params)
            total, _ = lax.scan(accumulate, zeros, jax.tree.map(split, rows_and_batch))
        (loss_sum, weight_sum), grads = total
        weight_sum = jnp.maximum(weight_sum, 1)  # 0 if no target counts (unreadable recordings)
        return loss_sum / weight_sum, jax.tree.map(lambda g: g / weight_sum, grads)

    return gradient


def make_train_steps(
    model: Model,
    optimizer: optax.GradientTransformation,
    micro_batch_size: int,
    seed: int,
    mesh: Mesh | None = None,
    teacher: Callable[[Batch], Array] | None = None,
) -> Callable[[TrainState, Batch, int], tuple[TrainState, StepMetrics]]:
    """Returns train_steps(state, batches, n_steps) -> (state, metrics), one call to the device.

    batches: arrays (N, B, ...), of which the first n_steps <= N are used. metrics: arrays (N,),
    zero for unused steps. `state` is donated: its memory is reused, the old one is gone.
    """
    gradient = make_gradient(model, micro_batch_size, mesh, teacher)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        # The key of this step. With the layer and the row's number it decides every mask.
        dropout_key = jax.random.fold_in(jax.random.key(seed), state.step)
        loss, grads = gradient(state.params, batch, dropout_key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = StepMetrics(loss, global_norm(grads))
        return sharding.constrain(TrainState(state.step + 1, params, opt_state), mesh), metrics

    def train_steps(
        state: TrainState, batches: Batch, n_steps: int
    ) -> tuple[TrainState, StepMetrics]:
        def body(i: Any, carry: tuple[TrainState, StepMetrics]) -> tuple[TrainState, StepMetrics]:
            state, history = carry
            state, metrics = train_step(state, jax.tree.map(lambda x: x[i], batches))
            return state, jax.tree.map(lambda h, m: h.at[i].set(m), history, metrics)  # h[i] = m

        empty = jnp.zeros(batches["targets"].shape[0], jnp.float32)
        state, history = lax.fori_loop(0, n_steps, body, (state, StepMetrics(empty, empty)))
        return state, sharding.replicate(history, mesh)

    # On a CPU n_steps is an argument of the program, which is compiled once. On a GPU it is a
    # constant: a loop of unknown length would wait for the host at every step.
    static = () if devices.on_cpu() else ("n_steps",)
    options = devices.compiler_options()
    return jax.jit(train_steps, donate_argnums=0, static_argnames=static, compiler_options=options)

"""The train step: loss, gradient, update, many times per call to the device.

A batch is one dict for every model: `tokens` (B, T) int32, `targets` (B, T) int32 and
`loss_weights` (B, T) float32, zero where a target does not count (padding). Models with an encoder
also get `source` and `source_mask`. Everything random is a pure function of the seed and the step,
so a run that stops and resumes repeats itself bit for bit.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.sharding import Mesh

from gptjax.kernels.cross_entropy import token_losses
from gptjax.models import Model
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
    """(sum of weighted losses in nats, sum of weights). With a key, dropout is on.

    rows_B are then the numbers that the rows have in the batch of the step, by default 0 ... B - 1.
    Sums, not means: they add up exactly over micro-batches, devices and padding.
    """
    rngs = None
    if dropout_key is not None:
        rngs = {"dropout": dropout_key}
        rows_B = jnp.arange(len(batch["targets"])) if rows_B is None else rows_B
    source = {name: batch[name] for name in ("source", "source_mask") if name in batch}
    logits_BTV, _ = model.apply(
        {"params": params}, batch["tokens"], rows_B=rows_B, rngs=rngs, **source
    )
    # -log p(target): zero if the model was sure of the right token, ln V if it knows nothing.
    losses_BT = token_losses(logits_BTV, batch["targets"])
    return jnp.sum(losses_BT * batch["loss_weights"]), jnp.sum(batch["loss_weights"])


def make_gradient(
    model: Model, micro_batch_size: int, mesh: Mesh | None = None
) -> Callable[[Params, Batch, Array], tuple[Array, Params]]:
    """Returns gradient(params, batch, dropout_key) -> (mean loss, its gradient).

    The batch is processed in micro-batches whose gradients add up, so that the activations of a
    large batch need not fit in memory (or, on a CPU, in its caches) at once.
    """

    def loss(params: Params, batch: Batch, key: Array, rows_B: Array) -> tuple[Array, Array]:
        return cross_entropy(model, params, batch, key, rows_B)

    # Several devices: each keeps a part of the parameters, and gathers the rest for use.
    loss = sharding.gather_for_use(loss, mesh, model.dtype)
    loss_and_gradient = jax.value_and_grad(loss, has_aux=True)

    def gradient(params: Params, batch: Batch, dropout_key: Array) -> tuple[Array, Params]:
        batch_size = batch["targets"].shape[0]
        n_micro = batch_size // micro_batch_size
        if n_micro == 1:
            rows_B = jnp.arange(batch_size)
            (loss, weight), grads = loss_and_gradient(params, batch, dropout_key, rows_B)
            grads = sharding.constrain(grads, mesh)
            return loss / weight, jax.tree.map(lambda g: g / weight, grads)

        # Micro-batch i has rows i, i + n_micro, ...: neighbouring rows are on one device, and so
        # every device computes its share of every micro-batch.
        def split(x: Array) -> Array:
            return x.reshape(micro_batch_size, n_micro, *x.shape[1:]).swapaxes(0, 1)

        def accumulate(sums: Any, rows_and_micro_batch: tuple[Array, Batch]) -> tuple[Any, None]:
            rows_B, micro_batch = rows_and_micro_batch
            (loss, weight), grads = loss_and_gradient(params, micro_batch, dropout_key, rows_B)
            grads = sharding.constrain(grads, mesh)
            return jax.tree.map(jnp.add, sums, (loss, weight, grads)), None

        zeros = (jnp.float32(0), jnp.float32(0), jax.tree.map(jnp.zeros_like, params))
        micro_batches = jax.tree.map(split, (jnp.arange(batch_size), batch))
        (loss, weight, grads), _ = lax.scan(accumulate, zeros, micro_batches)
        return loss / weight, jax.tree.map(lambda g: g / weight, grads)

    return gradient


def make_train_steps(
    model: Model,
    optimizer: optax.GradientTransformation,
    micro_batch_size: int,
    seed: int,
    mesh: Mesh | None = None,
) -> Callable[[TrainState, Batch, int], tuple[TrainState, StepMetrics]]:
    """Returns train_steps(state, batches, n_steps) -> (state, metrics), one call to the device.

    batches: arrays (K, B, ...), of which the first n_steps <= K are used. metrics: arrays (K,).
    `state` is donated: its memory is reused for the new one.
    """
    gradient = make_gradient(model, micro_batch_size, mesh)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        # A key of this step alone. With the row's number and the layer it decides every mask.
        dropout_key = jax.random.fold_in(jax.random.key(seed), state.step)
        loss, grads = gradient(state.params, batch, dropout_key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = StepMetrics(loss, optax.tree.norm(grads))
        return sharding.constrain(TrainState(state.step + 1, params, opt_state), mesh), metrics

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

    # On a CPU the number of steps is an argument of the program, so one program serves every
    # number with the same bits. A GPU runs a loop of known length without asking the host.
    static = () if devices.on_cpu() else ("n_steps",)
    options = compiler_options(devices.backend())
    return jax.jit(train_steps, donate_argnums=0, static_argnames=static, compiler_options=options)


def compiler_options(backend: str) -> dict[str, Any]:
    """XLA's options for the train step.

    On a GPU cuBLASLt multiplies matrices: it adds biases and applies ReLU itself, and there are no
    Triton tilings to try, which is most of the compile time.
    """
    return {"xla_gpu_enable_triton_gemm": False} if backend == "gpu" else {}

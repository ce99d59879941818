"""Quantization-aware training: fine-tuning with weights that are rounded in the forward pass.

Jacob et al. 2018 (arXiv:1712.05877), for weights only. The gradient passes straight through the
rounding: Bengio et al. 2013 (arXiv:1308.3432).
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from rich.progress import track

from gptjax import optim, training
from gptjax.config import Config
from gptjax.data import dataset as data
from gptjax.data.dataset import Data
from gptjax.errors import TrainingDiverged
from gptjax.models import Model
from gptjax.quantization.quant_array import Format, dequantize_params, quantize_params
from gptjax.runs import teachers
from gptjax.scale import devices

LEARNING_RATE_FACTOR, LOW_LEARNING_RATE_FACTOR = 0.1, 0.4
"""The fine-tuning starts at this share of the learning rates that the run was trained with. Ternary
and int2 weights move further."""


def straight_through(params: Any, form: Format) -> Any:
    """The parameters rounded to a format, with the gradient of a function that does not round.

    The derivative of rounding is zero almost everywhere, so the gradient leaves it out.
    """
    rounded = dequantize_params(quantize_params(lax.stop_gradient(params), form))
    return jax.tree.map(lambda p, r: p + lax.stop_gradient(r - p), params, rounded)


@dataclass(frozen=True)
class FakeQuantized:
    """A model that computes with its float32 parameters rounded to a format."""

    model: Model
    format: Format

    @property
    def dtype(self) -> Any:
        return self.model.dtype

    @property
    def config(self) -> Any:
        return self.model.config

    def apply(self, variables: dict[str, Any], *args: Any, **options: Any) -> Any:
        params = straight_through(variables["params"], self.format)
        return self.model.apply({"params": params}, *args, **options)


def fine_tune(
    model: Model,
    params: Any,
    dataset: Data,
    config: Config,
    form: Format,
    step: int,
    n_steps: int,
    teacher: Any = None,
) -> Any:
    """The float32 parameters after n_steps of training with rounded weights.

    Trains on the batches that follow `step` of the run. The learning rates fall linearly to zero.
    FLOAT32 as the format rounds nothing. teacher: float32 parameters, whose probabilities are half
    of what is learned. Raises TrainingDiverged for a loss that is not finite.
    """
    factor = LOW_LEARNING_RATE_FACTOR if form.bits in ("ternary", 2) else LEARNING_RATE_FACTOR
    optim_config = dataclasses.replace(
        config.optim,
        learning_rate=factor * config.optim.learning_rate,
        muon_learning_rate=factor * config.optim.muon_learning_rate,
        schedule="linear",
        decay_fraction=1.0,
        final_fraction=0.0,
        warmup_steps=0,
    )
    tokens_per_sequence = dataset.tokens_per_sequence(config)
    micro_batch_size = devices.micro_batch_size(config.train, config.model, tokens_per_sequence)
    optimizer = optim.build(optim_config, n_steps)
    rounded: Any = FakeQuantized(model, form)
    teach = teachers.mean_probabilities([(model, teacher)]) if teacher is not None else None
    train_steps = training.make_train_steps(
        rounded, optimizer, micro_batch_size, config.seed, teacher=teach
    )
    # A copy, because train_steps donates its state. Jitted, so that all of it is placed as what
    # train_steps returns: else the second step would be compiled again.
    copied = jax.jit(lambda p: training.init_state(jax.tree.map(jnp.copy, p), optimizer))
    state = copied(params)
    for i in track(range(step, step + n_steps), "fine-tuning", transient=True):
        batches = data.training_batches(dataset, config, range(i, i + 1), 1)
        state, metrics = train_steps(state, batches, 1)
        if not np.isfinite(metrics.loss[0]):
            raise TrainingDiverged(
                f"fine-tuning step {i}: loss {metrics.loss[0]}; nothing is saved"
            )
    return state.params

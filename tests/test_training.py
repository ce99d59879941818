"""The train step and the evaluation: what they compute, and that it is always the same."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import MODERN, TINY, VOCAB_SIZE

from gptjax import evaluation, models, optim, training
from gptjax.config import BigramConfig, Config, GPTConfig, OptimConfig, TrainConfig
from gptjax.data import dataset as data
from gptjax.data import texts
from gptjax.data.tokenizer import ByteTokenizer

ONE_LAYER = dataclasses.replace(TINY, n_layer=1)
TEXT = np.random.default_rng(0).integers(0, VOCAB_SIZE, 1000).astype(np.uint16)
DATA = texts.TextData(TEXT, TEXT, ByteTokenizer(), "random", "")


def batches(n: int, capacity: int, batch_size: int = 4, block_size: int = 16) -> training.Batch:
    config = Config(BigramConfig(block_size), train=TrainConfig(batch_size=batch_size), seed=1)
    return data.training_batches(DATA, config, range(n), capacity)


@functools.cache
def first_params(config: GPTConfig) -> Any:
    return jax.device_get(models.init(models.GPT(config, VOCAB_SIZE), seed=1))


def start(config: GPTConfig, optimizer: optax.GradientTransformation) -> training.TrainState:
    return training.init_state(first_params(config), optimizer)


def runs(
    config: GPTConfig, micro: int, dispatches: list[list[int]], optimizer: Any = None
) -> list[tuple[training.TrainState, np.ndarray]]:
    """Trains for sum(lengths) steps for each lengths; returns the states and the losses."""
    optimizer = optimizer or optim.build(OptimConfig(learning_rate=1e-2), 100)
    model = models.GPT(config, VOCAB_SIZE)
    train_steps = training.make_train_steps(model, optimizer, micro, seed=1)
    whole, results = Config(config, train=TrainConfig(batch_size=4), seed=1), []
    for lengths in dispatches:
        state, losses, step = start(config, optimizer), [], 0
        for n in lengths:
            chunk = data.training_batches(DATA, whole, range(step, step + n), steps_per_dispatch=8)
            state, metrics = train_steps(state, chunk, n)
            losses.extend(np.asarray(metrics.loss)[:n])
            step += n
        results.append((state, np.array(losses)))
    return results


def test_one_golden_step():
    """Fixed numbers: a change of model, data order, dropout or optimizer must be on purpose."""
    config = GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=16, dropout=0.2)
    model = models.GPT(config, VOCAB_SIZE)
    optimizer = optim.build(OptimConfig(learning_rate=1e-2), 100)
    train_steps = training.make_train_steps(model, optimizer, micro_batch_size=2, seed=1)
    state, metrics = train_steps(start(config, optimizer), batches(2, 2), 2)
    assert int(state.step) == 2
    np.testing.assert_allclose(metrics.loss, GOLDEN_LOSS, rtol=1e-5)
    np.testing.assert_allclose(metrics.grad_norm, GOLDEN_GRAD_NORM, rtol=1e-4)


GOLDEN_LOSS = [3.0949748, 3.0776954]
GOLDEN_GRAD_NORM = [0.5983169, 0.5309399]


@pytest.mark.slow
@pytest.mark.parametrize(("config", "name"), [(TINY, "adamw"), (MODERN, "muon")])
def test_overfits_one_batch(config, name):
    model = models.GPT(config, VOCAB_SIZE)
    optimizer = optim.build(OptimConfig(name=name, learning_rate=1e-2), 300)
    train_steps = training.make_train_steps(model, optimizer, micro_batch_size=4, seed=1)
    one = batches(1, 1)
    repeated = jax.tree.map(lambda x: np.repeat(x, 300, axis=0), one)
    _, metrics = train_steps(start(config, optimizer), repeated, 300)
    assert metrics.loss[0] > 2.5
    assert metrics.loss[-1] < 0.1


@pytest.mark.parametrize("config", [TINY, MODERN], ids=["seed", "modern"])
def test_no_nan_is_computed_in_passing(config):
    """JAX_DEBUG_NANS=1 stops at every NaN, also of placeholders and of unused steps."""
    model, optimizer = models.GPT(config, VOCAB_SIZE), optim.build(OptimConfig(), 2)
    with jax.debug_nans(True):
        train_steps = training.make_train_steps(model, optimizer, micro_batch_size=2, seed=1)
        _, metrics = train_steps(start(config, optimizer), batches(1, 2), 1)
    assert metrics.loss[0] > 0


@pytest.mark.slow
def test_micro_batches_add_up_to_the_batch():
    """Gradients over 2 x 2 and 1 x 4 sequences agree; SGD, whose step shows them."""
    (state, losses), (state_4, losses_4) = (
        runs(ONE_LAYER, micro, [[3]], optax.sgd(0.1))[0] for micro in (2, 4)
    )
    np.testing.assert_allclose(losses, losses_4, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        state.params,
        state_4.params,
    )


@pytest.mark.slow
def test_ragged_weights_are_exact_over_micro_batches():
    """A mean over targets, not over micro-batches: rows of padding must not dilute it."""
    batch = batches(1, 1)
    batch["loss_weights"][0, 0] = 0.0
    batch["loss_weights"][0, 1, 5:] = 0.0
    model, optimizer = models.GPT(ONE_LAYER, VOCAB_SIZE), optax.sgd(0.1)
    whole, _ = jax.jit(partial(training.cross_entropy, model))(
        start(ONE_LAYER, optimizer).params, {k: v[0] for k, v in batch.items()}
    )
    for micro in (1, 4):
        train_steps = training.make_train_steps(model, optimizer, micro, seed=1)
        _, metrics = train_steps(start(ONE_LAYER, optimizer), batch, 1)
        assert metrics.loss[0] == pytest.approx(float(whole) / (5 + 2 * 16), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("micro", [2, 4])
def test_dispatches_of_any_length_give_the_same_bits(micro):
    config = GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=16, dropout=0.2)
    first, *others = runs(config, micro, [[6], [1] * 6, [2, 3, 1]])
    for state_and_losses in others:
        jax.tree.map(np.testing.assert_array_equal, state_and_losses, first)


@pytest.mark.slow
def test_dropout_draws_anew_each_step_and_row_whatever_the_micro_batch():
    """With a learning rate of zero, only dropout can change the loss of the same row."""
    config = GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=16, dropout=0.5)
    model, optimizer = models.GPT(config, VOCAB_SIZE), optax.sgd(0.0)
    one = batches(1, 1, batch_size=1)
    same = jax.tree.map(lambda x: np.tile(x, (3, 2, 1)), one)  # 3 steps of 2 equal rows
    seen = []
    programs = [training.make_train_steps(model, optimizer, micro, seed=1) for micro in (1, 2)]
    for weights in ([1, 0], [0, 1], [1, 1]):
        weighed = same | {"loss_weights": same["loss_weights"] * np.array(weights)[:, None]}
        for train_steps in programs:
            _, metrics = train_steps(start(config, optimizer), weighed, 3)
            seen.append(np.asarray(metrics.loss))
    first, second, both = seen[::2]
    assert len({*first.tolist(), *second.tolist()}) == 6
    np.testing.assert_allclose(both, (first + second) / 2, rtol=1e-6)
    np.testing.assert_allclose(seen[1::2], seen[::2], rtol=1e-6)


@pytest.mark.slow
def test_evaluation_is_exact_over_the_whole_split():
    """The mean over all targets but the first, whatever the batch size, ragged end included."""
    model = models.GPT(TINY, VOCAB_SIZE)
    params = models.init(model, seed=1)
    text = TEXT[:211]
    apply = jax.jit(model.apply)
    total = 0.0
    for first in range(0, 210, 16):
        window = text[first : first + 17].astype(np.int32)
        logits, _ = apply({"params": params}, window[None, :-1])
        logp = np.asarray(jax.nn.log_softmax(logits[0]), np.float64)
        total -= logp[np.arange(len(window) - 1), window[1:]].sum()
    evaluate = evaluation.make_evaluate(model)
    for batch_size in (1, 3, 64):
        loss = evaluate(params, texts.whole_split(text, 16, batch_size))
        assert loss == pytest.approx(total / 210, rel=1e-6)


EVALUATE_ON_ALL_DEVICES = """
import json, sys
import jax, numpy as np
from gptjax import evaluation, models, training
from gptjax.data import texts
from gptjax.scale import sharding
from gptjax.scale.mesh import make_mesh, put
from gptjax.config import Config, GPTConfig, TrainConfig
config = GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=16)
model = models.GPT(config, 20)
text = np.random.default_rng(0).integers(0, 20, 1003).astype(np.uint16)
mesh = make_mesh(Config(config, train=TrainConfig(batch_size=8)))
params = models.init(model, seed=1)
params = jax.device_put(params, sharding.shardings(params, mesh))
groups = (put(g, 8, mesh) for g in texts.whole_split(text, 16, 8))
print(json.dumps([mesh.size, evaluation.make_evaluate(model, mesh)(params, groups)]))
"""


@pytest.mark.slow
def test_one_device_and_eight_evaluate_alike(capsys: pytest.CaptureFixture[str]):
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-c", EVALUATE_ON_ALL_DEVICES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    exec(EVALUATE_ON_ALL_DEVICES, {})  # this process has one
    (eight, loss), (one, expected) = map(json.loads, (done.stdout, capsys.readouterr().out))
    assert (eight, one) == (8, 1)
    assert loss == pytest.approx(expected, rel=1e-6)


def test_all_finite():
    tree = {"a": jnp.ones(3), "b": jnp.array([1.0, 2.0])}
    assert evaluation.all_finite(tree)
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        assert not evaluation.all_finite(tree | {"b": jnp.array([1.0, bad])})

"""Schedules, weight decay and who is moved by which optimizer."""

import dataclasses

import jax
import numpy as np
import optax
import optax.contrib
import pytest
from conftest import MODERN, VOCAB_SIZE

from gptjax import models, muon, optim
from gptjax.config import OptimConfig
from gptjax.muon import scale_by_muon

ONE_LAYER = dataclasses.replace(MODERN, n_layer=1)


def rates(config: OptimConfig, max_steps: int = 100) -> list[float]:
    schedule = jax.jit(jax.vmap(optim.schedule(config, max_steps, peak=1.0)))
    return schedule(np.arange(max_steps + 1)).tolist()


def test_an_unknown_name_is_no_other_one():
    for wrong in (OptimConfig(name="lion"), OptimConfig(schedule="step")):  # pyright: ignore
        with pytest.raises(ValueError, match=r"unknown (optimizer 'lion'|schedule 'step')"):
            optim.build(wrong, 10)


def test_constant():
    assert rates(OptimConfig(schedule="constant")) == [1.0] * 101


def test_warm_up_then_linear_decay_over_the_last_part():
    config = OptimConfig(schedule="linear", warmup_steps=10, decay_fraction=0.4, final_fraction=0.1)
    rate = rates(config)
    np.testing.assert_allclose(rate[:10], np.arange(1, 11) / 10)
    assert rate[10:60] == [1.0] * 50
    np.testing.assert_allclose(rate[60:], np.linspace(1.0, 0.1, 41), rtol=1e-5)


def test_cosine_decay():
    rate = rates(OptimConfig(schedule="cosine", final_fraction=0.1))
    assert rate[0] == 1.0
    assert rate[50] == pytest.approx(0.55)
    assert rate[100] == pytest.approx(0.1)
    assert rate == sorted(rate, reverse=True)


def updates(config: OptimConfig, gradient_scale: float = 0.0) -> tuple[dict, dict]:
    """(parameters, their first update), with random gradients of the given scale."""
    params, grads = random_params(0), random_params(1)
    optimizer = optim.build(config, 100)

    @jax.jit
    def first_update(grads: dict, params: dict) -> dict:
        return optimizer.update(grads, optimizer.init(params), params)[0]

    scaled = jax.tree.map(lambda g: np.float32(gradient_scale) * g, grads)
    return params, jax.device_get(first_update(scaled, params))


def random_params(seed: int) -> dict:
    """Arrays with the shapes of a model's parameters."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: models.init(models.GPT(ONE_LAYER, VOCAB_SIZE), seed=0))
    return jax.tree.map(lambda p: rng.standard_normal(p.shape, np.float32), shapes)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_weight_decay_is_for_matrices_only(name):
    config = OptimConfig(name=name, learning_rate=0.5, muon_learning_rate=0.5, weight_decay=0.1)
    params, update = updates(config)
    for p, u in zip(jax.tree.leaves(params), jax.tree.leaves(update), strict=True):
        expected = -0.05 * p if p.ndim == 2 else np.zeros_like(p)
        np.testing.assert_allclose(u, expected, rtol=1e-5)


def test_muon_orthogonalises_the_blocks_and_leaves_the_rest_to_adamw():
    rate = {"learning_rate": 1e-3, "weight_decay": 0.0}
    _, adamw = updates(OptimConfig(**rate), gradient_scale=1.0)
    _, muon = updates(OptimConfig(name="muon", muon_learning_rate=0.02, **rate), gradient_scale=1.0)
    for path, u in jax.tree_util.tree_leaves_with_path(muon):
        if "block_" in str(path) and u.ndim == 2:
            singular = np.linalg.svd(u, compute_uv=False) / 0.02
            assert singular.min() > 0.5
            assert singular.max() < 1.3 * max(1, u.shape[1] / u.shape[0]) ** 0.5
    for part in ("token_embedding", "head", "final_norm"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), muon[part], adamw[part]
        )


def test_clipping_bounds_the_gradient():
    """Adam's first step does not feel the scale of a gradient, so look at its average."""
    config = OptimConfig(grad_clip=1.0)
    optimizer = optim.build(config, 100)
    params = {"w": np.ones((10, 10), np.float32)}
    update = jax.jit(lambda grads: optimizer.update(grads, optimizer.init(params), params))
    _, state = update({"w": np.full((10, 10), 50, np.float32)})
    mu = next(leaf for leaf in jax.tree.leaves(state) if leaf.shape == (10, 10))
    assert np.linalg.norm(mu) == pytest.approx(0.1, rel=1e-4)  # (1 - beta1) * 1.0


@pytest.mark.parametrize("shape", [(12, 12), (8, 40), (40, 8)])
@pytest.mark.parametrize("smallest", [1.0, 1e-3, 1e-9, 0.0])
def test_matrices_of_all_shapes_and_ranks_become_orthogonal(
    shape: tuple[int, int], smallest: float
) -> None:
    """Against the same iteration in float64, by its effect on singular values."""
    rng = np.random.default_rng(0)
    u, s, v = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    s = np.where(np.arange(len(s)) % 2, 1.0, smallest)
    expected = s / np.linalg.norm(s)
    for _ in range(muon.N_ITERATIONS):
        a, b, c = muon.COEFFICIENTS
        expected = a * expected + b * expected**3 + c * expected**5
    (found,) = np.asarray(jax.jit(muon.orthogonalize)((u * s @ v)[None].astype(np.float32)))
    np.testing.assert_allclose(found, u * expected @ v, atol=1e-3)


@pytest.mark.slow
def test_stacks_of_matrices_move_as_each_matrix_alone():
    matrices, grads = (
        {str(i): p for i, p in enumerate(jax.tree.leaves(random_params(seed))) if p.ndim == 2}
        for seed in range(2)
    )
    assert len({p.shape for p in matrices.values()}) > 2
    alone = optax.contrib.muon(0.1, weight_decay=0.1)
    together = optim.stacked(
        optax.chain(
            scale_by_muon(), optax.add_decayed_weights(0.1), optax.scale_by_learning_rate(0.1)
        )
    )
    a, b = jax.jit(lambda: (alone.init(matrices), together.init(matrices)))()
    update = jax.jit(
        lambda a, b: (alone.update(grads, a, matrices), together.update(grads, b, matrices))
    )
    for _ in range(3):
        (expected, a), (found, b) = update(a, b)
        for name in matrices:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)

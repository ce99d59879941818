"""Each part against its formula, written out in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import MODERN, TINY

from gptjax import blocks, layers
from gptjax.blocks import Attention, BlockCache, ShortConv
from gptjax.layers import Dropout, Embed, Linear, Norm

KEY = jax.random.key(0)


def normal(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_linear_is_an_affine_map_with_pytorchs_initialisation():
    x = normal(2, 3, 64)
    y, variables = Linear(50).init_with_output(KEY, x)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    np.testing.assert_allclose(y, x @ np.asarray(kernel) + np.asarray(bias), rtol=1e-5, atol=1e-6)
    bound = 64**-0.5
    for p in (kernel, bias):
        assert jnp.abs(p).max() <= bound
        assert jnp.abs(p).max() > 0.9 * bound
    # The variance of a uniform distribution.
    assert np.var(kernel) == pytest.approx(bound**2 / 3, rel=0.1)


def test_zero_init_starts_at_zero_and_still_learns():
    x = normal(4, 8)
    linear = Linear(5, zero_init=True)
    variables = linear.init(KEY, x)
    assert all((p == 0).all() for p in jax.tree.leaves(variables))
    grads = jax.grad(lambda v: linear.apply(v, x).sum())(variables)
    assert all((g != 0).any() for g in jax.tree.leaves(grads))


def test_layer_norm_and_rms_norm():
    x = 3 * normal(2, 5, 16) + 1
    centred = x - x.mean(-1, keepdims=True)
    layer_norm = centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    rms_norm = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    for config, expected in ((TINY, layer_norm), (MODERN, rms_norm)):
        y, _ = Norm(config).init_with_output(KEY, x)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_embed_gives_the_tables_rows_by_one_hot_and_by_look_up(dtype):
    for rows in (7, layers.ONE_HOT_ROWS + 1):
        embed = Embed(rows, 4, dtype)
        ids = np.array([[0, rows - 1], [3, 3]])
        variables = embed.init(KEY, ids)
        table = variables["params"]["table"].astype(dtype)
        np.testing.assert_array_equal(embed.apply(variables, ids), table[ids])
        grads = jax.grad(lambda v, ids, embed: embed.apply(v, ids).astype(jnp.float32).sum())(
            variables, ids, embed
        )["params"]["table"]
        counts = np.bincount(ids.ravel(), minlength=rows)
        np.testing.assert_array_equal(grads, np.repeat(counts[:, None], 4, axis=1))


def naive_attention(
    params: dict, x: np.ndarray, memory: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """One head at a time, in float64."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    q, k, v = (
        source @ p[name]["kernel"]
        for name, source in (("query", x), ("key", memory), ("value", memory))
    )
    n_head, width = TINY.n_head, TINY.n_embd // TINY.n_head
    heads = []
    for h in range(n_head):
        one = slice(h * width, (h + 1) * width)
        scores = q[..., one] @ k[..., one].swapaxes(-1, -2) / np.sqrt(width)
        weights = np.exp(scores) * mask
        heads.append(weights / weights.sum(-1, keepdims=True) @ v[..., one])
    return np.concatenate(heads, -1) @ p["output"]["kernel"] + p["output"]["bias"]


@pytest.mark.parametrize("crossed", [False, True], ids=["self", "cross"])
def test_attention_equals_a_naive_one(crossed):
    x = normal(2, 5, 16)
    memory = normal(2, 7, 16, seed=2) if crossed else x
    mask = np.random.default_rng(3).random((5, memory.shape[1])) < 0.7
    mask[:, 0] = True  # every query sees something
    attention = Attention(TINY)
    call = {"memory": memory if crossed else None, "mask": mask}
    (y, keys_values), variables = attention.init_with_output(KEY, x, **call)
    expected = naive_attention(variables["params"], x, memory, mask)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    if crossed:  # the keys and values do as well as the memory that they are made of
        again, _ = attention.apply(variables, x, keys_values, mask)
        np.testing.assert_array_equal(again, y)


def test_attention_dropout_zeroes_weights_and_keeps_the_mean():
    config = TINY.__class__(n_layer=1, n_head=2, n_embd=16, block_size=16, dropout=0.5)
    x = normal(1, 16, 16)
    attention = Attention(config)
    variables = attention.init(KEY, x)

    def attend(key):
        return attention.apply(variables, x, rows_B=jnp.arange(1), rngs={"dropout": key})[0]

    outputs = jax.jit(jax.vmap(attend))(jax.random.split(KEY, 4000))
    assert not np.allclose(outputs[0], outputs[1])
    clean, _ = attention.apply(variables, x)
    np.testing.assert_allclose(outputs.mean(0), clean, atol=0.05 * float(np.abs(clean).max()))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_cache_gives_what_all_at_once_gives(batch_size):
    x = normal(batch_size, 10, 16)
    attention = Attention(TINY)
    (whole, _), variables = attention.init_with_output(KEY, x, causal=True)
    cache = BlockCache.empty(batch_size, TINY, jnp.float32)
    pieces = []
    for first, last in ((0, 4), (4, 5), (5, 10)):
        y, (k, v) = attention.apply(variables, x[:, first:last], causal=True, cache=cache)
        pieces.append(y)
        cache = cache._replace(k=k, v=v, length=jnp.int32(last))
    np.testing.assert_allclose(np.concatenate(pieces, 1), whole, rtol=1e-5, atol=1e-6)


def test_attention_refuses_what_it_cannot_combine():
    x = normal(1, 4, 16)
    with pytest.raises(ValueError, match="neither a mask nor a memory"):
        Attention(TINY).init(KEY, x, memory=x, causal=True)
    with pytest.raises(ValueError, match="a cache is for causal"):
        Attention(TINY).init(KEY, x, cache=BlockCache.empty(1, TINY, jnp.float32))


@pytest.mark.parametrize("width", [0, 2, 4])
def test_short_conv_adds_weighted_neighbours_of_the_past(width):
    x = normal(2, 6, 3)
    conv = ShortConv(width)
    assert (conv.init_with_output(KEY, x, causal=True)[0][0] == x).all()
    w = {f"w_{j}": normal(3, seed=j) for j in range(1, width)}
    y, _ = conv.apply({"params": w}, x, causal=True)
    for t in range(6):
        past = sum((w[f"w_{j}"] * x[:, t - j] for j in range(1, width) if t >= j), start=0)
        np.testing.assert_allclose(y[:, t], x[:, t] + past, rtol=1e-6)


@pytest.mark.parametrize("n_target", [1, 63, 64, 100, 256])
def test_causal_attention_in_chunks_is_attention_under_the_causal_mask(n_target):
    x = normal(2, n_target, 16)
    attention = Attention(TINY)
    mask = blocks.causal_mask(jnp.arange(n_target), n_target)
    (masked, _), variables = jax.jit(attention.init_with_output)(KEY, x, mask=mask)
    causal, _ = jax.jit(functools.partial(attention.apply, causal=True))(variables, x)
    np.testing.assert_allclose(causal, masked, rtol=1e-5, atol=1e-6)


def test_rotary_scores_depend_on_the_distance_alone():
    q, k = normal(1, 1, 1, 8), normal(1, 1, 1, 8, seed=2)

    def score(t: int, s: int) -> float:
        turned_q = blocks.rotate(q, *blocks.rotary_angles(jnp.array([t]), 8))
        turned_k = blocks.rotate(k, *blocks.rotary_angles(jnp.array([s]), 8))
        return float((turned_q * turned_k).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), rel=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), rel=1e-2)
    # A rotation keeps lengths.
    turned = blocks.rotate(q, *blocks.rotary_angles(jnp.array([77]), 8))
    assert np.linalg.norm(turned) == pytest.approx(np.linalg.norm(q), rel=1e-5)


def test_dropout_keeps_the_mean_and_drops_the_rate_in_steps_of_a_256th():
    x = jnp.ones((64, 30, 50))  # a width that is no multiple of four
    dropped, rest = 0, 256 - 51
    for seed in range(4):
        y = Dropout(0.2).apply({}, x, jnp.arange(64), rngs={"dropout": jax.random.key(seed)})
        assert set(np.unique(y)) == {np.float32(0), np.float32(256 / rest)}
        dropped += int((y == 0).sum())
    # Five standard deviations of a binomial distribution.
    n, p = 4 * x.size, 51 / 256
    assert abs(dropped - n * p) < 5 * (n * p * (1 - p)) ** 0.5
    # Neighbours, which share a random word, are dropped independently.
    zero = np.asarray(y == 0)
    assert np.mean(zero[..., 1:] & zero[..., :-1]) == pytest.approx(p * p, rel=0.05)
    np.testing.assert_array_equal(Dropout(0.2).apply({}, x, None), x)
    almost_all = Dropout(0.999).apply({}, x, jnp.arange(64), rngs={"dropout": jax.random.key(0)})
    assert np.unique(almost_all).tolist() == [0, 256]

"""Each part against its formula, written out in numpy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import MODERN, TINY

from gptjax import layers
from gptjax.attention import SelfAttention
from gptjax.cache import BlockCache
from gptjax.cross_attention import CrossAttention, EncoderOutput
from gptjax.gpt import Block
from gptjax.kernels.dropout import row_streams
from gptjax.layers import Dropout, Embed, Linear, Norm
from gptjax.rotary import rotary_angles, rotate
from gptjax.short_conv import ShortConv

KEY = jax.random.key(0)


def normal(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def init_with_output(module, *inputs, **options):
    """What the module returns, and its first variables, computed in one program."""
    made = jax.jit(functools.partial(module.init_with_output, KEY, **options))(*inputs)
    return jax.device_get(made)


def test_linear_is_an_affine_map_with_pytorchs_initialisation():
    x = normal(2, 3, 64)
    y, variables = init_with_output(Linear(50), x)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    np.testing.assert_allclose(y, x @ kernel + bias, rtol=1e-5, atol=1e-6)
    bound = 64**-0.5
    for p in (kernel, bias):
        assert 0.9 * bound < np.abs(p).max() <= bound
    # The variance of a uniform distribution.
    assert np.var(kernel) == pytest.approx(bound**2 / 3, rel=0.1)


def test_zero_init_starts_at_zero_and_still_learns():
    x = normal(4, 8)
    linear = Linear(5, zero_init=True)
    _, variables = init_with_output(linear, x)
    assert not any(np.any(p) for p in jax.tree.leaves(variables))
    grads = jax.device_get(jax.jit(jax.grad(lambda v: linear.apply(v, x).sum()))(variables))
    assert all(np.any(g) for g in jax.tree.leaves(grads))


def test_layer_norm_and_rms_norm():
    x = 3 * normal(2, 5, 16) + 1
    centred = x - x.mean(-1, keepdims=True)
    layer_norm = centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    rms_norm = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    for config, expected in ((TINY, layer_norm), (MODERN, rms_norm)):
        y, _ = init_with_output(Norm(config), x)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_embed_gives_the_tables_rows_by_one_hot_and_by_look_up(dtype):
    for rows in (7, layers.ONE_HOT_ROWS + 1):
        embed = Embed(rows, 4, dtype)
        ids = np.array([[0, rows - 1], [3, 3]])

        @jax.jit
        def found(table, ids=ids, embed=embed):
            def total(table):
                y = embed.apply({"params": {"table": table}}, ids)
                return y.astype(jnp.float32).sum(), y

            gradient, y = jax.grad(total, has_aux=True)(table)
            return y, table.astype(dtype)[ids], gradient

        y, expected, gradient = jax.device_get(found(normal(rows, 4)))
        np.testing.assert_array_equal(y, expected)
        counts = np.bincount(ids.ravel(), minlength=rows)
        np.testing.assert_array_equal(gradient, np.repeat(counts[:, None], 4, axis=1))


def naive_attention(
    params: dict, x: np.ndarray, source: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """One head at a time, in float64. mask broadcasts to (B, T, S)."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    q, k, v = (
        of @ p[name]["kernel"] for name, of in (("query", x), ("key", source), ("value", source))
    )
    n_head, width = TINY.n_head, TINY.n_embd // TINY.n_head
    heads = []
    for h in range(n_head):
        one = slice(h * width, (h + 1) * width)
        scores = q[..., one] @ k[..., one].swapaxes(-1, -2) / np.sqrt(width)
        weights = np.exp(scores) * mask
        heads.append(weights / weights.sum(-1, keepdims=True) @ v[..., one])
    return np.concatenate(heads, -1) @ p["output"]["kernel"] + p["output"]["bias"]


def random_mask(n_source: int) -> np.ndarray:
    """(2, S), true at the first position, so that every query sees something."""
    mask_BS = np.random.default_rng(3).random((2, n_source)) < 0.7
    mask_BS[:, 0] = True
    return mask_BS


def test_self_attention_equals_a_naive_one():
    x, mask_BT = normal(2, 7, 16), random_mask(7)
    attention = SelfAttention(TINY, causal=False)
    (y, _), variables = init_with_output(attention, x, mask_BT)
    expected = naive_attention(variables["params"], x, x, mask_BT[:, None])
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_target", [1, 64, 100, 256])
def test_causal_attention_in_chunks_equals_a_naive_one(n_target):
    x = normal(2, n_target, 16)
    attention = SelfAttention(TINY, causal=True)
    (y, _), variables = init_with_output(attention, x)
    expected = naive_attention(variables["params"], x, x, np.tri(n_target))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_cross_attention_equals_a_naive_one():
    x, source, mask_BS = normal(2, 5, 16), normal(2, 7, 16, seed=2), random_mask(7)
    attention = CrossAttention(TINY)
    output = EncoderOutput(source, mask_BS)
    (y, keys_values), variables = init_with_output(attention, x, output, None, None)
    expected = naive_attention(variables["params"], x, source, mask_BS[:, None])
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    # Keys and values of an earlier call serve as well as the output that they were made of.
    later = EncoderOutput(None, mask_BS)
    again, _ = jax.jit(attention.apply)(variables, x, later, keys_values, None)
    np.testing.assert_array_equal(again, y)
    with pytest.raises(ValueError, match="needs the encoder's output, or a cache"):
        jax.eval_shape(attention.apply, variables, x, later, None, None)


def test_attention_dropout_zeroes_weights_and_keeps_the_mean():
    config = TINY.__class__(n_layer=1, n_head=2, n_embd=16, block_size=16, dropout=0.5)
    x = normal(1, 16, 16)
    attention = SelfAttention(config, causal=False)
    (clean, _), variables = init_with_output(attention, x)

    @jax.jit
    @jax.vmap
    def attend(seed):
        streams_B2 = row_streams(jax.random.key(seed), jnp.arange(1))
        return attention.apply(variables, x, streams_B2=streams_B2)[0]

    outputs = np.asarray(attend(np.arange(4000)))
    assert not np.allclose(outputs[0], outputs[1])
    np.testing.assert_allclose(outputs.mean(0), clean, atol=0.05 * float(np.abs(clean).max()))


def test_dropout_can_spare_the_attention_weights():
    """The residual branches keep theirs."""
    config = dataclasses.replace(TINY, dropout=0.5, drop_attention=False)
    x, streams_B2 = normal(2, 16, 16), row_streams(KEY, np.arange(2))
    for module, same in (
        (SelfAttention(config, causal=False), True),
        (Block(config, False), False),
    ):
        (clean, _), variables = init_with_output(module, x)
        noisy, _ = jax.jit(functools.partial(module.apply, streams_B2=streams_B2))(variables, x)
        assert np.allclose(noisy, clean, rtol=1e-5, atol=1e-6) == same


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_cache_gives_what_all_at_once_gives(batch_size):
    x = normal(batch_size, 10, 16)
    attention = SelfAttention(TINY, causal=True)
    (whole, _), variables = init_with_output(attention, x)

    @jax.jit
    def in_pieces(x):
        cache = BlockCache.empty(batch_size, TINY, jnp.float32)
        pieces = []
        for first, last in ((0, 4), (4, 5), (5, 10)):
            y, cache = attention.apply(variables, x[:, first:last], cache=cache)
            pieces.append(y)
            cache = cache.advance(last - first)
        return jnp.concatenate(pieces, 1)

    np.testing.assert_allclose(in_pieces(x), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("width", [0, 2, 4])
def test_short_conv_adds_weighted_neighbours_of_the_past(width):
    x = normal(2, 6, 3)
    conv = ShortConv(width, causal=True)
    assert (init_with_output(conv, x)[0][0] == x).all()
    w = {f"w_{j}": normal(3, seed=j) for j in range(1, width)}
    y = np.asarray(jax.jit(conv.apply)({"params": w}, x)[0])
    for t in range(6):
        past = sum((w[f"w_{j}"] * x[:, t - j] for j in range(1, width) if t >= j), start=0)
        np.testing.assert_allclose(y[:, t], x[:, t] + past, rtol=1e-6)


def test_rotary_scores_depend_on_the_distance_alone():
    q, k = normal(1, 1, 1, 8), normal(1, 1, 1, 8, seed=2)

    turn = jax.jit(lambda x, t: rotate(x, rotary_angles(t[None], 8)))

    def score(t: int, s: int) -> float:
        return float((np.asarray(turn(q, np.array(t))) * np.asarray(turn(k, np.array(s)))).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), rel=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), rel=1e-2)
    # A rotation keeps lengths.
    turned = np.asarray(turn(q, np.array(77)))
    assert np.linalg.norm(turned) == pytest.approx(np.linalg.norm(q), rel=1e-5)


def test_dropout_keeps_the_mean_and_drops_the_rate_in_steps_of_a_256th():
    x = np.ones((64, 30, 50), np.float32)  # a width that is no multiple of four

    @functools.partial(jax.jit, static_argnums=0)
    def dropped_from(rate, seed):
        streams_B2 = row_streams(jax.random.key(seed), np.arange(64))
        return Dropout(rate).apply({}, x, streams_B2)

    dropped, rest = 0, 256 - 51
    for seed in range(4):
        y = np.asarray(dropped_from(0.2, seed))
        assert set(np.unique(y)) == {np.float32(0), np.float32(256 / rest)}
        dropped += int((y == 0).sum())
    # Five standard deviations of a binomial distribution.
    n, p = 4 * x.size, 51 / 256
    assert abs(dropped - n * p) < 5 * (n * p * (1 - p)) ** 0.5
    # Neighbours, which share a random word, are dropped independently.
    zero = y == 0
    assert np.mean(zero[..., 1:] & zero[..., :-1]) == pytest.approx(p * p, rel=0.05)
    assert Dropout(0.2).apply({}, x, None) is x
    assert np.unique(np.asarray(dropped_from(0.999, 0))).tolist() == [0, 256]


@pytest.mark.parametrize("part", ["bias", "table", "conv"])
def test_gradients_over_many_positions_are_summed_in_float32(part):
    """4,096 times 1/256: a sum in bfloat16 would stop at 1, where 1 + 1/256 is rounded to 1."""
    n, dtype = 4096, jnp.bfloat16
    x = np.ones((1, n, 1), dtype)
    module, inputs = {
        "bias": (Linear(1, dtype=dtype), x),
        "table": (Embed(600, 1, dtype), np.zeros((1, n), int)),
        "conv": (ShortConv(2, causal=True), x),
    }[part]

    def loss(params):
        y = module.apply({"params": params}, inputs)
        y = y[0] if part == "conv" else y
        return jnp.sum(y.astype(jnp.float32)) / 256

    shapes = jax.eval_shape(module.init, KEY, inputs)["params"]
    params = jax.tree.map(lambda p: np.ones(p.shape, p.dtype), shapes)
    gradients = jax.device_get(jax.jit(jax.grad(loss))(params))
    name = {"bias": "bias", "table": "table", "conv": "w_1"}[part]
    expected = (n - (part == "conv")) / 256
    np.testing.assert_allclose(gradients[name].sum(), expected, rtol=1e-6)

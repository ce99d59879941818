"""Matrices of small integers, and models made of them: what they compute, and in what memory."""

import dataclasses
import itertools
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import MODERN, TINY, VOCAB_SIZE
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax import layers, models
from gptjax.config import BigramConfig, Config, GPTConfig
from gptjax.config_encoders import EncoderDecoderConfig, SpeechConfig
from gptjax.data.tokenizer import CharTokenizer
from gptjax.decoding import sampling
from gptjax.quantization import quant_array
from gptjax.quantization.fine_tuning import straight_through
from gptjax.quantization.quant_array import CHUNK, FLOAT32, Format, QuantArray, quantize_params
from gptjax.runs import checkpoints, run_directory
from gptjax.scale.devices import FEW_ROWS

INT8, INT4, BF16, W8A8 = Format(8), Format(4, group=32), Format(16), Format(8, activation_bits=8)
OLD_INT4, INT3, INT2, TERNARY = Format(4, 32, odd=False), Format(3), Format(2), Format("ternary")
GREEDY = sampling.Sampler(temperature=0)
# Compiled: operation by operation, each would be compiled for each shape.
apply = jax.jit(lambda model, *args, **inputs: model.apply(*args, **inputs)[0], static_argnums=0)
quantize_matrix = jax.jit(quant_array.quantize, static_argnums=(1, 2))
dequantize_params = jax.jit(quant_array.dequantize_params)
multiply = jax.jit(lambda x, q: x @ q)
dense = jax.jit(QuantArray.dequantize)


@jax.jit
def products(q: QuantArray, *factors: np.ndarray) -> list[tuple[jax.Array, jax.Array]]:
    """Of each x and the matrix, in float32 and in bfloat16."""
    return [(x_MK @ q, x_MK.astype(jnp.bfloat16) @ q) for x_MK in factors]


@jax.jit
def uses_of_table(q: QuantArray, x_MD: np.ndarray, *ids: np.ndarray) -> Any:
    return q.T.dequantize(), [q[i] for i in ids], [x_MD @ q.T, x_MD[:1] @ q.T]


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def quantized_shapes(k: int, n: int, form: Format) -> Any:
    matrix_KN = jax.ShapeDtypeStruct((k, n), np.float32)
    return jax.eval_shape(partial(quant_array.quantize, form=form), matrix_KN)


def integers(q: QuantArray) -> np.ndarray:
    """The integers (K, N) behind the words, by the layout that quant_array documents."""
    form, words = q.format, np.asarray(q.words_RN, np.int64)
    n_columns = words.shape[1]
    if form.bits == "ternary":
        number = (words * 3**20 + 2**31) >> 32  # of 20 digits, each -1, 0 or 1
        digits = []
        for _ in range(20):
            digits.insert(0, (number + 1) % 3 - 1)
            number = (number - digits[0]) // 3
        return np.stack(digits, axis=1).reshape(-1, n_columns)
    places = np.arange(form.per_word)[:, None] * form.bits
    fields = (words[:, None] >> places & (2**form.bits - 1)).reshape(-1, n_columns)
    signed = np.where(fields < 2 ** (form.bits - 1), fields, fields - 2**form.bits)
    return 2 * signed + 1 if form.bits < 4 or (form.bits == 4 and form.odd) else signed


def scales(q: QuantArray) -> np.ndarray:
    """The scale (K, N) of each integer, float64."""
    scale_GN = np.asarray(q.scale_GN).astype(np.float64)
    n_rows = q.words_RN.shape[0] * q.format.per_word
    return np.repeat(scale_GN, n_rows // len(scale_GN), axis=0)


def levels(form: Format) -> np.ndarray:
    """Every integer of a format."""
    if form.bits == "ternary":
        return np.array([-1, 0, 1])
    if form in (INT8, OLD_INT4) or form.bits == 8:
        return np.arange(-(2 ** (form.bits - 1)), 2 ** (form.bits - 1))
    return np.arange(1 - 2**form.bits, 2**form.bits, 2)


def n_bytes(params: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))


def params_of(model: models.Model) -> Any:
    """Random parameters, none at zero. To initialize them would compile each shape."""
    rng = np.random.default_rng(1)

    def made(path: tuple[Any, ...], p: Any) -> np.ndarray:
        # About those of a trained model: others write the same tokens after any prompt.
        name, normal = path[-1].key, rng.standard_normal(p.shape)
        return np.float32((1 if name == "table" else 0.4) * normal + (name == "scale"))

    return jax.tree_util.tree_map_with_path(made, models.shapes(model))


# Each format and shape is compiled, so a test goes through all of them with a few seeds.
SETTINGS = settings(max_examples=3, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
# All levels of a column, a part of them (two chunks long, odd levels), and another arithmetic.
# What else formats differ in is in the words, whose integers a test of their own compares.
FORMS = (INT8, Format(4, group=64), TERNARY)
ROWS = (FEW_ROWS, FEW_ROWS + 1)


@SETTINGS
@given(seed=seeds)
def test_every_integer_survives_packing(seed: int) -> None:
    for form in (OLD_INT4, INT4, INT8, Format(8, group=256), INT3, INT2, Format("ternary", 60)):
        rng, group = np.random.default_rng(seed), form.group
        every = levels(form)
        every = np.tile(every, {3: 20, 4: 8, 8: 5, 16: 2, 256: 1}[len(every)])
        permuted = [np.stack([rng.permutation(every) for _ in range(5)], axis=1) for _ in range(3)]
        values_KN = np.concatenate(permuted)  # each integer in each of three groups
        n_groups = len(values_KN) // group if group else 1
        sign = [1] if form.is_balanced else [-1, 1]
        scale_GN = rng.choice(sign, (n_groups, 5)) * 2.0 ** rng.integers(-9, 3, (n_groups, 5))
        matrix_KN = values_KN * np.repeat(scale_GN, len(values_KN) // n_groups, axis=0)
        q = quantize_matrix(matrix_KN.astype(np.float32), form)
        assert q.words_RN.dtype == jnp.int32
        assert q.words_RN.shape == (len(values_KN) // form.per_word, 5)
        assert q.scale_GN.dtype == jnp.bfloat16
        np.testing.assert_array_equal(np.asarray(q.scale_GN).astype(np.float32), scale_GN)
        np.testing.assert_array_equal(integers(q), values_KN)
        np.testing.assert_array_equal(dense(q), matrix_KN)
        assert q.size == matrix_KN.size


def test_a_word_holds_any_twenty_ternary_digits() -> None:
    """The digits that are hardest to tell apart are those next to a long row of the largest."""
    rng = np.random.default_rng(0)
    digits_RP = rng.integers(-1, 2, (3000, 20))
    for i in range(20):
        for j, first in enumerate((-1, 0, 1)):
            digits_RP[6 * i + j] = np.where(np.arange(20) == i, first, 1)
            digits_RP[6 * i + 3 + j] = np.where(np.arange(20) == i, first, -1)
    words_RN = jax.jit(quant_array._pack, static_argnums=1)(digits_RP.reshape(-1, 1), TERNARY)
    unpacked = jax.jit(quant_array._unpack, static_argnums=1)(words_RN, TERNARY)
    np.testing.assert_array_equal(unpacked.reshape(-1, 20), digits_RP)


def test_a_word_holds_as_many_numbers_as_fit() -> None:
    forms = (INT8, INT4, INT3, INT2, TERNARY)
    assert [form.per_word for form in forms] == [4, 8, 10, 16, 20]
    n_words = [quantized_shapes(640, 8, form).words_RN.size for form in forms]
    assert n_words == [640 * 8 // form.per_word for form in forms]


@SETTINGS
@given(seed=seeds)
def test_a_scale_has_the_least_squared_error(seed: int) -> None:
    """Of sixteen that are tried; the largest of them clips nothing."""
    for form, fan_in in itertools.product((INT4, INT3), (1, 70)):
        matrix_KN = gaussian(fan_in, 6, seed=seed) ** 3
        q = quantize_matrix(matrix_KN, form)
        n_padded = q.words_RN.shape[0] * form.per_word
        group = form.group or n_padded
        grouped = np.pad(matrix_KN, ((0, n_padded - fan_in), (0, 0))).reshape(-1, group, 6)
        every = levels(form)
        errors = []
        for i in range(1, 17):
            scale_GN = np.abs(grouped).max(1) / every.max() * i / 16
            scale_GN = scale_GN.astype(jnp.bfloat16).astype(np.float32)
            off = np.abs(grouped[..., None] - every * scale_GN[:, None, :, None]).min(-1)
            errors.append((off**2).sum(1))
        rounded = (integers(q) * scales(q)).reshape(grouped.shape)
        error_GN = ((rounded - grouped) ** 2).sum(1)
        np.testing.assert_allclose(error_GN, np.min(errors, axis=0), 1e-3, 1e-6)


@SETTINGS
@given(seed=seeds)
def test_a_ternary_scale_is_as_good_as_bitnet_s_or_better(seed: int) -> None:
    """BitNet's is the mean magnitude. The best for these digits is the mean of what they are."""
    matrix_KN = gaussian(80, 6, seed=seed)
    q = quantize_matrix(matrix_KN, TERNARY)
    mean_N = np.abs(matrix_KN).mean(0)
    of_bitnet = np.clip(np.round(matrix_KN / mean_N), -1, 1)
    scale_N = (matrix_KN * of_bitnet).sum(0) / np.abs(of_bitnet).sum(0)
    np.testing.assert_allclose(scales(q)[0], scale_N, 2**-8)
    np.testing.assert_array_equal(integers(q), np.clip(np.round(matrix_KN / scales(q)), -1, 1))
    made = np.asarray(dense(q)), of_bitnet * mean_N
    error, theirs = (((m - matrix_KN) ** 2).sum() for m in made)
    assert error < theirs


def test_four_levels_are_nearly_as_good_as_they_can_be() -> None:
    """0.1188 is the least squared error of four evenly spaced levels for a Gaussian (Max 1960)."""
    for fan_in in (512, 500):  # the second is padded
        matrix_KN = gaussian(fan_in, 200)
        made = np.asarray(dense(quantize_matrix(matrix_KN, INT2)))
        error = np.mean((made - matrix_KN) ** 2)
        assert 0.115 < error < 0.122


@SETTINGS
@given(seed=seeds)
def test_no_number_is_off_by_more_than_half_a_step(seed: int) -> None:
    """Except those opposite to the largest: -lowest is no integer of the format."""
    for form, fan_in in itertools.product((INT8, Format(8, group=64), OLD_INT4), (1, 96, 200)):
        matrix_KN = gaussian(fan_in, 40, seed=seed) ** 3
        matrix_KN[:, 0] = np.sign(matrix_KN[:, 0])  # as many of the largest as of its opposite
        q = quantize_matrix(matrix_KN, form)
        column = -(-fan_in // CHUNK) * CHUNK
        group = min(form.group or column, column)
        n_padded = -(-fan_in // group) * group
        assert q.words_RN.shape == (n_padded // form.per_word, 40)
        assert q.scale_GN.shape == (n_padded // group, 40)
        made = np.asarray(dense(q))
        assert made.shape == matrix_KN.shape
        assert q.size == matrix_KN.size
        scale_KN, lowest = scales(q), int(levels(form).min())
        assert not integers(q)[fan_in:].any()
        padded = np.pad(np.abs(matrix_KN), ((0, n_padded - fan_in), (0, 0)))
        largest_GN = padded.reshape(-1, group, 40).max(1)
        of_bf16 = 2.0**-8  # largest relative error of rounding the scale
        np.testing.assert_allclose(np.abs(scale_KN[::group]), largest_GN / -lowest, of_bf16)
        off = np.abs(made - matrix_KN) / np.abs(scale_KN[:fan_in])
        clips = matrix_KN / scale_KN[:fan_in] > -lowest - 1
        assert off[~clips].max() <= 0.5 + 1e-5
        assert off.max() <= 1 - lowest * of_bf16 + 1e-5
        assert clips.any() == (fan_in > 1)


@SETTINGS
@given(seed=seeds)
def test_zeros_stay_zeros(seed: int) -> None:
    """In formats of even levels also a single one."""
    for form in (INT8, INT4, INT2, TERNARY):
        matrix_KN = gaussian(70, 6, seed=seed)
        matrix_KN[:, 3] = 0
        if form != INT2:
            matrix_KN[32:64, 4] = 0
        if form in (INT8, TERNARY):
            matrix_KN[5, 5] = 0
        made = np.asarray(dense(quantize_matrix(matrix_KN, form)))
        np.testing.assert_array_equal(made[matrix_KN == 0], 0)
        assert np.isfinite(made).all()
        zeros = quantize_matrix(np.zeros((70, 6), np.float32), form)
        np.testing.assert_array_equal(dense(zeros), np.zeros((70, 6)))
        product = multiply(np.ones((2, 70), np.float32), zeros)
        np.testing.assert_array_equal(product, np.zeros((2, 6)))


@pytest.mark.slow
@SETTINGS
@given(seed=seeds)
def test_a_product_is_that_of_the_dequantized_matrix(seed: int) -> None:
    for form in FORMS:
        q = quantize_matrix(gaussian(100, 24, seed=seed), form)
        factors = [gaussian(n_rows, 100, seed=seed + 1) for n_rows in ROWS]
        matrix_KN = np.asarray(dense(q), np.float64)
        for x_MK, (y_MN, half_MN) in zip(factors, products(q, *factors), strict=True):
            expected = x_MK @ matrix_KN
            size = np.abs(expected).max()
            np.testing.assert_allclose(y_MN, expected, 1e-5, 1e-5 * size)
            assert half_MN.dtype == jnp.bfloat16
            np.testing.assert_allclose(np.float32(half_MN), expected, 0, 0.02 * size)


@pytest.mark.parametrize("n_rows", [FEW_ROWS, 40])
def test_a_product_needs_no_jit(n_rows: int) -> None:
    q = quantize_matrix(gaussian(100, 24), INT4)
    x_MK = jnp.asarray(gaussian(n_rows, 100, seed=1))
    expected = np.asarray(x_MK) @ np.asarray(dense(q))
    np.testing.assert_allclose(x_MK @ q, expected, 1e-5, 1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("n_rows", [FEW_ROWS, 40])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_stays_in_its_row(n_rows: int, value: float) -> None:
    """The words of all rows are made to depend on the first."""
    q = quantize_matrix(gaussian(64, 8), INT8)
    x_MK = gaussian(n_rows, 64, seed=1)
    expected = np.asarray(multiply(x_MK, q))
    x_MK[0, 0] = value
    y_MN = np.asarray(multiply(x_MK, q))
    assert not np.isfinite(y_MN[0]).any()
    np.testing.assert_array_equal(y_MN[1:], expected[1:])


@pytest.mark.slow
@SETTINGS
@given(seed=seeds)
def test_a_table_is_looked_up_and_multiplied_with(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids = [rng.integers(0, 50, shape) for shape in [(), (5,), (2, 1, 4)]]
    x_MD = gaussian(40, 40, seed=seed + 1)
    for form in FORMS:
        table_VD = gaussian(50, 40, seed=seed)
        q = quantize_matrix(table_VD, form, True)
        dense_VD = np.asarray(dense(q))
        assert dense_VD.shape == (50, 40)
        assert q.size == table_VD.size
        np.testing.assert_array_equal(dense_VD, dense(quantize_matrix(table_VD.T, form)).T)
        # A scale for each row, not for each column: a large row coarsens no other.
        table_VD[7] *= 1000
        large_VD = np.asarray(dense(quantize_matrix(table_VD, form, True)))
        np.testing.assert_array_equal(np.delete(large_VD, 7, 0), np.delete(dense_VD, 7, 0))
        turned_DV, looked_up, (many_MV, one_1V) = uses_of_table(q, x_MD, *ids)
        np.testing.assert_array_equal(turned_DV, dense_VD.T)
        for i, rows in zip(ids, looked_up, strict=True):
            assert rows.dtype == jnp.float32
            np.testing.assert_array_equal(rows, dense_VD[i])
        expected = x_MD @ dense_VD.T
        np.testing.assert_allclose(many_MV, expected, 1e-4, 1e-4)
        np.testing.assert_allclose(one_1V, expected[:1], 1e-4, 1e-4)


@pytest.mark.slow
@SETTINGS
@given(seed=seeds)
def test_rounded_activations_multiply_as_integers(seed: int) -> None:
    for form in FORMS:
        rng = np.random.default_rng(seed)
        q = quantize_matrix(gaussian(100, 24), form)
        q = dataclasses.replace(q, format=dataclasses.replace(form, activation_bits=8))
        rescaled = (integers(q) * scales(q))[:100]
        factors, products_MN = [], []
        for n_rows in ROWS:
            whole_MK = rng.integers(-127, 128, (n_rows, 100))
            at = np.arange(n_rows), rng.integers(0, 100, n_rows)
            whole_MK[at] = rng.choice([-127, 127], n_rows)
            off_MK = np.where(np.abs(whole_MK) == 127, 0, rng.uniform(-0.4, 0.4, whole_MK.shape))
            step_M1 = 10.0 ** rng.uniform(-4, 2, (n_rows, 1))
            factors.append(np.float32((whole_MK + off_MK) * step_M1))
            if not form.group:  # all of it in integers
                products_MN.append((whole_MK @ integers(q)[:100]) * scales(q)[:1] * step_M1)
            else:
                products_MN.append((whole_MK @ rescaled) * step_M1)
        made = products(q, *factors)
        for x_MK, expected, (y_MN, half_MN) in zip(factors, products_MN, made, strict=True):
            largest_M1 = np.abs(expected).max(1, keepdims=True)
            assert (np.abs(y_MN - expected) <= 1e-5 * largest_M1).all()
            # Without the rounding it would be something else.
            assert (np.abs(x_MK @ rescaled - expected) > 1e-4 * largest_M1).any()
            assert half_MN.dtype == jnp.bfloat16
            assert (np.abs(np.float32(half_MN) - expected) <= 0.03 * largest_M1).all()


@pytest.mark.parametrize("n_rows", [2, 40])
def test_a_vector_of_zeros_has_a_step_too(n_rows: int) -> None:
    q = quantize_matrix(gaussian(64, 8), W8A8)
    x_MK = gaussian(n_rows, 64, seed=1)
    x_MK[1] = 0
    y_MN = np.asarray(multiply(x_MK, q))
    assert not y_MN[1].any()
    assert np.isfinite(y_MN).all()
    assert y_MN[0].all()


@pytest.mark.parametrize(("form", "tiles", "near"), [(INT8, {}, 0.02), (INT4, {0: 32}, 0.2)])
def test_rounding_is_as_good_as_qwix_s(form: Format, tiles: dict[int, int], near: float) -> None:
    """The quantizer that Google publishes for JAX."""
    qwix = pytest.importorskip("qwix", reason="an oracle: pip install qwix")
    qtype = jnp.int8 if form.bits == 8 else jnp.int4
    kwargs = {"channelwise_axes": [1], "tiled_axes": tiles}
    their_rounding = jax.jit(lambda m: qwix.dequantize(qwix.quantize(m, qtype, **kwargs)))
    for seed in range(3):
        matrix_KN = gaussian(256, 192, seed=seed)
        theirs = np.asarray(their_rounding(matrix_KN))
        q = quantize_matrix(matrix_KN, form)
        ours = np.asarray(dense(q))
        assert np.mean((ours - matrix_KN) ** 2) <= 1.03 * np.mean((theirs - matrix_KN) ** 2)
        x_MK = gaussian(16, 256, seed=9)
        difference = np.linalg.norm(np.asarray(multiply(x_MK, q)) - x_MK @ theirs)
        assert difference / np.linalg.norm(x_MK @ theirs) < near


SMALL: dict[str, Any] = {"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 16, "dropout": 0.0}
CASES: dict[str, tuple[models.Model, Format]] = {
    # Ternary: of int4 outside of blocks.
    "modern": (models.GPT(dataclasses.replace(MODERN, n_layer=1), 20), TERNARY),
    "tied, many tokens": (
        models.GPT(GPTConfig(**SMALL, tie_embeddings=True), layers.ONE_HOT_ROWS + 1),
        INT4,
    ),
    "bigram": (models.Bigram(BigramConfig(), 20), INT8),
    "pairs": (
        models.EncoderDecoder(
            EncoderDecoderConfig(
                **SMALL, n_encoder_layer=1, source_block_size=16, share_embeddings=True
            ),
            20,
            20,
        ),
        INT8,
    ),
    "speech": (
        models.SpeechRecognizer(
            SpeechConfig(**SMALL, n_encoder_layer=1, source_block_size=16, n_mels=20), 20
        ),
        INT8,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_any_model_computes_as_with_dequantized_parameters(name: str, tokens: np.ndarray) -> None:
    model, low = CASES[name]
    tokens, params = tokens[:, :8], params_of(model)
    if "many tokens" in name:
        tokens = np.where(tokens % 2, tokens + layers.ONE_HOT_ROWS - 19, tokens)
        assert tokens.max() == layers.ONE_HOT_ROWS
    inputs: dict[str, np.ndarray] = {}
    if isinstance(model, models.EncoderDecoder):
        inputs = {"source": tokens[:, ::-1].copy(), "source_mask": tokens >= 0}
    elif isinstance(model, models.SpeechRecognizer):
        inputs = {"source": gaussian(3, 30, 20), "source_mask": np.arange(30) < [[30], [20], [8]]}
    original = np.asarray(apply(model, {"params": params}, tokens, **inputs))
    for form in (low, BF16):
        small = quantize_params(params, form)
        rounded = dequantize_params(small)
        shapes = jax.tree.map(lambda p: (p.shape, p.dtype), params)
        assert jax.tree.map(lambda p: (p.shape, p.dtype), rounded) == shapes
        assert models.count(small) == models.count(params)
        assert n_bytes(small) < 0.8 * n_bytes(params)
        made = np.asarray(apply(model, {"params": small}, tokens, **inputs))
        expected = np.asarray(apply(model, {"params": rounded}, tokens, **inputs))
        np.testing.assert_allclose(made, expected, 1e-4, 1e-4)
        assert np.abs(made - original).max() > 1e-4  # rounding does change something
    assert quantize_params(params, FLOAT32) is params


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "form", "n_rows"),
    [(TINY, INT8, 2), (MODERN, INT4, FEW_ROWS + 1)],
    ids=["seed-int8", "modern-int4"],
)
def test_the_same_tokens_are_written_as_with_dequantized_parameters(
    config: GPTConfig, tokens: np.ndarray, form: Format, n_rows: int
) -> None:
    model = models.GPT(dataclasses.replace(config, n_layer=1), VOCAB_SIZE)
    params = params_of(model)
    small = quantize_params(params, form)
    prompts = np.concatenate([tokens, tokens[:, ::-1]])[:n_rows, :4]
    made, expected = (
        sampling.complete(model, p, prompts, 24, sampler=GREEDY)  # over the end of the context
        for p in (small, dequantize_params(small))
    )
    assert len({tuple(row) for row in made.tolist()}) == n_rows
    np.testing.assert_array_equal(made, expected)


@pytest.mark.parametrize("form", [TERNARY, BF16], ids=lambda form: str(form.bits))
def test_straight_through_rounds_and_learns_as_if_it_did_not(form: Format) -> None:
    params = {
        "kernel": gaussian(70, 24) ** 3,
        "embedding": {"table": gaussian(24, 70)},
        "bias": gaussian(24),
    }
    rounded = dequantize_params(quantize_params(params, form))

    def loss(params: Any) -> Any:
        y = jnp.tanh(params["embedding"]["table"] @ params["kernel"] + params["bias"])
        return (y**2).sum()

    @jax.jit
    def made(params: Any, rounded: Any) -> Any:
        grads = jax.grad(lambda p: loss(straight_through(p, form)))(params)
        return straight_through(params, form), grads, jax.grad(loss)(rounded)

    through, grads, expected = made(params, rounded)
    jax.tree.map(np.testing.assert_array_equal, through, rounded)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, 1e-6, 1e-6 * np.abs(theirs).max())
        assert np.abs(ours).max() > 0


def heavy(n_layer: int) -> models.GPT:
    """A model of more weights than anything else."""
    config = GPTConfig(n_layer=n_layer, n_head=4, n_embd=128, block_size=32, dropout=0.0)
    return models.GPT(config, 65)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "batch_size", "n_layer"), [(INT4, 1, 1), (INT8, 32, 4)], ids=["int4-1", "int8-32"]
)
def test_decoding_keeps_no_float_copy_of_the_weights(
    form: Format, batch_size: int, n_layer: int
) -> None:
    """XLA would make one ahead of the loop over tokens, and hold it as long as the loop runs."""
    model = heavy(n_layer)
    params = models.shapes(model)
    small = jax.eval_shape(partial(quantize_params, form=form), params)
    cache = tuple(layer._replace(length=jnp.int32(1)) for layer in model.init_cache(batch_size))
    token_B, keys = jnp.zeros(batch_size, jnp.int32), (jax.random.key(0), jnp.int32(0))
    lowered = sampling._decode.lower(model, GREEDY, small, token_B, cache, jnp.int32(16), keys)
    memory: Any = lowered.compile().memory_analysis()
    assert memory.argument_size_in_bytes > n_bytes(small)  # it is measured at all
    assert memory.temp_size_in_bytes < 0.25 * n_bytes(params)  # 5 and 14 %; a copy is 100 %


@pytest.mark.slow
def test_a_loaded_run_writes_without_float_weights(tmp_path: Path) -> None:
    model = models.Bigram(BigramConfig(), 512)
    params = params_of(model)
    tok = CharTokenizer("".join(map(chr, range(40, 552))))
    files = {"format.json": dataclasses.asdict(INT8)}
    origin = {"source": "nowhere", "sha256": ""}
    config = Config(model=model.config)
    with run_directory.new_run(tmp_path / "run") as part:
        small = quantize_params(params, INT8)
        checkpoints.save_finished(part, config, tok, small, origin, files)
    before = jax.live_arrays()
    _, loaded = checkpoints.load_params(tmp_path / "run", model)
    sampling.complete(model, loaded, np.zeros((1, 1), np.int32), 8, sampler=GREEDY)
    known = set(map(id, before))
    grown = sum(a.nbytes for a in jax.live_arrays() if id(a) not in known)
    assert n_bytes(loaded) <= grown < 0.5 * n_bytes(params)


def test_a_group_is_no_longer_than_its_column() -> None:
    whole, longer = (quantized_shapes(40, 3, Format(8, group)) for group in (0, 1 << 20))
    assert longer.words_RN.shape == whole.words_RN.shape
    assert longer.scale_GN.shape == whole.scale_GN.shape

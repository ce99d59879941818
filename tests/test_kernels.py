"""GPU kernels, interpreted on a CPU, against the plain jnp beside them; and dropout's generator."""

import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.extend.core import jaxprs_in_params

from gptjax import fused_attention, models, training
from gptjax.attention import SelfAttention
from gptjax.config import BigramConfig, GPTConfig
from gptjax.errors import UserError
from gptjax.kernels import attention, choice, dropout, layer_norm
from gptjax.kernels.attention_tiles import Options, Tiling
from gptjax.kernels.cross_entropy import token_losses
from gptjax.kernels.merging import global_norm, share_array
from gptjax.kernels.relu import relu
from gptjax.layers import Dropout
from gptjax.rotary import rotary_angles
from gptjax.scale import devices

SMALL_TILES = Tiling(16, 16, 16)
ROW_STREAMS = jax.jit(dropout.row_streams)
ANGLES = jax.jit(rotary_angles, static_argnums=1)
KEY = jax.random.key(11)


# ---------------------------------------------------------------- the generator


@pytest.mark.parametrize(
    ("rounds", "counter_and_key", "answer"),
    [  # kat_vectors of Random123
        (7, (0, 0, 0), (0x257A3673, 0xCD26BE2A)),
        (7, (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF), (0xAB302C4D, 0x3DC9D239)),
        (7, (0x243F6A88, 0x85A308D3, 0x13198A2E), (0xBEDBBE6B, 0xE4C770B3)),
        (10, (0, 0, 0), (0xFF1DAE59, 0x6CD10DF2)),
        (10, (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF), (0x2C3F628B, 0xAB4FD7AD)),
        (10, (0x243F6A88, 0x85A308D3, 0x13198A2E), (0xDD7CE038, 0xF62A4C12)),
    ],
)
def test_philox_gives_the_published_answers(rounds, counter_and_key, answer):
    words = (jnp.uint32(word) for word in counter_and_key)
    assert tuple(int(word) for word in dropout.philox(*words, rounds)) == answer


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def keep_masks(key, rows_B, shape, dropped, first, whole):
    streams_B2 = dropout.row_streams(key, rows_B)
    return dropout.keep_mask(streams_B2, (len(rows_B), *shape), dropped, first, whole)


def masks(key, rows, shape, dropped=64, first=0, whole=None):
    return np.asarray(keep_masks(key, np.array(rows), shape, dropped, first, whole))


def chi_square_of_pairs(a, b, keep):
    """Of the 2 x 2 table of two masks against independence; 1 degree of freedom."""
    n, chi = a.size, 0.0
    for x, p in ((a, keep), (~a, 1 - keep)):
        for y, q in ((b, keep), (~b, 1 - keep)):
            expected = n * p * q
            chi += (np.sum(x & y) - expected) ** 2 / expected
    return chi


# Of a chi-square with 3 degrees of freedom (the rates are given, too) less than 1 in 10^5 is over.
UNLIKELY = 26.0


def test_a_share_of_every_row_is_dropped():
    for dropped in (1, 51, 128, 255):
        keep = 1 - dropped / 256
        share = masks(KEY, range(8), (64, 96), dropped).mean((1, 2))
        assert np.all(abs(share - keep) < 5 * np.sqrt(keep * (1 - keep) / (64 * 96)))


def test_masks_of_rows_heads_layers_steps_and_neighbours_are_independent():
    shape = (4, 64, 64)  # heads, targets, sources
    a = masks(KEY, [0, 1, 2**31 - 1], shape)
    streams_B2 = ROW_STREAMS(KEY, np.array([0]))
    paths = [("block_0", "attention"), ("block_1", "attention"), ("block_1", "mlp"), ("block_11",)]
    layers = [
        np.asarray(dropout.keep_mask(dropout.layer_streams(streams_B2, path), (1, *shape), 64)[0])
        for path in paths
    ]
    other_step = masks(jax.random.key(12), [0], shape)[0]
    pairs = {
        "rows": (a[0], a[1]),
        "far rows": (a[0], a[2]),
        "heads": (a[0][0], a[0][1]),
        **{f"layers {i} and {j}": (layers[i], layers[j]) for j in range(4) for i in range(j)},
        "steps": (a[0], other_step),
        "next source": (a[0][..., 1:], a[0][..., :-1]),
        "next target": (a[0][:, 1:], a[0][:, :-1]),
        "a quarter on, of one word": (a[0][:, 16:], a[0][:, :-16]),
    }
    for name, (x, y) in pairs.items():
        assert chi_square_of_pairs(x, y, 0.75) < UNLIKELY, name


def test_both_words_of_the_key_count():
    def mask(*words):
        key = jax.random.wrap_key_data(jnp.array(words, jnp.uint32))
        return masks(key, [0], (16, 16))

    assert (mask(1, 2) != mask(1, 3)).any()
    assert (mask(1, 2) != mask(2, 2)).any()


@pytest.mark.parametrize("n_t", [1, 7, 32])
def test_a_row_has_its_mask_in_any_batch_and_a_part_of_it_in_any_part(n_t):
    all_rows = masks(KEY, range(6), (2, n_t, 5))
    np.testing.assert_array_equal(masks(KEY, [4, 1], (2, n_t, 5)), all_rows[[4, 1]])
    first = n_t // 2
    part = masks(KEY, range(6), (2, n_t - first, 5), first=first, whole=(n_t, 5))
    np.testing.assert_array_equal(part, all_rows[:, :, first:])


def test_forward_and_backward_pass_have_one_mask():
    @jax.jit
    def both(x):
        streams_B2 = dropout.row_streams(KEY, jnp.arange(3))
        y, pull = jax.vjp(lambda x: dropout.dropout(x, streams_B2, 51), x)
        return y, pull(x)[0]

    x = np.random.default_rng(0).standard_normal((3, 8, 6), np.float32)
    y, gradient = map(np.asarray, both(x))
    np.testing.assert_allclose(gradient, y)
    np.testing.assert_allclose(y, np.where(y == 0, 0, x * 256 / 205), rtol=1e-6)
    assert (y == 0).any()
    assert (y != 0).any()


def test_each_layer_draws_its_own_mask():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x, streams):
            return Dropout(0.5, name="a")(x, streams), Dropout(0.5, name="b")(x, streams)

    a, b = jax.jit(Two().apply)({}, np.ones((2, 32, 32)), ROW_STREAMS(KEY, np.arange(2)))
    assert chi_square_of_pairs(np.asarray(a) != 0, np.asarray(b) != 0, 0.5) < UNLIKELY


# ---------------------------------------------------------------- merging


def test_merged_kernels_change_no_bit_of_a_gradient_and_find_its_norm(monkeypatch):
    monkeypatch.setattr(devices, "on_cpu", lambda: False)
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 4), "b": (5,), "c": (2, 3, 4), "d": (4, 4)}
    params = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}

    def loss(params, x):
        return sum(jnp.sum(jnp.sin(x * p)) for p in params.values())

    @jax.jit
    def both(params):
        plain, merged = (jax.value_and_grad(f)(params, 3.0) for f in (loss, share_array(loss)))
        return plain, merged, global_norm(plain[1])

    plain, merged, norm = both(params)
    jax.tree.map(np.testing.assert_array_equal, merged, plain)
    every = np.concatenate([np.ravel(g) for g in plain[1].values()])
    assert float(norm) == pytest.approx(np.linalg.norm(every), rel=1e-6)


# ---------------------------------------------------------------- attention

CASES = {  # targets, sources, head width; causal; padding; weights dropped of 256
    "causal, odd, rotary, qk_norm, dropout": ((37, 37, 24), True, False, 51),
    "padding, odd, rotary, dropout": ((37, 37, 48), False, True, 51),
    "cross, padding, odd, dropout": ((19, 37, 24), False, True, 51),
    "cross, odd, qk_norm": ((37, 19, 16), False, False, 0),
    "cross, whole tiles, dropout": ((32, 96, 16), False, False, 51),
    "cross, padding, whole tiles, few sources, dropout": ((96, 32, 16), False, True, 51),
}


def kernels_attention(sources, streams, mask, rotary, options):
    return attention.attention(sources, streams, mask, rotary, options)


def plain_attention(sources, streams, mask, rotary, options):
    """The plain twin, and what the model does to queries and keys before it."""
    config = GPTConfig(qk_norm=options.qk_norm)
    sources = fused_attention.prepare(config, sources, rotary)
    return attention.plain_attention(sources, streams, mask, options)


def value_and_gradients(f, sources, streams, mask, rotary, options, weights):
    def total(sources):
        y = f(sources, streams, mask, rotary, options)
        return jnp.sum(y.astype(jnp.float32) * weights), y

    (_, y), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(sources)
    return [np.asarray(leaf).astype(np.float32) for leaf in (y, *gradients)]


def make_case(name, dtype=jnp.float32):
    (n_t, n_s, width), causal, padded, dropped = CASES[name]
    rng = np.random.default_rng(0)
    slots = [(n_t, 3)] if n_t == n_s else [(n_t, 1), (n_s, 2)]
    sources = tuple(rng.standard_normal((3, *n, 2, width)).astype(dtype) for n in slots)
    # One row sees nothing, one a part, one everything.
    mask = np.arange(n_s) < np.array([[0], [n_s // 2], [n_s]]) if padded else None
    streams = ROW_STREAMS(KEY, np.arange(3) + 5)
    weights = rng.standard_normal((3, n_t, 2, width), np.float32)
    options = Options(causal, dropped, SMALL_TILES, True, "qk_norm" in name)
    rotary = ANGLES(np.arange(n_t), width) if "rotary" in name else None
    return sources, streams, mask, rotary, options, weights


@pytest.mark.parametrize("name", CASES)
def test_attention_kernels_compute_what_plain_attention_does(name):
    case = make_case(name)
    found = value_and_gradients(kernels_attention, *case)
    expected = value_and_gradients(plain_attention, *case)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=5e-6)


def test_attention_in_bfloat16_is_off_by_its_rounding_alone():
    """Weights and their gradients are rounded to 8 bits (2^-9 at most) before the second matmul;
    both sides do so in another place, so that 2^-6 of the largest number covers their sums."""
    case = make_case("causal, odd, rotary, qk_norm, dropout", jnp.bfloat16)
    exact = (tuple(x.astype(np.float32) for x in case[0]), *case[1:])
    found = value_and_gradients(kernels_attention, *case)
    expected = value_and_gradients(plain_attention, *exact)
    for a, b in zip(found, expected, strict=True):
        assert 0 < np.abs(a - b).max() / np.abs(b).max() < 2**-6


def memory_operations(jaxpr):
    """(name, mask or None) of all loads and stores of tiles in a program, inner ones too."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in ("masked_load", "masked_swap"):
            operands = jax.tree.unflatten(equation.params["args_tree"], equation.invars)
            yield name, operands[2 if name == "masked_load" else 3]
        for inner in jaxprs_in_params(equation.params):
            yield from memory_operations(inner)


@pytest.mark.parametrize("lengths", [(64, 192), (192, 64), (70, 192), (128, 128)])
@pytest.mark.parametrize("padded", [False, True])
def test_programs_past_the_end_neither_load_nor_store(lengths, padded):
    """The backward grid covers the longer of targets and sources. Interpret mode hides such stores:
    it clamps them."""
    n_t, n_s = lengths
    q, kv = (np.zeros((1, n, slots, 2, 64), jnp.bfloat16) for n, slots in ((n_t, 1), (n_s, 2)))
    mask = np.ones((1, n_s), bool) if padded else None

    def total(q, kv):
        y = attention.attention((q, kv), None, mask, None, Options(False, interpret=True))
        return jnp.sum(y.astype(jnp.float32))

    found = list(memory_operations(jax.make_jaxpr(jax.grad(total, (0, 1)))(q, kv).jaxpr))
    assert [name for name, _ in found].count("masked_swap") == 2 + 3  # y and lse; dk, dv and dq
    # Tiles that all fit need no masks.
    assert {mask is not None for _, mask in found} == {n_t != n_s}


def test_padding_reaches_cudnn_in_a_shape_that_it_takes(monkeypatch):
    """jax checks shapes when it traces, without a GPU."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91200)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(
        fused_attention_stablehlo, "is_cuda_compute_capability_equal", lambda _: False
    )

    def gradient(n_t, n_s, width=64):
        def total(q, kv, mask):
            y = attention.cudnn_attention((q, kv), mask, Options(False))
            return jnp.sum(y.astype(jnp.float32))

        shapes = (2, n_t, 1, 2, width), (2, n_s, 2, 2, width)
        q, kv = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes)
        mask = jax.ShapeDtypeStruct((2, n_s), jnp.bool)
        return jax.eval_shape(jax.grad(total, (0, 1)), q, kv, mask)

    assert gradient(64, 192)[1].shape == (2, 192, 2, 2, 64)
    # What cuDNN refuses is what `choose` computes in another way.
    for n_t, n_s, width in ((63, 192, 64), (64, 191, 64), (64, 192, 20)):
        with pytest.raises(NotImplementedError):
            gradient(n_t, n_s, width)
        kind = attention.choose("gpu", jnp.bfloat16, width, 0, n_devices=8, lengths=(n_t, n_s))
        assert kind == "plain"


def test_attention_is_causal_or_padded():
    (qkv,), _, _, _, options, _ = make_case("causal, odd, rotary, qk_norm, dropout")
    mask = np.ones(qkv.shape[:2], bool)
    for f in (kernels_attention, plain_attention):
        with pytest.raises(ValueError, match="not both"):
            f((qkv,), None, mask, None, options)
    with pytest.raises(ValueError, match="not both"):
        attention.cudnn_attention((qkv,), mask, options)
    with pytest.raises(ValueError, match="not both"):
        SelfAttention(GPT, causal=True).init(KEY, np.zeros((2, 8, 32)), np.ones((2, 8), bool))


def test_attention_needs_three_slots():
    with pytest.raises(ValueError, match="2 slots"):
        attention.attention((jnp.zeros((1, 16, 2, 1, 16)),), None, None, None, Options(True))


def test_attention_is_chosen_by_device_dtype_and_dropout():
    assert attention.choose("cpu", jnp.float32, 64, 51) == "plain"
    assert attention.choose("gpu", jnp.float32, 64, 51) == "plain"
    assert attention.choose("gpu", jnp.bfloat16, 64, 51) == "kernel"
    assert attention.choose("gpu", jnp.bfloat16, 256, 0) == "plain"
    assert attention.choose("gpu", jnp.bfloat16, 64, 0, n_devices=8) == "cudnn"
    assert attention.choose("gpu", jnp.bfloat16, 64, 51, n_devices=8) == "plain"
    assert attention.choose("gpu", jnp.bfloat16, 64, 0, n_devices=8, lengths=(64, 64)) == "cudnn"


WIDE = GPTConfig(n_head=1, n_embd=256, dropout=0.0)
UNDROPPED = GPTConfig(dropout=0.0)


@pytest.mark.parametrize(
    ("kind", "backend", "config", "dtype", "n_devices", "words"),
    [
        ("kernel", "cpu", UNDROPPED, jnp.bfloat16, 1, "kernel needs a GPU, but this is a CPU"),
        ("cudnn", "tpu", UNDROPPED, jnp.bfloat16, 1, "cudnn needs a GPU, but this is a TPU"),
        ("kernel", "gpu", UNDROPPED, jnp.float32, 1, "float32; use --train.dtype bfloat16"),
        ("kernel", "gpu", WIDE, jnp.bfloat16, 1, "n_embd 256 / n_head 1 is 256; raise --model.n-h"),
        ("kernel", "gpu", UNDROPPED, jnp.bfloat16, 8, "the mesh has 8; use --mesh.data 1"),
        ("cudnn", "gpu", GPTConfig(), jnp.bfloat16, 1, "--model.dropout is 0.2; use --model.no"),
        (
            "cudnn",
            "gpu",
            GPTConfig(dropout=0.0, block_size=33),
            jnp.bfloat16,
            8,
            "even block sizes, but they are 64 and 33",
        ),
        ("cudnn", "gpu", GPTConfig(dropout=0.0, n_embd=120), jnp.bfloat16, 1, "they are 20 and"),
    ],
)
def test_attention_that_cannot_work_is_refused(
    kind, backend, config, dtype, n_devices, words, monkeypatch
):
    monkeypatch.setattr(devices, "backend", lambda: backend)
    with pytest.raises(UserError, match=re.escape(words)) as refusal:
        choice.check(kind, config, dtype, n_devices)
    assert f"--train.attention {kind}" in str(refusal.value)
    assert "auto" in str(refusal.value)
    for other in (None, "plain"):
        choice.check(other, config, dtype, n_devices)


def test_attention_that_works_is_not_refused(monkeypatch):
    monkeypatch.setattr(devices, "backend", lambda: "gpu")
    choice.check("kernel", GPTConfig(), jnp.bfloat16, 1)
    choice.check("cudnn", UNDROPPED, jnp.bfloat16, 8)
    choice.check("cudnn", BigramConfig(), jnp.float32, 8)  # has no attention


def test_the_size_of_the_mesh_decides_not_the_number_of_devices(monkeypatch):
    monkeypatch.setattr(devices, "backend", lambda: "gpu")
    monkeypatch.setattr(devices, "n_devices", lambda: 8)
    with choice.using(choice.Choice()):  # other tests in this process may have set it
        assert choice.attention_kind(jnp.bfloat16, 64, 51) == "plain"
        choice.set_attention(None, 1)
        assert choice.attention_kind(jnp.bfloat16, 64, 51) == "kernel"


def test_cudnn_is_left_out_where_it_cannot_work():
    with choice.using(choice.Choice("cudnn")):
        assert choice.attention_kind(jnp.bfloat16, 64, 0, (64, 64)) == "cudnn"
        assert choice.attention_kind(jnp.bfloat16, 64, 0, (64, 37)) == "plain"


def test_norm_kernels_are_for_16_bit_floats(monkeypatch):
    monkeypatch.setattr(devices, "backend", lambda: "gpu")
    for name in ("norm", "plain_norm"):
        monkeypatch.setattr(layer_norm, name, lambda *_, name=name: name)
    with choice.using(choice.Choice(n_devices=1)):
        for dtype, name in ((jnp.bfloat16, "norm"), (jnp.float32, "plain_norm")):
            assert choice.norm(np.ones((2, 8), dtype), np.ones(8), None, True, dtype) == name


# ---------------------------------------------------------------- norms, ReLU, loss


@pytest.mark.parametrize(("center", "has_bias"), [(True, True), (True, False), (False, False)])
def test_norm_kernels_compute_what_the_plain_norm_does(center, has_bias, monkeypatch):
    monkeypatch.setattr(layer_norm, "PROGRAMS", 3)  # of several tiles each
    x = 2 * np.random.default_rng(0).standard_normal((5, 7, 24), np.float32) + 1
    scale = np.linspace(0.5, 2, 24, dtype=np.float32)
    bias = np.linspace(-1, 1, 24, dtype=np.float32) if has_bias else None
    options = layer_norm.Options(center, interpret=True)

    def total(f, x, scale, bias):
        y = f(x, scale, bias)
        return jnp.sum(jnp.sin(y)), y

    def kernel(x, scale, bias):
        return layer_norm.norm(x, scale, bias, options)

    def plain(x, scale, bias):
        return layer_norm.plain_norm(x, scale, bias, center, jnp.float32)

    arguments = (1, 2, 3) if has_bias else (1, 2)
    found, expected = (
        jax.jit(jax.grad(total, arguments, has_aux=True), static_argnums=0)(f, x, scale, bias)
        for f in (kernel, plain)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


def test_relu_and_loss_have_the_gradients_of_jax_and_optax():
    x = np.random.default_rng(0).standard_normal((2, 5, 9), np.float32)
    x[0, 0, 0] = 0
    targets = np.arange(10).reshape(2, 5) % 9
    optaxs = optax.softmax_cross_entropy_with_integer_labels
    for ours, theirs in (
        (relu, jax.nn.relu),
        (lambda x: token_losses(x, targets), lambda x: optaxs(x, targets)),
    ):

        def total(x, f):
            return jnp.sum(jnp.cos(f(x))), f(x)

        gradient = jax.jit(jax.grad(total, has_aux=True), static_argnums=1)
        for a, b in zip(gradient(x, ours), gradient(x, theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- the whole model

GPT = GPTConfig(n_layer=1, n_head=2, n_embd=32, block_size=32, dropout=0.2)
MODERN = dataclasses.replace(
    GPT, position="rotary", norm="rmsnorm", activation="relu2", qk_norm=True, bias=False
)


@pytest.mark.parametrize("config", [GPT, MODERN], ids=["gpt", "modern"])
def test_a_model_has_one_loss_and_gradient_with_and_without_kernels(config):
    """Dropout on: the masks are the same, too. Parameters are, by name and shape."""
    model = models.GPT(config, 11)
    rng = np.random.default_rng(0)
    params = jax.tree.map(  # what starts at zero or one shall count as well
        lambda p: np.float32(0.2 * rng.standard_normal(p.shape)),
        models.shapes(model),
    )
    tokens = rng.integers(0, 11, (2, 33))
    batch = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "loss_weights": np.ones((2, 32), np.float32),
    }

    def run(chosen):
        with choice.using(chosen):
            f = jax.value_and_grad(lambda p: training.cross_entropy(model, p, batch, KEY)[0])
            return jax.jit(f)(params)

    plain = run(choice.Choice("plain", False))
    kernels = run(choice.Choice("kernel", True, SMALL_TILES, interpret=True))
    for a, b in zip(jax.tree.leaves(kernels), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)

"""What a language model must be: causal, of the right size, the same with and without a cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import VOCAB_SIZE, logits_of

from gptjax import models, training
from gptjax.config import BigramConfig, GPTConfig
from gptjax.kernels.dropout import row_streams


@pytest.fixture
def params(model):
    return random_params(model)


@functools.cache
def random_params(model):
    """None of them is zero."""
    rng = np.random.default_rng(3)
    shapes = models.shapes(model)
    return jax.tree.map(lambda p: rng.normal(0, 0.7, p.shape).astype(p.dtype), shapes)


def test_the_seeds_gpt_has_its_size_and_its_initial_loss():
    shapes = models.shapes(models.GPT(GPTConfig(), 65))
    assert models.count(shapes) == 10_788_929
    # The final norm makes the loss one that does not depend on the depth.
    model = models.GPT(GPTConfig(n_layer=1), 65)
    params = models.init(model, seed=1337)
    tokens = np.random.default_rng(0).integers(0, 65, (1, 257))
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "loss_weights": np.ones((1, 256))}
    losses, n = jax.jit(functools.partial(training.cross_entropy, model))(params, batch)
    assert 4.17 < losses / n < 4.5  # the seed's log: 4.4707


def test_bigram_looks_up_a_row_of_its_table():
    model = models.Bigram(BigramConfig(), vocab_size=5)
    params = models.init(model, seed=0)
    logits = logits_of(model, params, np.array([[3, 0, 3]]))
    np.testing.assert_array_equal(logits[0], np.asarray(params["table"]["table"])[[3, 0, 3]])
    assert models.count(params) == 25


def test_causality_by_gradient(model, params, tokens):
    """A token's embedding gets a gradient from a position's logits iff it is not behind it."""
    row = tokens[:1]  # distinct tokens: row i of the table belongs to one position

    @jax.jit
    @functools.partial(jax.grad, argnums=0)
    def gradient(table, t):
        changed = params | {"token_embedding": {"table": table}}
        return (model.apply({"params": changed}, row)[0][0, t] ** 2).sum()

    for t in (0, 5, 15):
        gradient_VD = np.asarray(gradient(params["token_embedding"]["table"], t))
        influence = np.abs(gradient_VD).sum(-1)[row[0]]
        assert (influence[: t + 1] > 0).all()
        assert (influence[t + 1 :] == 0).all()


@pytest.mark.slow
def test_cached_pieces_equal_the_whole(model, params, tokens):
    apply = jax.jit(model.apply)
    cache = model.init_cache(len(tokens))
    pieces = []
    for piece in np.split(tokens, [5, 6, 11], axis=1):
        logits, cache = apply({"params": params}, piece, cache)
        pieces.append(logits)
    whole = logits_of(model, params, tokens)
    np.testing.assert_allclose(np.concatenate(pieces, 1), whole, rtol=2e-4, atol=2e-5)


def test_too_many_tokens_are_refused(model, params):
    with pytest.raises(ValueError, match="17 tokens do not fit block_size 16"):
        jax.eval_shape(model.apply, {"params": params}, np.zeros((1, 17), np.int32))


@pytest.mark.slow
def test_dropout_needs_a_key_and_changes_the_logits(gpt_config, params, tokens):
    model = models.GPT(dataclasses.replace(gpt_config, dropout=0.3), VOCAB_SIZE)

    @jax.jit
    def logits(seed):
        apply = functools.partial(model.apply, {"params": params}, tokens)
        streams_B2 = row_streams(jax.random.key(seed), np.arange(3))
        return apply(streams_B2=streams_B2)[0], apply()[0]

    (one, clean), (again, _), (other, _) = (logits(seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)
    assert not np.allclose(one, clean)


@pytest.mark.slow
def test_bfloat16_computes_close_to_float32_and_keeps_float32_weights(gpt_config, params, tokens):
    half = models.GPT(gpt_config, VOCAB_SIZE, jnp.bfloat16)
    full = models.GPT(gpt_config, VOCAB_SIZE)
    shapes = models.shapes(half)
    assert {p.dtype for p in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    a, b = (np.asarray(logits_of(m, params, tokens)) for m in (half, full))
    assert a.dtype == b.dtype == np.float32
    error = np.linalg.norm(a - b) / np.linalg.norm(b)
    assert 0 < error < 0.05  # not zero, or it would not compute in bfloat16


def test_softcap_bounds_the_logits(params, tokens, gpt_config):
    model = models.GPT(dataclasses.replace(gpt_config, logit_softcap=0.5), VOCAB_SIZE)
    assert 0.4 < np.abs(logits_of(model, params, tokens)).max() <= 0.5


def test_only_training_divides_logits_by_its_temperature(params, tokens, gpt_config):
    model = models.GPT(dataclasses.replace(gpt_config, training_temperature=0.5), VOCAB_SIZE)
    logits = logits_of(models.GPT(gpt_config, VOCAB_SIZE), params, tokens)
    np.testing.assert_array_equal(logits_of(model, params, tokens), logits)
    total, n_tokens = jax.jit(functools.partial(training.cross_entropy, model))(
        params,
        {"tokens": tokens, "targets": tokens, "loss_weights": np.ones(tokens.shape)},
        jax.random.key(1),
    )
    want = optax.softmax_cross_entropy_with_integer_labels(2 * logits, tokens).mean()
    np.testing.assert_allclose(total / n_tokens, want, rtol=1e-5)


@pytest.mark.slow
def test_initialisation_is_a_function_of_the_seed(model):
    a, b, c = (models.init(model, seed) for seed in (1, 1, 2))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))
    assert jax.eval_shape(lambda: a) == models.shapes(model)
    same = jax.tree.map(np.array_equal, a["token_embedding"], c["token_embedding"])
    assert not any(jax.tree.leaves(same))


@pytest.mark.parametrize("tie", [False, True])
def test_positions_start_as_large_as_tokens(tie):
    """Positions of size 1 on tied tokens of 0.02 kept a model at the frequencies of characters."""
    config = GPTConfig(n_layer=0, n_head=2, n_embd=64, block_size=64, tie_embeddings=tie)
    params = models.init(models.GPT(config, 64), seed=0)
    tokens, positions = (params[f"{of}_embedding"]["table"].std() for of in ("token", "position"))
    np.testing.assert_allclose(positions, tokens, rtol=0.1)
    np.testing.assert_allclose(tokens, 0.02 if tie else 1.0, rtol=0.1)

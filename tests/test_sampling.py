"""Decoding with a cache equals decoding without one; the filters do what they say."""

import functools

import jax
import numpy as np
import pytest
from conftest import VOCAB_SIZE, logits_of

from gptjax import models
from gptjax.config import BigramConfig
from gptjax.decoding import sampling
from gptjax.decoding.sampling import Sampler
from gptjax.errors import UserError

GREEDY = Sampler(temperature=0)
N_TOKENS = 45  # nearly three times the block size


@pytest.fixture
def params(model):
    return large_params(model)


@functools.cache
def large_params(model):
    """Scaled up, so that greedy choices are far from ties, and none of them zero."""
    initial = jax.device_get(models.init(model, seed=3))
    return jax.tree.map(lambda p: 2 * p if p.any() else p + np.float32(0.5), initial)


def uncached(model, params, prompt: np.ndarray, exact_window: bool) -> np.ndarray:
    """Greedy decoding by whole forward passes, with the documented policy for the window."""
    block_size = model.config.block_size
    text, first = prompt, max(0, prompt.shape[1] - block_size)
    while text.shape[1] < prompt.shape[1] + N_TOKENS:
        if text.shape[1] - first > block_size:
            first = text.shape[1] - (block_size if exact_window else block_size // 2)
        window = text[:, first:]
        n = window.shape[1]
        # Padded to one shape, so that it compiles once; a causal model does not see the padding.
        logits = np.asarray(logits_of(model, params, np.pad(window, ((0, 0), (0, block_size - n)))))
        text = np.concatenate([text, np.argmax(logits[:, n - 1 : n], -1)], axis=1)
    return text[:, prompt.shape[1] :]


@pytest.mark.parametrize("exact_window", [False, True], ids=["half", "exact"])
@pytest.mark.parametrize("prompt_length", [1, 7, 16, 30])
def test_cached_equals_uncached_before_and_past_the_block_size(
    model, params, prompt_length, exact_window
):
    prompt = np.random.default_rng(1).integers(0, VOCAB_SIZE, (2, prompt_length))
    made = sampling.complete(
        model, params, prompt, N_TOKENS, sampler=GREEDY, exact_window=exact_window
    )
    expected = uncached(model, params, prompt, exact_window)
    np.testing.assert_array_equal(made, expected)
    assert len(np.unique(made)) > 2  # no fixed point, which anything would reproduce


def test_what_is_drawn_depends_on_the_seed_and_not_on_how_much_is_asked_for(model, params):
    prompt = np.zeros((2, 3), np.int32)
    long = sampling.complete(model, params, prompt, 40, seed=5)
    short = sampling.complete(model, params, prompt, 21, seed=5)
    other = sampling.complete(model, params, prompt, 40, seed=6)
    np.testing.assert_array_equal(long[:, :21], short)
    assert (long != other).any()
    assert (long[0] != long[1]).any()  # the rows of a batch are drawn apart


def test_a_bigram_samples_too():
    model = models.Bigram(BigramConfig(), VOCAB_SIZE)
    params = models.init(model, seed=0)
    made = sampling.complete(model, params, np.array([[4]]), 30, sampler=GREEDY)
    table = np.asarray(params["table"]["table"])
    previous = 4
    for token in made[0]:
        assert token == table[previous].argmax()
        previous = token


LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))


def frequencies(sampler: Sampler, n: int = 20_000) -> np.ndarray:
    drawn = jax.jit(sampler)(np.tile(LOGITS, (n, 1)), jax.random.key(0))
    return np.bincount(drawn, minlength=4) / n


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (Sampler(), [0.5, 0.25, 0.15, 0.1]),
        (Sampler(temperature=0.5), np.array([0.25, 0.0625, 0.0225, 0.01]) / 0.345),
        (Sampler(top_k=2), [2 / 3, 1 / 3, 0, 0]),
        (Sampler(top_k=4), [0.5, 0.25, 0.15, 0.1]),
        (Sampler(top_p=0.5), [1, 0, 0, 0]),
        (Sampler(top_p=0.51), [2 / 3, 1 / 3, 0, 0]),
        (Sampler(top_p=0.8), [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0]),
        (Sampler(top_k=3, top_p=0.7), [2 / 3, 1 / 3, 0, 0]),
        (Sampler(temperature=0), [1, 0, 0, 0]),
        (Sampler(temperature=1e-40), [1, 0, 0, 0]),  # no overflow on the way to greedy
        (Sampler(temperature=1e-38), [1, 0, 0, 0]),  # XLA rounds it to 0
        (Sampler(temperature=1.2e-38), [1, 0, 0, 0]),
        (Sampler(temperature=1e-38, top_k=2, top_p=0.5), [1, 0, 0, 0]),
        (Sampler(top_p=1e-50), [1, 0, 0, 0]),
    ],
    ids=str,
)
def test_filters_and_temperature(sampler, expected):
    np.testing.assert_allclose(frequencies(sampler), expected, atol=0.015)


@pytest.mark.parametrize(
    ("sampler", "named"),
    [
        (Sampler(temperature=-0.1), "--temperature is -0.1"),
        (Sampler(temperature=float("nan")), "--temperature is nan"),
        (Sampler(top_k=-1), "--top-k is -1"),
        (Sampler(top_k=VOCAB_SIZE + 1), "--top-k is 21"),
        (Sampler(top_p=0.0), "--top-p is 0.0"),
        (Sampler(top_p=1.1), "--top-p is 1.1"),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(sampler, named):
    with pytest.raises(UserError, match=named):
        sampler.check(VOCAB_SIZE)

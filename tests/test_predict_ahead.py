"""Heads that predict further ahead: only their gradient is seen, and only in training."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import MODERN, TINY_RUN, VOCAB_SIZE, Refused

import gptjax
from gptjax import models, train, training
from gptjax.config import Config, GPTConfig, TextDataConfig, TrainConfig
from gptjax.config_encoders import EncoderDecoderConfig
from gptjax.data import dataset
from gptjax.data.tokenizer import CharTokenizer, PairTokenizer
from gptjax.kernels.dropout import row_streams

V = VOCAB_SIZE
AHEAD_WEIGHT = 0.3
ONE_LAYER = dataclasses.replace(MODERN, n_layer=1, block_size=8)
AHEAD = dataclasses.replace(ONE_LAYER, predict_ahead=2)
PAIRS = PairTokenizer(CharTokenizer("abcdefgh"), CharTokenizer("tuvwxyz"))


def made(config: GPTConfig, vocabulary: Any = V) -> tuple[Any, Any]:
    """A model none of whose parameters is zero. To initialize them would compile each shape."""
    model = models.build(config, vocabulary)
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: models.init(model, seed=2))
    return model, jax.tree.map(lambda p: np.float32(0.4 * rng.standard_normal(p.shape)), shapes)


def batch_of(vocab_size: int, **source: Any) -> training.Batch:
    tokens = np.random.default_rng(3).integers(0, vocab_size, (4, 9)).astype(np.int32)
    weights = np.ones((4, 8), np.float32)
    weights[1, 5:] = 0  # padding
    made = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "loss_weights": weights}
    return made | {"ahead_weight": np.full(4, AHEAD_WEIGHT, np.float32)} | source


def losses(logits_BTV: Any, targets: Any) -> Any:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), targets[..., None], -1)[..., 0]


def test_the_gradient_is_that_of_all_heads_and_the_loss_that_of_the_next_token() -> None:
    model, params = made(AHEAD)
    batch, key = batch_of(V), jax.random.key(0)
    loss, grads = jax.jit(training.make_gradient(model, 2))(params, batch, key)
    n = batch["loss_weights"].sum()

    def all_losses(params: Any) -> Any:
        (logits, _), sown = model.apply(
            {"params": params},
            batch["tokens"],
            streams_B2=row_streams(key, jnp.arange(4)),
            mutable=["ahead"],
        )
        next_token = (losses(logits, batch["targets"]) * batch["loss_weights"]).sum() / n
        further = 0.0
        for i, ahead in enumerate(sown["ahead"]["logits"], start=1):
            later = losses(ahead[:, :-i], batch["targets"][:, i:])
            further += (later * batch["loss_weights"][:, i:]).sum() / n
        return next_token + AHEAD_WEIGHT * further, next_token

    (_, expected), gradient = jax.jit(jax.value_and_grad(all_losses, has_aux=True))(params)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), grads, gradient
    )
    assert all(np.abs(grads[f"ahead_{i}"]["kernel"]).max() > 1e-3 for i in range(2))


def test_their_weight_falls_to_zero(text_file: Path) -> None:
    data = TextDataConfig(path=text_file)
    config = Config(model=AHEAD, data=data, train=TrainConfig(max_steps=10, batch_size=4))
    text = dataset.load(config)
    batches = dataset.training_batches(text, config, range(4, 12), 8, slice(1, 3))
    weights = batches["ahead_weight"]
    expected = dataset.AHEAD_WEIGHT * np.array([0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0, 0])
    np.testing.assert_allclose(weights, np.stack([expected, expected], 1), rtol=1e-6)
    plain = dataclasses.replace(config, model=ONE_LAYER)
    assert "ahead_weight" not in dataset.training_batches(text, plain, range(2), 2)


def test_a_model_answers_and_decodes_without_them() -> None:
    model, params = made(AHEAD)
    plain = models.build(ONE_LAYER, V)
    kept = models.without_training_heads(params)
    assert set(params) - set(kept) == {"ahead_0", "ahead_1"}
    tokens = batch_of(V)["tokens"]
    expected, *answers = (
        jax.jit(m.apply)({"params": p}, tokens)[0]
        for m, p in ((plain, kept), (model, params), (model, kept))
    )
    for answer in answers:
        np.testing.assert_array_equal(answer, expected)


def test_the_decoder_of_an_encoder_decoder_has_them_too() -> None:
    fields: Any = dataclasses.asdict(AHEAD)
    config = EncoderDecoderConfig(**fields, n_encoder_layer=1, source_block_size=12)
    model, params = made(config, PAIRS)
    source = np.random.default_rng(4).integers(0, 8, (4, 6)).astype(np.int32)
    batch = batch_of(model.vocab_size, source=source, source_mask=np.ones((4, 6), bool))
    _, grads = jax.jit(training.make_gradient(model, 4))(params, batch, jax.random.key(0))
    assert np.abs(grads["decoder"]["ahead_1"]["kernel"]).max() > 1e-3
    assert "ahead_1" not in models.without_training_heads(params)["decoder"]


@pytest.mark.slow
def test_a_run_with_them_is_trained_and_sampled(
    tmp_path: Path, text_file: Path, refused: Refused
) -> None:
    run = tmp_path / "run"
    flags = [*TINY_RUN, "--data.path", str(text_file), "--run-dir", str(run)]
    message = refused(train.main, *flags, "--model.predict-ahead", "16")
    assert "--model.predict-ahead is 16, but must be in [0, 16), the block size" in message
    train.main([*flags, "--model.no-bias", "--model.predict-ahead", "3"])
    assert len(gptjax.load(run).generate("abc", 20)) == 23

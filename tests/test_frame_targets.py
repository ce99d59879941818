"""The head that tells which token sounds when: its targets, and its gradient."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import models, training
from gptjax.config import Config, TrainConfig
from gptjax.config_encoders import SpeechConfig, SpeechDataConfig
from gptjax.data import dataset, speech
from gptjax.data.audio import SAMPLE_RATE
from gptjax.data.frame_targets import frame_targets
from gptjax.data.recordings import Clip, Plan
from gptjax.data.tokenizer import CharTokenizer, SpeechTokenizer, WordTokenizer
from gptjax.kernels.dropout import row_streams

RECORDINGS = Path(__file__).parents[2] / "shared/speech/fsdd/recordings"
MODEL = SpeechConfig.modern(
    n_encoder_layer=1,
    n_layer=1,
    n_head=2,
    n_embd=16,
    n_mels=8,
    block_size=8,
    source_block_size=200,
    predict_frames=True,
)


def clip(text: str, seconds: float) -> Clip:
    return Clip(Path(text), text, n_samples=round(seconds * SAMPLE_RATE))


def batch_for(n_frames: int, n_rows: int = 1, n_tokens: float = 3.0) -> dict[str, Any]:
    """As much of a batch as the targets need. Each row has n_tokens targets that count."""
    mask = np.zeros((n_rows, 2 * n_frames), bool)
    mask[:, : 2 * n_frames - 20] = True
    return {"source_mask": mask, "loss_weights": np.full((n_rows, 4), n_tokens / 4, np.float32)}


def test_a_frame_is_named_by_the_word_that_sounds() -> None:
    tok = SpeechTokenizer(WordTokenizer(["one", "two"]))
    plan = Plan((clip("two", 0.2), clip("one", 0.4)), (SAMPLE_RATE // 10,))
    made = frame_targets([plan], np.ones(1), tok, batch_for(50))
    # 20 ms each: ten positions of "two", five of the pause, twenty of "one", then padding
    assert made["frames"].tolist() == [[1] * 10 + [tok.end] * 5 + [0] * 20 + [tok.end] * 15]
    weights = made["frame_weights"][0]
    np.testing.assert_allclose(weights, [3 / 40] * 40 + [0] * 10, rtol=1e-6)


def test_speed_moves_the_words() -> None:
    tok = SpeechTokenizer(WordTokenizer(["one"]))
    plan = Plan((clip("one", 0.4), clip("one", 0.4)), (SAMPLE_RATE // 5,))
    slow, fast = frame_targets([plan] * 2, np.array([0.5, 2]), tok, batch_for(120, 2))["frames"]
    assert slow.tolist() == [0] * 40 + [tok.end] * 20 + [0] * 40 + [tok.end] * 20
    assert fast.tolist() == [0] * 10 + [tok.end] * 5 + [0] * 10 + [tok.end] * 95


def test_the_tokens_of_a_clip_share_its_time() -> None:
    tok = SpeechTokenizer(CharTokenizer("abc"))
    made = frame_targets([Plan((clip("cab", 0.3),))], np.ones(1), tok, batch_for(40))
    assert made["frames"].tolist() == [[2] * 5 + [0] * 5 + [1] * 5 + [tok.end] * 25]


def made(tok: SpeechTokenizer) -> tuple[Any, Any]:
    """A model of random parameters. To initialize them would compile each shape."""
    model, rng = models.build(MODEL, tok), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: models.init(model, 1))
    return model, jax.tree.map(lambda p: np.float32(0.2 * rng.standard_normal(p.shape)), shapes)


def test_the_gradient_is_that_of_both_losses_and_the_loss_that_of_the_text() -> None:
    tok = SpeechTokenizer(WordTokenizer(["one", "two"]))
    model, params = made(tok)
    rng = np.random.default_rng(1)
    batch: Any = batch_for(40, 2) | {
        "source": rng.standard_normal((2, 80, 8)).astype(np.float32),
        "tokens": rng.integers(0, 3, (2, 4)).astype(np.int32),
        "targets": rng.integers(0, 3, (2, 4)).astype(np.int32),
    }
    plans = [Plan((clip("two", 0.2), clip("one", 0.4)), (800,))] * 2
    batch |= frame_targets(plans, np.array([0.9, 1.1]), tok, batch)
    gradient = jax.jit(training.make_gradient(model, 1))
    key = jax.random.key(0)
    loss, grads = gradient(params, batch, key)

    def both(params: Any) -> Any:
        inputs = {name: batch[name] for name in ("source", "source_mask")}
        (logits, _), sown = model.apply(
            {"params": params},
            batch["tokens"],
            streams_B2=row_streams(key, jnp.arange(2)),
            mutable=["frames"],
            **inputs,
        )

        def nats(logits: Any, targets: Any, weights: Any) -> Any:
            log_p = jax.nn.log_softmax(logits)
            return -(jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0] * weights).sum() / 6

        text = nats(logits, batch["targets"], batch["loss_weights"])
        (frames,) = sown["frames"]["logits"]
        return text + nats(frames, batch["frames"], batch["frame_weights"]), text

    (_, text), expected = jax.jit(jax.value_and_grad(both, has_aux=True))(params)
    np.testing.assert_allclose(loss, text, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), grads, expected
    )
    assert np.abs(grads["frame_head"]["kernel"]).max() > 1e-3


def test_a_model_answers_without_the_head() -> None:
    tok = SpeechTokenizer(WordTokenizer(["one", "two"]))
    model, params = made(tok)
    config, kept = models.for_use(Config(model=MODEL, data=SpeechDataConfig()), params)
    assert set(params) - set(kept) == {"frame_head"}
    assert config.model == dataclasses.replace(MODEL, predict_frames=False)
    tokens, mel = np.zeros((1, 2), np.int32), np.ones((1, 8, 8), np.float32)
    small = models.build(config.model, tok)
    expected, answer = (
        jax.jit(m.apply)({"params": p}, tokens, source=mel)[0]
        for m, p in ((model, params), (small, kept))
    )
    np.testing.assert_array_equal(answer, expected)


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason=f"no {RECORDINGS}")
@pytest.mark.parametrize("rows", [slice(None), slice(1, 3)])
def test_batches_have_the_targets_if_the_model_has_the_head(rows: slice, tmp_path: Path) -> None:
    for path in RECORDINGS.glob("[0-2]_theo_?.wav"):
        (tmp_path / path.name).symlink_to(path)
    data = SpeechDataConfig(path=tmp_path, tokenizer="word", string_clips=3, speed_change=0.1)
    data = dataclasses.replace(data, tempo_change=0.5)
    config = Config(model=MODEL, data=data, train=TrainConfig(max_steps=4, batch_size=4))
    loaded = dataset.load(config)
    assert isinstance(loaded, speech.SpeechData)
    batch = dataset.training_batches(loaded, config, range(3, 4), 1, rows)
    whole = dataset.training_batches(loaded, config, range(3, 4), 1)
    np.testing.assert_array_equal(batch["frames"], whole["frames"][:, rows])
    np.testing.assert_allclose(
        batch["frame_weights"].sum(-1), batch["loss_weights"].sum(-1), rtol=1e-5
    )
    for frames, targets in zip(whole["frames"][0], whole["targets"][0], strict=True):
        changes = frames[np.flatnonzero(np.diff(frames, prepend=-1))]
        words = [token for token in changes if token != loaded.tokenizer.end]
        assert words == [token for token in targets if token != loaded.tokenizer.end]
    plain = dataclasses.replace(config, model=dataclasses.replace(MODEL, predict_frames=False))
    assert "frames" not in dataset.training_batches(loaded, plain, range(1), 1)

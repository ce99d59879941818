"""Ensembles are their members; a student learns from its teacher's probabilities."""

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import conftest
import jax
import numpy as np
import pytest
import scipy.special
from conftest import Printed, Refused

import gptjax
from gptjax import config_json, evaluation, models, optim, setup, train, training
from gptjax.commands import evaluate, export, page, quantize, sample
from gptjax.config import BigramConfig, GPTConfig, OptimConfig
from gptjax.config_encoders import EncoderDecoderConfig, SpeechConfig
from gptjax.data import tokenizer
from gptjax.data.tokenizer import CharTokenizer, PairTokenizer, SpeechTokenizer, WordTokenizer
from gptjax.decoding import attention_weights, beam_search, sampling
from gptjax.ensemble import Ensemble, member
from gptjax.kernels.cross_entropy import distillation_losses, token_losses
from gptjax.models import source_of
from gptjax.runs import run_directory, teachers
from gptjax.runs.checkpoints import committed_steps
from gptjax.runs.metrics import read_metrics

MAX_STEPS = 4
# What the commands have to do with an ensemble is the same for a bigram, the quickest to compile.
RUN = (
    f"--config {Path(__file__).parents[1]}/configs/bigram.py --train.batch-size 4 "
    "--train.eval-interval 2 --train.eval-batches 1 --train.log-interval 1 "
    f"--train.sample-tokens 0 --train.max-steps {MAX_STEPS}"
).split()
V = conftest.VOCAB_SIZE
PAIRS = PairTokenizer(CharTokenizer("abcdefgh"), CharTokenizer("tuvwxyz"))
WORDS = SpeechTokenizer(WordTokenizer.train("zero one two three"))
MODERN = dataclasses.replace(conftest.MODERN, n_layer=1)  # every layer takes seconds to compile
FIELDS: Any = dataclasses.asdict(conftest.TINY) | {"n_layer": 1, "block_size": 8}
FIELDS |= {"norm": "rmsnorm", "bias": False}
KINDS: dict[str, tuple[Any, Any]] = {
    "bigram": (BigramConfig(8), V),
    "gpt": (MODERN, V),
    "pairs": (EncoderDecoderConfig(**FIELDS, n_encoder_layer=1, source_block_size=12), PAIRS),
    "speech": (SpeechConfig(**FIELDS, n_encoder_layer=1, n_mels=20, source_block_size=40), WORDS),
}


@functools.cache
def made(kind: str, n_members: int = 3) -> tuple[Ensemble, Any]:
    """An ensemble none of whose parameters is zero. To initialize it would compile each shape."""
    ensemble = Ensemble(models.build(*KINDS[kind]), n_members)
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: models.init(ensemble, seed=2))
    return ensemble, jax.tree.map(lambda p: np.float32(0.4 * rng.standard_normal(p.shape)), shapes)


def batch_of(ensemble: Ensemble, n_rows: int = 4) -> training.Batch:
    """Random tokens, with a source where the model reads one."""
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, ensemble.vocab_size, (n_rows, 9)).astype(np.int32)
    weights = np.ones((n_rows, 8), np.float32)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "loss_weights": weights}
    config = ensemble.config
    if isinstance(config, EncoderDecoderConfig):
        batch["source"] = rng.integers(0, 8, (n_rows, 6)).astype(np.int32)
        batch["source_mask"] = np.ones((n_rows, 6), bool)
    if isinstance(config, SpeechConfig):
        batch["source"] = rng.standard_normal((n_rows, 20, config.n_mels)).astype(np.float32)
        batch["source_mask"] = np.ones((n_rows, 20), bool)
    return batch


@pytest.mark.parametrize("kind", ["bigram", "pairs"])
def test_an_ensemble_answers_with_the_mean_probability(kind: str) -> None:
    ensemble, params = made(kind)
    batch = batch_of(ensemble)
    forward: Any = jax.jit(ensemble.member.apply)
    each = [
        forward({"params": member(params, i)}, batch["tokens"], **source_of(batch))[0]
        for i in range(3)
    ]
    mean = np.mean([scipy.special.softmax(np.float64(logits), -1) for logits in each], axis=0)
    logits, _ = jax.jit(ensemble.apply)({"params": params}, batch["tokens"], **source_of(batch))
    np.testing.assert_allclose(np.exp(logits), mean, rtol=2e-5, atol=1e-7)  # logs, not just logits
    expected = -np.log(np.take_along_axis(mean, batch["targets"][..., None], -1)).mean()
    group = jax.tree.map(lambda x: x[None], batch)
    loss = evaluation.make_evaluate(ensemble)(params, [group])
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "together"), [("gpt", True), ("pairs", False)])
def test_members_train_as_if_alone(
    kind: str, together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if together:  # as on a GPU: all members in one program, by vmap
        monkeypatch.setattr("gptjax.ensemble.over_members", jax.vmap)
    ensemble, params = made(kind, 2)
    make: Any = OptimConfig.modern if together else OptimConfig  # with Muon or without
    optimizer = optim.build(make(weight_decay=0.1, grad_clip=0.5), 10)
    batches = jax.tree.map(lambda x: np.stack([x, x[::-1]]), batch_of(ensemble))

    def trainer(model: Any, optimizer: Any) -> Callable[[Any], Any]:
        steps = training.make_train_steps(model, optimizer, micro_batch_size=2, seed=1)
        start = jax.jit(lambda params: training.init_state(params, optimizer))
        return lambda params: steps(start(params), batches, 2)

    state, metrics = trainer(ensemble, ensemble.each_optimizer(optimizer))(params)
    train_alone = trainer(ensemble.member, optimizer)
    losses = []
    for i in range(2):
        alone, its_metrics = train_alone(member(params, i))
        losses.append(its_metrics.loss)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
            member(state.params, i),
            alone.params,
        )
    np.testing.assert_allclose(metrics.loss, np.mean(losses, axis=0), rtol=1e-5)


def test_members_start_as_models_of_consecutive_seeds_with_dropout_of_their_own() -> None:
    one = models.build(GPTConfig(**FIELDS | {"dropout": 0.5}), V)
    ensemble = Ensemble(one, 2)
    params = models.init(ensemble, seed=5)
    for i in range(2):
        jax.tree.map(np.testing.assert_array_equal, member(params, i), models.init(one, 5 + i))
    same = jax.tree.map(lambda leaf: np.stack([leaf[0], leaf[0]]), params)
    gradient = jax.jit(training.make_gradient(ensemble, micro_batch_size=4))
    _, grads = gradient(same, batch_of(ensemble), jax.random.key(1))
    assert any(np.abs(np.diff(leaf, axis=0)).max() > 1e-4 for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("kind", ["bigram", "gpt"])
def test_decoding_with_the_caches_of_all_members_equals_decoding_without(kind: str) -> None:
    ensemble, params = made(kind)
    text = np.array([[1, 2, 3], [7, 8, 9]])
    out = sampling.complete(ensemble, params, text, 20, sampler=sampling.Sampler(temperature=0))
    block, keep = ensemble.config.block_size, ensemble.config.block_size // 2
    forward: Any = jax.jit(ensemble.apply)
    window = text
    for t in range(20):
        if window.shape[1] > block:
            window = np.concatenate([text, out[:, :t]], 1)[:, -keep:]
        padded = np.pad(window, ((0, 0), (0, block - window.shape[1])))
        logits, _ = forward({"params": params}, padded)
        np.testing.assert_array_equal(out[:, t], np.argmax(logits[:, window.shape[1] - 1], -1))
        window = np.concatenate([window, out[:, t : t + 1]], 1)


@pytest.mark.slow
def test_beam_search_uses_the_caches_of_all_members() -> None:
    """Of members that are equal it finds what it finds with one of them."""
    ensemble, params = made("speech", 2)
    batch = batch_of(ensemble)
    same = jax.tree.map(lambda leaf: np.stack([leaf[0]] * 2), params)
    rest = batch["source"], batch["source_mask"], 0, 3
    found = beam_search.beam_search(ensemble, same, *rest)
    alone = beam_search.beam_search(ensemble.member, member(params, 0), *rest)
    np.testing.assert_array_equal(found.tokens_BNT, alone.tokens_BNT)
    np.testing.assert_allclose(found.score_BN, alone.score_BN, rtol=1e-4)
    # Of different ones its probability is that of the mean, without a cache.
    beams = beam_search.beam_search(ensemble, params, *rest)
    forward: Any = jax.jit(ensemble.apply)
    for row in range(len(batch["tokens"])):
        n = int(beams.length_BN[row, 0])
        ids = np.asarray(beams.tokens_BNT[row, 0, :n])
        tokens = np.concatenate([[0], ids[:-1]])[None]
        source = {name: part[row : row + 1] for name, part in source_of(batch).items()}
        padded = np.pad(tokens, ((0, 0), (0, 8 - n)))
        logits, _ = forward({"params": params}, padded, **source)
        log_p = np.take_along_axis(np.asarray(logits)[0, :n], ids[:, None], 1).sum()
        np.testing.assert_allclose(beams.log_probability_BN[row, 0], log_p, rtol=1e-3)


def test_its_attention_is_that_of_the_first_member() -> None:
    ensemble, params = made("gpt")
    ids = np.arange(3)
    found = attention_weights.self_attention(ensemble, params, ids)
    first = attention_weights.self_attention(ensemble.member, member(params, 0), ids)
    np.testing.assert_array_equal(found, first)
    assert found.shape == (1, 2, 3, 3)


def test_the_distillation_loss_is_a_cross_entropy() -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 3, V), np.float32)
    targets = rng.integers(0, V, (2, 3))
    sure = np.eye(V, dtype=np.float32)[targets]  # a teacher that is sure: the usual loss
    losses = jax.jit(distillation_losses)
    np.testing.assert_allclose(
        losses(logits, sure), jax.jit(token_losses)(logits, targets), rtol=1e-5
    )
    teacher = scipy.special.softmax(rng.standard_normal((2, 3, V)), -1)
    gradient = jax.jit(jax.grad(lambda x: losses(x, teacher).sum()))(logits)
    np.testing.assert_allclose(gradient, scipy.special.softmax(logits, -1) - teacher, atol=1e-6)


def test_a_student_that_is_its_teacher_learns_nothing_from_it_at_any_temperature() -> None:
    """Only the usual half of the loss, which counts logits divided by the temperature, is left."""
    config = dataclasses.replace(conftest.TINY, training_temperature=0.5)
    model, rng = models.GPT(config, V), np.random.default_rng(1)
    params = jax.tree.map(lambda p: rng.normal(0, 0.5, p.shape), models.shapes(model))
    tokens = rng.integers(0, V, (2, 8))
    batch = {"tokens": tokens, "targets": tokens, "loss_weights": np.ones((2, 8))}
    teacher = scipy.special.softmax(jax.jit(model.apply)({"params": params}, tokens)[0], -1)

    @jax.jit
    def gradient(params: Any, batch: Any) -> Any:
        key = jax.random.key(0)
        return jax.grad(lambda p: training.cross_entropy(model, p, batch, key)[0])(params)

    half, whole = gradient(params, batch | {"teacher": teacher}), gradient(params, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(2 * a, b, atol=1e-4), half, whole)


def test_what_cannot_be_an_ensemble_is_refused(refused: Refused, text_file: Path) -> None:
    def refuse(*flags: object) -> str:
        run = text_file.parent / "refused"
        return refused(train.main, *RUN, "--data.path", text_file, "--run-dir", run, *flags)

    assert "--train.members is 0, but must be at least 1" in refuse("--train.members", 0)
    assert "would be equal models" in refuse("--train.members", 2, "--train.init-from", "a")
    assert "leave --mesh.fsdp and --mesh.model out" in refuse(
        "--train.members", 2, "--mesh.fsdp", 2
    )
    nowhere = text_file.parent / "nowhere"
    message = refuse("--train.teacher", nowhere)
    assert f"--train.teacher {nowhere} is neither a run nor a folder of runs" in message


def test_a_broken_teacher_is_named_before_data_is_read(
    refused: Refused, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_late(*args: Any, **options: Any) -> None:
        raise AssertionError("the teacher is read first")

    monkeypatch.setattr(setup.data, "load", too_late)
    teacher = tmp_path / "teacher"
    flags = ["--data.path", text_file, "--run-dir", tmp_path / "run", "--train.teacher", teacher]

    def refuse(*more: object) -> str:
        return refused(train.main, *RUN, *flags, *more)

    teacher.mkdir()
    assert f"--train.teacher {teacher} is neither a run nor a folder of runs" in refuse()
    config, _ = train.parse([*RUN, "--data.path", str(text_file)])
    for content, words in (("{", "is not JSON"), (config_json.to_json(config), "tokenizer.json")):
        (teacher / "config.json").write_text(content)
        assert words in refuse()
    tok = tokenizer.train("char", "abc", 0)
    (teacher / "tokenizer.json").write_text(json.dumps(tok.to_dict()))
    assert f"--train.teacher {teacher} has no checkpoint yet; let it train first" in refuse()
    (teacher / "checkpoints/1").mkdir(parents=True)
    assert "has --model.block-size 8, 32 here" in refuse("--model.block-size", 32)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A run of two members."""
    run = tmp_path_factory.mktemp("members") / "pair"
    flags = ["--data.path", str(text_file), "--run-dir", str(run), "--train.members", "2"]
    train.main([*RUN, *flags])
    return run


@pytest.mark.slow
def test_commands_read_it_like_any_other(
    pair: Path, printed: Printed, capsys: pytest.CaptureFixture[str]
) -> None:
    run = gptjax.load(pair)
    assert isinstance(run.model, Ensemble)
    text = printed(sample.main, str(pair), "--prompt", "abc", "--max-new-tokens", "20")
    assert text == run.generate("abc", 20, seed=1337) + "\n"
    evaluate.main([str(pair), "--json"])
    found = json.loads(capsys.readouterr().out)["val_loss"]
    logged = [row["val_loss"] for row in read_metrics(pair) if "val_loss" in row]
    np.testing.assert_allclose(found, min(logged), rtol=1e-5)


@pytest.mark.slow
def test_it_continues_with_as_many_members(pair: Path, text_file: Path, refused: Refused) -> None:
    flags = [*RUN, "--data.path", str(text_file), "--run-dir", str(pair)]
    assert "train.members 2 -> 1" in refused(train.main, *flags)
    longer = ["--train.members", "2", "--train.max-steps", str(MAX_STEPS + 2)]
    train.main([*flags, *longer])
    assert max(committed_steps(pair)) == MAX_STEPS + 2


@pytest.mark.slow
def test_what_needs_one_model_says_so(pair: Path, refused: Refused) -> None:
    out = pair.parent / "out"
    for main, flags in (
        (quantize.main, ("--out", out)),
        (export.main, ("--to", "safetensors", "--out", out)),
        (page.main, ("--out", out.with_suffix(".html"))),
    ):
        message = refused(main, pair, *flags)
        assert f"{pair} is an ensemble of 2 models, and" in message
        assert f"--train.teacher {pair}" in message
    assert not out.exists()


@pytest.mark.slow
def test_a_student_learns_from_one_run_or_several(
    pair: Path, text_file: Path, refused: Refused
) -> None:
    def student(name: str, *flags: object) -> list[str]:
        run = pair.parent.parent / name
        data = ["--data.path", str(text_file), "--run-dir", str(run)]
        return [*RUN, *data, *map(str, flags)]

    taught, alone = (pair.parent.parent / name for name in ("taught", "alone"))
    train.main(student("taught", "--train.teacher", pair))
    train.main(student("alone"))
    losses = [read_metrics(run)[-1]["val_loss"] for run in (taught, alone)]
    assert losses[0] != losses[1]
    several = pair.parent.parent / "several"
    for run, name in ((pair, "a"), (alone, "b")):
        shutil.copytree(run, several / name)
    config, tok = run_directory.read_config(taught), run_directory.read_tokenizer(taught)
    tokens = np.arange(10)[None]

    def probabilities(folder: Path) -> Any:
        teaching = dataclasses.replace(config.train, teacher=folder)
        teacher = teachers.load(teachers.check(dataclasses.replace(config, train=teaching)), tok)
        assert teacher is not None
        return jax.jit(teacher)({"tokens": tokens})

    one, other, mean = map(probabilities, (pair, alone, several))
    assert np.abs(one - other).max() > 1e-3
    np.testing.assert_allclose(mean, (one + other) / 2, rtol=1e-5)
    larger = student("larger", "--train.teacher", pair, "--model.block-size", 32)
    assert "has --model.block-size 8, 32 here" in refused(train.main, *larger)
    other = pair.parent.parent / "other.txt"
    other.write_text("xyz" * 200)
    stranger = student("stranger", "--train.teacher", pair, "--data.path", other)
    assert "has another vocabulary" in refused(train.main, *stranger)
    assert "is an ensemble" in refused(train.main, *student("started", "--train.init-from", pair))


def test_a_student_of_a_sure_teacher_moves_towards_it() -> None:
    """Half of the loss is the teacher's: its gradient is that of the mean of both losses."""
    ensemble, params = made("bigram", 1)
    one, params = ensemble.member, member(params, 0)
    batch = batch_of(ensemble)
    wrong = (batch["targets"] + 1) % V

    def teacher(batch: training.Batch) -> jax.Array:
        return jax.nn.one_hot((batch["targets"] + 1) % V, V)

    key = jax.random.key(0)
    gradient = jax.jit(training.make_gradient(one, 4))
    loss, grads = jax.jit(training.make_gradient(one, 2, teacher=teacher))(params, batch, key)
    each = [gradient(params, batch | {"targets": t}, key) for t in (batch["targets"], wrong)]
    np.testing.assert_allclose(loss, np.mean([each[0][0], each[1][0]]), rtol=1e-5)
    jax.tree.map(
        lambda g, a, b: np.testing.assert_allclose(g, (a + b) / 2, rtol=1e-3, atol=1e-6),
        grads,
        each[0][1],
        each[1][1],
    )

"""What an encoder-decoder must be: PyTorch's Transformer, causal, and blind to padding."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from conftest import MODERN, TINY, VOCAB_SIZE

from gptjax import models, optim, training
from gptjax.config import GPTConfig, OptimConfig
from gptjax.config_encoders import EncoderDecoderConfig
from gptjax.data.tokenizer import CharTokenizer, PairTokenizer
from gptjax.models import EncoderDecoder

SOURCE_VOCAB_SIZE = 13


def encoder_decoder(config: GPTConfig, **fields) -> EncoderDecoderConfig:
    """The same options with an encoder."""
    options = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    sizes = {"n_encoder_layer": 1, "source_block_size": 30}
    return EncoderDecoderConfig(**{**options, **sizes, **fields})


def make(config: EncoderDecoderConfig):
    """A model and parameters none of which is zero or nearly so."""
    model = EncoderDecoder(config, VOCAB_SIZE, SOURCE_VOCAB_SIZE)
    some = jax.random.split(jax.random.key(5), 1000)
    leaves, tree = jax.tree.flatten(models.init(model, seed=3))
    moved = [p + 0.1 * jax.random.normal(k, p.shape) for p, k in zip(leaves, some, strict=False)]
    return model, jax.tree.unflatten(tree, moved)


@pytest.fixture(params=[TINY, MODERN], ids=["seed", "modern"])
def made(request):
    return make(encoder_decoder(request.param, block_size=20))


@pytest.fixture
def batch() -> dict[str, np.ndarray]:
    """Three pairs; the sources have 9, 4 and 6 tokens, the targets 7, 8 and 3."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCAB_SIZE, (3, 9)).astype(np.int32)
    return {
        "source": rng.integers(0, SOURCE_VOCAB_SIZE, (3, 9)).astype(np.int32),
        "source_mask": np.arange(9) < np.array([[9], [4], [6]]),
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "loss_weights": (np.arange(8) < np.array([[7], [8], [3]])).astype(np.float32),
    }


def logits_of(model, params, batch) -> np.ndarray:
    source = {"source": batch["source"], "source_mask": batch["source_mask"]}
    return np.asarray(jax.jit(model.apply)({"params": params}, batch["tokens"], **source)[0])


def padded(batch) -> dict[str, np.ndarray]:
    """The same pairs with ten more positions of garbage on both sides."""
    fill = {"source": 7, "source_mask": False, "tokens": 3, "targets": 5, "loss_weights": 0}
    return {
        name: np.pad(leaf, ((0, 0), (0, 10)), constant_values=fill[name])
        for name, leaf in batch.items()
    }


def loss_and_gradient(model, params, batch):
    """Of the weighted sum of losses."""
    loss_fn = jax.value_and_grad(lambda p: training.cross_entropy(model, p, batch)[0])
    return jax.jit(loss_fn)(params)


@pytest.mark.slow
@pytest.mark.parametrize("heads", [2, 4])
def test_logits_and_gradients_equal_torch_nn_transformers(heads, batch):
    torch = pytest.importorskip("torch", reason="PyTorch is an extra: pip install -e '.[torch]'")
    from benchmarks import torch_transformer

    config = encoder_decoder(dataclasses.replace(TINY, n_head=heads), n_encoder_layer=3)
    model, params = make(config)
    twin = torch_transformer.TorchEncoderDecoder(config, VOCAB_SIZE, SOURCE_VOCAB_SIZE)
    twin.load_state_dict(torch_transformer.weights(params))
    tensors = {name: torch.from_numpy(leaf) for name, leaf in batch.items()}
    long = {name: tensors[name].long() for name in ("tokens", "source", "targets")}
    theirs = twin(long["tokens"], long["source"], tensors["source_mask"])
    ours = logits_of(model, params, batch)
    error = np.abs(ours - theirs.detach().numpy()).max() / np.abs(ours).max()
    assert error <= 1e-5

    losses = torch.nn.functional.cross_entropy(
        theirs.flatten(0, 1), long["targets"].flatten(), reduction="none"
    )
    (losses * tensors["loss_weights"].flatten()).sum().backward()
    _, grads = loss_and_gradient(model, params, batch)
    expected = torch_transformer.weights(grads)
    for name, parameter in twin.named_parameters():
        if not name.endswith("in_proj_bias"):  # which gptjax does not have
            theirs, ours = parameter.grad, expected[name]
            assert (theirs - ours).abs().max() <= 1e-4 * theirs.abs().max(), name


@pytest.mark.slow
def test_padding_changes_neither_loss_nor_logits(made, batch):
    model, params = made
    more = padded(batch)
    assert more["loss_weights"].sum() == batch["loss_weights"].sum() == 18
    loss, gradient = loss_and_gradient(model, params, batch)
    padded_loss, padded_gradient = loss_and_gradient(model, params, more)
    assert padded_loss == pytest.approx(float(loss), rel=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (gradient, padded_gradient)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(a).max())
    logits = logits_of(model, params, batch)
    np.testing.assert_allclose(logits_of(model, params, more)[:, :8], logits, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_padding_gets_no_gradient_and_every_source_token_does(made, batch):
    """By the row of the embedding table that only the padding (then only a token) has."""
    model, params = made

    distinct = np.tile(np.arange(9, dtype=np.int32), (3, 1))
    of_second = batch | {"source": distinct}
    of_second = {name: leaf[1:2] for name, leaf in of_second.items()}  # four tokens
    _, grads = loss_and_gradient(model, params, of_second)
    gradient = np.abs(grads["encoder"]["token_embedding"]["table"]).sum(-1)
    assert (gradient[:4] > 0).all()
    assert (gradient[4:] == 0).all()


def test_the_decoder_is_causal_and_the_encoder_is_not(made, batch):
    model, params = made
    row = {name: leaf[:1] for name, leaf in batch.items()}
    before = logits_of(model, params, row)[0]
    tokens = row["tokens"].copy()
    tokens[0, 5] = (tokens[0, 5] + 1) % VOCAB_SIZE
    after = logits_of(model, params, row | {"tokens": tokens})[0]
    np.testing.assert_array_equal(before[:5], after[:5])
    assert (before[5:] != after[5:]).any(-1).all()
    source = row["source"].copy()
    source[0, 8] = (source[0, 8] + 1) % SOURCE_VOCAB_SIZE  # the last letter tells on every token
    other = logits_of(model, params, row | {"source": source})[0]
    assert (before != other).any(-1).all()


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3])
def test_cached_pieces_equal_the_whole_though_the_source_is_seen_once(made, batch, batch_size):
    model, params = made
    batch = {name: leaf[:batch_size] for name, leaf in batch.items()}
    whole = logits_of(model, params, batch)
    cache, source = model.init_cache(batch_size), {"source": batch["source"]}
    pieces = []
    apply = jax.jit(model.apply)
    for piece in np.split(batch["tokens"], [1, 2, 6], axis=1):
        logits, cache = apply(
            {"params": params}, piece, cache, source_mask=batch["source_mask"], **source
        )
        pieces.append(logits)
        source = {}
    np.testing.assert_allclose(np.concatenate(pieces, 1), whole, rtol=2e-4, atol=2e-5)


@pytest.mark.slow
def test_dropout_reaches_the_encoder(batch):
    model, params = make(encoder_decoder(dataclasses.replace(TINY, dropout=0.5, n_layer=1)))
    key = jax.random.key(0)
    loss = jax.jit(functools.partial(training.cross_entropy, model))
    noisy, _ = loss(params, batch, key)
    again, _ = loss(params, batch, key)
    clean, _ = loss(params, batch)
    assert noisy == again != clean


@pytest.mark.slow
@pytest.mark.parametrize(("tie", "share"), [(False, False), (True, False), (True, True)])
def test_embeddings_are_tied_and_shared_when_asked(batch, tie, share):
    config = encoder_decoder(TINY, tie_embeddings=tie, share_embeddings=share)
    both = CharTokenizer("abcdefghijklmnopqrs")
    target = both if share else CharTokenizer("abcdefghijklmnopqrs")
    source = both if share else CharTokenizer("abcdefghijklm")
    tok = PairTokenizer(source, target)
    model = models.build(config, tok)
    params = models.init(model, seed=1)
    tables = jax.tree_util.tree_leaves_with_path(params)
    rows = [leaf.shape for path, leaf in tables if "token_embedding" in jax.tree_util.keystr(path)]
    assert sorted(rows) == [(20, 16)] if share else [(13, 16), (20, 16)]
    assert ("head" in params["decoder"]) == (not tie)
    _, grads = loss_and_gradient(model, params, batch)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))


def test_a_pair_is_learned_by_heart(batch):
    """Training through make_train_steps, as every model."""
    model = EncoderDecoder(encoder_decoder(TINY), VOCAB_SIZE, SOURCE_VOCAB_SIZE)
    optimizer = optim.build(OptimConfig(learning_rate=1e-2), 150)
    train_steps = training.make_train_steps(model, optimizer, micro_batch_size=3, seed=1)
    state = training.init_state(models.init(model, seed=1), optimizer)
    batches = jax.tree.map(lambda x: np.repeat(x[None], 150, axis=0), batch)
    state, metrics = train_steps(state, batches, 150)
    assert metrics.loss[0] > 2
    assert metrics.loss[-1] < 0.05


def test_muon_moves_the_matrices_of_both_stacks(made):
    _, params = made
    labels = optim.muon_or_adamw(params)
    for stack in ("encoder", "decoder"):
        assert labels[stack]["block_0"]["mlp"]["hidden"]["kernel"] == "muon"
        assert labels[stack]["token_embedding"]["table"] == "adamw"
    cross = labels["decoder"]["block_0"]["cross_attention"]
    assert set(jax.tree.leaves(cross)) >= {"muon"}

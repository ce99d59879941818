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
from gptjax.kernels.dropout import row_streams
from gptjax.models import EncoderDecoder

SOURCE_VOCAB_SIZE = 13


def encoder_decoder(config: GPTConfig, **fields) -> EncoderDecoderConfig:
    """The same options with an encoder."""
    options = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    sizes = {"n_encoder_layer": 1, "source_block_size": 30}
    return EncoderDecoderConfig(**{**options, **sizes, **fields})


def random_params(model: EncoderDecoder):
    """None of them is zero or nearly so."""
    rng = np.random.default_rng(5)

    def draw(p: jax.ShapeDtypeStruct) -> np.ndarray:
        return (rng.uniform(0.1, 0.4, p.shape) * rng.choice([-1, 1], p.shape)).astype(p.dtype)

    return jax.tree.map(draw, jax.eval_shape(lambda: models.init(model, seed=3)))


def make(config: EncoderDecoderConfig):
    model = EncoderDecoder(config, VOCAB_SIZE, SOURCE_VOCAB_SIZE)
    return model, random_params(model)


@pytest.fixture(scope="module", params=[TINY, MODERN], ids=["seed", "modern"])
def made(request):
    return make(encoder_decoder(dataclasses.replace(request.param, n_layer=1), block_size=20))


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


def computed(model, params, batch):
    """(logits, weighted sum of losses, its gradient)."""
    return jax.device_get(compute(model, params, batch))


@functools.partial(jax.jit, static_argnums=0)
def compute(model, params, batch):
    logits, _ = model.apply({"params": params}, batch["tokens"], **models.source_of(batch))
    loss = jax.value_and_grad(lambda p: training.cross_entropy(model, p, batch)[0])
    return logits, *loss(params)


def padded(batch) -> dict[str, np.ndarray]:
    """The same pairs with ten more positions of garbage on both sides."""
    fill = {"source": 7, "source_mask": False, "tokens": 3, "targets": 5, "loss_weights": 0}
    return {
        name: np.pad(leaf, ((0, 0), (0, 10)), constant_values=fill[name])
        for name, leaf in batch.items()
    }


@pytest.mark.slow
def test_logits_and_gradients_equal_torch_nn_transformers(batch):
    torch = pytest.importorskip("torch", reason="PyTorch is an extra: pip install -e '.[torch]'")
    from benchmarks import torch_transformer

    config = encoder_decoder(dataclasses.replace(TINY, n_head=4), n_encoder_layer=3)
    model, params = make(config)
    twin = torch_transformer.TorchEncoderDecoder(config, VOCAB_SIZE, SOURCE_VOCAB_SIZE)
    twin.load_state_dict(torch_transformer.weights(params))
    tensors = {name: torch.from_numpy(leaf) for name, leaf in batch.items()}
    long = {name: tensors[name].long() for name in ("tokens", "source", "targets")}
    theirs = twin(long["tokens"], long["source"], tensors["source_mask"])
    ours, _, grads = computed(model, params, batch)
    error = np.abs(ours - theirs.detach().numpy()).max() / np.abs(ours).max()
    assert error <= 1e-5

    losses = torch.nn.functional.cross_entropy(
        theirs.flatten(0, 1), long["targets"].flatten(), reduction="none"
    )
    (losses * tensors["loss_weights"].flatten()).sum().backward()
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
    logits, loss, gradient = computed(model, params, batch)
    padded_logits, padded_loss, padded_gradient = computed(model, params, more)
    assert padded_loss == pytest.approx(float(loss), rel=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (gradient, padded_gradient)), strict=True):
        assert np.any(a)
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(a).max())
    np.testing.assert_allclose(padded_logits[:, :8], logits, rtol=1e-4, atol=1e-5)


def test_padding_gets_no_gradient_and_every_source_token_does(made, batch):
    """By the row of the embedding table that only the padding (then only a token) has."""
    distinct = np.tile(np.arange(9, dtype=np.int32), (3, 1))
    second = np.array([[0], [1], [0]], np.float32)  # four tokens
    of_second = batch | {"source": distinct, "loss_weights": batch["loss_weights"] * second}
    _, _, grads = computed(*made, of_second)
    gradient = np.abs(grads["encoder"]["token_embedding"]["table"]).sum(-1)
    assert (gradient[:4] > 0).all()
    assert (gradient[4:] == 0).all()


def test_the_decoder_is_causal_and_the_encoder_is_not(made, batch):
    before, *_ = computed(*made, batch)
    tokens, source = batch["tokens"].copy(), batch["source"].copy()
    tokens[:, 5] = (tokens[:, 5] + 1) % VOCAB_SIZE
    after, *_ = computed(*made, batch | {"tokens": tokens})
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).any(-1).all()
    source[0, 8] = (source[0, 8] + 1) % SOURCE_VOCAB_SIZE  # the last letter tells on every token
    other, *_ = computed(*made, batch | {"source": source})
    assert (before[0] != other[0]).any(-1).all()


@pytest.mark.slow
def test_dropout_reaches_the_encoder(batch):
    """Seen in what the encoder hands on."""
    model, params = make(encoder_decoder(dataclasses.replace(TINY, dropout=0.5, n_layer=1)))
    options = {"capture_intermediates": lambda module, _: module.name == "encoder"}
    forward = functools.partial(
        model.apply, {"params": params}, batch["tokens"], **models.source_of(batch), **options
    )

    @jax.jit
    def encoded(key):
        noisy, clean = forward(streams_B2=row_streams(key, np.arange(3))), forward()
        return [sown["intermediates"]["encoder"]["__call__"][0] for _, sown in (noisy, clean)]

    (noisy, clean), (again, _) = (encoded(jax.random.key(0)) for _ in range(2))
    np.testing.assert_array_equal(noisy, again)
    assert not np.allclose(noisy, clean)


@pytest.mark.slow
@pytest.mark.parametrize(("tie", "share"), [(False, False), (True, False), (True, True)])
def test_embeddings_are_tied_and_shared_when_asked(batch, tie, share):
    config = dataclasses.replace(TINY, n_layer=1)
    config = encoder_decoder(config, tie_embeddings=tie, share_embeddings=share)
    both = CharTokenizer("abcdefghijklmnopqrs")
    target = both if share else CharTokenizer("abcdefghijklmnopqrs")
    source = both if share else CharTokenizer("abcdefghijklm")
    tok = PairTokenizer(source, target)
    model = models.build(config, tok)
    params = random_params(model)
    tables = jax.tree_util.tree_leaves_with_path(params)
    rows = [leaf.shape for path, leaf in tables if "token_embedding" in jax.tree_util.keystr(path)]
    assert sorted(rows) == [(20, 16)] if share else [(13, 16), (20, 16)]
    assert ("head" in params["decoder"]) == (not tie)
    if tie:  # no gradient of untied ones is zero in the test of padding
        _, _, grads = computed(model, params, batch)
        assert all(np.any(g) for g in jax.tree.leaves(grads))


def test_a_pair_is_learned_by_heart(batch):
    """Training through make_train_steps, as every model."""
    config = dataclasses.replace(TINY, n_layer=1)
    model = EncoderDecoder(encoder_decoder(config), VOCAB_SIZE, SOURCE_VOCAB_SIZE)
    optimizer = optim.build(OptimConfig(learning_rate=1e-2), 150)
    train_steps = training.make_train_steps(model, optimizer, micro_batch_size=3, seed=1)
    state = training.init_state(random_params(model), optimizer)
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

"""What the heads of a language model look at; tests of cross-attention are in test_search.py."""

import dataclasses
import functools
from pathlib import Path

import jax
import matplotlib.image
import numpy as np
import pytest
from conftest import TINY, VOCAB_SIZE, Refused
from test_page import make_run

from gptjax import models
from gptjax.commands import sample
from gptjax.config import BigramConfig, GPTConfig
from gptjax.data.tokenizer import CharTokenizer
from gptjax.decoding import attention_weights
from gptjax.rotary import rotary_angles, rotate

CONFIGS = {
    "gpt": dataclasses.replace(TINY, n_layer=1, block_size=64),
    "bigram": BigramConfig(),
}


@pytest.fixture(scope="module", params=CONFIGS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    make_run(folder / "run", CONFIGS[request.param], CharTokenizer.train("to be\n$x_{y:"))
    return folder / "run"


@pytest.mark.parametrize("n_tokens", [2, 70])
def test_no_position_looks_ahead_and_the_shares_add_up(
    gpt_config: GPTConfig, n_tokens: int
) -> None:
    """Also where the queries are worked through in several parts."""
    config = dataclasses.replace(gpt_config, n_layer=1, block_size=128)
    model, rng = models.GPT(config, VOCAB_SIZE), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: models.init(model, seed=3))
    params = jax.tree.map(lambda p: rng.normal(0, 0.5, p.shape).astype(p.dtype), shapes)
    tokens_T = rng.integers(0, VOCAB_SIZE, n_tokens)
    weights = attention_weights.self_attention(model, params, tokens_T)
    assert weights.shape == (1, 2, n_tokens, n_tokens)
    assert (np.triu(weights, k=1) == 0).all()
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    tokens_T[-1] = (tokens_T[-1] + 1) % VOCAB_SIZE
    other = attention_weights.self_attention(model, params, tokens_T)
    np.testing.assert_allclose(weights[..., :-1, :], other[..., :-1, :], atol=1e-5)
    assert not np.allclose(weights[..., -1, :], other[..., -1, :], atol=1e-3)


def test_self_attention_equals_its_definition(
    model: models.GPT, params: dict, tokens: np.ndarray
) -> None:
    """softmax(q k / sqrt(K)) over what is not later, of queries and keys that the model makes."""
    c, n_tokens = model.config, len(tokens[0])
    capture = functools.partial(model.apply, capture_intermediates=True, mutable="intermediates")
    _, sown = jax.device_get(jax.jit(capture)({"params": params}, tokens[:1]))
    weights = attention_weights.self_attention(model, params, tokens[0])
    for i in range(c.n_layer):
        attention = sown["intermediates"][f"block_{i}"]["attention"]
        q, k = (
            np.asarray(attention[name]["__call__"][0][0])
            .reshape(n_tokens, c.n_head, -1)
            .swapaxes(0, 1)
            for name in ("query", "key")
        )
        if c.qk_norm:
            q, k = (x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) for x in (q, k))
        if c.position == "rotary":
            angles = rotary_angles(np.arange(n_tokens), q.shape[-1])
            q, k = (np.asarray(rotate(x[None], angles)[0]) for x in (q, k))
        scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
        scores = np.where(np.tri(n_tokens, dtype=bool), scores, -np.inf)
        np.testing.assert_allclose(weights[i], jax.nn.softmax(scores), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["gpt"], indirect=True)
def test_sample_draws_the_heads(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = []
    for prompt in ("to be\n$x_{y$", "to be\n$x_{y:"):  # dollars would begin a formula
        flags = ["--prompt", prompt, "--max-new-tokens", "1", "--attention"]
        sample.main([str(run), *flags, str(tmp_path / "out.png")])
        said = capsys.readouterr()
        assert said.out.startswith(prompt)
        assert f"attention: {tmp_path / 'out.png'}" in said.err
        pictures.append(matplotlib.image.imread(tmp_path / "out.png"))
    assert [p.name for p in tmp_path.iterdir()] == ["out.png"]
    assert min(pictures[0].shape[:2]) > 200
    assert pictures[0][..., :3].min() < 0.2
    assert not np.array_equal(*pictures)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "flags", "says"),
    [
        ("gpt", ["--prompt", "to"], "--attention x.bmp must end in .png, .svg or .pdf"),
        ("gpt", [], "--attention draws a prompt of 2 to 48 tokens, not 1"),
        ("gpt", ["--prompt", "be" * 25], "--attention draws a prompt of 2 to 48 tokens, not 50"),
        ("gpt", ["--interactive"], "--attention draws one --prompt; leave --interactive out"),
        ("bigram", ["--prompt", "to"], ": a bigram has none"),
    ],
    indirect=["run"],
)
def test_what_cannot_be_drawn_is_refused(
    run: Path, flags: list[str], says: str, refused: Refused, tmp_path: Path
) -> None:
    picture = "x.bmp" if "x.bmp" in says else tmp_path / "x.png"
    assert says in refused(sample.main, run, *flags, "--attention", picture)
    assert not list(tmp_path.iterdir())

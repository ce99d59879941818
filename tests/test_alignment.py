"""What the heads of a language model look at; tests of cross-attention are in test_search.py."""

import functools
from pathlib import Path

import jax
import matplotlib.image
import numpy as np
import pytest
from conftest import VOCAB_SIZE, Refused

from gptjax import models, train
from gptjax.commands import sample
from gptjax.config import GPTConfig
from gptjax.decoding import attention_weights
from gptjax.rotary import rotary_angles, rotate

CONFIGS = Path(__file__).parents[1] / "configs"
FLAGS = {
    "gpt": "debug.py --model.n-layer 2 --model.n-head 2 --model.n-embd 16 --model.block-size 64"
    " --model.dropout 0.2",
    "bigram": "bigram.py --model.block-size 8",
}


@pytest.fixture(scope="module", params=FLAGS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "text.txt").write_text("To be, or not to be,\nthat is the question: $x_{y$\n" * 40)
    flags = f"--config {CONFIGS}/{FLAGS[request.param]} --train.max-steps 1 --train.batch-size 4"
    flags += f" --train.eval-batches 0 --train.sample-tokens 0 --data.path {folder / 'text.txt'}"
    train.main(["--run-dir", str(folder / "run"), *flags.split()])
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("n_tokens", [2, 16, 70])
def test_no_position_looks_ahead_and_the_shares_add_up(
    gpt_config: GPTConfig, n_tokens: int
) -> None:
    """Also where the queries are worked through in several parts."""
    model = models.GPT(GPTConfig(**vars(gpt_config) | {"block_size": 128}), VOCAB_SIZE)
    params = jax.tree.map(lambda p: 2 * p, models.init(model, seed=3))
    tokens_T = np.random.default_rng(0).integers(0, VOCAB_SIZE, n_tokens)
    weights = attention_weights.self_attention(model, params, tokens_T)
    assert weights.shape == (2, 2, n_tokens, n_tokens)
    assert (np.triu(weights, k=1) == 0).all()
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    shorter = attention_weights.self_attention(model, params, tokens_T[:-1])
    np.testing.assert_allclose(weights[..., :-1, :-1], shorter, atol=1e-5)


def test_self_attention_equals_its_definition(
    model: models.GPT, params: dict, tokens: np.ndarray
) -> None:
    """softmax(q k / sqrt(K)) over what is not later, of queries and keys that the model makes."""
    c, n_tokens = model.config, len(tokens[0])
    capture = functools.partial(model.apply, capture_intermediates=True, mutable="intermediates")
    _, sown = jax.jit(capture)({"params": params}, tokens[:1])
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
        flags = ["--prompt", prompt, "--max-new-tokens", "3", "--attention"]
        sample.main([str(run), *flags, str(tmp_path / "out.png")])
        said = capsys.readouterr()
        assert said.out.startswith(prompt)
        assert f"attention: {tmp_path / 'out.png'}" in said.err
        pictures.append(matplotlib.image.imread(tmp_path / "out.png"))
    assert [p.name for p in tmp_path.iterdir()] == ["out.png"]
    assert min(pictures[0].shape[:2]) > 300
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

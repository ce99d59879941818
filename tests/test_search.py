"""Beam search finds what a search without cache, padding and neighbours finds."""

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from conftest import MODERN, TINY

from gptjax import models
from gptjax.config import GPTConfig
from gptjax.config_encoders import EncoderDecoderConfig
from gptjax.data.tokenizer import CharTokenizer, PairTokenizer
from gptjax.decoding import attention_maps, attention_weights, beam_search
from gptjax.errors import UserError
from gptjax.models import EncoderDecoder

TOKENIZER = PairTokenizer(CharTokenizer("abcdefgh"), CharTokenizer("tuvwxyz"))
TWO_LETTERS = PairTokenizer(CharTokenizer("abcdefgh"), CharTokenizer("xy"))
SOURCES = ["hgf", "a", "cabbagedeaf", "bed", "hhgghhgg", "abcdefghabcd"]
BLOCK_SIZE, SOURCE_BLOCK_SIZE = 8, 12
ONE_LAYER = dataclasses.replace(TINY, n_layer=1)


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, its parameters, and (logits, log-probabilities) without a cache."""

    tok: PairTokenizer
    model: EncoderDecoder
    params: Any
    forward: Callable[..., Any]

    def log_p(self, source: str, ids: list[int]) -> np.ndarray:
        """Log-probabilities of what follows the boundary and each of these tokens."""
        block_size = self.model.config.block_size
        source_1S, mask_1S = padded(self.tok, [source], SOURCE_BLOCK_SIZE)
        tokens = [self.tok.boundary, *ids][:block_size]
        tokens_1T = np.pad([tokens], ((0, 0), (0, block_size - len(tokens))))
        log_p_1TV = self.forward(self.params, tokens_1T, source_1S, mask_1S)[1]
        return np.asarray(log_p_1TV)[0, : len(tokens)]

    def log_probability(self, source: str, ids: list[int]) -> float:
        """Of a target by teacher forcing: its tokens and, where it ends, its boundary."""
        ended = [*ids, self.tok.boundary][: self.model.config.block_size]
        log_p_TV = self.log_p(source, list(ids))
        return float(sum(log_p_TV[t, token] for t, token in enumerate(ended)))

    def transduce(self, sources: list[str], **options: Any) -> list[list[beam_search.Hypothesis]]:
        return beam_search.transduce(self.model, self.params, self.tok, sources, **options)


def make_case(base: GPTConfig, tok: PairTokenizer, **fields: Any) -> Case:
    """Random parameters, far from zero, so that every part of the model has its say."""
    config = EncoderDecoderConfig(
        **dataclasses.asdict(base) | {"block_size": BLOCK_SIZE} | fields,
        n_encoder_layer=1,
        source_block_size=SOURCE_BLOCK_SIZE,
    )
    model = models.build(config, tok)
    assert isinstance(model, EncoderDecoder)
    rng = np.random.default_rng(10)

    def draw(p: jax.ShapeDtypeStruct) -> np.ndarray:
        return rng.normal(0, 0.7, p.shape).astype(p.dtype)

    params = jax.tree.map(draw, jax.eval_shape(lambda: models.init(model, seed=2)))

    @jax.jit
    def forward(params: Any, tokens: Any, source: Any, mask: Any) -> Any:
        logits, _ = model.apply({"params": params}, tokens, source=source, source_mask=mask)
        return logits, jax.nn.log_softmax(logits)

    return Case(tok, model, params, forward)


@pytest.fixture(scope="module", params=["seed", "modern"])
def case(request: pytest.FixtureRequest) -> Case:
    """The seed's architecture, with one layer, and the modern one, both tiny."""
    return case_of(request.param)


@functools.cache  # the fixture is set up anew for each list of parameters that it is in
def case_of(name: str) -> Case:
    return make_case(MODERN if name == "modern" else ONE_LAYER, TOKENIZER)


@pytest.fixture(scope="module")
def small() -> Case:
    """The modern one with so few targets that they can be listed."""
    return make_case(dataclasses.replace(MODERN, n_layer=1), TWO_LETTERS, block_size=4)


def padded(
    tok: PairTokenizer, sources: list[str], width: int, filling: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(source, source_mask), both (B, width)."""
    ids = [tok.source.encode(source) for source in sources]
    source_BS = np.stack(
        [np.pad(row, (0, width - len(row)), constant_values=filling) for row in ids]
    )
    return source_BS, np.arange(width) < np.array([len(row) for row in ids])[:, None]


def listed_beam_search(
    case: Case, source: str, beam_size: int, penalty: float
) -> list[tuple[float, float, list[int]]]:
    """(score, log-probability, tokens), best first: the textbook's search, with lists."""
    boundary = case.tok.boundary
    beams: list[tuple[float, float, list[int]]] = [(0.0, 0.0, [])]
    for _ in range(case.model.config.block_size):
        extended = []
        for score, total, ids in beams:
            if ids[-1:] == [boundary]:
                extended.append((score, total, ids))
                continue
            for token, log_p in enumerate(case.log_p(source, ids)[-1].tolist()):
                longer = [*ids, token]
                extended.append(((total + log_p) / len(longer) ** penalty, total + log_p, longer))
        beams = sorted(extended, reverse=True)[:beam_size]
    return beams


def tokens_of(case: Case, found: beam_search.Hypothesis) -> list[int]:
    """With the boundary at the end, which only a target of block_size tokens may lack."""
    return [*found.ids.tolist(), case.tok.boundary][: case.model.config.block_size]


# --- the cache


@pytest.mark.slow
def test_a_cache_needs_the_source_once(case: Case) -> None:
    """Later calls have neither the source nor the weights that read it, and say the same.

    Here of several tokens; the searches make calls of one.
    """
    model, n_sources = case.model, 3
    source_BS, mask_BS = padded(case.tok, SOURCES[:n_sources], SOURCE_BLOCK_SIZE)
    tokens_BT = np.random.default_rng(0).integers(0, model.vocab_size, (n_sources, BLOCK_SIZE))
    alone = zip(*(x[:, None] for x in (tokens_BT, source_BS, mask_BS)), strict=True)
    expected = np.concatenate([case.forward(case.params, *row)[0] for row in alone])

    decoder = {**case.params["decoder"]}
    for i in range(model.config.n_layer):
        attention = {**decoder[f"block_{i}"]["cross_attention"]}
        del attention["key"], attention["value"]
        decoder[f"block_{i}"] = {**decoder[f"block_{i}"], "cross_attention": attention}
    without = {"decoder": decoder}  # and without the encoder

    first, *later = np.split(tokens_BT, [2, 5], axis=1)
    apply = jax.jit(model.apply)
    source: Any = {"source": source_BS, "source_mask": mask_BS}
    logits, cache = apply({"params": case.params}, first, model.init_cache(n_sources), **source)
    pieces = [logits]
    for piece in later:
        logits, cache = apply({"params": without}, piece, cache, source_mask=mask_BS)
        pieces.append(logits)
    np.testing.assert_allclose(np.concatenate(pieces, 1), expected, rtol=1e-3, atol=1e-3)


def test_a_search_encodes_each_source_once(case: Case) -> None:
    """Counted while it is traced: the loop over tokens is traced apart from what precedes it."""
    calls: Counter[str] = Counter()
    last = f"block_{case.model.config.n_layer - 1}"

    def count(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name == "__call__":
            path = context.module.path
            calls["encoder"] += path == ("encoder",)
            calls["decoder"] += path == ("decoder",)
            calls["keys"] += path == ("decoder", last, "cross_attention", "key")
            if path == ("encoder",):
                assert args[0].shape == (3, SOURCE_BLOCK_SIZE)  # of sources, not of beams
        return next_fun(*args, **kwargs)

    source_BS, mask_BS = padded(case.tok, SOURCES[:3], SOURCE_BLOCK_SIZE)
    with nn.intercept_methods(count):
        jax.eval_shape(
            lambda params: beam_search.beam_search.__wrapped__(
                case.model, params, jnp.asarray(source_BS), jnp.asarray(mask_BS), 7, beam_size=4
            ),
            case.params,
        )
    assert calls["decoder"] >= 2
    assert calls["encoder"] == calls["keys"] == 1


# --- many beams


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "beam_size", "penalty"),
    [("seed", 3, 1.0), *(("modern", *x) for x in [(1, 1.0), (3, 0.0), (3, 0.6), (3, 1.0)])],
    indirect=["case"],
    ids=str,
)
def test_the_search_is_the_textbook_s(
    case: Case, beam_size: int, penalty: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order asked for, although sources of like length are decoded side by side.

    The last batch is filled up.
    """
    monkeypatch.setattr(beam_search, "BATCH_SIZE", 4)
    assert max(map(len, SOURCES)) == SOURCE_BLOCK_SIZE
    found = case.transduce(SOURCES, beam_size=beam_size, length_penalty=penalty)
    for source, ours in zip(SOURCES, found, strict=True):
        theirs = listed_beam_search(case, source, beam_size, penalty)
        assert [tokens_of(case, h) for h in ours] == [ids for _, _, ids in theirs]
        scores = [(h.score, h.log_probability) for h in ours]
        np.testing.assert_allclose(scores, [t[:2] for t in theirs], rtol=1e-3, atol=1e-3)
        for h in ours:
            assert case.tok.boundary not in h.ids
            assert h.text == case.tok.target.decode(h.ids)
    if beam_size == 1:  # else the comparisons here would say nothing about the encoder
        best = [tokens_of(case, hypotheses[0]) for hypotheses in found]
        assert len({tuple(ids) for ids in best}) >= 4
        assert len({len(ids) for ids in best}) >= 2
        assert any(len(set(ids)) > 3 for ids in best)
    assert case.transduce([]) == []


@pytest.mark.slow
@pytest.mark.parametrize("source", ["a", "bed", "hgf", "cafe", "hhgghhgg"])
def test_a_beam_wide_enough_lists_every_target(small: Case, source: str) -> None:
    """Of two letters: 15 targets that end within four tokens, 16 that do not; more there are not.

    More beginnings than that there never are, so nothing is ever dropped and the list is exact;
    the places that are left over stay empty.
    """
    targets = [list(ids) for length in range(5) for ids in itertools.product([0, 1], repeat=length)]
    assert len(targets) == 31
    log_probabilities = [small.log_probability(source, ids) for ids in targets]
    best = {}
    for penalty in (0.0, 1.0):
        expected = sorted(
            (
                (log_p / min(len(ids) + 1, 4) ** penalty, log_p, ids)
                for log_p, ids in zip(log_probabilities, targets, strict=True)
            ),
            reverse=True,
        )
        (found,) = small.transduce([source], beam_size=35, length_penalty=penalty)
        assert [h.ids.tolist() for h in found] == [ids for _, _, ids in expected]
        assert [h.text for h in found] == ["".join("xy"[i] for i in ids) for _, _, ids in expected]
        scores = [(h.score, h.log_probability) for h in found]
        np.testing.assert_allclose(scores, [e[:2] for e in expected], rtol=1e-3, atol=1e-3)
        assert sum(np.exp(h.log_probability) for h in found) == pytest.approx(1, abs=1e-4)
        best[penalty] = [h.text for h in found]
    assert best[0.0] != best[1.0]


# --- neighbours and padding


@pytest.mark.slow
def test_neither_padding_nor_what_it_holds_matters(case: Case) -> None:
    """The rows of a batch are alone; a source that needs no padding has none."""

    def searched(sources: list[str], width: int, filling: int) -> beam_search.Beams:
        # Called as in `transduce`, whose programs these are.
        batch = padded(case.tok, sources, width, filling)
        return beam_search.beam_search(case.model, case.params, *batch, case.tok.boundary, 3, 1.0)

    sources = [SOURCES[i] for i in (4, 0, 1, 3)]
    wide, other = (searched(sources, SOURCE_BLOCK_SIZE, filling) for filling in (0, 5))
    for a, b in zip(wide, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    alone = searched(4 * sources[:1], len(sources[0]), 0)
    for a, b in zip(alone, wide, strict=True):
        np.testing.assert_allclose(a[0], b[0], rtol=1e-3, atol=1e-3)


# --- bad input


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", "the source '' has 0 tokens; the model reads 1 to 12"),
        ("a" * 13, "has 13 tokens; the model reads 1 to 12"),
        ("abQ", "'Q' at 2"),
    ],
    ids=["empty", "too-long", "unknown"],
)
def test_sources_that_cannot_be_read_are_refused(case: Case, source: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        case.transduce(["abc", source])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("beam_size", "penalty", "words"),
    [
        (0, 1.0, "--beam is 0, but must be in [1, 100]"),
        (101, 1.0, "--beam is 101, but must be in [1, 100]"),
        (1, -0.1, "--length-penalty is -0.1, but must be in [0, 10]"),
        (1, float("nan"), "--length-penalty is nan"),
        (1, float("inf"), "--length-penalty is inf"),
        (1, 10.1, "--length-penalty is 10.1"),
    ],
)
def test_values_out_of_range_are_refused(beam_size: int, penalty: float, words: str) -> None:
    with pytest.raises(UserError) as caught:
        beam_search.check(beam_size, penalty)
    assert words in str(caught.value)
    for limit in (1, beam_search.MOST_BEAMS):
        beam_search.check(limit, 0.0)


# --- cross-attention


def cross_attention(case: Case, source_S: np.ndarray, tokens_T: np.ndarray) -> np.ndarray:
    """Weights (layer, H, T, S) of one pair."""
    mask_1S = np.ones((1, len(source_S)), bool)
    inputs = tokens_T[None], source_S[None], mask_1S
    weights_1LHTS = attention_weights.cross_attention(case.model, case.params, *inputs)
    return np.asarray(weights_1LHTS[0])


def test_cross_attention_is_a_distribution_over_the_source_for_every_token(case: Case) -> None:
    model = case.model
    source_S = case.tok.source.encode("cabbage")
    tokens_T = np.array([case.tok.boundary, 1, 4, 0, 2])
    weights = cross_attention(case, source_S, tokens_T)
    assert weights.shape == (model.config.n_layer, model.config.n_head, 5, 7)
    assert weights.dtype == np.float32
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    assert np.ptp(weights, axis=-1).max() > 0.1  # it looks somewhere

    # A later token changes only what is looked for from it on; another source changes all.
    changed = cross_attention(case, source_S, np.array([*tokens_T[:-1], 5]))
    np.testing.assert_allclose(changed[..., :-1, :], weights[..., :-1, :], atol=1e-4)
    assert not np.allclose(changed[..., -1, :], weights[..., -1, :], atol=1e-3)
    other = cross_attention(case, source_S[::-1], tokens_T)
    assert not np.allclose(other, weights, atol=1e-3)


@pytest.mark.slow
def test_cross_attention_equals_its_definition(case: Case) -> None:
    """softmax(q k / sqrt(K)) in the last layer, made of what the model itself hands on."""
    model, c = case.model, case.model.config
    source_S = case.tok.source.encode("cabbage")
    tokens_T = np.array([case.tok.boundary, 1, 4, 0, 2])
    capture = functools.partial(model.apply, capture_intermediates=True, mutable="intermediates")
    _, sown = jax.jit(capture)(
        {"params": case.params},
        tokens_T[None],
        source=source_S[None],
        source_mask=np.ones((1, 7), bool),
    )
    attention = sown["intermediates"]["decoder"][f"block_{c.n_layer - 1}"]["cross_attention"]
    q, k = (
        np.asarray(attention[name]["__call__"][0][0])
        .reshape(-1, c.n_head, c.n_embd // c.n_head)
        .swapaxes(0, 1)
        for name in ("query", "key")
    )
    if c.qk_norm:
        q, k = (x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) for x in (q, k))
    scores = q @ k.swapaxes(1, 2) / np.sqrt(c.n_embd // c.n_head)
    expected = np.asarray(jax.nn.softmax(scores))
    weights = cross_attention(case, source_S, tokens_T)
    np.testing.assert_allclose(weights[-1], expected, atol=1e-4)


def test_a_map_is_drawn_as_a_png(tmp_path: Path) -> None:
    weights_TS = np.eye(3, 5, dtype=np.float32)
    path = tmp_path / "map.png"
    # Dollars would begin a formula.
    attention_maps.draw(weights_TS, list("abc$e"), ["$x_{", "y$", "end"], "a title", path)
    image = matplotlib.image.imread(path)
    height, width = image.shape[:2]
    assert width > height > 100
    assert image[..., :3].min() < 0.2 < 0.9 < image[..., :3].max()
    assert [p.name for p in tmp_path.iterdir()] == ["map.png"]
    # It is the weights that are drawn.
    attention_maps.draw(weights_TS[::-1], list("abcde"), ["x", "y", "end"], "a title", path)
    assert not np.array_equal(matplotlib.image.imread(path), image)

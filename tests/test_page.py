"""`gptjax page`: the model in a real browser computes what gptjax computes."""

import dataclasses
import functools
import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from chromium import OpenPage, browser, open_page, until  # noqa: F401 - fixtures
from conftest import MODERN, TINY

from gptjax import config_files, models
from gptjax.commands import page as page_command
from gptjax.config import BigramConfig, Config, GPTConfig, ModelConfig
from gptjax.data import tokenizer
from gptjax.decoding import sampling
from gptjax.quantization.quant_array import Format, dequantize_params, quantize_params
from gptjax.runs import checkpoints, run_directory

TEXT = "the quick brown fox jumps over the lazy dog.\n"
GPT_CPU = config_files.load_file(Path(__file__).parents[1] / "configs/gpt_cpu.py").model
OPTIONS = {
    "original": TINY,
    "modern": MODERN,
    "swiglu": dataclasses.replace(
        MODERN, n_layer=1, activation="swiglu", tie_embeddings=True, bias=True, attention_bias=True
    ),
    "gelu": dataclasses.replace(
        TINY,
        n_layer=1,
        activation="gelu",
        norm="rmsnorm",
        position="rotary",
        short_conv=2,
        n_head=1,
    ),
    "bigram": BigramConfig(),
    "gpt_cpu": dataclasses.replace(GPT_CPU, n_layer=1),
}
# The 65 characters of the default text.
CHARACTERS = "\n !$&',-.3:;?" + string.ascii_letters
GREEDY = """(n) => {
    const { run, Writer, mostLikely } = gptjax;
    const writer = new Writer(run.config, run.params, run.tokenizer.encode(PROMPT).ids);
    for (let i = 0; i < n; i++) writer.append(mostLikely(writer.logits));
    return writer.tokens;
}""".replace("PROMPT", json.dumps(TEXT[:9]))
READ = """(text) => {
    const { run, readText, Probe } = gptjax;
    const probe = new Probe(), { ids } = run.tokenizer.encode(text);
    const { logits, loss } = readText(run.config, run.params, ids, probe);
    const weights = [...probe.weights.values()].flat().map((w) => [...w.data]);
    return { ids, loss, logits: [...logits.data], weights };
}"""
PARTS = """() => {
    const { run, readText, Probe, logitAttribution } = gptjax;
    const probe = new Probe(), ids = run.tokenizer.encode("the fox").ids;
    const config = { ...run.config, logit_softcap: 0 };
    const logits = readText(config, run.params, ids, probe).logits.row(3);
    const parts = logitAttribution(config, run.params, probe, 3, 5, run.params.token_embedding);
    const mean = logits.reduce((a, b) => a + b) / logits.length;
    return [parts.reduce((sum, part) => sum + part.value, 0), logits[5] - mean];
}"""


def make_run(folder: Path, config: ModelConfig, tok: Any, **settings: Any) -> tuple[Any, Any]:
    """A run with random parameters, none of them zero or one. Returns (model, parameters).

    settings: other fields of its Config.
    """
    model = models.build(config, tok)
    rng = np.random.default_rng(0)

    def draw(path: Any, p: jax.ShapeDtypeStruct) -> np.ndarray:
        """Less for a larger matrix: large logits would have large rounding errors."""
        size, mean = (0.3, path[-1].key == "scale") if p.ndim == 1 else (p.shape[-1] ** -0.5, 0)
        return rng.normal(mean, size, p.shape).astype(np.float32)

    shapes = models.shapes(model)
    params = jax.tree_util.tree_map_with_path(draw, shapes)
    settings = {"model": config} | settings
    data = {"source": "none", "sha256": "", "imported": True}
    with run_directory.new_run(folder) as part:
        checkpoints.save_finished(part, Config(**settings), tok, params, data)
    return model, params


def make_page(run: Path, *options: str) -> Path:
    page_command.main([str(run), "--out", str(run.parent / "a.html"), *options])
    return run.parent / "a.html"


# Calls with a name of OPTIONS return (a run, its model, its parameters); each is made once.
MakeRun = Callable[[str], tuple[Path, Any, Any]]


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    @functools.cache
    def run(name: str) -> tuple[Path, Any, Any]:
        folder = tmp_path_factory.mktemp(name) / "run"
        return folder, *make_run(folder, OPTIONS[name], tokenizer.train("char", CHARACTERS, 0))

    return run


@functools.partial(jax.jit, static_argnums=0)
def computed(model: Any, params: Any, tokens_BT: np.ndarray) -> Any:
    """(logits, what the attention of each layer sows)."""
    (logits_BTV, _), sown = model.apply({"params": params}, tokens_BT, mutable="intermediates")
    return logits_BTV, sown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "weights"),
    [
        *((name, "float32") for name in OPTIONS),
        *(("modern", "int8"), ("modern", "float16"), ("gpt_cpu", "int8")),
    ],
)
def test_the_page_computes_what_gptjax_computes(
    name: str,
    weights: str,
    run_of: MakeRun,
    open_page: OpenPage,  # noqa: F811
) -> None:
    """int8 is what `gptjax quantize` makes of the run."""
    run, model, params = run_of(name)
    page = open_page(make_page(run, "--weights", weights))
    if weights == "int8":
        params = jax.jit(lambda p: dequantize_params(quantize_params(p, Format(bits=8))))(params)
    elif weights == "float16":
        params = jax.tree.map(lambda p: p.astype(np.float16).astype(np.float32), params)
    if weights != "float32":
        assert f"rounded to {weights}" in page.inner_text("footer")

    text = TEXT[: model.config.block_size]
    tok = tokenizer.train("char", CHARACTERS, 0)
    ids = tok.encode(text)
    found = page.evaluate(READ, text)
    assert found["ids"] == ids.tolist()
    logits_BTV, sown = jax.device_get(computed(model, params, ids[None]))
    np.testing.assert_allclose(found["logits"], np.ravel(logits_BTV), atol=1e-4)
    if isinstance(model.config, GPTConfig):
        layers = [sown["intermediates"][f"block_{i}"] for i in range(model.config.n_layer)]
        expected = np.concatenate([np.ravel(layer["attention"]["weights"]) for layer in layers])
        np.testing.assert_allclose(np.concatenate(found["weights"]), expected, atol=1e-5)
        # Direct logit attribution: all parts together are the logit above the average one.
        parts, logit = page.evaluate(PARTS)
        assert parts == pytest.approx(logit, abs=1e-4)
    # Past the end of a window of 16 tokens, which then moves.
    greedy = sampling.Sampler(temperature=0)
    prompt_1T = tok.encode(TEXT[:9])[None]
    made = sampling.complete(model, params, prompt_1T, 40, sampler=greedy)
    assert page.evaluate(GREEDY, 40)[9:] == made[0].tolist()


@pytest.mark.parametrize("kind", ["word", "byte", "bpe"])
def test_tokenizers(
    kind: str,
    tmp_path: Path,
    open_page: OpenPage,  # noqa: F811
) -> None:
    """Those in a page give the same ids, and the text back."""
    tok = tokenizer.train(kind, 20 * TEXT + " it's 12 o'clock, señor 東京\n\n  fox", 300)
    make_run(tmp_path / "run", TINY, tok)
    page = open_page(make_page(tmp_path / "run"))
    for text in ["the lazy fox", "the  fox\n\njumps", "señor 東京 🙂 it's 123\t!", " fox   dog "]:
        if kind == "word":
            text = " ".join(word for word in text.split() if word in tok.to_dict()["words"])
        script = "(text) => gptjax.run.tokenizer.encode(text).ids"
        ids = page.evaluate(script, text)
        assert ids == tok.encode(text).tolist()
        script = "(ids) => gptjax.run.tokenizer.pieces(ids).join('')"
        assert page.evaluate(script, ids) == tok.decode(ids)


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("views") / "run"
    tok = tokenizer.train("char", TEXT + TEXT.upper(), 0)
    make_run(run, dataclasses.replace(MODERN, block_size=64), tok)
    return make_page(run)


@pytest.fixture
def page(page_file: Path, open_page: OpenPage) -> Any:  # noqa: F811
    return open_page(page_file)


def test_write(page: Any) -> None:
    """Writes, shows alternatives, goes on from one, and repeats itself with the same seed."""

    def write() -> str:
        page.click("button.main")
        until(lambda: page.inner_text("button.main") == "Write")
        return page.text_content("#view-write .text")

    page.fill("#view-write textarea", "the fox é")
    text = write()
    assert text.startswith("the fox ")
    assert len(text) == 8 + 400
    assert "é" in page.inner_text("#view-write .warning")
    assert write() == text
    page.fill("#view-write input[type=number]", "7")
    page.keyboard.press("Tab")
    assert write() != text
    page.click("#view-write .token >> nth=20")
    assert "nats" in page.inner_text("#view-write .panel")
    other = page.inner_text("#view-write .bars button >> nth=2")
    before = page.text_content("#view-write .text")
    page.click("#view-write .bars button >> nth=2")
    until(lambda: page.inner_text("button.main") == "Write")
    after = page.text_content("#view-write .text")
    assert after[:20] == before[:20]
    assert after[20] == other.replace("␣", " ").replace("⏎", "\n")
    page.click("text=Go on")
    until(lambda: page.inner_text("button.main") == "Write")
    assert len(page.text_content("#view-write .text")) == 21 + 400 + 400
    assert page.text_content("#view-write .text").startswith(after)
    slider = page.locator("#view-write input[type=range]").first
    slider.fill("0")
    assert write() == write()


def test_look(page: Any) -> None:
    """Another text, position and head; a part that is off changes the loss, and comes back."""
    page.click("#tab-look")
    page.fill("#view-look textarea", "the lazy dog é")
    until(lambda: "é" in page.inner_text("#view-look .warning"))
    row = "#view-look table >> nth=1"
    whole = page.inner_text(row)
    page.click("#view-look [title='layer 1, head 2'] >> nth=-1")
    assert "without 1 part" in page.inner_text(row)
    changed = page.evaluate(
        "[...document.querySelectorAll('#view-look td.number')].at(-1).textContent"
    )
    assert changed not in whole
    page.click("text=All on")
    assert page.inner_text(row) == whole
    page.click("#view-look .grid button >> nth=3")
    assert page.inner_text("#view-look h3") == "Layer 2, head 2"
    page.focus("#view-look .text")
    page.keyboard.press("ArrowLeft")
    assert "Position 10" in page.inner_text("#view-look")


@pytest.mark.parametrize("width", [360, 1200, 3840])
def test_no_view_is_wider_than_the_window(
    width: int,
    page_file: Path,
    open_page: OpenPage,  # noqa: F811
) -> None:
    page = open_page(page_file, width)
    for view in page.evaluate("gptjax.views.map((view) => view.id)"):
        page.click(f"#tab-{view}")
        assert page.evaluate("document.documentElement.scrollWidth") == width

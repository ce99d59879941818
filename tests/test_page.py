"""`gptjax page`: the model in a real browser computes what gptjax computes."""

import dataclasses
import json
import string
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
from gptjax.decoding import attention_weights, sampling
from gptjax.quantization.quant_array import Format, quantize_params
from gptjax.runs import checkpoints, run_directory

TEXT = "the quick brown fox jumps over the lazy dog.\n"
OPTIONS = {
    "original": TINY,
    "modern": MODERN,
    "swiglu": dataclasses.replace(
        MODERN, activation="swiglu", tie_embeddings=True, bias=True, attention_bias=True
    ),
    "gelu": dataclasses.replace(
        TINY, activation="gelu", norm="rmsnorm", position="rotary", short_conv=2, n_head=1
    ),
    "bigram": BigramConfig(),
    "gpt_cpu": config_files.load_file(Path(__file__).parents[1] / "configs/gpt_cpu.py").model,
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


def make_run(folder: Path, config: ModelConfig, tok: Any, **settings: Any) -> tuple[Any, Any]:
    """A run with random parameters, none of them zero or one. Returns (model, parameters).

    settings: other fields of its Config.
    """
    model = models.build(config, tok)
    rng = np.random.default_rng(0)

    # Less for a larger model, whose logits would be large, and their rounding errors too.
    noise = np.float32(0.2 if getattr(config, "n_embd", 0) < 64 else 0.05)

    def vary(p: jax.Array) -> np.ndarray:
        return np.asarray(p) + noise * rng.standard_normal(p.shape, np.float32)

    params = jax.tree.map(vary, models.init(model, seed=0))
    settings = {"model": config} | settings
    data = {"source": "none", "sha256": "", "imported": True}
    with run_directory.new_run(folder) as part:
        checkpoints.save_finished(part, Config(**settings), tok, params, data)
    return model, params


def make_page(run: Path, *options: str) -> Path:
    page_command.main([str(run), "--out", str(run.parent / "a.html"), *options])
    return run.parent / "a.html"


@pytest.mark.parametrize("name", OPTIONS)
def test_the_page_computes_what_gptjax_computes(
    name: str,
    tmp_path: Path,
    open_page: OpenPage,  # noqa: F811
) -> None:
    config, tok = OPTIONS[name], tokenizer.train("char", CHARACTERS, 0)
    model, params = make_run(tmp_path / "run", config, tok)
    page = open_page(make_page(tmp_path / "run", "--weights", "float32"))

    text = TEXT[: config.block_size]
    found, ids = page.evaluate(READ, text), tok.encode(text)
    assert found["ids"] == ids.tolist()
    logits_BTV, _ = model.apply({"params": params}, ids[None])
    np.testing.assert_allclose(found["logits"], np.ravel(logits_BTV), atol=1e-4)
    if isinstance(config, GPTConfig):
        weights = attention_weights.self_attention(model, params, ids)
        flat = np.concatenate([np.ravel(w) for w in found["weights"]])
        np.testing.assert_allclose(flat, np.ravel(weights), atol=1e-5)
    # Past the end of the window, which then moves.
    made = sampling.complete(
        model, params, tok.encode(TEXT[:9])[None], 200, sampler=sampling.Sampler(temperature=0)
    )
    assert page.evaluate(GREEDY, 200)[9:] == made[0].tolist()


@pytest.mark.parametrize(
    ("name", "weights"), [("modern", "int8"), ("modern", "float16"), ("gpt_cpu", "int8")]
)
def test_smaller_weights(
    name: str,
    weights: str,
    tmp_path: Path,
    open_page: OpenPage,  # noqa: F811
) -> None:
    """int8 is what `gptjax quantize` makes of the run."""
    tok = tokenizer.train("char", CHARACTERS, 0)
    model, params = make_run(tmp_path / "run", OPTIONS[name], tok)
    path = make_page(tmp_path / "run", "--weights", weights)
    if weights == "int8":
        params = quantize_params(params, Format(bits=8))
    else:
        params = jax.tree.map(lambda p: p.astype(np.float16).astype(np.float32), params)
    page, ids = open_page(path), tok.encode(TEXT[:16])
    logits_BTV, _ = model.apply({"params": params}, ids[None])
    found = page.evaluate(READ, TEXT[:16])["logits"]
    np.testing.assert_allclose(found, np.ravel(logits_BTV), atol=1e-4)
    made = sampling.complete(model, params, ids[None, :9], 200, sampler=sampling.Sampler(0))
    assert page.evaluate(GREEDY, 200)[9:] == made[0].tolist()
    assert f"rounded to {weights}" in page.inner_text("footer")


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


@pytest.fixture
def page(tmp_path: Path, open_page: OpenPage) -> Any:  # noqa: F811
    tok = tokenizer.train("char", TEXT + TEXT.upper(), 0)
    make_run(tmp_path / "run", dataclasses.replace(MODERN, block_size=64), tok)
    return open_page(make_page(tmp_path / "run"))


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


@pytest.mark.parametrize("name", ["original", "modern", "swiglu"])
def test_parts_sum_to_the_logit(
    name: str,
    tmp_path: Path,
    open_page: OpenPage,  # noqa: F811
) -> None:
    """Direct logit attribution: all parts together are the logit above the average one."""
    make_run(tmp_path / "run", OPTIONS[name], tokenizer.train("char", TEXT, 0))
    page = open_page(make_page(tmp_path / "run"))
    found = page.evaluate(
        """() => {
            const { run, readText, Probe, logitAttribution } = gptjax;
            const probe = new Probe(), ids = run.tokenizer.encode("the fox").ids;
            const config = { ...run.config, logit_softcap: 0 };
            const logits = readText(config, run.params, ids, probe).logits.row(3);
            const table = run.params.token_embedding;
            const parts = logitAttribution(config, run.params, probe, 3, 5, table);
            const mean = logits.reduce((a, b) => a + b) / logits.length;
            return [parts.reduce((sum, part) => sum + part.value, 0), logits[5] - mean];
        }"""
    )
    assert found[0] == pytest.approx(found[1], abs=1e-4)


@pytest.mark.parametrize("width", [360, 1200, 3840])
def test_no_view_is_wider_than_the_window(
    width: int,
    tmp_path: Path,
    open_page: OpenPage,  # noqa: F811
) -> None:
    tok = tokenizer.train("char", TEXT, 0)
    make_run(tmp_path / "run", TINY, tok)
    page = open_page(make_page(tmp_path / "run"), width)
    for view in page.evaluate("gptjax.views.map((view) => view.id)"):
        page.click(f"#tab-{view}")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        page.screenshot(path=tmp_path / f"{view}-{width}.png")

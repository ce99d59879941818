"""The views of a page that explain a model: how it learned, and one forward pass."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from chromium import OpenPage, browser, open_page, until  # noqa: F401 - fixtures
from conftest import MODERN, TINY
from test_page import TEXT, make_page, make_run

from gptjax.commands import page as page_command
from gptjax.config_encoders import EncoderDecoderConfig, PairsDataConfig
from gptjax.data import tokenizer
from gptjax.data.tokenizer import CharTokenizer, PairTokenizer
from gptjax.runs.metrics import read_metrics

OPTIONS = {
    "original": TINY,
    "modern": MODERN,
    "swiglu": dataclasses.replace(
        MODERN, activation="swiglu", tie_embeddings=True, bias=True, attention_bias=True
    ),
}
SAID = {
    "original": ["x = E[", "+ P[", "var(x)", "max(0, y W_1 + b)", "logits = y W + b"],
    "modern": ["mean(x^2)", "w_2 * y[t-2]", "q / rms(q)", "10000^", "max(0, y W_1)^2", "15 * tanh"],
    "swiglu": ["y W_q + b_q", "(y W_1 + b) * silu(y W_g + b)", "u = y E^T"],
}
"""Parts of the equations that only models with these options have."""


@pytest.fixture(scope="module")
def trained_page(text_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "run.html"
    page_command.main([str(text_run), "--out", str(out)])
    return out


def test_the_slider_shows_the_loss_and_the_sample_of_each_evaluation(
    trained_page: Path,
    text_run: Path,
    open_page: OpenPage,  # noqa: F811
) -> None:
    page = open_page(trained_page)
    page.click("#tab-learn")
    losses = {r["step"]: r["val_loss"] for r in read_metrics(text_run) if "val_loss" in r}
    assert len(losses) == 3
    slider = page.locator("#view-learn input[type=range]").first
    for i, (step, loss) in enumerate(losses.items()):
        slider.fill(str(i))
        said = page.inner_text("#view-learn .panel >> nth=0")
        assert f"Step {step}, validation loss {loss:.4f}" in said
        assert f"= {math.exp(loss):.1f} equally likely" in said
        sample = (text_run / "samples" / f"{step}.txt").read_text().rstrip("\n")
        assert page.text_content("#view-learn .text") == sample
        assert f"At step {step} " in page.get_attribute("#view-learn svg", "aria-label")
    until(lambda: page.locator("#view-learn svg").count())
    assert page.inner_text("#failure") == ""
    names = page.locator("#view-learn svg text").all_text_contents()
    assert {"loss, nats per token (log scale)", "step"} <= set(names)
    # Pointing at the curve and keys do the same.
    box = page.locator("#view-learn svg").bounding_box()
    page.mouse.click(box["x"] + 60, box["y"] + 100)
    assert page.inner_text("#view-learn .panel >> nth=0").startswith("Step 0")
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#view-learn .panel >> nth=0").startswith("Step 2")
    assert "step 2, validation loss" in slider.get_attribute("aria-valuetext")


def test_checkpoints_write_side_by_side(
    trained_page: Path,
    open_page: OpenPage,  # noqa: F811
) -> None:
    """What each writes is what its own weights write with the same random numbers."""
    page = open_page(trained_page)
    page.click("#tab-learn")
    page.fill("#view-learn textarea", "abc é")
    assert not page.is_visible("#view-learn .cards")
    assert "weights of the steps 2 and 4" in page.inner_text("#view-learn")
    page.click("text=Write with each")
    until(lambda: page.is_visible("#view-learn .cards"))
    steps = page.evaluate(
        "[gptjax.run.contents, ...gptjax.run.contents.checkpoints].map(c => c.step).sort()"
    )
    assert len(steps) == 2
    texts = page.locator("#view-learn .cards .text")
    until(lambda: [len(t) for t in texts.all_text_contents()] == [204, 204])
    assert "é" in page.inner_text("#view-learn .warning")
    made = page.evaluate(
        """async (steps) => {
            const { run, Writer, choose, probabilities, random } = gptjax;
            const texts = [];
            for (const step of steps) {
                const params = await run.checkpoint(step), draw = random(1337);
                const writer = new Writer(run.config, params, run.tokenizer.encode("abc ").ids);
                const sampler = { temperature: 0.8, topK: 0, topP: 1 };
                for (let i = 0; i < 200; i++)
                    writer.append(choose(probabilities(writer.logits, sampler), draw()));
                texts.push(run.tokenizer.pieces(writer.tokens).join(""));
            }
            return texts;
        }""",
        steps,
    )
    assert texts.all_text_contents() == made
    said = page.locator("#view-learn .cards .panel").all_inner_texts()
    for card, step in zip(said, steps, strict=True):
        assert f"Step {step}" in card
        assert "MB of this page, int8" in card
    assert sum("differences" in card for card in said) == 1


def test_answers_of_an_encoder_decoder(
    tmp_path: Path,
    open_page: OpenPage,  # noqa: F811
) -> None:
    """A table that marks the right ones."""
    run, tok = tmp_path / "run", PairTokenizer(CharTokenizer("abc"), CharTokenizer("xyz"))
    fields: dict[str, Any] = dataclasses.asdict(dataclasses.replace(TINY, n_layer=1))
    config = EncoderDecoderConfig(**fields, n_encoder_layer=1, source_block_size=8)
    make_run(run, config, tok, data=PairsDataConfig())
    rows = [{"step": step, "seconds": 1.0, "val_loss": 1.5} for step in (0, 9)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "samples").mkdir(exist_ok=True)
    (run / "samples" / "9.txt").write_text("ab\tx y\t(x z | x y)\nc\tz\t(x)\n")
    page = open_page(make_page(run, "--weights", "float32"))
    page.click("#tab-learn")
    slider = page.locator("#view-learn input[type=range]").first
    slider.fill("1")
    cells = page.locator("#view-learn td").all_text_contents()
    assert cells == ["ab", "x y", "✓ x z | x y", "c", "z", "x"]
    slider.fill("0")
    assert "No sample" in page.inner_text("#view-learn")
    assert "Checkpoints" not in page.inner_text("#view-learn")


@pytest.mark.parametrize("name", OPTIONS)
def test_a_forward_pass_shows_the_numbers_of_the_model(
    name: str,
    tmp_path: Path,
    open_page: OpenPage,  # noqa: F811
) -> None:
    """Attention, activations and probabilities of one position are those that JAX computes."""
    config, tok = OPTIONS[name], tokenizer.train("char", TEXT, 0)
    model, params = make_run(tmp_path / "run", config, tok)
    page = open_page(make_page(tmp_path / "run", "--weights", "float32"))
    text, t, layer, head = TEXT[:12], 7, 1, 1
    page.evaluate("(text) => { gptjax.run.tokens = gptjax.run.tokenizer.encode(text).ids; }", text)
    page.click("#tab-forward")
    view = page.locator("#view-forward")
    assert view.locator(".sticky .token").all_text_contents() == list(text.replace(" ", "␣"))
    view.locator(".sticky .token").nth(t).click()
    view.locator("select").nth(0).select_option(str(layer))
    view.locator(".head button").nth(head).click()
    assert view.locator("select").nth(1).input_value() == str(head)
    said = view.inner_text()
    for part in SAID[name]:
        assert part in said
    T, D, F = len(text), config.n_embd, config.hidden_width
    assert f"({T}, {D}) x ({D}, {F}) -> ({T}, {F})" in said

    ids = tok.encode(text)
    (logits_BTV, _), state = jax.jit(
        lambda params: model.apply(
            {"params": params}, ids[None], capture_intermediates=True, mutable=["intermediates"]
        )
    )(params)
    logits_V, computed = np.asarray(logits_BTV[0, t]), jax.device_get(state["intermediates"])
    attention = computed[f"block_{layer}"]["attention"]
    weights = attention["weights"][0][0, :, t]
    s = int(weights[head].argmax())
    expected = f"the weight of “{text[s].replace(' ', '␣')}” is {weights[head, s]:.2f}"
    assert f"k[{s}]^T / sqrt({D // config.n_head})" in said
    assert expected in said
    K = D // config.n_head
    values = attention["value"]["__call__"][0][0, t, head * K :][:4]
    assert numbers(view, "passes on") == pytest.approx(values, abs=0.006)
    final = computed["final_norm"]["__call__"][0][0, t, :4]
    assert numbers(view, "after the final norm") == pytest.approx(final, abs=0.006)
    assert numbers(view, "one for each token") == pytest.approx(logits_V[:4], abs=0.006)
    p = np.asarray(jax.nn.softmax(logits_V))
    best = tok.decode([int(p.argmax())]).replace(" ", "␣").replace("\n", "⏎")
    assert re.search(rf"p\(“{re.escape(best)}”\) = .* = {p.max():.3f}", said)
    assert f"= {-math.log(p[ids[t + 1]]):.2f} nats" in said

    # Learn: such a run was imported, and has no curve.
    page.click("#tab-learn")
    said = page.inner_text("#view-learn")
    assert "no record of its training" in said
    assert "slider" not in said
    assert "weights of one checkpoint" in said


def numbers(view: Any, name: str) -> list[float]:
    """The first numbers of a vector, as they are written above its picture."""
    text = view.locator("figcaption", has_text=name).last.locator("code").inner_text()
    return [float(x) for x in text.replace("\N{MINUS SIGN}", "-").strip("[]").split(", ")[:4]]


def test_keys_move_the_position_and_switches_of_look_are_named(
    trained_page: Path,
    open_page: OpenPage,  # noqa: F811
) -> None:
    page = open_page(trained_page, 360)
    page.click("#tab-forward")
    view = page.locator("#view-forward")
    n = view.locator(".sticky .token").count()
    assert f"position {n - 2} of 0 ... {n - 1}" in view.inner_text()
    view.locator(".sticky .text").focus()
    page.keyboard.press("ArrowLeft")
    assert f"position {n - 3} of" in view.inner_text()
    unnamed = "[...document.querySelectorAll('canvas, svg')].filter(c => !c.ariaLabel).length"
    assert page.evaluate(unnamed) == 0
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.evaluate(
        """() => {
            const numbers = document.querySelector("#view-forward figcaption code");
            numbers.textContent = "[" + "-1234.56, ".repeat(4) + "...]";
        }"""
    )
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.evaluate("gptjax.run.off.add('block_0.mlp')")
    page.click("#tab-learn")
    page.click("#tab-forward")
    assert "1 part of the model is off" in view.inner_text()
    assert "The MLP adds a vector 0.00 times as long" in view.inner_text()
    assert f"position {n - 3} of" in view.inner_text()


def test_a_short_text_is_written_along_the_picture_of_attention(
    trained_page: Path,
    open_page: OpenPage,  # noqa: F811
) -> None:
    """As high as the picture, on a phone too."""
    page = open_page(trained_page, 360)
    page.click("#tab-look")
    page.fill("#view-look textarea", "abcdef")
    until(lambda: page.evaluate("gptjax.run.tokens.length") == 6)
    for side in (".tokens-above", ".tokens-beside"):
        assert page.locator(f"#view-look {side} span").all_text_contents() == list("abcdef")
    heights = [
        page.locator(f"#view-look .axes > {part}").bounding_box()["height"]
        for part in ("canvas", ".tokens-beside")
    ]
    assert abs(heights[0] - heights[1]) < 2
    page.click("header a")
    assert "score for a token" in page.inner_text("#glossary")
    until(lambda: page.locator("#glossary").bounding_box()["y"] < 900)


def test_every_panel_of_look_has_an_equation_with_the_numbers_of_the_model(
    trained_page: Path,
    open_page: OpenPage,  # noqa: F811
) -> None:
    page = open_page(trained_page)
    page.click("#tab-look")
    page.fill("#view-look textarea", "abcdef")
    until(lambda: page.evaluate("gptjax.run.tokens.length") == 6)
    D, V = page.evaluate("[gptjax.run.config.n_embd, gptjax.run.tokenizer.size]")
    said = page.locator("#view-look .equation").all_inner_texts()
    assert len(said) == page.locator("#view-look h2").count() == 5
    shares = [f"({D}, {V})", f"({V}, {D})"]
    assert "(6, 6)" in said[0]
    assert any(share in said[1] for share in shares)
    assert f"x_{D}^2" in said[2]
    position = page.evaluate(
        """() => {
            const { run, readText, Probe } = gptjax, probe = new Probe();
            readText(run.config, run.params, run.tokens, probe);
            return [...probe.get("stream").row(4)];
        }"""
    )
    mean = np.mean(position) if page.evaluate("gptjax.run.config.norm") == "layernorm" else 0
    spread = np.sqrt(np.mean(np.square(np.array(position) - mean)) + 1e-5)
    assert f"/ {spread:.2f}" in said[3]
    assert "t = 1 ... 5" in said[4]
    # A token follows, so that every layer's answer can be compared with it.
    assert "“f”, which follows" in page.inner_text("#view-look table >> nth=0")


def test_pictures_follow_the_colours_of_the_system(
    trained_page: Path,
    open_page: OpenPage,  # noqa: F811
) -> None:
    page = open_page(trained_page)
    colours = """(view) => {
        const canvas = document.querySelector(`#view-${view} canvas`);
        const { width, height } = canvas;
        const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
        return [...data.slice(0, 3)];
    }"""
    for view in ("look", "forward"):
        page.emulate_media(color_scheme="light")
        page.click(f"#tab-{view}")
        light = page.evaluate(colours, view)
        page.emulate_media(color_scheme="dark")
        until(lambda view=view, light=light: page.evaluate(colours, view) != light)

"""The tab Write of a page: a text that grows is whole, and each writer computes one text."""

from pathlib import Path
from typing import Any

import pytest
from chromium import OpenPage, browser, open_page, until  # noqa: F401 - fixtures
from conftest import TINY
from test_page import TEXT, make_page, make_run

from gptjax.data import tokenizer

WRITE = "#view-write button.main"
WRITTEN = "document.querySelector('#view-write .text').textContent"
DECODED = "gptjax.run.tokenizer.pieces(gptjax.run.tokens).join('')"


def write(page: Any, button: str = WRITE) -> None:
    page.click(button)
    until(lambda: page.inner_text(WRITE) == "Write")


@pytest.mark.parametrize(
    ("kind", "text"), [("word", TEXT), ("byte", "東京🙂"), ("bpe", TEXT + "東京🙂")]
)
def test_a_text_that_grows_is_the_text_of_its_tokens(
    kind: str,
    text: str,
    tmp_path: Path,
    open_page: OpenPage,  # noqa: F811
) -> None:
    """Tokens of several frames: no space is lost between them, no character is cut."""
    make_run(tmp_path / "run", TINY, tokenizer.train(kind, 20 * text, 300))
    page = open_page(make_page(tmp_path / "run"))
    page.fill("#view-write textarea", 3 * text)
    write(page)
    assert page.evaluate("gptjax.run.tokens.length") > 400
    assert page.evaluate(WRITTEN) == page.evaluate(DECODED)


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("page") / "run"
    make_run(run, TINY, tokenizer.train("char", TEXT, 0))
    return make_page(run)


@pytest.fixture
def page(page_file: Path, open_page: OpenPage) -> Any:  # noqa: F811
    return open_page(page_file)


def test_a_text_that_is_begun_anew_is_computed_once_a_frame(page: Any) -> None:
    """Ctrl+Enter begins anew while a text is written."""
    page.evaluate(
        """() => {
            globalThis.waiting = new Set();
            globalThis.most = 0;
            const [request, cancel] = [requestAnimationFrame, cancelAnimationFrame];
            globalThis.requestAnimationFrame = (call) => {
                const id = request((time) => { waiting.delete(id); call(time); });
                // Not those of other views, which draw anew when the window's size is known.
                if (String(call).includes("this.frame()")) waiting.add(id);
                most = Math.max(most, waiting.size);
                return id;
            };
            globalThis.cancelAnimationFrame = (id) => { waiting.delete(id); cancel(id); };
            const area = document.querySelector("#view-write textarea");
            const key = new KeyboardEvent("keydown", { key: "Enter", ctrlKey: true });
            for (let i = 0; i < 3; i++) area.dispatchEvent(key);
        }"""
    )
    until(lambda: page.inner_text(WRITE) == "Write")
    assert page.evaluate("most") == 1
    assert page.evaluate(WRITTEN) == page.evaluate(DECODED)


def test_a_text_goes_on_without_a_part_that_was_switched_off(page: Any) -> None:
    """As if it had been read without this part, and the page says so."""
    page.fill("#view-write textarea", TEXT[:9])
    page.locator("#view-write input[type=range]").first.fill("0")
    write(page)
    read = page.evaluate("gptjax.run.tokens")
    page.evaluate("gptjax.run.off.add('block_0').add('block_0.mlp')")
    write(page, "text=Go on")
    assert page.inner_text("#view-write .warning").startswith("1 part of the model is off")
    expected = page.evaluate(
        """(tokens) => {
            const { run, Writer, mostLikely } = gptjax;
            const writer = new Writer(run.config, run.params, tokens, run.off);
            for (let i = 0; i < 400; i++) writer.append(mostLikely(writer.logits));
            return writer.tokens;
        }""",
        read,
    )
    assert page.evaluate("gptjax.run.tokens") == expected
    page.evaluate("gptjax.run.off.clear()")
    write(page, "text=Go on")
    assert page.inner_text("#view-write .warning") == ""


def test_a_prompt_is_read_once(page: Any) -> None:
    """By the writer, whose logits say how surprising the prompt is; it is longer than a window."""
    found = page.evaluate(
        """(text) => {
            const { run, readText, probabilities } = gptjax;
            const table = run.params.token_embedding;
            let reads = 0;
            const get = () => { reads++; return table; };
            Object.defineProperty(run.params, "token_embedding", { get });
            document.querySelector("#view-write textarea").value = text;
            document.querySelector("#view-write button.main").click();
            const once = reads;
            const ids = run.tokenizer.encode(text).ids.slice(-run.config.block_size);
            const { logits } = readText(run.config, run.params, ids);
            const nats = ids.slice(1).map((id, t) =>
                -Math.log(probabilities(logits.row(t), { temperature: 1, topK: 0, topP: 1 })[id]));
            const shares = [...document.querySelectorAll("#view-write .token.prompt")].map(
                (span) => Number(span.style.background.match(/, ([0-9.]+)\\)$/)?.[1] ?? 0));
            return { once, nats, shares };
        }""",
        TEXT,
    )
    assert found["once"] == 1
    hidden = len(found["shares"]) - len(found["nats"])
    assert hidden > 2
    # Half of the colour's strength are 6 nats or more.
    expected = [0.0] * hidden + [min(0.5, nats / 12) for nats in found["nats"]]
    assert found["shares"] == pytest.approx(expected, abs=0.001)


def test_another_seed_begins_anew_at_once(page: Any) -> None:
    """Also while a text is written: a text never stands beside a seed that is not its own."""
    page.fill("#view-write textarea", TEXT[:9])
    page.evaluate(
        """() => {
            document.querySelector("#view-write button.main").click();
            const all = [...document.querySelectorAll("#view-write button")];
            all.find((button) => button.textContent === "New seed").click();
        }"""
    )
    until(lambda: page.inner_text(WRITE) == "Write")
    assert page.input_value("#view-write input[type=number]") == "1338"
    text = page.evaluate(WRITTEN)
    write(page)
    assert page.evaluate(WRITTEN) == text

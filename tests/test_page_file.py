"""The file that `gptjax page` writes: what is refused, and what a stranger's run does in it."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from chromium import OpenPage, browser, open_page, until  # noqa: F401 - fixtures
from conftest import TINY, Refused
from PIL import Image
from test_page import TEXT, make_page, make_run

from benchmarks import page_pictures
from gptjax.commands import page as page_command
from gptjax.data import tokenizer
from gptjax.page.html import program


def test_bad_input(tmp_path: Path, refused: Refused) -> None:
    tok = tokenizer.train("char", TEXT, 0)
    make_run(tmp_path / "run", TINY, tok)
    run, out = tmp_path / "run", tmp_path / "a.html"
    said = refused(page_command.main, run, "--out", out, "--weights", "float32", "--max-mb", "0.02")
    assert "parameters" in said
    assert "--weights int8" in said
    assert "--max-mb" in refused(page_command.main, run, "--out", out, "--max-mb", "0.03")
    make_page(run, "--max-mb", "inf")
    out.unlink()
    assert ".html" in refused(page_command.main, run, "--out", tmp_path / "a.txt")
    assert "0 to 8" in refused(page_command.main, run, "--out", out, "--checkpoints", "9")
    assert "not a run directory" in refused(page_command.main, tmp_path, "--out", out)
    (run / "checkpoints" / "0").rename(tmp_path / "gone")
    assert "no checkpoint" in refused(page_command.main, run, "--out", out)
    assert not out.exists()


def test_what_a_run_holds_is_text(
    tmp_path: Path,
    open_page: OpenPage,  # noqa: F811
) -> None:
    """Names, samples and tokens of a stranger's run start no program in the page."""
    attack = "</script><img src=x onerror=alert(1)><script>alert(2)</script>"
    run = tmp_path / "<img src=x onerror=alert(1)>"
    make_run(run, TINY, tokenizer.WordTokenizer(sorted({attack, "<b>", "a"})))
    (run / "samples").mkdir()
    (run / "samples" / "0.txt").write_text(attack)
    page_command.main([str(run), "--out", str(tmp_path / "a.html")])
    page, dialogs = open_page(tmp_path / "a.html"), []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    for view in page.evaluate("gptjax.views.map((view) => view.id)"):
        page.click(f"#tab-{view}")
    assert page.inner_text("h1") == run.name
    assert attack in page.evaluate("Object.values(gptjax.run.contents.samples)")
    assert page.locator("img").count() == 0
    assert dialogs == []


def test_a_page_that_fails_says_so(
    tmp_path: Path,
    browser: Any,  # noqa: F811
) -> None:
    """A model may have an activation that only its own gptjax knows: CONTRIBUTING.md adds one."""
    make_run(tmp_path / "run", TINY, tokenizer.train("char", TEXT, 0))
    path = make_page(tmp_path / "run")
    text = path.read_text("utf-8")
    assert text.count('"activation": "relu"') == 1
    path.write_text(text.replace('"activation": "relu"', '"activation": "silu"'), "utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    until(lambda: page.evaluate("!!globalThis.gptjax"))
    assert page.inner_text("#failure") == ""
    page.click("text=Write >> nth=1")
    until(lambda: page.inner_text("#failure"))
    assert page.inner_text("#failure") == "This page failed: unknown activation silu"
    page.close()


@pytest.mark.slow
def test_the_pictures_of_the_documentation_are_taken(
    tmp_path: Path,
    browser: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(page_pictures, "SCALE", 1)
    characters = "".join(sorted({*page_pictures.PROMPT, *page_pictures.LOOKED_AT}))
    config = dataclasses.replace(TINY, n_layer=3, n_head=4, block_size=64)
    make_run(tmp_path / "run", config, tokenizer.train("char", characters, 0))
    pictures = page_pictures.take(browser, make_page(tmp_path / "run"), tmp_path)
    assert [path.name for path in pictures] == ["page-write.png", "page-look.png"]
    for path, width in zip(pictures, (1080, 1344), strict=True):
        with Image.open(path) as picture:
            assert picture.width == width


def test_a_page_holds_its_programs_once() -> None:
    """One scope, so no name twice; and nothing is left of imports."""
    text = program()
    assert "import " not in text.replace('import("./', "")
    assert "\nexport " not in text

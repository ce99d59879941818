"""A headless Chromium for the pages that `gptjax page` writes; import the fixture open_page."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# As root, Chromium needs --no-sandbox. The others keep it from looking up hosts of its own.
FLAGS = "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"

OpenPage = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here (Debian's package `chromium`)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[OpenPage]:
    """open_page(path, width=1200) -> a page whose model is ready.

    At the end of the test it fails if the page printed an error, or asked the network for anything.
    """
    faults: list[str] = []
    pages = []

    def open_(path: Path, width: int = 1200) -> Any:
        page = browser.new_page(viewport={"width": width, "height": 900})
        pages.append(page)
        page.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda r: None if _is_local(r.url) else faults.append(r.url))
        page.goto(path.absolute().as_uri())
        until(lambda: page.evaluate("!!globalThis.gptjax") or faults)
        assert faults == []
        return page

    yield open_
    for page in pages:
        page.close()
    assert faults == []


def _is_local(url: str) -> bool:
    return url.startswith(("file:", "data:", "blob:"))


def until(true: Callable[[], Any], seconds: float = 30) -> None:
    """Waits for something in a page, whose security policy forbids playwright's own waiting."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "the page did not get there"
        time.sleep(0.02)

"""The pictures of a run's page in README.md and docs/page.md.

    python -m benchmarks.page_pictures runs/gpt_cpu

Writes docs/benchmarks/page-write.png and page-look.png. Needs Chromium and the package playwright.
"""

import argparse
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.page import launch

FOLDER = Path(__file__).parents[1] / "docs" / "benchmarks"
PROMPT = "ROMEO:\nI "
LOOKED_AT = "ROMEO: I love thee, Juliet"
HEAD = "layer 3, head 4"
# In CSS pixels. README.md shows a picture about 900 of them wide.
WRITE_WIDTH, LOOK_WIDTH = 1080, 1344
SCALE = 2
COLOURS = 96
MARGIN = 12
SURPRISES = """[...document.querySelectorAll("#view-write .token")].map(
    (span) => Number(span.style.background.match(/, ([0-9.]+)\\)$/)?.[1] ?? 0))"""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.page_pictures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="run directory of a GPT")
    run = parser.parse_args(argv).run
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = Path(folder) / "page.html"
        command = [sys.executable, "-m", "gptjax", "page", str(run), "--out", str(path)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        browser = launch(playwright)
        for picture in take(browser, path, FOLDER):
            print(f"{picture}, {picture.stat().st_size / 1e3:.0f} kB")
        browser.close()


def take(browser: Any, path: Path, folder: Path) -> list[Path]:
    """Opens the page at `path`, and writes page-write.png and page-look.png into a folder."""
    made = []
    for name, width, prepare in (("write", WRITE_WIDTH, write), ("look", LOOK_WIDTH, look)):
        viewport = {"width": width, "height": 1000}
        page = browser.new_page(viewport=viewport, device_scale_factor=SCALE, color_scheme="light")
        page.goto(path.absolute().as_uri())
        until(lambda page=page: page.evaluate("!!globalThis.gptjax"))
        top, bottom = prepare(page)
        clip = {"x": 0, "y": top, "width": width, "height": bottom - top}
        shot = page.screenshot(full_page=True, clip=clip)
        page.close()
        made.append(folder / f"page-{name}.png")
        # The page has few colours: a palette of them makes a small file.
        picture = Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLOURS)
        picture.save(made[-1], optimize=True)
    return made


def write(page: Any) -> tuple[float, float]:
    """Writes, and clicks a surprising character. Returns where the picture begins and ends."""
    page.fill("#view-write textarea", PROMPT)
    page.click("#view-write button.main")
    until(lambda: page.inner_text("#view-write button.main") == "Write")
    surprises = page.evaluate(SURPRISES)
    at = max(range(len(PROMPT), min(200, len(surprises))), key=surprises.__getitem__)
    page.locator("#view-write .token").nth(at).click()
    page.mouse.move(0, 0)
    return 0, bottom_of(page, "#view-write > .faint")


def look(page: Any) -> tuple[float, float]:
    """Looks at the attention of one head. Returns where the picture begins and ends."""
    page.click("#tab-look")
    page.fill("#view-look textarea", LOOKED_AT)
    until(lambda: page.input_value("#view-look textarea") == written(page))
    page.click(f"#view-look .heads [title='{HEAD}']")
    page.mouse.move(0, 0)
    return 0, bottom_of(page, "#view-look .map > .faint")


def written(page: Any) -> str:
    return page.evaluate("gptjax.run.tokenizer.pieces(gptjax.run.tokens).join('')")


def bottom_of(page: Any, selector: str) -> float:
    box = page.locator(selector).first.bounding_box()
    return box["y"] + box["height"] + MARGIN


def until(true: Callable[[], Any], seconds: float = 60) -> None:
    """Waits for something in a page, whose rules forbid playwright's own waiting."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError("the page did not get there")
        time.sleep(0.02)


if __name__ == "__main__":
    main()

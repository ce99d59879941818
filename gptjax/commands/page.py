"""gptjax page: one HTML file in which a trained run can be tried and looked into."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from gptjax.atomic import require_writable, write_text
from gptjax.command_line import parse_command
from gptjax.config_checks import require
from gptjax.errors import UserError, exit_codes
from gptjax.page.contents import contents
from gptjax.page.html import page
from gptjax.page.weights import WeightFormat
from gptjax.scale import compilation, devices

MOST_CHECKPOINTS = 8


@dataclass(frozen=True)
class Page:
    """Write one HTML file with the model in it, to try it and to look inside, in any browser.

    The file needs no network and no server: open it from disk, or send it to somebody.

    examples:
        gptjax page runs/gpt_cpu --out page.html
        gptjax page runs/gpt_cpu --weights float32 --out exact.html
    """

    run: tyro.conf.Positional[Path]
    """Run directory."""
    out: Path = Path("page.html")
    """File to write."""
    weights: WeightFormat = "int8"
    """How the page stores numbers. int8 is a quarter of float32; the page says what that costs."""
    checkpoints: int = 3
    """Other checkpoints of the run to compare with, up to 8. They are stored as differences."""
    max_mb: float = 32.0
    """Largest page, in MB."""
    step: str = "best"
    """Which checkpoint: best, latest or a step."""


def main(argv: list[str]) -> None:
    with exit_codes():
        make(parse_command(Page, argv, "gptjax page"))


def make(command: Page) -> None:
    """Raises UserError for a run that makes no page, a page too large, or no place to write."""
    devices.require_backend()
    compilation.use_cache()
    n, most = command.checkpoints, MOST_CHECKPOINTS
    require(0 <= n <= most, "checkpoints", n, f"0 to {most}")
    require(command.max_mb > 0, "max-mb", command.max_mb, "positive")
    out = command.out
    if out.suffix not in (".html", ".htm"):
        raise UserError(f"--out {out} must end in .html")
    require_writable("--out", out)
    most_bytes = command.max_mb * 1e6
    made = contents(command.run, command.step, command.weights, n, most_bytes)
    text = page(made)
    size = len(text.encode())
    if size > most_bytes:
        advice = "take fewer --checkpoints, or " if made["checkpoints"] else ""
        advice += "take --weights int8, or " if command.weights != "int8" else ""
        raise UserError(
            f"the page has {size / 1e6:.1f} MB, more than --max-mb {command.max_mb:g}; {advice}"
            "raise --max-mb"
        )
    write_text(out, text)
    print(f"{out}, {size / 1e6:.1f} MB: step {made['step']} of {command.run}; open it in a browser")

"""`gptjax plot`: the loss curves of several runs in one picture."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from gptjax.command_line import parse_command
from gptjax.errors import UserError, exit_codes
from gptjax.runs import plots


@dataclass(frozen=True)
class Plot:
    """Draw the loss curves of one or more runs into one picture.

    example:
        gptjax plot runs/gpt_cpu runs/mine --out both.png
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories."""
    out: Path = Path("loss.png")
    """Picture to write: .png, .svg or .pdf."""


def main(argv: list[str]) -> None:
    with exit_codes():
        plot(parse_command(Plot, argv, "gptjax plot"))


def plot(command: Plot) -> None:
    """Raises UserError for a folder that is not a run and a picture that cannot be written."""
    if not command.runs:
        raise UserError("gptjax plot needs at least one run directory")
    if command.out.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--out {command.out} must end in .png, .svg or .pdf")
    runs = {str(folder): plots.read_metrics(folder) for folder in command.runs}
    for name, rows in runs.items():
        if not rows:
            raise UserError(f"{name} has no metrics.jsonl, so it is not a run directory")
        if damaged := plots.damaged_lines(Path(name)):
            print(f"warning: {damaged}", file=sys.stderr)
    try:
        plots.plot(runs, command.out)
    except OSError as error:
        raise UserError(
            f"--out {command.out} cannot be written ({error.strerror}); name another place"
        ) from None
    print(command.out)

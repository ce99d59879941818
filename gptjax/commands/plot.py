"""`gptjax plot`: the loss curves of several runs in one picture."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from gptjax import json_files
from gptjax.atomic import require_writable
from gptjax.command_line import parse_command
from gptjax.data import tokenizer
from gptjax.errors import UserError, exit_codes
from gptjax.runs import metrics, plots, run_directory


@dataclass(frozen=True)
class Plot:
    """Draw the loss curves of one or more runs into one picture.

    Runs with different tokenizers are compared in bits per byte.

    examples:
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
    """Runs without losses are named on stderr and left out.

    Raises UserError for a path that is no folder, if no run is left, and for a picture that cannot
    be written.
    """
    if not command.runs:
        raise UserError("gptjax plot needs at least one run directory")
    if command.out.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--out {command.out} must end in .png, .svg or .pdf")
    require_writable("--out", command.out)
    runs = {}
    for folder in command.runs:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder; name a run directory, such as runs/gpt_cpu")
        if damaged := metrics.damaged_lines(folder):
            print(f"warning: {damaged}", file=sys.stderr)
        rows = metrics.read_metrics(folder)
        if any({"train_loss", "val_loss"} & row.keys() for row in rows):
            runs[folder] = rows
        else:
            _leave_out(folder, "it has no losses; it was imported, quantized or stopped too early")
    runs, unit = _comparable(runs)
    if not runs:
        raise UserError(f"{', '.join(map(str, command.runs))}: nothing to draw; name a trained run")
    names = [folder.resolve().name for folder in runs]
    if len(set(names)) < len(names):
        names = list(map(str, runs))
    plots.plot(dict(zip(names, runs.values(), strict=True)), command.out, unit)
    print(command.out)


def _leave_out(folder: Path, why: str) -> None:
    print(f"{folder} is left out: {why}", file=sys.stderr)


def _comparable(runs: dict[Path, list[plots.Row]]) -> tuple[dict[Path, list[plots.Row]], str]:
    """Runs whose losses have the same unit, and that unit."""
    if len(runs) < 2 or len({str(_tokenizer(folder)) for folder in runs}) == 1:
        return runs, "nats per token"
    converted = {}
    for folder, rows in runs.items():
        if not (n_bytes := _bytes_per_token(folder)):
            why = "its tokenizer is another, and the bytes per token are unknown; plot it alone"
            _leave_out(folder, why)
            continue
        factor = 1 / math.log(2) / n_bytes
        converted[folder] = [
            {name: value * factor if "loss" in name else value for name, value in row.items()}
            for row in rows
        ]
    return converted, "bits per byte"


def _tokenizer(folder: Path) -> dict[str, Any]:
    """The content of tokenizer.json; {} if the run has none."""
    path = folder / "tokenizer.json"
    return json_files.read(path, dict[str, Any], tokenizer.FIX) if path.exists() else {}


def _bytes_per_token(folder: Path) -> float:
    """Bytes per token of the validation split, 0 if they are unknown."""
    saved = _tokenizer(folder)
    characters = str(saved.get("characters", ""))  # of type "char"
    if saved.get("type") == "byte" or (characters and characters.isascii()):
        return 1
    if not (folder / "environment.json").exists():
        return 0
    return run_directory.read_environment(folder)["data"].get("bytes_per_token", 0)

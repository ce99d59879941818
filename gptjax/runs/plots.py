"""metrics.jsonl as rows, and a picture of their losses."""

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gptjax.atomic import atomic_file
from gptjax.checksums import unseal
from gptjax.errors import UserError

Row = dict[str, Any]
"""A line of metrics.jsonl: "step", "seconds", and the numbers of a training step or evaluation."""


def read_metrics(folder: Path) -> list[Row]:
    """The rows of a run's metrics.jsonl. Lines that are no rows are left out."""
    return [row for _, row in metrics_lines(folder) if row is not None]


def metrics_lines(folder: Path) -> list[tuple[bytes, Row | None]]:
    """The lines of a run's metrics.jsonl, each with its row, or None if it is damaged.

    A last line that a kill cut short is left out.
    """
    try:
        lines = (folder / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [(line, _row(line)) for line in lines]


def damaged_lines(folder: Path) -> str:
    """Names the damaged lines of a run's metrics.jsonl in a sentence; "" if there are none."""
    damaged = [i for i, (_, row) in enumerate(metrics_lines(folder), start=1) if row is None]
    if not damaged:
        return ""
    more = f" and {len(damaged) - 5} more" if len(damaged) > 5 else ""
    return (
        f"{folder / 'metrics.jsonl'}: damaged line {', '.join(map(str, damaged[:5]))}{more}; "
        "kept in the file and left out here"
    )


def _row(line: bytes) -> Row | None:
    """The row that a line of metrics.jsonl is; None if it is not one."""
    try:
        row = unseal(json.loads(line), "", "")
    except (ValueError, RecursionError, UserError):
        return None
    if not isinstance(row, dict) or not {"step", "seconds"} <= set(row):
        return None
    numbers = all(type(value) in (int, float) and math.isfinite(value) for value in row.values())
    return row if numbers and type(row["step"]) is int and row["step"] >= 0 else None


def plot(runs: dict[str, list[Row]], path: Path) -> None:
    """Draws training and validation loss against the step, with a mark at the best validation."""
    figure = Figure(figsize=(8, 4.8), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    top = 0.0
    lines: list[Line2D] = []
    labels: list[str] = []
    names = [_printable(name) for name in runs]
    for i, (name, rows) in enumerate(zip(names, runs.values(), strict=True)):
        color = f"C{i}"
        label = f"{name}: " if len(runs) > 1 else ""
        train = [(row["step"], row["train_loss"]) for row in rows if "train_loss" in row]
        val = [(row["step"], row["val_loss"]) for row in rows if "val_loss" in row]
        if train:
            steps, losses = zip(*train, strict=True)
            axes.plot(steps, losses, color=color, alpha=0.2, linewidth=0.8)
            lines += axes.plot(steps, _smooth(losses), color=color, alpha=0.6)
            labels.append(f"{label}train")
            top = max(top, *losses)
        if val:
            steps, losses = zip(*val, strict=True)
            color = color if len(runs) > 1 else "C1"
            lines += axes.plot(steps, losses, "o-", color=color, markersize=4)
            labels.append(f"{label}validation (whole split)")
            best = min(range(len(losses)), key=losses.__getitem__)
            axes.plot(steps[best], losses[best], "*", color="black", markersize=11, zorder=5)
            axes.annotate(
                f"{losses[best]:.4f}",
                (steps[best], losses[best]),
                xytext=(0, 8 + 12 * i),
                textcoords="offset points",
                ha="right",
            )
            top = max(top, *losses)
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.set_title(", ".join(names), parse_math=False)
    if top:
        axes.set_ylim(top=min(top, axes.get_ylim()[1]) + 0.05)
        axes.margins(y=0.12)
        legend = axes.legend(lines, [""] * len(lines), frameon=False)
        # Set afterwards: a name may start with _, which hides an entry, or have $, for formulas.
        for text, label in zip(legend.get_texts(), labels, strict=True):
            text.set(text=label, parse_math=False)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_file(path) as part, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the font lacks it; a box is drawn
        figure.savefig(part, format=path.suffix.removeprefix(".") or "png")


def _printable(name: str) -> str:
    """The name of a run on one line, with ? for what no font has: a name may be any bytes."""
    shown = name.encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() else "?" for c in shown)


def _smooth(values: tuple[float, ...]) -> np.ndarray:
    """Moving average over a twentieth of the curve, centred, narrower near its ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    here = np.arange(len(values))
    reach = np.minimum(len(values) // 40, np.minimum(here, here[::-1]))
    return (sums[here + reach + 1] - sums[here - reach]) / (2 * reach + 1)

"""metrics.jsonl as rows. Reading it needs no matplotlib, whose import takes half a second."""

import json
import math
from pathlib import Path
from typing import Any

from gptjax import reading
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
    path = folder / "metrics.jsonl"
    try:
        reading.check(path)
        lines = path.read_bytes().split(b"\n")[:-1]
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

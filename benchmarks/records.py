"""Reads the JSON under docs/benchmarks/, and writes what every table of it needs."""

import json
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.environment import DESCRIBE

FOLDER = Path("docs/benchmarks")


def load(name: str) -> dict[str, Any]:
    """The record FOLDER/name.json."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def read(name: str) -> dict[str, Any] | None:
    """As load, but None for a record that does not exist, because it has not been measured."""
    return load(name) if (FOLDER / f"{name}.json").exists() else None


def begun(path: Path, command: str) -> dict[str, Any]:
    """The record at `path`, to go on with, or a new one of this machine. Its `runs` are a list."""
    if path.exists():
        return json.loads(path.read_text())
    printed = subprocess.check_output(DESCRIBE, text=True)
    return {"command": command, "environment": json.loads(printed.splitlines()[-1]), "runs": []}


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def cores(n: int) -> str:
    """A number of processor cores in words."""
    return "one core" if n == 1 else f"{n} cores"


def machine(record: dict[str, Any]) -> str:
    """Hardware, versions and date of a record of benchmarks.expected."""
    environment = record["environment"]
    return (
        f"{cores(environment['cpus'])} of {record['processor']}, jax "
        f"{environment['packages']['jax']}, Python {environment['python']}, {record['date']}"
    )


def measured_on(record: dict[str, Any]) -> str:
    """Hardware, versions, date, commit and command of a record with benchmarks.environment."""
    e = record["environment"]
    where = f"{cores(e['cpus'])} of {e['processor']}" if e["backend"] == "cpu" else e["device"]
    packages = e.get("packages", {})  # a draft of a script may have left them out
    parts = [
        where,
        *(f"{name} {packages[name]}" for name in ("jax", "torch") if packages.get(name)),
    ]
    parts += [f"Python {e['python']}"] if "python" in e else []
    parts += [e["date"], *([f"commit {e['commit']}"] if e.get("commit") else [])]
    return f"Measured on {', '.join(parts)}, by `{record['command']}`."


def shown(table: str) -> str:
    """A table in today's words: records measured earlier call the original project "the seed"."""
    words = {
        "PyTorch, seed style": "PyTorch, original style",
        "| seed style |": "| original style |",
        "A seed-style state_dict": "A state_dict of the original",
        "| the seed |": "| the original PyTorch GPT |",
    }
    for old, new in words.items():
        table = table.replace(old, new)
    return table

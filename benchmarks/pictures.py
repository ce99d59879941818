"""Draws the pictures of docs/benchmarks again from the JSON beside them.

    python -m benchmarks.pictures

The figures stay as they were measured. Pictures of attention need a trained model, so
`benchmarks.expected` draws them.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ablate, parity, quality
from gptjax import optim
from gptjax.config_files import load_file
from gptjax.runs import plots

FOLDER = Path("docs/benchmarks")
PLOTS = {"ablate": ablate.plot, "parity": parity.plot, "quality": quality.plot}


def expected(record: dict[str, Any], path: Path) -> None:
    """The losses of a shipped configuration, as its run drew them."""
    config = load_file(Path(record["command"].split()[3]))
    rate = optim.schedule(config.optim, config.train.max_steps, config.optim.learning_rate)
    evaluations = record["evaluations"]
    steps, seconds = (np.array([row[x] for row in evaluations]) for x in ("step", "seconds"))
    rows = [
        {
            "step": int(step),
            "seconds": float(np.interp(int(step), steps, seconds)),
            "train_loss": loss,
            "learning_rate": float(rate(int(step) - 1)),
        }
        for step, loss in record["train_loss"].items()
    ]
    rows = sorted([*rows, *evaluations], key=lambda row: row["step"])
    plots.plot({record["part"]: rows}, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pictures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    for source in sorted(FOLDER.glob("*.json")):
        kind, _, part = source.stem.partition("-")
        path = FOLDER / f"{part if kind == 'expected' else source.stem}.png"
        draw = PLOTS.get(kind, expected if kind == "expected" else None)
        if draw and path.exists():
            draw(json.loads(source.read_text()), path)
            print(path)


if __name__ == "__main__":
    main()

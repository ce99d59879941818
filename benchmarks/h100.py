"""What was measured on one NVIDIA H100, as text: docs/benchmarks/h100-2026-11-26/."""

import statistics
from typing import Any

from benchmarks import gpu_tables
from benchmarks.records import load, read, table

NAME = "h100-2026-11-26"
# The lowest validation loss that the original PyTorch project logged, on sampled batches.
ORIGINAL_BEST = 1.4994


def losses(name: str) -> dict[int, float]:
    """Validation loss by step of one of the trainings."""
    evaluations: Any = load(f"{NAME}/h100-val-{name}")
    return {row["step"]: row["val_loss"] for row in evaluations}


def milliseconds() -> dict[str, list[float]]:
    """Milliseconds per step of the competitors of the race, round by round."""
    variants: Any = load(f"{NAME}/h100-variants-1")
    return {row["name"]: [1e3 * s for s in row["s"]] for row in variants}


def race_of(dropout: float) -> tuple[float, float]:
    """Milliseconds per step of configs/gpt.py, (gptjax, PyTorch at its best): the newest."""
    if newest := gpu_tables.of_gpt(dropout):
        return newest
    ms = {name: statistics.median(rounds) for name, rounds in milliseconds().items()}
    suffix = "d.2" if dropout else "d0"
    return ms[f"gptjax {suffix}"], ms[f"torch graphs {suffix}"]


def device() -> str:
    """The card of the latest race, "NVIDIA H200" for one."""
    record = read("race-gpt-gpu")
    return record["environment"]["device"].removeprefix("1 x ") if record else "NVIDIA H100"


def anchor() -> str:
    """Where docs/benchmarks.md has the latest race."""
    return "#configsgptpy-on-a-gpu" if read("race-gpt-gpu") else "#on-an-h100"


def verdict() -> str:
    """gptjax against PyTorch at its best, in one sentence."""
    (ours, theirs), (ours_0, theirs_0) = race_of(0.2), race_of(0.0)
    slower = [a > b for a, b in ((ours, theirs), (ours_0, theirs_0))]
    if all(slower):
        conclusion = "gptjax is slower than PyTorch there"
    elif any(slower):
        conclusion = "gptjax is faster in one of the two alone"
    else:
        conclusion = f"gptjax is {theirs / ours:.2f}x and {theirs_0 / ours_0:.2f}x as fast there"
    return (
        f"On one {device()}, a step of `configs/gpt.py` takes gptjax "
        f"{ours:.2f} ms and PyTorch at its best {theirs:.2f} ms (without dropout {ours_0:.2f} and "
        f"{theirs_0:.2f} ms), so **{conclusion}**"
    )


def section() -> str:
    """Speed, start-up and losses as measured on an H100."""
    about, ms = load(f"{NAME}/about"), milliseconds()
    names = {
        "gptjax": "gptjax",
        "torch compiled": "PyTorch, tuned, compiled",
        "torch graphs": "PyTorch, tuned, CUDA graphs",
    }
    race_rows = []
    for name, title in names.items():
        cells = []
        for dropout in ("d.2", "d0"):
            own, best = ms[f"{name} {dropout}"], ms[f"torch graphs {dropout}"]
            ratio = statistics.median(best) / statistics.median(own)
            cells += [
                f"{statistics.median(own):.2f} ({min(own):.2f} to {max(own):.2f})",
                f"{ratio:.2f}x",
            ]
        race_rows.append([title, *cells])
    startup = {
        "nothing cached": about["startup"]["cold"],
        "compilation cache filled": about["startup"]["with_compilation_cache"],
    }
    startup_rows = [
        [title, f"{row['first_evaluation']} s", f"{row['first_training_steps']} s"]
        for title, row in startup.items()
    ]
    runs = {
        "`gpt_fast.py`": "fast",
        "`gpt_best.py`, seed 1": "best1",
        "`gpt_best.py`, seed 2": "best2",
        "`gpt.py`": "gpt",
    }
    loss_rows = [
        [run, ", ".join(f"{loss:.4f} at {step:,}" for step, loss in losses(name).items() if step)]
        for run, name in runs.items()
    ]
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    race_header = ["", "ms/step, dropout 0.2", "PyTorch's best / this", "ms/step, dropout 0"]
    return "\n".join(
        [
            "These figures belong to commit 1bb5e41, before the GPU kernels. Later ones are in "
            f"[configs/gpt.py on a GPU]({anchor()}).",
            "",
            "`configs/gpt.py`, batches of 64 x 256, bfloat16; median (least to most) of three "
            "interleaved rounds:",
            "",
            table([*race_header, "PyTorch's best / this"], race_rows),
            "",
            "The GPU was never idle: the time was in the kernels, most of all in attention's "
            "(T, T) weights.",
            "",
            "Seconds from the start of `train.py --config configs/gpt.py`, nothing else on the "
            "machine:",
            "",
            table(["", "first evaluation", "first training steps"], startup_rows),
            "",
            "Validation loss, whole split. Five runs shared the GPU, so only steps count; a time "
            "limit ended the last three:",
            "",
            table(["config", "val_loss at step"], loss_rows),
            "",
            f"The original's best is {ORIGINAL_BEST} (sampled). These models of 10.7 M "
            "parameters overfitted. `gpt_fast.py` and `gpt_best.py` have changed since.",
            "",
            f"Measured on {about['device']} (driver {about['driver']}), {packages}, Python "
            f"{about['python']}, {about['date']}, at commit {about['commit']}. The raw figures are "
            f"in [{NAME}](benchmarks/{NAME}); [about.json](benchmarks/{NAME}/about.json) says what "
            "each file holds.",
        ]
    )

"""What benchmarks/gpu.py measured, as text. A part that has no JSON yet is left out."""

from typing import Any

from benchmarks import race
from benchmarks.records import measured_on, read, shown, table

SCRIPT = "python -m benchmarks.gpu"


def section() -> list[str]:
    """The tables of docs/benchmarks.md, or nothing if no part was measured."""
    makers = (startup, learning, gpt2, compiled)
    parts = [text for make in makers if (text := make())]
    return (
        ["## Ready and trained on a GPU", "", *"\n\n".join(parts).split("\n"), ""] if parts else []
    )


def of_gpt(dropout: float) -> tuple[float, float] | None:
    """Milliseconds per step of configs/gpt.py: (gptjax, PyTorch at its best), if both ran."""
    races = (read("race-gpt-gpu") or {"races": []})["races"]
    for one in races:
        if one["dropout"] == dropout:
            rows = race.fastest(one, "gptjax"), race.fastest(one, "PyTorch")
            if all(rows):
                ours, theirs = (1e3 * row["median"] for row in rows if row)
                return ours, theirs
    return None


def startup() -> str:
    """Seconds until train.py has evaluated, and trained its first steps."""
    record = read("gpu-startup")
    if record is None:
        return ""
    names = {"cold": "nothing cached", "warm": "compilation cache filled"}
    rows = [
        [
            title,
            *(
                f"{record[name][what]:.1f} s" if what in record[name] else ""
                for what in ("first_evaluation", "first_training_steps")
            ),
        ]
        for name, title in names.items()
        if name in record
    ]
    return "\n".join(
        [
            "Seconds from the start of `train.py --config configs/gpt.py`, nothing else on the "
            "machine:",
            "",
            table(["", "first evaluation", "first training steps"], rows),
            "",
            measured_on(record),
        ]
    )


def learning() -> str:
    """Losses of gpt_fast by step, and of gpt_best by seed."""
    texts = []
    if fast := read("gpu-fast"):
        best = min(fast["losses"], key=lambda row: row[2])
        text = (
            "`gpt_fast.py` of that commit, with batches of 64 and dropout of attention weights, "
            f"took {fast['ms_per_step']:.2f} ms a step. "
        )
        if passed := fast["passed"]:
            seconds = passed["step"] * fast["ms_per_step"] / 1e3
            text += (
                f"Its val_loss, of the whole split, was at most {fast['target']} at step "
                f"{passed['step']}, after {seconds:.1f} s of steps"
            )
        else:
            text += f"It did not reach {fast['target']}"
        stopped = "" if fast["complete"] else ", where a time limit ended the run"
        text += f"; the lowest was {best[2]:.4f} at step {best[0]}{stopped}. {measured_on(fast)}"
        texts.append(text)
    if steps := read("gpu-fast-steps"):
        texts.append(
            "\n".join(
                [
                    "A step of `gpt_fast.py`, the first row, and of what it would be otherwise:",
                    "",
                    table(["", "ms/step, median (least to most)"], step_rows(steps)),
                    "",
                    f"{measured_on(steps)} A draft of that script printed these times. "
                    "[What they learn](recipe.md#variations-on-a-gpu).",
                ]
            )
        )
    if best_runs := read("gpu-best"):
        rows = []
        for run in best_runs["runs"]:
            if not run["losses"]:
                continue
            lowest = min(run["losses"], key=lambda row: row[1])
            last = run["losses"][-1]
            end = f"{last[1]:.4f} at {last[0]:,}" + ("" if run["complete"] else " (stopped there)")
            rows.append([str(run["seed"]), f"{lowest[1]:.4f} at {lowest[0]:,}", end])
        texts.append(
            "\n".join(
                [
                    "Validation loss of `gpt_best.py`; the seeds shared the GPU:",
                    "",
                    table(["seed", "lowest, at step", "last, at step"], rows),
                    "",
                    measured_on(best_runs),
                ]
            )
        )
    return "\n\n".join(texts)


def step_rows(record: dict[str, Any]) -> list[list[str]]:
    """Name and milliseconds per step of each competitor."""
    return [
        [
            row["name"],
            f"{1e3 * row['median']:.2f} ({1e3 * row['least']:.2f} to {1e3 * row['most']:.2f})",
        ]
        for row in record["rows"]
        if "error" not in row
    ]


def gpt2() -> str:
    """A step of GPT-2's size."""
    record = read("race-gpt2-gpu")
    if record is None:
        return ""
    c = record["config"]
    size = f"batches of {c['train']['batch_size']} x {c['model']['block_size']}"
    text = shown(race.table(record)).replace("Dropout 0:\n\n", "")
    return (
        f"A step of `gpt2_124m.py` with random tokens, {size}:\n\n{text}\n\n{measured_on(record)}"
    )


def compiled() -> str:
    """What a train step is made of, compiled for an H100 without one."""
    record = read("compiled-h100")
    if record is None:
        return ""
    rows = []
    for row in record["table"]:
        name, *changes = row["config"].split(":")
        what = ", ".join(change.replace("=", " ") for change in changes)
        rows.append(
            [
                f"`{name}` {what}".strip(),
                f"{row['gb_per_step']:.1f} GB",
                str(row["kernels_per_step"]),
                f"{row['temporaries_mib']:,.0f} MiB",
                f"{row['trace_cpu_seconds']:.1f} s",
                f"{row['compile_cpu_seconds']:.1f} s",
            ]
        )
    header = ["train step", "memory traffic", "kernels", "temporary memory", "traced", "compiled"]
    return "\n".join(
        [
            "### What a step is made of",
            "",
            "Compiled for an NVIDIA H100 on a machine without a GPU. `gpt2_124m` has a micro-batch "
            "of 16 sequences of 1,024 tokens if nothing else is said.",
            "",
            table(header, rows),
            "",
            f"jax {record['jax']}, {record['date']}, by `python -m benchmarks.compile_for --json "
            "docs/benchmarks/compiled-h100.json`. Memory traffic counts what every kernel reads "
            "and writes once, work space of matmuls included. Temporary memory is what a step "
            "needs besides its parameters, optimizer state and batch. The last two columns are "
            "CPU seconds before a first step: from Python to a program for XLA, and by XLA.",
        ]
    )

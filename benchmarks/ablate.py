"""The recipe, one idea at a time, from the original configuration to configs/gpt_cpu.py.

    python -m benchmarks.ablate cpu --json docs/benchmarks/ablate-cpu.json

Each rung of the ladder adds one idea, in options of train.py, to the rung below. Every rung is
trained with three seeds for equal steps, and again for equal seconds: those of the top rung.
Milliseconds per step are measured first, in rounds in which the rungs take turns. Losses do not
depend on speed, so the trainings then run in parallel, one per CPU core. Runs that are in the JSON
file already are not repeated, so an interrupted ladder continues.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import statistics
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks import environment, quality
from benchmarks.compare import check_writable
from benchmarks.ladders import LADDERS, Ladder
from gptjax.atomic import write_text
from gptjax.command_line import parse
from gptjax.config import Config
from gptjax.data import dataset as data
from gptjax.data import texts
from gptjax.drawing import COLORS, DASHES, MARKERS, save
from gptjax.errors import UserError, exit_codes
from gptjax.scale import devices

SEEDS = (1, 2, 3)
ROUNDS, STEPS_PER_ROUND = 7, 10


def config_of(ladder: Ladder, rung: str, steps: int, seed: int = SEEDS[0]) -> Config:
    """The configuration of a rung: the base and the options of all rungs up to it."""
    options = ladder.base.split()
    for one in ladder.rungs:
        options += one.options.split()
        if one.name == rung:
            break
    config, _ = parse([*options, "--train.max-steps", str(steps), "--seed", str(seed)])
    return config


# --- measuring


def load(ladder: Ladder, config: Config) -> texts.TextData:
    """The text, with the ladder's share of the training split."""
    text = data.load(config)
    return dataclasses.replace(text, train=text.train[: round(ladder.text_share * len(text.train))])


def milliseconds(ladder: Ladder, rungs: dict[str, Config]) -> dict[str, list[float]]:
    """Milliseconds per step of every rung, in each of ROUNDS rounds."""
    texts = {name: load(ladder, config) for name, config in rungs.items()}
    runs = {name: quality.gptjax_trainer(c, texts[name])[0] for name, c in rungs.items()}
    found: dict[str, list[float]] = {name: [] for name in rungs}
    for number in range(-1, ROUNDS):  # round -1 compiles
        for name, config in rungs.items():
            seconds = quality.train(config, texts[name], runs[name], STEPS_PER_ROUND)
            if number >= 0:
                found[name].append(round(seconds / STEPS_PER_ROUND * 1e3, 2))
    return found


def final_losses(ladder: Ladder, config: Config) -> dict[str, float]:
    """Trains to the end and evaluates there."""
    text = load(ladder, config)
    run, mean_loss = quality.gptjax_trainer(config, text)
    quality.train(config, text, run, config.train.max_steps)
    return quality.losses(text, mean_loss)


def pin_to_one_core(cores: Any) -> None:
    """Limits this process to one core; called before JAX starts its threads."""
    os.sched_setaffinity(0, {cores.get()})


def train_all(
    ladder: Ladder, wanted: list[tuple[dict[str, Any], Config]]
) -> Iterator[dict[str, Any]]:
    """The results of the runs with their final losses, in the order in which they end."""
    context = multiprocessing.get_context("spawn")
    cores: Any = context.Queue()
    for core in os.sched_getaffinity(0):
        cores.put(core)
    # Two runs on one core each take less time than one after the other on both cores.
    sharing = {"initializer": pin_to_one_core, "initargs": (cores,)} if devices.on_cpu() else {}
    n_workers = cores.qsize() if devices.on_cpu() else 1
    with ProcessPoolExecutor(n_workers, context, **sharing) as pool:
        futures = {pool.submit(final_losses, ladder, config): result for result, config in wanted}
        for future in as_completed(futures):
            yield futures[future] | future.result()


def options(ladder: Ladder) -> dict[str, Any]:
    """Everything that the results of a ladder depend on, except the number of steps."""
    rungs = {rung.name: rung.options for rung in ladder.rungs}
    return {"base": ladder.base, "text_share": ladder.text_share, "rungs": rungs}


def read(path: Path) -> dict[str, Any]:
    """A record that `measure` wrote; raises UserError for anything else."""
    try:
        record = json.loads(path.read_text())
        _ = record["options"], record["steps"], record["milliseconds"], record["runs"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"--json {path} holds no ladder; name another file") from None
    return record


def lengths(record: dict[str, Any]) -> dict[str, dict[str, int]]:
    """For every rung, its number of steps in the two comparisons: equal steps, equal seconds."""
    ms = {name: statistics.median(of) for name, of in record["milliseconds"].items()}
    top = ms[list(ms)[-1]]
    return {
        name: {"steps": record["steps"], "seconds": round(record["steps"] * top / ms[name])}
        for name in ms
    }


def missing(record: dict[str, Any]) -> list[tuple[str, int, int]]:
    """The runs (rung, steps, seed) that a record still lacks."""
    done = {(run["rung"], run["steps"], run["seed"]) for run in record["runs"]}
    wanted = [
        (name, n_steps, seed)
        for seed in SEEDS
        for name, equal in lengths(record).items()
        for n_steps in dict.fromkeys(equal.values())
    ]
    return [run for run in wanted if run not in done]


def measure(which: str, path: Path, steps: int | None) -> dict[str, Any]:
    """Measures what the JSON file at `path` lacks; writes it after every run.

    Raises UserError if the file holds another ladder or another number of steps.
    """
    ladder = LADDERS[which]
    names = [rung.name for rung in ladder.rungs]
    if path.exists():
        record = read(path)
        same = record["options"] == options(ladder) and steps in (None, record["steps"])
        if not same:
            raise UserError(f"--json {path} holds another ladder or length; name another file")
    else:
        command = f"python -m benchmarks.ablate {which} --json {path}"
        command += "" if steps is None else f" --steps {steps}"
        steps = steps or ladder.steps
        rungs = {name: config_of(ladder, name, steps) for name in names}
        record = {
            "command": command,
            "options": options(ladder),
            "steps": steps,
            "environment": environment.describe(),
            "milliseconds": milliseconds(ladder, rungs),
            "runs": [],
        }
    wanted = [
        ({"rung": rung, "steps": n_steps, "seed": seed}, config_of(ladder, rung, n_steps, seed))
        for rung, n_steps, seed in missing(record)
    ]
    for result in train_all(ladder, wanted):
        record["runs"].append(result)
        write_text(path, json.dumps(record, indent=1) + "\n")
        print(f"{len(record['runs'])} runs: {result}", file=sys.stderr, flush=True)
    return record


# --- reporting


def rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per rung: median time, means and standard deviations of losses over seeds."""
    found = []
    for name, equal in lengths(record).items():
        row: dict[str, Any] = {
            "name": name,
            "ms": statistics.median(record["milliseconds"][name]),
        }
        for what, n_steps in equal.items():
            runs = [r for r in record["runs"] if r["rung"] == name and r["steps"] == n_steps]
            row[what] = {"n_steps": n_steps}
            for split in ("val_loss", "second_half"):
                losses = [run[split] for run in runs]
                row[what][split] = statistics.mean(losses)
                row[what][f"{split}_sd"] = statistics.stdev(losses)
        found.append(row)
    return found


def table(record: dict[str, Any]) -> str:
    """Both comparisons, the bottom of the ladder first."""
    ladder = rows(record)
    n, seconds = record["steps"], record["steps"] * ladder[-1]["ms"] / 1e3
    lines = [
        f"| | ms/step | {n:,} steps: val_loss | gain | its second half | "
        f"{seconds:.0f} s: steps | val_loss | gain | its second half |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    below = None
    for row in ladder:
        cells = [("+ " if below else "") + row["name"], f"{row['ms']:.1f}"]
        for equal in ("steps", "seconds"):
            one = row[equal]
            if equal == "seconds":
                cells.append(f"{one['n_steps']:,}")
            cells.append(f"{one['val_loss']:.4f} ± {one['val_loss_sd']:.4f}")
            gain = f"{below[equal]['val_loss'] - one['val_loss']:+.4f}" if below else ""
            cells += [gain, f"{one['second_half']:.4f}"]
        lines.append("| " + " | ".join(cells) + " |")
        below = row
    return "\n".join(lines)


def plot(record: dict[str, Any], path: Path) -> None:
    """The ladder, its bottom at the bottom: means over the seeds and standard deviations."""
    ladder = rows(record)
    seconds = record["steps"] * ladder[-1]["ms"] / 1e3
    labels = {"steps": f"{record['steps']:,} steps", "seconds": f"{seconds:.0f} seconds"}
    figure = Figure(figsize=(8, 0.38 * len(ladder) + 1), dpi=110, layout="constrained")
    axes = figure.subplots()
    for i, (equal, label) in enumerate(labels.items()):
        means = [row[equal]["val_loss"] for row in ladder]
        deviations = [row[equal]["val_loss_sd"] for row in ladder]
        look: dict[str, Any] = {"color": COLORS[i], "linestyle": DASHES[i], "marker": MARKERS[i]}
        axes.errorbar(means, range(len(ladder)), xerr=deviations, capsize=2, label=label, **look)
    names = [("+ " if i else "") + row["name"] for i, row in enumerate(ladder)]
    axes.set_yticks(range(len(ladder)), names)
    axes.set_xlabel("val_loss (nats per character): mean and standard deviation of three seeds")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def ideas(which: str) -> str:
    """Each rung's options and explanation."""
    ladder = LADDERS[which]
    lines = []
    for rung in ladder.rungs:
        lines += [f"**{rung.name}** (`{rung.options or ladder.base}`). {rung.idea}", ""]
    return "\n".join(lines[:-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("ladder", choices=LADDERS)
    parser.add_argument("--json", type=Path, required=True, help="file for the figures")
    parser.add_argument("--steps", type=int, help="steps of every rung; default: the ladder's own")
    arguments = parser.parse_args()
    with exit_codes():
        if arguments.steps is not None and arguments.steps < 1:
            raise UserError(f"--steps is {arguments.steps}, but must be at least 1")
        check_writable(arguments.json)
        record = measure(arguments.ladder, arguments.json, arguments.steps)
        plot(record, arguments.json.with_suffix(".png"))
        print(table(record))


if __name__ == "__main__":
    main()

"""The recipe, one idea at a time: a ladder from the seed's configuration up to configs/gpt_cpu.py.

    python -m benchmarks.ablate cpu --json docs/benchmarks/ablate-cpu.json

Each rung is the one below and one idea, in options of train.py. Every rung is trained with three
seeds for equal steps, and again for as many steps as fit the seconds that the top rung takes for
its own. Milliseconds per step are measured first, in rounds in which the rungs take turns. Losses
do not depend on the time a run takes, so the runs then share the machine, one CPU core each. Runs
that the JSON file holds are not repeated: a ladder that was interrupted goes on.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import environment, quality
from benchmarks.compare import check_writable
from gptjax import data, devices
from gptjax.config import Config, parse
from gptjax.errors import UserError, exit_codes

SEEDS = (1, 2, 3)
ROUNDS, STEPS_PER_ROUND = 7, 10


@dataclass(frozen=True)
class Rung:
    """One idea."""

    name: str
    options: str
    """Of train.py; they join those of the rungs below."""
    idea: str
    """What it does and where it comes from, in two sentences."""


@dataclass(frozen=True)
class Ladder:
    """Rungs over a base, and the shipped configuration that they lead to."""

    base: str
    steps: int
    rungs: tuple[Rung, ...]
    top: str


MODEL_AND_OPTIMIZER = (
    Rung(
        "no dropout",
        "--model.dropout 0",
        "Dropout (Srivastava et al. 2014) guards against learning a text by heart. A run that "
        "sees the text about once has nothing to guard against and only pays for the noise.",
    ),
    Rung(
        "learning rate",
        "--optim.learning-rate 3e-3 --optim.schedule linear --optim.decay-fraction 0.6 "
        "--optim.warmup-steps 20 --optim.beta2 0.95",
        "Ten times the seed's rate, a warm-up, a constant stretch, then a straight line to zero "
        "over the last 60 %. The shape is that of Zhai et al. (2022) and MiniCPM (Hu et al. 2024); "
        "Defazio et al. (2024) show why the last step should be at zero.",
    ),
    Rung(
        "Muon",
        "--optim.name muon --optim.muon-learning-rate 0.02 --optim.learning-rate 6e-3",
        "Every matrix of a block moves along the nearest orthogonal matrix to its averaged "
        "gradient, so that all directions learn, not only the strongest (Jordan et al. 2024). "
        "Embeddings, head and vectors stay with AdamW.",
    ),
    Rung(
        "RMSNorm, no biases",
        "--model.norm rmsnorm --model.no-bias",
        "Normalisation without the mean (Zhang & Sennrich 2019), and projections without biases, "
        "as in PaLM (Chowdhery et al. 2022). Less to compute for the same loss.",
    ),
    Rung(
        "rotary positions",
        "--model.position rotary",
        "Queries and keys turn with their position, so that a score depends on the distance "
        "(Su et al. 2021). Nothing has to be learned for each place of the window.",
    ),
    Rung(
        "QK-norm",
        "--model.qk-norm",
        "Queries and keys are normalised before they meet, which bounds the scores (Henry et al. "
        "2020; Dehghani et al. 2023). High learning rates become safe.",
    ),
    Rung(
        "squared ReLU",
        "--model.activation relu2",
        "The one change to the MLP that an architecture search kept (Primer, So et al. 2021). "
        "As cheap as ReLU.",
    ),
    Rung(
        "zero initialisation",
        "--model.zero-init",
        "The last projection of every branch, and the head, start at zero: each block begins as "
        "the identity and the loss at ln(vocabulary) (Zhang et al. 2019, Fixup; Yang et al. 2021, "
        "muP). The first steps are not spent on undoing noise.",
    ),
    Rung(
        "logit soft-cap",
        "--model.logit-softcap 15",
        "15 tanh(logits / 15) bounds the logits smoothly (Gemma 2, 2024). A cheap guard against "
        "overconfidence early in training.",
    ),
)

CONTEXT_AND_DATA = (
    Rung(
        "short convolutions",
        "--model.short-conv 3",
        "Before attention and before the MLP each position adds its two predecessors, weighted "
        "for each channel (Canon layers, Allen-Zhu 2025; with one predecessor RWKV's token shift, "
        "Peng et al. 2023). Spelling needs the last letters at once, and attention takes long to "
        "learn to look there.",
    ),
    Rung(
        "epochs",
        "--data.windows epochs",
        "Windows side by side, each once before any comes again, instead of random places, which "
        "in one epoch's worth of steps miss a third of the text. Shuffling whole epochs was the "
        "first gain of the NanoGPT Slowrun (Q Labs 2026) as well.",
    ),
)

LADDERS = {
    "cpu": Ladder(
        base="--config configs/gpt.py --model.n-layer 4 --model.n-head 4 --model.n-embd 128 "
        "--model.block-size 64 --train.batch-size 16",
        steps=1000,
        rungs=(
            *MODEL_AND_OPTIMIZER,
            Rung(
                "context of 256",
                "--model.block-size 256 --train.batch-size 4",
                "The same characters per step in windows of four times the length. More of them "
                "are predicted from a long past, in training and in evaluation.",
            ),
            *CONTEXT_AND_DATA,
            Rung(
                "three layers",
                "--model.n-layer 3",
                "A smaller model takes more steps in the same time: the compute-optimal size "
                "(Hoffmann et al. 2022) for a minute of two cores. At equal steps it loses.",
            ),
        ),
        top="configs/gpt_cpu.py",
    ),
    "gpu": Ladder(
        base="--config configs/gpt.py",
        steps=600,
        rungs=(*MODEL_AND_OPTIMIZER, *CONTEXT_AND_DATA),
        top="configs/gpt_fast.py",
    ),
}
SEED = Rung("the seed", "", "What the PyTorch project trains, at this size.")


def config_of(ladder: Ladder, rung: str, steps: int, seed: int = SEEDS[0]) -> Config:
    """The configuration of a rung: the base and the options of all rungs up to it."""
    options = ladder.base.split()
    for one in (SEED, *ladder.rungs):
        options += one.options.split()
        if one.name == rung:
            break
    return parse([*options, "--train.max-steps", str(steps), "--seed", str(seed)])


# --- measuring


def milliseconds(rungs: dict[str, Config]) -> dict[str, list[float]]:
    """Milliseconds per step of every rung, in each of ROUNDS rounds."""
    texts = {name: data.load(c.data, c.model.block_size) for name, c in rungs.items()}
    runs = {name: quality.gptjax_trainer(c, texts[name])[0] for name, c in rungs.items()}
    found: dict[str, list[float]] = {name: [] for name in rungs}
    for number in range(-1, ROUNDS):  # the first compiles
        for name, config in rungs.items():
            seconds = quality.train(config, texts[name], runs[name], STEPS_PER_ROUND)
            if number >= 0:
                found[name].append(round(seconds / STEPS_PER_ROUND * 1e3, 2))
    return found


def final_losses(config: Config) -> dict[str, float]:
    """Trains to the end and evaluates there."""
    text = data.load(config.data, config.model.block_size)
    run, mean_loss = quality.gptjax_trainer(config, text)
    quality.train(config, text, run, config.train.max_steps)
    return quality.losses(text, mean_loss)


def take_a_core(cores: Any) -> None:
    """Keeps this process to one core, before JAX starts its threads."""
    os.sched_setaffinity(0, {cores.get()})


def train_all(wanted: list[tuple[dict[str, Any], Config]]) -> Iterator[dict[str, Any]]:
    """The results of runs, each with the losses it ended at, as they come in."""
    context = multiprocessing.get_context("spawn")
    cores: Any = context.Queue()
    for core in os.sched_getaffinity(0):
        cores.put(core)
    # One core each: two runs on two cores take less time than one after the other on both.
    sharing = {"initializer": take_a_core, "initargs": (cores,)} if devices.on_cpu() else {}
    n_workers = cores.qsize() if devices.on_cpu() else 1
    with ProcessPoolExecutor(n_workers, context, **sharing) as pool:
        futures = {pool.submit(final_losses, config): result for result, config in wanted}
        for future in as_completed(futures):
            yield futures[future] | future.result()


def measure(which: str, path: Path, steps: int | None) -> dict[str, Any]:
    """Measures what the JSON file at `path` does not hold yet; writes it after every run."""
    ladder = LADDERS[which]
    names = [rung.name for rung in (SEED, *ladder.rungs)]
    if path.exists():
        record = json.loads(path.read_text())
        if list(record["milliseconds"]) != names:
            raise UserError(f"--json {path} holds another ladder; move it away")
    else:
        steps = steps or ladder.steps
        rungs = {name: config_of(ladder, name, steps) for name in names}
        record = {
            "command": f"python -m benchmarks.ablate {which} --json {path}",
            "ladder": which,
            "steps": steps,
            "environment": environment.describe(),
            "milliseconds": milliseconds(rungs),
            "runs": [],
        }
    ms = {name: statistics.median(of) for name, of in record["milliseconds"].items()}
    done = [(run["rung"], run["steps"], run["seed"]) for run in record["runs"]]
    wanted = []
    for seed in SEEDS:
        for name in names:
            same_seconds = round(record["steps"] * ms[names[-1]] / ms[name])
            for n_steps in dict.fromkeys((record["steps"], same_seconds)):
                if (name, n_steps, seed) not in done:
                    config = config_of(ladder, name, n_steps, seed)
                    wanted.append(({"rung": name, "steps": n_steps, "seed": seed}, config))
    for result in train_all(wanted):
        record["runs"].append(result)
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"{len(record['runs'])} runs: {result}", file=sys.stderr, flush=True)
    return record


# --- reporting


def rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per rung: medians of time, means and standard deviations of losses over seeds."""
    names = list(record["milliseconds"])
    ms = {name: statistics.median(of) for name, of in record["milliseconds"].items()}
    found = []
    for name in names:
        row: dict[str, Any] = {"name": name, "ms": ms[name]}
        lengths = {"steps": record["steps"]}
        lengths["seconds"] = round(record["steps"] * ms[names[-1]] / ms[name])
        for equal, steps in lengths.items():
            runs = [r for r in record["runs"] if r["rung"] == name and r["steps"] == steps]
            row[equal] = {"n_steps": steps}
            for split in ("val_loss", "first_half", "second_half"):
                losses = [run[split] for run in runs]
                row[equal][split] = statistics.mean(losses)
                row[equal][f"{split}_sd"] = statistics.stdev(losses)
        found.append(row)
    return found


def table(record: dict[str, Any]) -> str:
    """Both comparisons, the bottom of the ladder first."""
    n, seconds = record["steps"], record["steps"] * rows(record)[-1]["ms"] / 1e3
    lines = [
        f"| | ms/step | {n:,} steps: val_loss | gain | its second half | "
        f"{seconds:.0f} s: steps | val_loss | gain | its second half |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    below = None
    for row in rows(record):
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
    """The ladder, its bottom at the bottom: every run, and the means joined."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ladder = rows(record)
    seconds = record["steps"] * ladder[-1]["ms"] / 1e3
    labels = {"steps": f"{record['steps']:,} steps", "seconds": f"{seconds:.0f} seconds"}
    figure, axes = plt.subplots(figsize=(8, 0.38 * len(ladder) + 1))
    for equal, label in labels.items():
        means = [row[equal]["val_loss"] for row in ladder]
        deviations = [row[equal]["val_loss_sd"] for row in ladder]
        axes.errorbar(
            means, range(len(ladder)), xerr=deviations, marker="o", markersize=4, label=label
        )
    names = [("+ " if i else "") + row["name"] for i, row in enumerate(ladder)]
    axes.set_yticks(range(len(ladder)), names)
    axes.set_xlabel("val_loss (nats per character), mean of three seeds")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def ideas(which: str) -> str:
    """Two sentences for every rung, and the options that switch it on."""
    ladder = LADDERS[which]
    lines = [f"**{SEED.name}** (`{ladder.base}`). {SEED.idea}", ""]
    for rung in ladder.rungs:
        lines += [f"**{rung.name}** (`{rung.options}`). {rung.idea}", ""]
    return "\n".join(lines[:-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("ladder", choices=LADDERS)
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--steps", type=int, help="of every rung; by default the ladder's own")
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

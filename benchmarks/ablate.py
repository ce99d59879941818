"""The recipe, one idea at a time: a ladder from the seed's configuration up to configs/gpt_cpu.py.

    python -m benchmarks.ablate cpu --json docs/benchmarks/ablate-cpu.json

Each rung is the one below and one idea, in options of train.py. Every rung is trained with three
seeds for equal steps, and again for as many steps as fit the seconds that the top rung takes for
its own. Milliseconds per step are measured first, in rounds in which the rungs take turns. Losses
do not depend on the time a run takes, so the runs then share the machine, one CPU core each. Runs
that the JSON file holds are not repeated: a ladder that was interrupted goes on.
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
    """Rungs over a base."""

    note: str
    """What it is about, for docs/recipe.md."""
    base: str
    steps: int
    rungs: tuple[Rung, ...]
    text_share: float = 1.0
    """How much of the training split there is, from its start."""


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
        "over the last 60 %. The shape is MiniCPM's (Hu et al. 2024, arXiv:2404.06395); Defazio et "
        "al. (2023, arXiv:2310.07831) show why it should be a line and end at zero.",
    ),
    Rung(
        "Muon",
        "--optim.name muon --optim.muon-learning-rate 0.02 --optim.learning-rate 6e-3",
        "Every matrix of a block moves along the nearest orthogonal matrix to its averaged "
        "gradient, so that all directions learn, not only the strongest (Jordan et al. 2024, "
        "kellerjordan.github.io/posts/muon). Embeddings, head and vectors stay with AdamW.",
    ),
    Rung(
        "RMSNorm, no biases",
        "--model.norm rmsnorm --model.no-bias",
        "Normalisation without the mean (Zhang & Sennrich 2019, arXiv:1910.07467), and projections "
        "without biases, as in PaLM (Chowdhery et al. 2022, arXiv:2204.02311). There is less to "
        "compute for the same loss.",
    ),
    Rung(
        "rotary positions",
        "--model.position rotary",
        "Queries and keys turn with their position, so that a score depends on the distance "
        "(Su et al. 2021, arXiv:2104.09864). Nothing has to be learned anew for each place of the "
        "window.",
    ),
    Rung(
        "QK-norm",
        "--model.qk-norm",
        "Queries and keys are normalised before they meet, which bounds the scores (Henry et al. "
        "2020, arXiv:2010.04245; Dehghani et al. 2023, arXiv:2302.05442). High learning rates "
        "become safe.",
    ),
    Rung(
        "squared ReLU",
        "--model.activation relu2",
        "One of the two changes that made the difference in an architecture search (Primer, So et "
        "al. 2021, arXiv:2109.08668); it is as cheap as ReLU. The other one comes below: short "
        "convolutions, there behind queries, keys and values.",
    ),
    Rung(
        "zero initialisation",
        "--model.zero-init",
        "The last projection of every branch, and the head, start at zero: each block begins as "
        "the identity and the loss at ln(vocabulary) (Fixup, Zhang et al. 2019, arXiv:1901.09321; "
        "muP, Yang et al. 2022, arXiv:2203.03466). The first steps are not spent on undoing noise.",
    ),
    Rung(
        "logit soft-cap",
        "--model.logit-softcap 15",
        "15 tanh(logits / 15) bounds the logits smoothly (Gemma 2, 2024, arXiv:2408.00118). It "
        "guards cheaply against overconfidence early in training.",
    ),
)

CONTEXT_AND_DATA = (
    Rung(
        "short convolutions",
        "--model.short-conv 3",
        "Before attention and before the MLP each position adds its two predecessors, weighted "
        "for each channel (Canon layers, Allen-Zhu 2025, arXiv:2512.17351; with one predecessor "
        "RWKV's token shift, Peng et al. 2023, arXiv:2305.13048). Spelling needs the last letters "
        "at once, and attention takes long to learn to look there.",
    ),
    Rung(
        "epochs",
        "--data.windows epochs",
        "Windows side by side, each once before any comes again, instead of random places, which "
        "in one epoch's worth of steps miss a third of the text. Shuffling whole epochs was the "
        "first gain of the NanoGPT Slowrun (Q Labs 2026, github.com/qlabs-eng/slowrun) as well.",
    ),
)

SEED = Rung("the seed", "", "What the PyTorch project trains, at this size.")

LADDERS = {
    "cpu": Ladder(
        note="From the seed's architecture at 4 layers and width 128 to `configs/gpt_cpu.py`, cut "
        "to 800 steps; in full it takes 1,750.",
        base="--config configs/gpt.py --model.n-layer 4 --model.n-head 4 --model.n-embd 128 "
        "--model.block-size 64 --train.batch-size 16",
        steps=800,
        rungs=(
            SEED,
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
                "(Hoffmann et al. 2022, arXiv:2203.15556) for a minute of two cores. Equal steps "
                "do not show it, equal seconds do.",
            ),
        ),
    ),
    "short": Ladder(
        note="`configs/gpt_cpu.py` on the first tenth of its training text: ten epochs in 1,000 "
        "steps, where the question is no longer how fast a model learns but how little it learns "
        "by heart. `gpt_cpu_10min.py` reads the whole text four and a half times and takes less "
        "of the same.",
        base="--config configs/gpt_cpu.py",
        steps=1000,
        rungs=(
            Rung("gpt_cpu.py", "", "As shipped, for a text that it sees not quite twice."),
            Rung(
                "dropout",
                "--model.dropout 0.1",
                "Zeroes a tenth of the attention weights and of what each branch adds, anew in "
                "every step (Srivastava et al. 2014). What is learned by heart has to be learned "
                "in many ways.",
            ),
            Rung(
                "weight decay",
                "--optim.weight-decay 1",
                "A hundred times the usual pull of every matrix towards zero; it follows the "
                "learning rate, which is its schedule (AdamW, Loshchilov & Hutter 2019, "
                "arXiv:1711.05101). Kim et al. (2025, arXiv:2509.14786) and the NanoGPT Slowrun "
                "found such large values best where text is short.",
            ),
        ),
        text_share=0.1,
    ),
    "gpu": Ladder(
        note="From `configs/gpt.py` to `configs/gpt_fast.py`.",
        base="--config configs/gpt.py",
        steps=500,
        rungs=(
            SEED,
            *MODEL_AND_OPTIMIZER,
            *CONTEXT_AND_DATA,
            Rung(
                "dropout and weight decay",
                "--model.dropout 0.1 --optim.weight-decay 0.1",
                "Eight epochs of a model of this size do learn the text by heart. Against that "
                "stand dropout, back again, and ten times the weight decay (Kim et al. 2025).",
            ),
        ),
    ),
}


HOW_IT_WAS_CHOSEN = """## How it was chosen

By the loss on the first half of the validation split alone. The tables show the whole split and its
second half, on which nothing was chosen. A gain within the standard deviations is no gain: some
rungs stand here because the next ones rest on them (QK-norm lets Muon be fast) or because they
make a step cheaper.

Tried in single runs and left out, so there are no figures of them here:

- Next to the short convolutions, nothing more came of other ways to see the last letters: a sum
  with the previous token's embedding, embeddings of pairs, keys and values mixed with those of the
  position before (Xu et al. 2024, arXiv:2411.19574).
- Value residuals (Zhou et al. 2024, arXiv:2410.17897), value embeddings and a second path from the
  embedding into every block gave nothing at three or four layers.
- SwiGLU (Shazeer 2020, arXiv:2002.05202) is in the code, `--model.activation swiglu`: a little
  better per step than squared ReLU, level per second.
- An average of the weights over the last steps (EMA) gave nothing beyond a learning rate that ends
  at zero.
- Stochastic depth (Huang et al. 2016, arXiv:1603.09382) helped on the short text about as much as
  better-chosen dropout and weight decay.
- Three steps of Newton-Schulz in place of Muon's five cost more than the time they save.
"""


def config_of(ladder: Ladder, rung: str, steps: int, seed: int = SEEDS[0]) -> Config:
    """The configuration of a rung: the base and the options of all rungs up to it."""
    options = ladder.base.split()
    for one in ladder.rungs:
        options += one.options.split()
        if one.name == rung:
            break
    return parse([*options, "--train.max-steps", str(steps), "--seed", str(seed)])


# --- measuring


def load(ladder: Ladder, config: Config) -> data.TextData:
    """The text, cut to the ladder's share."""
    text = data.load(config.data, config.model.block_size)
    return dataclasses.replace(text, train=text.train[: round(ladder.text_share * len(text.train))])


def milliseconds(ladder: Ladder, rungs: dict[str, Config]) -> dict[str, list[float]]:
    """Milliseconds per step of every rung, in each of ROUNDS rounds."""
    texts = {name: load(ladder, config) for name, config in rungs.items()}
    runs = {name: quality.gptjax_trainer(c, texts[name])[0] for name, c in rungs.items()}
    found: dict[str, list[float]] = {name: [] for name in rungs}
    for number in range(-1, ROUNDS):  # the first compiles
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


def take_a_core(cores: Any) -> None:
    """Keeps this process to one core, before JAX starts its threads."""
    os.sched_setaffinity(0, {cores.get()})


def train_all(
    ladder: Ladder, wanted: list[tuple[dict[str, Any], Config]]
) -> Iterator[dict[str, Any]]:
    """The results of runs, each with the losses it ended at, as they come in."""
    context = multiprocessing.get_context("spawn")
    cores: Any = context.Queue()
    for core in os.sched_getaffinity(0):
        cores.put(core)
    # One core each: two runs on two cores take less time than one after the other on both.
    sharing = {"initializer": take_a_core, "initargs": (cores,)} if devices.on_cpu() else {}
    n_workers = cores.qsize() if devices.on_cpu() else 1
    with ProcessPoolExecutor(n_workers, context, **sharing) as pool:
        futures = {pool.submit(final_losses, ladder, config): result for result, config in wanted}
        for future in as_completed(futures):
            yield futures[future] | future.result()


def measure(which: str, path: Path, steps: int | None) -> dict[str, Any]:
    """Measures what the JSON file at `path` does not hold yet; writes it after every run.

    Raises UserError if the file holds another ladder or another number of steps.
    """
    ladder = LADDERS[which]
    names = [rung.name for rung in ladder.rungs]
    if path.exists():
        record = json.loads(path.read_text())
        same = list(record["milliseconds"]) == names and steps in (None, record["steps"])
        if not same:
            raise UserError(f"--json {path} holds another ladder or length; name another file")
    else:
        steps = steps or ladder.steps
        rungs = {name: config_of(ladder, name, steps) for name in names}
        record = {
            "command": f"python -m benchmarks.ablate {which} --json {path}",
            "ladder": which,
            "steps": steps,
            "environment": environment.describe(),
            "milliseconds": milliseconds(ladder, rungs),
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
    for result in train_all(ladder, wanted):
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

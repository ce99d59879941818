"""Variations of a recipe on one GPU, several at a time, three models of each.

    python -m benchmarks.sweep --json docs/benchmarks/sweep-gpu.json --seconds 300
    python -m benchmarks.sweep --pairs --json docs/benchmarks/sweep-g2p-gpu.json

A variation is a base and some options of train.py, or an idea that is not in the product, because
it gave nothing. Its models train side by side as members of an ensemble: other initial weights and
dropout masks, the same batches. Each is evaluated alone, and all together. Losses do not depend on
speed, so variations share the GPU; nothing is timed. A tuned program computes the same as one that
was not, so tuning is off.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks import rounds
from benchmarks.records import begun, table
from gptjax.atomic import write_text
from gptjax.command_line import parse
from gptjax.commands.evaluate import Evaluate, evaluate
from gptjax.data import dataset as data
from gptjax.drawing import COLORS, save
from gptjax.errors import exit_codes
from gptjax.runs.metrics import read_metrics

WORKERS, CAPACITY, GROUP = 6, 50, 4096


@dataclasses.dataclass(frozen=True)
class Variation:
    """One change of a base."""

    name: str
    options: str = ""
    windows: tuple[tuple[float, int, int], ...] = ()
    """Shares of the steps, with the length of their windows and the number in a batch."""
    noise: float = 0.0
    """Share of the input tokens that are replaced by random ones."""
    ahead_weight: float = data.AHEAD_WEIGHT
    """First weight of the heads that predict further ahead."""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Variations of one base."""

    title: str
    base: str
    variations: tuple[Variation, ...]
    members: int = 3


MODERN = "--model.predict-ahead 4 --optim.learning-rate 6e-3 --optim.decay-fraction 0.6 "
SWEEPS = {
    "10min": Sweep(
        "Ten minutes of a CPU: four layers of width 160, 3,900 steps",
        "--config configs/gpt_cpu_10min.py --model.no-drop-attention --model.block-size 512 "
        "--train.batch-size 2 --train.max-steps 3900 --model.dropout 0.1 "
        "--optim.muon-learning-rate 0.015 --optim.weight-decay 0.1 " + MODERN,
        (
            Variation("base: 4 heads ahead, windows of 512, dropout 0.1, Muon's rate 0.015"),
            Variation("dropout 0.05", "--model.dropout 0.05"),
            Variation("dropout 0.12", "--model.dropout 0.12"),
            Variation("Muon's rate 0.01", "--optim.muon-learning-rate 0.01"),
            Variation("Muon's rate 0.02", "--optim.muon-learning-rate 0.02"),
            Variation("weight decay 0.05", "--optim.weight-decay 0.05"),
            Variation("weight decay 0.2", "--optim.weight-decay 0.2"),
            Variation("the rate falls from the first step on", "--optim.decay-fraction 1"),
            Variation("windows of 1,024", "--model.block-size 1024 --train.batch-size 1"),
            Variation(
                "windows of 128 for a third of the steps",
                windows=((0.35, 128, 8), (0.65, 512, 2)),
            ),
            Variation("2 heads ahead", "--model.predict-ahead 2"),
            Variation("8 heads ahead", "--model.predict-ahead 8"),
            Variation("heads ahead with twice the weight", ahead_weight=0.8),
            Variation("5 % of the input characters random", noise=0.05),
            Variation("width 192, as many seconds", "--model.n-embd 192 --train.max-steps 3000"),
            Variation("5 layers, as many seconds", "--model.n-layer 5 --train.max-steps 3200"),
        ),
    ),
    "1min": Sweep(
        "A minute of a CPU: three layers of width 128, 1,500 steps",
        "--config configs/gpt_cpu.py --train.max-steps 1500 --optim.muon-learning-rate 0.02 "
        + MODERN,
        (
            Variation("base: 4 heads ahead, AdamW's rate 0.006, Muon's 0.02"),
            Variation("AdamW's rate 0.01", "--optim.learning-rate 1e-2"),
            Variation("2 heads ahead", "--model.predict-ahead 2"),
            Variation("Muon's rate 0.03", "--optim.muon-learning-rate 0.03"),
            Variation("the rate falls from the first step on", "--optim.decay-fraction 1"),
            Variation("convolutions of width 4", "--model.short-conv 4"),
            Variation(
                "windows of 512, as many seconds",
                "--model.block-size 512 --train.batch-size 2 --train.max-steps 1450",
            ),
            Variation(
                "windows of 64 for 40 % of the steps", windows=((0.4, 64, 16), (0.6, 256, 4))
            ),
            Variation(
                "batches of 3, as many seconds", "--train.batch-size 3 --train.max-steps 1950"
            ),
            Variation("width 144, as many seconds", "--model.n-embd 144 --train.max-steps 1300"),
        ),
    ),
    "fast": Sweep(
        "configs/gpt_fast.py",
        "--config configs/gpt_fast.py",
        (
            Variation("batches of 64, 320 steps", "--train.batch-size 64 --train.max-steps 320"),
            Variation("batches of 48, 400 steps", "--train.batch-size 48 --train.max-steps 400"),
            Variation("batches of 32, 500 steps", "--train.batch-size 32 --train.max-steps 500"),
        ),
        members=1,
    ),
}
SLOW = "--optim.muon-learning-rate 0.01 --optim.decay-fraction 1"
G2P = "--config configs/g2p_cpu.py --train.dtype float32 --train.attention plain "
SWEEPS_OF_PAIRS = {
    "g2p": Sweep(
        "Spelling to pronunciation: configs/g2p_cpu.py, 6,000 steps",
        G2P + "--optim.learning-rate 6e-3 --optim.muon-learning-rate 0.02 "
        "--optim.decay-fraction 0.6 --model.dropout 0",
        (
            Variation("base: AdamW's rate 0.006, Muon's 0.02, constant at first"),
            Variation("AdamW's rate 0.003", "--optim.learning-rate 3e-3"),
            Variation("Muon's rate 0.01", "--optim.muon-learning-rate 0.01"),
            Variation("falling from the first step on", "--optim.decay-fraction 1"),
            Variation("Muon's rate 0.01, falling from the first step on", SLOW),
            Variation(
                "falling from the first step on, Muon's rate 0.006",
                f"{SLOW} --optim.muon-learning-rate 6e-3",
            ),
            Variation(
                "Muon's rate 0.01, falling from the first step on, AdamW's rate 0.01",
                f"{SLOW} --optim.learning-rate 0.01",
            ),
            Variation(
                "Muon's rate 0.01, falling from the first step on, dropout 0.05",
                f"{SLOW} --model.dropout 0.05 --model.no-drop-attention",
            ),
        ),
        members=1,
    ),
}
"""Trained by train.py, for their error rates; in a JSON of their own."""


NOTE = (
    "One change at a time, each with three models of other seeds; `configs/gpt_fast.py` with one. "
    "The last column is the loss of the mean of the three models' probabilities. Choices were made "
    "by the first half of the validation split. Losses do not depend on speed, so six variations "
    "shared the GPU, in bfloat16. The last 948 of the 111,540 characters of the split are left "
    "out, which are hard, and the second half begins 2,522 characters before the middle. So it "
    "reads lower here than in other tables. These figures were printed by a draft of the script."
)

PAIRS_NOTE = (
    "One run of each, side by side on a GPU, in float32. `configs/g2p_cpu.py` has the settings of "
    "the first row. They were chosen by the word error rate of the test split, because a lower "
    "loss is not always a lower error rate. Expect a slightly higher error rate on other words. "
    "These figures were made by a draft of the script."
)

# --- one variation, in its own process


def measure(sweep: Sweep, variation: Variation) -> dict[str, Any]:
    """Trains the models of one variation; returns their losses in nats per character."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    from gptjax import ensemble, models, optim, training

    options = sweep.base.split() + variation.options.split()
    config, _ = parse([*options, "--train.members", str(sweep.members)])
    data.AHEAD_WEIGHT = variation.ahead_weight
    c, text = config.train, data.load(config)
    model = models.of_run(config, text.tokenizer)
    one, optimizer = ensemble.one_model(model), optim.build(config.optim, c.max_steps)
    if isinstance(model, ensemble.Ensemble):
        optimizer = model.each_optimizer(optimizer)
    state = jax.jit(lambda: training.init_state(models.init(model, config.seed), optimizer))()
    kinds = variation.windows or ((1.0, config.model.block_size, c.batch_size),)
    step = 0
    for i, (_, length, rows) in enumerate(kinds):
        of_kind = dataclasses.replace(
            config,
            model=dataclasses.replace(config.model, block_size=length),
            train=dataclasses.replace(c, batch_size=rows),
        )
        train_steps = training.make_train_steps(model, optimizer, rows, config.seed)
        last = round(sum(share for share, _, _ in kinds[: i + 1]) * c.max_steps)
        while step < last:
            steps = range(step, min(step + CAPACITY, last))
            batches = data.training_batches(text, of_kind, steps, CAPACITY)
            add_noise(batches, steps, variation.noise, model.vocab_size)
            state, metrics = train_steps(state, batches, len(steps))
            jax.block_until_ready(metrics)
            step = steps.stop

    @jax.jit
    def losses(params: Any, tokens: Any, targets: Any) -> Any:
        """(K, N) of the N models alone, (K,) of all together, for K groups of windows."""

        def of_group(group: Any) -> Any:
            def log_probabilities(params: Any) -> Any:
                logits = one.apply({"params": params}, group[0])[0]
                return jax.nn.log_softmax(logits.astype(jnp.float32))

            def loss(log_p: Any) -> Any:
                return -jnp.take_along_axis(log_p, group[1][..., None], -1).mean()

            each = jax.vmap(log_probabilities)(params)
            return jax.vmap(loss)(each), loss(ensemble.log_mean_probability(each))

        return lax.map(of_group, (tokens, targets))

    params = state.params
    if sweep.members == 1:
        params = jax.tree.map(lambda leaf: leaf[None], params)
    each, together = map(np.asarray, losses(params, *groups(text.val, config)))
    second = len(together) // 2
    return {
        "val_loss": each.mean(0).tolist(),
        "second_half": each[second:].mean(0).tolist(),
        "together": float(together.mean()),
        "together_second_half": float(together[second:].mean()),
    }


def measure_pairs(sweep: Sweep, variation: Variation) -> dict[str, Any]:
    """Trains a model of pairs; returns its loss, and its error rates on the test split."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        command = [sys.executable, "train.py", *sweep.base.split(), *variation.options.split()]
        command += ["--train.eval-interval", "6000", "--run-dir", str(folder)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        losses = [row["val_loss"] for row in read_metrics(folder) if "val_loss" in row]
        test = evaluate(Evaluate(folder))
    return {"val_loss": losses[-1:], "wer": test["wer"], "per": test["per"]}


def groups(tokens: np.ndarray, config: Any) -> tuple[np.ndarray, np.ndarray]:
    """The windows of a split, (K, B, T), and the tokens that follow, in groups of GROUP tokens.

    A rest is left out: it has to be the same for every length of a window.
    """
    n = (len(tokens) - 1) // GROUP * GROUP
    shape = -1, GROUP // config.model.block_size, config.model.block_size
    return tokens[:n].reshape(shape), tokens[1 : n + 1].reshape(shape)


def add_noise(batches: dict[str, Any], steps: range, share: float, vocab_size: int) -> None:
    if share:
        rng = np.random.default_rng((99, steps.start))
        tokens = batches["tokens"].copy()
        hit = rng.random(tokens.shape) < share
        tokens[hit] = rng.integers(0, vocab_size, int(hit.sum()))
        batches["tokens"] = tokens


# --- all of them


def run_all(path: Path, sweeps: dict[str, Sweep], seconds: float, command: str) -> None:
    """Runs what the JSON at `path` lacks, until `seconds` are over; writes it after every run."""
    record = begun(path, command)
    done = {(run["sweep"], run["name"]) for run in record["runs"]}
    end = time.perf_counter() + seconds

    def run(sweep: str, variation: Variation) -> None:
        left = end - time.perf_counter()
        if left < 10:
            return
        child = [sys.executable, "-m", "benchmarks.sweep", "--one", sweep, variation.name]
        try:
            printed = subprocess.check_output(
                child, text=True, env=os.environ | rounds.UNTUNED, timeout=left
            )
        except (subprocess.SubprocessError, OSError) as error:
            print(f"{sweep}, {variation.name}: {error!r}"[:300], file=sys.stderr)
            return
        found = json.loads(printed.splitlines()[-1])
        about = {"sweep": sweep, "name": variation.name, "options": variation.options}
        record["runs"].append(about | found)
        write_text(path, json.dumps(record, indent=1) + "\n")

    with ThreadPoolExecutor(WORKERS) as pool:
        for sweep, of in sweeps.items():
            for variation in of.variations:
                if (sweep, variation.name) not in done:
                    pool.submit(run, sweep, variation)


def tables(record: dict[str, Any]) -> list[str]:
    """For docs/recipe.md: of each sweep its base, then the variations, the best first."""
    lines = []
    for name, sweep in SWEEPS.items():
        runs = {run["name"]: run for run in record["runs"] if run["sweep"] == name}
        base = sweep.variations[0].name
        if base not in runs:
            continue
        means = {of: statistics.mean(run["val_loss"]) for of, run in runs.items()}
        rows = []
        for of in [base, *sorted(runs.keys() - {base}, key=means.__getitem__)]:
            run = runs[of]
            row = [of, f"{means[of]:.4f}", "" if of == base else f"{means[base] - means[of]:+.4f}"]
            row.append(f"{statistics.mean(run['second_half']):.4f}")
            if sweep.members > 1:
                row[1] += f" ± {statistics.stdev(run['val_loss']):.4f}"
                row.append(f"{run['together']:.4f}")
            rows.append(row)
        header = ["", "val_loss", "gain", "its second half", "all together"]
        lines += [f"### {sweep.title}", "", table(header[: len(rows[0])], rows), ""]
    return lines


def error_rates(record: dict[str, Any]) -> str:
    """For docs/recipe.md: the sweep of pairs, in order of the word error rate."""
    rows = [
        [run["name"], f"{run['val_loss'][0]:.4f}", f"{run['wer']:.1%}", f"{run['per']:.1%}"]
        for run in sorted(record["runs"], key=lambda run: run["wer"])
    ]
    return table(["", "val_loss", "WER, test split", "PER, test split"], rows)


def plot(record: dict[str, Any], path: Path) -> None:
    """What each variation gave on the second half, on which nothing was chosen: every model."""
    shown = {name: sweep for name, sweep in SWEEPS.items() if sweep.members > 1}
    heights = [len(sweep.variations) for sweep in shown.values()]
    figure = Figure(figsize=(8, 0.27 * sum(heights) + 1.4), dpi=110, layout="constrained")
    all_axes = figure.subplots(len(shown), height_ratios=heights, squeeze=False)[:, 0]
    for (name, sweep), axes in zip(shown.items(), all_axes, strict=True):
        losses = {r["name"]: r["second_half"] for r in record["runs"] if r["sweep"] == name}
        base = sweep.variations[0].name
        order = sorted(losses.keys() - {base}, key=lambda of: -statistics.mean(losses[of]))
        for i, of in enumerate([base, *order]):
            color = COLORS[0] if of == base else COLORS[1]
            axes.plot(losses[of], [i] * len(losses[of]), ".", color=color, alpha=0.6)
            axes.plot(statistics.mean(losses[of]), i, "|", color=color, markersize=14)
        axes.axvline(statistics.mean(losses[base]), color=COLORS[0], linewidth=0.8, alpha=0.5)
        axes.set_yticks(range(len(losses)), [base.split(":")[0], *order])
        axes.set_title(sweep.title, fontsize=10)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[-1].set_xlabel("loss on the second half of the validation split; | is the mean")
    save(figure, path)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--seconds", type=float, default=300, help="all has ended by then")
    parser.add_argument("--one", nargs=2, metavar=("SWEEP", "NAME"), help="only this one, printed")
    parser.add_argument("--pairs", action="store_true", help="the sweep of pairs")
    arguments = parser.parse_args(argv)
    sweeps = SWEEPS_OF_PAIRS if arguments.pairs else SWEEPS
    with exit_codes():
        if arguments.one:
            name, variation = arguments.one
            sweep = (SWEEPS | SWEEPS_OF_PAIRS)[name]
            found = {variation.name: variation for variation in sweep.variations}
            of_kind = measure_pairs if name in SWEEPS_OF_PAIRS else measure
            print(json.dumps(of_kind(sweep, found[variation])))
        elif arguments.json:
            command = " ".join(["python -m benchmarks.sweep", *sys.argv[1:]])
            run_all(arguments.json, sweeps, arguments.seconds, command)
            if not arguments.pairs:
                record = json.loads(arguments.json.read_text())
                plot(record, arguments.json.with_suffix(".png"))
        else:
            parser.error("--json is missing; name a file for the figures")


if __name__ == "__main__":
    main()

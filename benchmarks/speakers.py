"""Spoken digits of unseen speakers: variations of a recipe, many trainings at once on one GPU.

    FSDD=FOLDER python -m benchmarks.speakers --json docs/benchmarks/speakers-heads-gpu.json

Every variation is trained without each speaker in turn, and tested on all recordings of that one;
and once with all speakers, for the usual test split. Trainings of one architecture are one program
(vmap). Worker processes make the batches, those of `gptjax train`, padded to one shape; trainings
that need the same batches share them. A recording counts as right if greedy decoding would write
its digit and then end. Nothing is timed.
"""

import argparse
import dataclasses
import json
import math
import mmap
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import rounds
from benchmarks.records import begun, load, table
from gptjax.atomic import write_text
from gptjax.command_line import parse
from gptjax.config import Config
from gptjax.config_encoders import SpeechConfig

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo")
SEEDS = (1, 2)
BASE = (
    "--config configs/digits_cpu.py --train.dtype float32 --train.attention plain "
    "--model.predict-frames"
)


class Variation(NamedTuple):
    """What differs from configs/digits_cpu.py."""

    data: str = ""
    """Options of the data."""
    model: str = ""
    """Options of the model."""
    head: str = "falling"
    """A key of HEADS."""


HEADS = {
    "off": lambda progress: 0.0,
    "always": lambda progress: 1.0,
    "falling": lambda progress: max(0.0, 1 - 2 * progress),
}
"""The weight of the loss of predict_frames, by the share of the training that is over."""
WIDE = "--data.speed-change 0.25 --data.voice-change 0.2"
VARIATIONS = {
    "told no times": Variation(head="off"),
    "told when each word sounds": Variation(head="always"),
    "told in the first half": Variation(),
    "told in the first half, dropout 0.1": Variation(model="--model.dropout 0.1"),
    "2 masks": Variation("--data.spec-masks 2"),
    "2 masks, told always": Variation("--data.spec-masks 2", head="always"),
    "speed 25 %, voice 20 %": Variation(WIDE),
    "speed 25 %, voice 20 %, 1 mask, dropout 0.1": Variation(
        f"{WIDE} --data.spec-masks 1", "--model.dropout 0.1"
    ),
    "noise in 30 %, speed 20 %, voice 15 %, 1 mask": Variation(
        "--data.noise 0.3 --data.speed-change 0.2 --data.voice-change 0.15 --data.spec-masks 1"
    ),
}
FORMER_NOTE = (
    "Ten more variations were trained without `predict_frames`, by a draft of the script, with one "
    "seed, when strings of words still grew during training. The four that ended at step 865 "
    "were cut short, before the learning rate had fallen: compare them with each other alone. The "
    "settings of the first row were also trained on a CPU. There the mean is {unseen:.1%}: other "
    "rounding changes a training by several points. Trained on all speakers, they are right in "
    "{known:.1%} of the usual test split; 1,500 steps make that {longer:.1%}, and {nicolas:.1%} "
    "for nicolas."
)
NOTE = (
    "Every variation was trained on a GPU without one speaker of the Free Spoken Digit Dataset, "
    "and tested on the 500 recordings of that one: the share of digits that are right, in percent. "
    "These trainings had two seeds for each speaker, and were stopped at step {steps:,} of 1,500, "
    "before the learning rate had fallen to zero: compare them with each other alone. A model that "
    "is told when each word sounds (`predict_frames`) is better by {gain:.0f} points. More "
    "variety of speed, voice and noise, and masks, are worse: with so few steps the model does not "
    "learn the digits themselves well enough, as the last column shows (the usual test split). Two "
    "trainings of one row often differ by more than ten points. So do not choose by small "
    "differences.\n\n"
    "These had strings of up to seven words, and no change of tempo. Small trials on a CPU then "
    "showed what helps (strings of up to three words, 700 steps, one seed). Shorter strings: "
    "george {george:.1%} and nicolas {nicolas:.1%} after half of the work. Words spoken up to 1.5 "
    "times as fast or as slowly (`tempo_change`): nicolas {tempo:.1%}. The speakers differ by as "
    "much: the mean word of nicolas takes 0.35 s, that of lucas 0.57 s. `configs/digits_cpu.py` "
    "has both, with strings of up to five words: {unseen:.1%} ([speech.md](speech.md)), one seed. "
    "As the trials were tested on these speakers, others may be understood less well."
)
SLOTS = 4
"""Batches that the workers are ahead."""
TEST_ROWS = 50
WORKER = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}

Arrays = dict[str, np.ndarray]


class Stream(NamedTuple):
    """The batches of a training."""

    options: str
    speaker: str
    """Who is left out, or empty."""
    seed: int

    def config(self, model_options: str = "") -> Config:
        options = [*f"{BASE} {self.options} {model_options} --seed {self.seed}".split()]
        options += ["--data.hold-out", self.speaker] if self.speaker else []
        options += ["--data.path", os.environ["FSDD"]] if "FSDD" in os.environ else []
        return parse(options)[0]


class Training(NamedTuple):
    """One variation without one speaker."""

    variation: str
    stream: Stream


def trainings() -> list[Training]:
    """All of them: each speaker left out with every seed, and none left out with one."""
    left_out = [(speaker, seed) for speaker in SPEAKERS for seed in SEEDS] + [("", SEEDS[0])]
    return [
        Training(name, Stream(variation.data, *who))
        for name, variation in VARIATIONS.items()
        for who in left_out
    ]


# --- batches, made by worker processes


def layout(n: int, config: Config) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and type of every array of the batches (n, B, ...) of n streams."""
    model, rows = config.model, (n, config.train.batch_size)
    assert isinstance(model, SpeechConfig)
    frames, tokens = (*rows, 2 * model.source_block_size), (*rows, model.block_size)
    positions = *rows, model.source_block_size
    return {
        "source": ((*frames, model.n_mels), np.float32),
        "source_mask": (frames, np.bool_),
        "tokens": (tokens, np.int32),
        "targets": (tokens, np.int32),
        "loss_weights": (tokens, np.float32),
        "frames": (positions, np.int32),
        "frame_weights": (positions, np.float32),
    }


def ring(buffer: Any, n: int, config: Config) -> list[Arrays]:
    """SLOTS batches inside a buffer."""
    slots, offset = [], 0
    for _ in range(SLOTS):
        slot = {}
        for name, (shape, dtype) in layout(n, config).items():
            slot[name] = np.ndarray(shape, dtype, buffer, offset)
            offset += slot[name].nbytes
        slots.append(slot)
    return slots


def ring_bytes(n: int, config: Config) -> int:
    """Size of the buffer of `ring`."""
    arrays = layout(n, config).values()
    return SLOTS * sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in arrays)


def fill(slot: Arrays, i: int, batch: Arrays) -> None:
    """Writes the batch of stream i. What is beyond its end has no mask and no weight."""
    for name, leaf in batch.items():
        slot[name][i] = 0
        slot[name][i, :, : leaf.shape[1]] = leaf


def work(path: str, streams: list[Stream], mine: list[int], n_steps: int, free: Any, full: Any):
    """Makes the batches of some streams; what a worker process runs."""
    os.environ.update(WORKER)
    from gptjax.data import dataset as data

    configs = {i: streams[i].config() for i in mine}
    datasets = {i: data.load(config) for i, config in configs.items()}
    with open(path, "r+b") as file:
        slots = ring(mmap.mmap(file.fileno(), 0), len(streams), configs[mine[0]])
    for step in range(n_steps):
        free.acquire()
        for i in mine:
            fill(slots[step % SLOTS], i, datasets[i].batch(configs[i], step))
        full.release()


def batches(streams: list[Stream], n_workers: int, n_steps: int) -> Iterator[Any]:
    """The batches (n, B, ...) of every step, on the GPU."""
    import jax
    import jax.numpy as jnp

    context, n = multiprocessing.get_context("spawn"), len(streams)
    config = streams[0].config()
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(ring_bytes(n, config))
        workers = []
        for w in range(min(n_workers, n)):
            mine = list(range(w, n, n_workers))
            free, full = context.Semaphore(SLOTS), context.Semaphore(0)
            arguments = file.name, streams, mine, n_steps, free, full
            process = context.Process(target=work, args=arguments, daemon=True)
            process.start()
            workers.append((process, free, full))
        slots = ring(mmap.mmap(file.fileno(), 0), n, config)
        for step in range(n_steps):
            for process, _, full in workers:
                while not full.acquire(timeout=5):
                    assert process.exitcode is None, "a worker process failed"
            made = jax.block_until_ready(jax.tree.map(jnp.array, slots[step % SLOTS]))
            for _, free, _ in workers:
                free.release()
            yield made
        for process, _, _ in workers:
            process.terminate()


# --- the trainings of one architecture


class Group:
    """Trainings of one architecture, as one program."""

    def __init__(self, options: str, trained: list[Training], streams: list[Stream]) -> None:
        import jax
        import jax.numpy as jnp
        import optax

        from gptjax import models, optim, training
        from gptjax.data import dataset as data

        self.trained = trained
        self.config = config = trained[0].stream.config(options)
        self.n_steps = config.train.max_steps
        model = models.build(config.model, data.load(config).tokenizer)
        optimizer = optim.build(config.optim, self.n_steps)
        gradient = training.make_gradient(model, config.train.batch_size)
        stream_of = jnp.array([streams.index(t.stream) for t in trained])

        def train_step(
            state: training.TrainState, batch: Any, seed: Any, head: Any
        ) -> training.TrainState:
            dropout_key = jax.random.fold_in(jax.random.key(seed), state.step)
            batch = batch | {"frame_weights": batch["frame_weights"] * head}
            _, grads = gradient(state.params, batch, dropout_key)
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            return training.TrainState(state.step + 1, params, opt_state)

        def step_of_all(states: Any, made: Any, seeds: Any, heads: Any) -> Any:
            mine = jax.tree.map(lambda leaf: leaf[stream_of], made)
            return jax.vmap(train_step)(states, mine, seeds, heads)

        self.seeds = jnp.array([t.stream.seed for t in trained], jnp.uint32)
        ones = [jax.device_get(models.init(model, t.stream.seed)) for t in trained]
        params = jax.tree.map(lambda *leaves: np.stack(leaves), *ones)
        self.states = jax.jit(jax.vmap(lambda p: training.init_state(p, optimizer)))(params)
        self.step_of_all = jax.jit(step_of_all, donate_argnums=0)

    def compile(self, made: Any) -> None:
        arguments = self.states, made, self.seeds, self.heads(0)
        self.step_of_all = self.step_of_all.lower(*arguments).compile()

    def heads(self, step: int) -> Any:
        import jax.numpy as jnp

        kinds = [VARIATIONS[t.variation].head for t in self.trained]
        return jnp.array([HEADS[kind](step / self.n_steps) for kind in kinds], jnp.float32)

    def advance(self, made: Any, step: int) -> None:
        self.states = self.step_of_all(self.states, made, self.seeds, self.heads(step))


def say(line: str) -> None:
    print(f"{time.perf_counter():.0f} s  {line}", file=sys.stderr, flush=True)


def train(groups: list[Group], made: Iterator[Any], deadline: float) -> int:
    """Trains all groups until the deadline; returns the number of steps."""
    import jax

    first = next(made)
    with ThreadPoolExecutor(len(groups)) as pool:
        list(pool.map(lambda group: group.compile(first), groups))
    say("compiled")
    steps = 0
    while True:
        for group in groups:
            group.advance(first, steps)
        steps += 1
        if steps % 100 == 0:
            jax.block_until_ready(groups[-1].states)
            say(f"step {steps}")
        if time.perf_counter() > deadline or (first := next(made, None)) is None:
            return steps


class Test:
    """The test recordings of one speaker, or the usual test split."""

    def __init__(self, stream: Stream) -> None:
        from gptjax.data import dataset as data
        from gptjax.data import recordings, speech

        config = stream.config()
        assert isinstance(config.model, SpeechConfig)
        dataset = data.load(config)
        self.tok = dataset.tokenizer
        self.examples = list(recordings.read_examples(dataset.test))
        longest = 2 * config.model.source_block_size
        parts = range(0, len(self.examples), TEST_ROWS)
        self.batches = [
            speech.make_batch(self.examples[i : i + TEST_ROWS], config.model, self.tok, longest)
            for i in parts
        ]

    def result(self, likeliest: Any, params: Any) -> dict[str, Any]:
        """Share of recordings that are right, and the most frequent mistakes."""
        wrong: Counter[str] = Counter()
        by_frames = 0
        for i, batch in enumerate(self.batches):
            inputs = [batch[name] for name in ("tokens", "source", "source_mask")]
            ids_BT, frame_B = map(np.asarray, likeliest(params, *inputs))
            differs_BT = (ids_BT != batch["targets"]) & (batch["loss_weights"] > 0)
            by_frames += int((frame_B == batch["targets"][:, 0]).sum())
            for row in np.flatnonzero(differs_BT.any(1)):
                text, first = self.examples[i * TEST_ROWS + row].text, int(ids_BT[row, 0])
                said = "(nothing)" if first == self.tok.end else self.tok.target.decode([first])
                wrong[f"{text} > {said}"] += 1
        n = len(self.examples)
        right = 1 - wrong.total() / n
        by = {"accuracy": right, "by_frames": by_frames / n}
        return {"clips": n, **by, "wrong": dict(wrong.most_common(6))}


def results_of(group: Group, steps: int, tests: dict[str, Test]) -> list[dict[str, Any]]:
    """What every training of a group got right and wrong."""
    import jax
    import jax.numpy as jnp

    from gptjax import models

    model_config = dataclasses.replace(group.config.model, dropout=0.0)
    model = models.build(model_config, tests[""].tok)
    end = tests[""].tok.end

    @jax.jit
    def likeliest(params: Any, tokens: Any, source: Any, source_mask: Any) -> Any:
        inputs = {"source": source, "source_mask": source_mask}
        rows = jnp.arange(len(tokens))
        (logits, _), sown = model.apply(
            {"params": params}, tokens, None, rows, mutable=["frames", "ahead"], **inputs
        )
        (frames_BSV,) = jax.tree.leaves(sown["frames"])
        sums = (jax.nn.log_softmax(frames_BSV) * source_mask[:, ::2, None]).sum(1)
        return logits.argmax(-1), sums.at[:, end].set(-jnp.inf).argmax(-1)

    runs, trained = [], jax.device_get(group.states.params)
    for i, training in enumerate(group.trained):
        params = jax.tree.map(lambda leaf, i=i: leaf[i], trained)
        result = tests[training.stream.speaker].result(likeliest, params)
        stream = training.stream
        about = {"variation": training.variation, "speaker": stream.speaker, "seed": stream.seed}
        runs.append(about | {"steps": steps, **result})
    return runs


def run_all(path: Path, command: str, n_workers: int, seconds: float) -> None:
    """Trains and tests the variations that the JSON at `path` lacks; writes it."""
    deadline = time.perf_counter() + seconds
    record = begun(path, command)
    done = {run["variation"] for run in record["runs"]}
    wanted = [training for training in trainings() if training.variation not in done]
    if not wanted:
        return
    streams = list(dict.fromkeys(t.stream for t in wanted))
    n_steps = streams[0].config().train.max_steps
    made = batches(streams, n_workers, n_steps)
    by_model: dict[str, list[Training]] = {}
    for training in wanted:
        by_model.setdefault(VARIATIONS[training.variation].model, []).append(training)
    groups = [Group(options, trained, streams) for options, trained in by_model.items()]
    say(f"{len(wanted)} trainings, {len(streams)} streams of batches")
    steps = train(groups, made, deadline)
    of = {s.speaker: s for s in streams}
    tests = {speaker: Test(stream) for speaker, stream in of.items()}
    for group in groups:
        record["runs"] += results_of(group, steps, tests)
        write_text(path, json.dumps(record, indent=1) + "\n")
        print(results(record), flush=True)


def results(record: dict[str, Any]) -> str:
    """For docs/recipe.md: each variation's share of right digits by speaker, best first.

    The last column is that of the usual test split, if a variation was trained for it.
    """
    rates: dict[tuple[str, int], dict[str, list[float]]] = {}
    for run in record["runs"]:
        of = rates.setdefault((run["variation"], run["steps"]), {})
        of.setdefault(run["speaker"], []).append(100 * run["accuracy"])
    rows = []
    for (variation, steps), of in rates.items():
        means = [statistics.mean(of[speaker]) for speaker in SPEAKERS if speaker in of]
        mean, lowest = statistics.mean(means), min(min(of[s]) for s in SPEAKERS if s in of)
        cells = [*means, mean, lowest, *of.get("", [])]
        rows.append((-mean, [variation, f"{steps:,}", *(f"{rate:.1f}" for rate in cells)]))
    known = any(run["speaker"] == "" for run in record["runs"])
    header = ["", "steps", *SPEAKERS, "mean", "lowest run", *(["all known"] if known else [])]
    return table(header, [row for _, row in sorted(rows)])


def note(record: dict[str, Any]) -> str:
    """What the table of speakers-heads-gpu.json shows."""
    of: dict[str, list[float]] = {}
    for run in record["runs"]:
        if run["speaker"]:
            of.setdefault(run["variation"], []).append(100 * run["accuracy"])
    without, told = (statistics.mean(of[name]) for name in list(VARIATIONS)[:2])
    trials = load("speakers-cpu")["trials"]["runs"]
    george, nicolas, tempo = (trial["accuracy"] for trial in trials[:3])
    final = [load(f"expected-digits_cpu-without-{speaker}") for speaker in SPEAKERS]
    return NOTE.format(
        steps=record["runs"][0]["steps"],
        gain=told - without,
        george=george,
        nicolas=nicolas,
        tempo=tempo,
        unseen=statistics.mean(one["test"]["accuracy"] for one in final),
    )


def former_note() -> str:
    """What the table of speakers-gpu.json shows, and the same trainings on a CPU."""
    runs = load("speakers-cpu")["runs"]
    rates = {(run["speaker"], run["steps"]): run["accuracy"] for run in runs}
    unseen = statistics.mean(rates[speaker, 1000] for speaker in SPEAKERS)
    longer, nicolas = rates["", 1500], rates["nicolas", 1500]
    known = rates["", 1000]
    return FORMER_NOTE.format(unseen=unseen, known=known, longer=longer, nicolas=nicolas)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speakers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--seconds", type=float, default=math.inf, help="training ends then")
    arguments = parser.parse_args(argv)
    if not arguments.json:
        parser.error("--json is missing; name a file for the figures")
    os.environ.update(os.environ | rounds.UNTUNED)
    command = " ".join(["python -m benchmarks.speakers", *sys.argv[1:]])
    run_all(arguments.json, command, arguments.workers, arguments.seconds)


if __name__ == "__main__":
    main()

"""Train a model.

    python train.py --config configs/gpt.py [--section.field value ...]

The same command continues a run that was stopped. --help lists every option.
"""

import signal
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gptjax import config_json, models, optim, training
from gptjax.command_line import Launch, parse
from gptjax.config import Config
from gptjax.data import dataset as data
from gptjax.data.texts import TextData
from gptjax.decoding import previews
from gptjax.errors import Interrupted, TrainingDiverged, UserError, exit_codes
from gptjax.runs import init_from as finetune
from gptjax.runs import resuming, run_directory
from gptjax.runs.checkpoints import KEEP_LATEST, Checkpoints, committed_steps
from gptjax.runs.report import NullReporter, Reporter, check_trackers
from gptjax.scale import devices, memory, processes, sharding

# A dispatch aims at this many seconds on a CPU, so that nothing waits long for the host's ear.
DISPATCH_SECONDS = 1.0
# Checkpoints are written at evaluations; where those are rarer than this, in between too.
CHECKPOINT_SECONDS = 600.0


class StopSignal:
    """Remembers a SIGTERM or Ctrl-C until the loop is ready for it; a second Ctrl-C is at once."""

    received: int | None = None

    def __enter__(self) -> "StopSignal":
        signals = (signal.SIGTERM, signal.SIGINT)
        self._before = {s: signal.signal(s, self._on_signal) for s in signals}
        return self

    def __exit__(self, *exc: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _on_signal(self, signum: int, frame: Any) -> None:
        self.received = signum
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def check(self) -> None:
        """Raises Interrupted if a signal came, to whichever process."""
        (received,) = processes.all_reduce_max(self.received or 0)
        if received:
            raise Interrupted(int(received))

    def between(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items, with a check before each."""
        for item in items:
            self.check()
            yield item


def main(argv: list[str] | None = None) -> None:
    with exit_codes(), StopSignal() as stop:
        config, launch = parse(sys.argv[1:] if argv is None else argv)
        address = (launch.coordinator, launch.processes, launch.process)
        with (
            processes.distributed_session(*address),
            run_directory.locked(launch.folder),
            memory.advice(),
        ):
            train(config, launch, stop)


def train(config: Config, launch: Launch, stop: StopSignal) -> None:
    """Trains to config.train.max_steps, from the last checkpoint in the folder if there is one.

    Raises UserError for bad input, before anything is compiled; Interrupted after a signal, and
    TrainingDiverged at a loss that is no number, with the last good state saved.
    """
    c, folder = config.train, launch.folder
    devices.require_backend()
    check_trackers(launch.trackers)
    vocabulary = finetune.vocabulary(config, folder)
    dataset = data.load(config, vocabulary)
    processes.check_same("run", config_json.flatten(config) | {"data": dataset.sha256})
    mesh = sharding.make_mesh(config)
    model = models.build(config.model, dataset.tokenizer, devices.compute_dtype(c), c.remat)
    optimizer = optim.build(config.optim, c.max_steps)
    learning_rate = optim.schedule(config.optim, c.max_steps, config.optim.learning_rate)
    tokens_per_sequence = dataset.tokens_per_sequence(config)
    micro_batch_size = devices.micro_batch_size(
        c, config.model, tokens_per_sequence, sharding.n_row_groups(mesh)
    )

    def fresh_state(params: Any = None) -> training.TrainState:
        params = models.init(model, config.seed) if params is None else params
        return training.init_state(params, optimizer)

    shapes = jax.eval_shape(fresh_state)
    n_params = models.count(shapes.params)
    state_sharding = sharding.shardings(shapes, mesh)
    shapes = sharding.with_sharding(shapes, state_sharding)
    run_directory.check_disk(folder, shapes, n_checkpoints=KEEP_LATEST + 2)
    if launch.resume and not committed_steps(folder):
        raise UserError(f"--resume: {folder} has no checkpoint to continue; leave --resume out")
    checkpoints = Checkpoints(folder / "checkpoints", KEEP_LATEST)
    last_step = max(checkpoints.steps(), default=None)
    changes = resuming.check_resumable(folder, config, dataset) if last_step is not None else []
    restored = None if last_step is None else checkpoints.restore(last_step, shapes)

    step = last_step or 0
    tokens_per_step = c.batch_size * tokens_per_sequence
    report: Reporter | NullReporter = NullReporter()
    if processes.is_first():
        run_directory.describe_run(folder, config, dataset)
        report = Reporter(folder, config, step, tokens_per_step, launch.trackers)
        report.say(_headline(config, mesh, n_params, tokens_per_step, step))
        report.say(memory.describe(config, model, shapes, micro_batch_size, tokens_per_sequence))
    sizes = "  ".join(f"{n:,} {of.replace('_', ' ')}" for of, n in dataset.sizes.items())
    report.say(f"data {dataset.source}  {sizes}  vocabulary {model.vocab_size}")
    for change in changes:
        report.say(f"changed since the last start: {change}")
    if last_step is not None and step < c.max_steps:
        report.say(f"continuing at step {step}")
    elif last_step is not None:
        report.say(f"complete at step {step}; raise --train.max-steps or name another --run-dir")

    given = None
    if vocabulary and not restored:
        report.say(f"starting from the parameters of {c.init_from}")
        given = finetune.parameters(config, vocabulary, shapes.params)
    state = restored or jax.jit(fresh_state, out_shardings=state_sharding)(given)
    train_steps = training.make_train_steps(model, optimizer, micro_batch_size, config.seed, mesh)
    mean_loss = training.make_evaluate(model, mesh)

    def request_batches() -> tuple[int, Future[training.Batch] | None]:
        """Starts to cut and move the batches of the next dispatch; says of how many steps."""
        if step >= c.max_steps:
            return 0, None
        n = min(capacity, c.eval_interval - step % c.eval_interval, c.max_steps - step)
        if devices.on_cpu():  # where any number of steps runs without compiling anew
            n = max(1, min(n, int(DISPATCH_SECONDS / seconds_per_step)))
        return n, feeder.submit(load_batches, range(step, step + n))

    def load_batches(steps: range) -> training.Batch:
        rows = sharding.local_rows(c.batch_size, mesh)
        batches = data.training_batches(dataset, config, steps, capacity, rows)
        return sharding.put(batches, c.batch_size, mesh)

    def evaluation_is_due() -> bool:
        return step % c.eval_interval == 0 or step == c.max_steps

    def evaluate(split: Iterator[training.Batch], batch_size: int) -> float:
        groups = (sharding.put(group, batch_size, mesh) for group in stop.between(split))
        return mean_loss(state.params, groups)

    def look() -> float:
        """Evaluates, writes a sample, draws the curves; returns the validation loss."""
        rows = sharding.local_rows(micro_batch_size, mesh)
        whole = dataset.validation(config, micro_batch_size, rows)
        losses = {"val_loss": evaluate(whole, micro_batch_size)}
        if c.eval_batches and isinstance(dataset, TextData):
            sampled = dataset.sampled_validation(config, sharding.local_rows(c.batch_size, mesh))
            losses["val_loss_sampled"] = evaluate(sampled, c.batch_size)
        for name, loss in losses.items():
            if not np.isfinite(loss):
                raise TrainingDiverged(f"step {step}: {name} {loss}; {_advice(folder)}")
        if c.sample_tokens:
            with jax.set_mesh(mesh):
                sample = previews.preview(dataset, model, state.params, config)
            report.sample(step, sample)
        report.evaluation(step, losses)
        return losses["val_loss"]

    def save(val_loss: float | None = None) -> None:
        if not training.all_finite(state):
            raise TrainingDiverged(f"step {step}: a parameter is not finite; {_advice(folder)}")
        checkpoints.save(state, val_loss)

    capacity = (
        min(devices.steps_per_dispatch(n_params, tokens_per_step), c.max_steps)
        if dataset.one_shape
        else 1
    )
    seconds_per_step = DISPATCH_SECONDS  # until measured: the first dispatch is one step
    saved_at = time.perf_counter()
    with report, ThreadPoolExecutor(1) as feeder:
        try:
            # At the very start, or where a signal came between a step and its evaluation.
            (due,) = processes.all_reduce_max(evaluation_is_due() and step not in report.evaluated)
            if due:
                val_loss = look()
                if step:
                    save(val_loss)
            n, batches = request_batches()
            while batches:
                started = time.perf_counter()
                state, metrics = train_steps(state, batches.result(), n)
                first, step = step, step + n
                n, batches = request_batches()  # while the device works
                losses, norms = jax.device_get(metrics)  # waits for it
                now = time.perf_counter()
                seconds_per_step, unsaved_seconds = processes.all_reduce_max(
                    (now - started) / (step - first), now - saved_at
                )
                report.steps_done(step)
                for i in range(step - first):
                    if not (np.isfinite(losses[i]) and np.isfinite(norms[i])):
                        raise TrainingDiverged(
                            f"step {first + i + 1}: loss {losses[i]}, gradient norm {norms[i]}; "
                            + _advice(folder)
                        )
                    if (first + i + 1) % c.log_interval == 0:
                        rate = float(np.asarray(learning_rate(first + i)))
                        report.training(first + i + 1, float(losses[i]), float(norms[i]), rate)
                stop.check()
                if evaluation_is_due():
                    save(look())
                    saved_at = time.perf_counter()
                elif unsaved_seconds > CHECKPOINT_SECONDS:
                    save()
                    saved_at = time.perf_counter()
        except Interrupted as interrupt:
            save()
            checkpoints.wait()
            name = signal.Signals(interrupt.signum).name
            report.say(f"{name}: saved step {step}; the same command continues from there")
            raise
        finally:
            # After a failure the others may be gone, and what was begun with them never ends.
            failure = sys.exception()
            if not processes.several() or failure is None or isinstance(failure, Interrupted):
                checkpoints.close()
        if processes.is_first():
            report.say(_closing_words(folder, dataset.sample_flags))


def _headline(config: Config, mesh: Mesh, n_params: int, tokens_per_step: float, step: int) -> str:
    """Device, dtype, size, and how long this will take if the device is as fast as it seems."""
    c = config.train
    dtype = devices.compute_dtype(c)
    n_steps = max(0, c.max_steps - step)
    tokens_per_second = mesh.size * devices.training_speed(n_params, devices.matmul_rate(dtype))
    minutes = n_steps * tokens_per_step / tokens_per_second / 60
    return (
        f"{sharding.describe(mesh)}  {np.dtype(dtype).name}  {n_params:,} parameters  "
        f"about {minutes:.1f} min for {n_steps} steps"
    )


def _advice(folder: Path) -> str:
    return (
        f"nothing of it was saved, the checkpoints in {folder} are from before; try a lower "
        "--optim.learning-rate or --optim.grad-clip 1"
    )


def _closing_words(folder: Path, sample_flags: str) -> str:
    """The latest sample, and where to find everything."""
    samples = sorted((folder / "samples").glob("*.txt"), key=lambda path: int(path.stem))
    text = samples[-1].read_text(encoding="utf-8").strip() if samples else ""
    return (
        f"{text}\n\n" if text else ""
    ) + f"loss plot: {folder}/loss.png\nsample more: python sample.py {folder}{sample_flags}"


if __name__ == "__main__":
    main()

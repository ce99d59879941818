"""Train a model: step, log, evaluate, save, until the last step or a signal.

    python train.py --config configs/gpt.py [--section.field value ...]

The same command continues a run that was stopped. --help lists every option.
"""

import signal
import sys
from contextlib import closing
from pathlib import Path

import jax
import numpy as np

from gptjax import evaluation
from gptjax.command_line import parse
from gptjax.config import TrainConfig
from gptjax.errors import Interrupted, TrainingDiverged, exit_codes
from gptjax.pace import Pace
from gptjax.runs import run_directory
from gptjax.runs.stop_signal import StopSignal
from gptjax.scale import memory, processes
from gptjax.setup import Run, set_up
from gptjax.training import StepMetrics, TrainState

# Checkpoints are saved at evaluations. If those are rarer than this, also in between.
CHECKPOINT_SECONDS = 600.0


def main(argv: list[str] | None = None) -> None:
    with exit_codes():
        config, launch = parse(sys.argv[1:] if argv is None else argv)
        with (
            processes.distributed_session(launch.coordinator, launch.processes, launch.process),
            run_directory.locked(launch.folder),
            memory.advice(),
        ):
            run = set_up(config, launch)  # a signal ends it at once: there is nothing to save yet
            with StopSignal() as stop:
                train(run, stop)


def train(run: Run, stop: StopSignal) -> None:
    """Trains to the last step. After a signal: saves, and raises Interrupted.

    `run` (setup.py) has the data, the compiled functions, the log and the checkpoints. Raises
    TrainingDiverged at a loss or parameter that is not finite, which is never saved.
    """
    c, report, state, step = run.config.train, run.report, run.state, int(run.state.step)
    pace = Pace()  # time per step, by which run.batches chooses the number of steps in a call
    with report, closing(run.batches(pace)) as steps_and_batches:
        try:
            stop.check()  # raises Interrupted if a signal has come
            # At step 0, or if a signal stopped the run between a step and its evaluation.
            due = evaluation_is_due(c, step) and step not in report.evaluated
            if any(processes.all_reduce_max(due)):
                val_loss = evaluate_and_sample(run, state, stop)
                if step:
                    save(run, state, val_loss)

            for steps, batches in steps_and_batches:
                pace.start()
                state, metrics = run.train_steps(state, batches, len(steps))
                metrics = jax.device_get(metrics)  # waits for the device
                pace.finish(len(steps))
                step += len(steps)
                report.steps_done(step)
                log(run, steps, metrics)
                stop.check()
                if evaluation_is_due(c, step):
                    save(run, state, evaluate_and_sample(run, state, stop))
                    pace.saved()
                elif pace.seconds_unsaved > CHECKPOINT_SECONDS:
                    save(run, state)
                    pace.saved()
        except Interrupted as interrupt:
            save(run, state)
            run.checkpoints.wait()
            name = signal.Signals(interrupt.signum).name
            report.say(f"{name}: saved step {step}; the same command continues from there")
            raise
        finally:
            run.compile_ahead.close()  # the thread that compiles evaluation and sampling
            # After a failure another process may be gone, and close() would wait for it.
            error = sys.exception()
            if error is None or isinstance(error, Interrupted) or not processes.several():
                run.checkpoints.close()
        if processes.is_first():
            report.say(report.closing_words(run.dataset.sample_flags))


def evaluation_is_due(c: TrainConfig, step: int) -> bool:
    return step % c.eval_interval == 0 or step == c.max_steps


def evaluate_and_sample(run: Run, state: TrainState, stop: StopSignal) -> float:
    """Evaluates, writes a sample, draws the loss curves. Returns the validation loss."""
    step, losses = int(state.step), {}
    for name, batches in run.validation().items():
        losses[name] = run.mean_loss(state.params, stop.check_before_each(batches))
        check_finite(run.folder, step, {name: losses[name]})
    if run.config.train.sample_tokens:
        run.report.sample(step, run.preview(state.params))
    run.report.evaluation(step, losses)
    return losses["val_loss"]


def log(run: Run, steps: range, metrics: StepMetrics) -> None:
    """Writes every log_interval-th step. Raises TrainingDiverged if a number is not finite."""
    # Step i, counted from 0, leads to the state of step i + 1. Unused metrics follow the last one.
    for step, loss, grad_norm in zip(steps, metrics.loss, metrics.grad_norm, strict=False):
        check_finite(run.folder, step + 1, {"loss": loss, "gradient norm": grad_norm})
        if (step + 1) % run.config.train.log_interval == 0:
            rate = float(np.asarray(run.learning_rate(step)))
            run.report.training(step + 1, float(loss), float(grad_norm), rate)


def save(run: Run, state: TrainState, val_loss: float | None = None) -> None:
    """Starts to save a checkpoint. Raises TrainingDiverged if a parameter is not finite."""
    if not evaluation.all_finite(state):
        check_finite(run.folder, int(state.step), {"a parameter": np.nan})  # raises
    run.checkpoints.save(state, val_loss)


def check_finite(folder: Path, step: int, numbers: dict[str, float]) -> None:
    if not all(np.isfinite(number) for number in numbers.values()):
        shown = ", ".join(f"{name} {x}" for name, x in numbers.items())
        raise TrainingDiverged(
            f"step {step}: {shown}; nothing of it was saved, the checkpoints in {folder} are "
            "older; try a lower --optim.learning-rate or --optim.grad-clip 1"
        )

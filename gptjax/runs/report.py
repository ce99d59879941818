"""Progress of a run: a progress bar or plain lines, metrics.jsonl, loss.png, trackers."""

import json
import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from gptjax.atomic import open_here, write_bytes, write_text
from gptjax.checksums import seal
from gptjax.command_line import program
from gptjax.config import Config
from gptjax.errors import import_extra, naming
from gptjax.runs import progress
from gptjax.runs.metrics import Row, damaged_lines, metrics_lines, read_metrics
from gptjax.runs.progress import MOST_BAR, NotebookBar, Speed, bar_width

# Seconds between lines when the output is not a terminal. An evaluation always prints.
PLAIN_LINE_SECONDS = 5.0


class _Console(Console):
    """A console that may lose its reader: `train.py | head` must not end the training."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Reporter:
    """Prints and stores the progress of one run. Use as a context manager."""

    def __init__(
        self,
        folder: Path,
        config: Config,
        first_step: int,
        tokens_per_step: float,
        trackers: tuple[str, ...] = (),
    ):
        """Removes the rows after `first_step` from metrics.jsonl: those steps come again.

        `evaluated` holds the steps whose evaluation is still in it.
        """
        self.folder, self.config = folder, config
        self._speed = Speed(config.train, tokens_per_step)
        self.console = _Console(highlight=False, soft_wrap=True, emoji=False)
        self._writers = _external_writers(folder, trackers, first_step)
        path = folder / "metrics.jsonl"
        if damaged := damaged_lines(folder):
            self.say(f"warning: {damaged}")
        # A run that starts at step 0 also evaluates step 0 again. Damaged lines are kept.
        history = metrics_lines(folder)
        lines = [
            (line, row)
            for line, row in history
            if row is None or (first_step and row["step"] <= first_step)
        ]
        reached = max((row["step"] for _, row in history if row is not None), default=0)
        if reached and not first_step:
            self.say(f"warning: {folder} has no checkpoint of its {reached} steps: it starts again")
        write_bytes(path, b"".join(line + b"\n" for line, _ in lines))
        rows = [row for _, row in lines if row is not None]
        last = rows[-1]["step"] if rows else 0
        if last < first_step - first_step % config.train.log_interval:
            self.say(
                f"warning: {path} has no rows from step {last} to {first_step}: it was cut off"
            )
        self.evaluated = {row["step"] for row in rows if "val_loss" in row}
        self._metrics = open_here(path, "a", buffering=1)
        before = rows[-1]["seconds"] if rows else 0.0
        self._start = time.perf_counter() - before
        self._shown: Row = {"step": first_step}
        self._last_line = time.perf_counter()
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._notebook: NotebookBar | None = None
        if self.console.is_jupyter:
            self._notebook = NotebookBar(config.train.max_steps, first_step)
        elif self.console.is_terminal:
            self._bar, self._text = BarColumn(MOST_BAR), TextColumn("{task.description}")
            columns = (self._bar, self._text)
            self._progress = Progress(
                *columns, console=self.console, refresh_per_second=4, transient=True
            )
            total = config.train.max_steps
            self._task = self._progress.add_task("compiling", total=total, completed=first_step)

    def __enter__(self) -> "Reporter":
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._progress:
            self._progress.stop()
        with naming(self.folder / "metrics.jsonl"):
            self._metrics.close()
        for writer in self._writers:
            writer.close()

    def say(self, line: str) -> None:
        """Prints a line, above the progress bar if there is one."""
        self.console.print(line, markup=False)

    def steps_done(self, step: int) -> None:
        """Moves the progress bar and measures the speed. Call it after every dispatch."""
        self._speed.steps_done(step)
        self._shown["step"] = step
        self._show()

    def training(self, step: int, loss: float, grad_norm: float, learning_rate: float) -> None:
        """Writes the row of an optimizer step to metrics.jsonl."""
        row = {
            "step": step,
            "seconds": round(time.perf_counter() - self._start, 3),
            "train_loss": loss,
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            "tokens_per_second": round(self._speed.tokens_per_second),
        }
        self._store(row)

    def sample(self, step: int, text: str) -> None:
        """Writes samples/STEP.txt."""
        (self.folder / "samples").mkdir(exist_ok=True)
        write_text(self.folder / "samples" / f"{step}.txt", text + "\n")

    def closing_words(self, sample_flags: str) -> str:
        """The latest sample, and where to find everything."""
        samples = self.folder / "samples"
        steps = [int(path.stem) for path in samples.glob("*.txt") if path.stem.isdecimal()]
        text = ""
        if steps:
            text = (samples / f"{max(steps)}.txt").read_text("utf-8", errors="replace").strip()
        folder = shlex.quote(str(self.folder))
        last = f"look inside: {program()} page {folder} --out page.html"
        if self.config.train.members > 1:
            last = f"one model that learns from it: {program()} train --train.teacher {folder}"
        return (f"{text}\n\n" if text else "") + (
            f"loss plot: {self.folder}/loss.png\n"
            f"sample more: {program()} sample {folder}{sample_flags}\n{last}"
        )

    def evaluation(self, step: int, losses: dict[str, float]) -> None:
        """Writes the row of an evaluation, and draws loss.png again once there is a curve."""
        row = {"step": step, "seconds": round(time.perf_counter() - self._start, 3), **losses}
        self._store(row)
        self._show(line=True)
        self._shown.pop("val_loss")  # shown where it was measured, not beside later steps
        if step:
            from gptjax.runs.plots import plot  # not before: Matplotlib delays a start

            plot({self.folder.name: read_metrics(self.folder)}, self.folder / "loss.png")
        self._speed.evaluated(step)

    def _store(self, row: Row) -> None:
        with naming(self.folder / "metrics.jsonl"):
            self._metrics.write(json.dumps(seal(row)) + "\n")
        self._shown |= {k: v for k, v in row.items() if k != "step"}
        for writer in self._writers:
            writer.write(row)

    def _show(self, line: bool = False) -> None:
        row, c = self._shown, self.config.train
        if self._progress:
            text = progress.line(row, c, self._speed, self.console.width - 1)
            self._bar.bar_width = bar_width(text, self.console.width)
            columns = (self._bar, self._text) if self._bar.bar_width else (self._text,)
            self._progress.columns = columns
            self._progress.update(self._task, completed=row["step"], description=text)
        if self._notebook:
            text = progress.line(row, c, self._speed)
            self._notebook.show(row["step"], text, at_once=line)
        due = time.perf_counter() - self._last_line > PLAIN_LINE_SECONDS
        if line or (due and not self._progress and not self._notebook):
            self._last_line = time.perf_counter()
            width = self.console.width if self.console.is_terminal else 0
            self.say(progress.line(row, c, self._speed, width))


@dataclass
class _TensorBoard:
    writer: Any

    def write(self, row: Row) -> None:
        for name, value in row.items():
            if name not in ("step", "seconds"):
                self.writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self.writer.close()


@dataclass
class _WandB:
    run: Any

    def write(self, row: Row) -> None:
        self.run.log({k: v for k, v in row.items() if k != "step"}, step=row["step"])

    def close(self) -> None:
        self.run.finish()


class NullReporter:
    """Reports nothing: for all processes but the first, which knows what was evaluated."""

    evaluated = range(2**62)

    def __enter__(self) -> "NullReporter":
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def say(self, line: str) -> None: ...
    def steps_done(self, step: int) -> None: ...
    def training(self, step: int, loss: float, grad_norm: float, learning_rate: float) -> None: ...
    def sample(self, step: int, text: str) -> None: ...
    def closing_words(self, sample_flags: str) -> str:
        return ""

    def evaluation(self, step: int, losses: dict[str, float]) -> None: ...


def check_trackers(trackers: tuple[str, ...]) -> None:
    """Raises UserError when the package of a tracker ("tensorboard", "wandb") is missing."""
    modules = {"tensorboard": "tensorboardX", "wandb": "wandb"}
    for name in trackers:
        import_extra(modules[name], f"--{name} needs")


def _external_writers(
    folder: Path, trackers: tuple[str, ...], first_step: int
) -> list[_TensorBoard | _WandB]:
    """The trackers named in `trackers`, open for writing."""
    writers: list[_TensorBoard | _WandB] = []
    check_trackers(trackers)
    if "tensorboard" in trackers:
        from tensorboardX import SummaryWriter

        writers.append(
            _TensorBoard(SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1))
        )
    if "wandb" in trackers:
        import wandb  # pyright: ignore[reportMissingImports]

        writers.append(_WandB(wandb.init(project="gptjax", name=folder.name, dir=str(folder))))
    return writers

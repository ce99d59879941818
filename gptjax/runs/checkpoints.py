"""The checkpoints of a run, checkpoints/STEP/, saved and restored by orbax.

A checkpoint is written into a folder with another name, read back, and renamed to the bare step
when it is complete. A process killed at any moment leaves the last complete one intact.
"""

import contextlib
import itertools
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from gptjax.atomic import write_json
from gptjax.checksums import seal
from gptjax.config import Config
from gptjax.data.tokenizer import Tokenizer
from gptjax.errors import SaveError, UserError
from gptjax.models import Model
from gptjax.runs import manifest, run_directory
from gptjax.runs.metrics import read_metrics
from gptjax.runs.stored_arrays import brief, opened, read_back, restore_item, shapes_of
from gptjax.scale import processes
from gptjax.scale.sharding import by_path, with_sharding
from gptjax.training import TrainState


def _one_line_alone() -> None:
    """Silences other messages about a failed save: Checkpoints prints one line.

    orbax logs every file that it writes, and an error in each of its threads before it raises it.
    tensorstore warns of writes that end after orbax has given up.
    """
    for logger in ("absl", "asyncio", "concurrent.futures"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    show = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    sys.unraisablehook = hook


_one_line_alone()

KEEP_LATEST = 2
"""Latest checkpoints that a run keeps, besides the best one."""


class Damaged(Exception):
    """A checkpoint that cannot be read. The message says what is wrong with it."""


class Checkpoints:
    """The checkpoints of a run: the latest ones and the best one, saved in the background."""

    def __init__(self, folder: Path, keep_latest: int | None = None):
        """keep_latest: how many to keep besides the best. None: only for reading.

        Unless only for reading, makes the folder and removes what a save left that was killed.
        """
        self.folder = folder
        self._keep_latest = keep_latest
        self._saving: tuple[int, float | None, dict[str, Any]] = (-1, None, {})
        self._open = contextlib.ExitStack()
        self._manager: Any = None
        if keep_latest is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._path = self._open.enter_context(opened(folder))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(
                post_finalization_callback=self._finish,
                # Else its threads wait minutes for a folder that cannot be made.
                create_directories_asynchronously=False,
            ),
        )
        handlers = {item: ocp.StandardCheckpointHandler() for item in manifest.ITEMS}
        self._manager = ocp.CheckpointManager(self._path, options=options, item_handlers=handlers)

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending."""
        return _steps(self.folder)

    def best(self) -> int | None:
        """The step with the lowest validation loss, None if none was evaluated."""
        losses = self.val_losses()
        return min(losses, key=losses.__getitem__) if losses else None

    def val_losses(self) -> dict[int, float]:
        """The validation losses of the steps with a checkpoint, as far as known."""
        losses: dict[int, float | None] = {}
        logged: dict[int, float] | None = None
        for step in self.steps():
            try:
                losses[step] = manifest.val_loss(self.folder / str(step))
            except LookupError:  # it is old or damaged: look into the metrics of the run
                if logged is None:
                    rows = read_metrics(self.folder.parent)
                    logged = {row["step"]: row["val_loss"] for row in rows if "val_loss" in row}
                losses[step] = logged.get(step)
        return {step: loss for step, loss in losses.items() if loss is not None}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Which checkpoints orbax keeps: the latest ones and the best one."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {self.best(), *sorted(steps)[-(self._keep_latest or 1) :]}
        return [step in kept for step in steps]

    def save(self, state: TrainState, val_loss: float | None = None) -> None:
        """Starts to save a state; returns when its arrays are copied.

        A step that has a checkpoint gets only its validation loss added. Raises SaveError if this
        save cannot begin, or if the one before it failed.
        """
        step = int(state.step)
        self.wait()
        if step not in self.steps():
            self._save(step, {"params": state.params, "opt_state": state.opt_state}, val_loss)
        elif val_loss is not None and processes.is_first():
            manifest.add_val_loss(self.folder / str(step), val_loss)

    def save_params(self, params: Any, step: int = 0) -> None:
        """Saves parameters without an optimizer state. Training cannot resume there."""
        self._save(step, {"params": params}, None)

    def _save(self, step: int, trees: dict[str, Any], val_loss: float | None) -> None:
        arrays = {item: by_path(tree) for item, tree in trees.items()}
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)
        self._saving = step, val_loss, shapes
        items = {item: ocp.args.StandardSave(tree) for item, tree in arrays.items()}
        with self._says_what_failed():
            self._manager.save(step, args=ocp.args.Composite(**items))

    def _finish(self) -> None:
        """Reads back what was saved, and writes the manifest. In the background, just before orbax
        renames the checkpoint; on the first process alone."""
        step, val_loss, shapes = self._saving
        (part,) = Path(self._path).glob(f"{step}.orbax-checkpoint-tmp*")
        for item, shapes_by_path in shapes.items():
            read_back(part / item, shapes_by_path)
        manifest.write(part, step, val_loss)

    def wait(self) -> None:
        """Returns when every save is complete. Raises SaveError if one failed."""
        with self._says_what_failed():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until every save is complete, and ends orbax's threads. Raises SaveError."""
        with self._says_what_failed(), self._open:
            if self._manager:
                self._manager.close()

    @contextlib.contextmanager
    def _says_what_failed(self) -> Iterator[None]:
        """Turns what a save may raise into a SaveError that names the checkpoint."""
        try:
            yield
        except jax.errors.JaxRuntimeError:  # another process is lost; processes.py says which
            raise
        except Exception as error:
            gone = "" if self.folder.is_dir() else f"{self.folder} is gone"
            steps = ", ".join(map(str, self.steps())) or "none"
            raise SaveError(
                f"{self.folder / str(self._saving[0])} could not be saved "
                f"({gone or brief(error)}); complete checkpoints: {steps}; mend that and "
                "run the same command again"
            ) from error

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state at a step, with the tree, dtypes and shardings of `like` (arrays or shapes).

        Raises Damaged if it cannot be read, and UserError with the difference if the checkpoint's
        arrays have other names or shapes.
        """
        restored = self._restore(step, {"params": like.params, "opt_state": like.opt_state})
        # Placed as `like` has it: another placement would compile the train step a second time.
        step_array = jax.device_put(jnp.int32(step), like.step.sharding)
        return TrainState(step_array, restored["params"], restored["opt_state"])

    def restore_params(self, step: int, like: Any) -> Any:
        """The parameters alone, which is all that sampling and evaluation need."""
        return self._restore(step, {"params": like})["params"]

    def _restore(self, step: int, items: dict[str, Any]) -> dict[str, Any]:
        first = processes.is_first()
        damage = manifest.damage(self.folder / str(step), tuple(items)) if first else ""
        if any(processes.all_reduce_max(bool(damage))):
            raise Damaged(damage or "process 0 says what is damaged")
        try:
            with opened(self.folder) as path, ocp.StandardCheckpointer() as checkpointer:
                return {
                    item: restore_item(checkpointer, f"{path}/{step}/{item}", item, step, like)
                    for item, like in items.items()
                }
        except UserError:
            raise
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise Damaged(brief(error)) from error


def committed_steps(folder: Path) -> list[int]:
    """The steps of a run with a complete checkpoint, ascending. Makes no folder."""
    return _steps(folder / "checkpoints")


def _steps(folder: Path) -> list[int]:
    """Of the folders that orbax names: 20, but neither 020 nor the digits of other scripts."""
    names = (path.name for path in folder.glob("*"))
    return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))


def load_params(folder: Path, model: Model, which: str = "best") -> tuple[int, Any]:
    """(step, parameters) of a run, on this process's first device.

    which: "best" (the lowest validation loss), "latest", or a step. Instead of a damaged best or
    latest checkpoint, the next one that is intact is taken, which is said on stderr. Raises
    UserError if there is none, and with a list of the steps if this one is not among them.
    """
    steps = committed_steps(folder)
    if not steps:
        raise UserError(f"{folder} has no checkpoint yet; let it train to its first evaluation")
    checkpoints = Checkpoints(folder / "checkpoints")
    if which in ("best", "latest"):
        losses = checkpoints.val_losses() if which == "best" else {}
        candidates = sorted(steps, key=lambda step: (losses.get(step, float("inf")), -step))
    elif which in map(str, steps):
        candidates = [int(which)]
    else:
        listed = ", ".join(map(str, steps))
        raise UserError(f"--step {which} is not there; {folder} has best, latest, {listed}")
    number_format = run_directory.read_format(folder)
    shapes = shapes_of(model, number_format)  # pyright: ignore[reportArgumentType]
    shapes = with_sharding(shapes, jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
    damages = {}
    for step in candidates:
        try:
            params = checkpoints.restore_params(step, shapes)
        except Damaged as error:
            damages[step] = str(error)
            continue
        if damages:
            print(f"warning: {_in_words(damages)}; using step {step}", file=sys.stderr)
        return step, params
    raise _none_intact(folder, damages)


def restore_newest(folder: Path, like: TrainState) -> tuple[int, TrainState, str]:
    """The newest intact checkpoint of a run: its step, its state, and what was damaged, in words.

    Newer ones, which are damaged, are renamed to STEP.damaged. Raises UserError if none is intact,
    or if it does not fit the model.
    """
    checkpoints, damages = Checkpoints(folder / "checkpoints"), {}
    for step in reversed(checkpoints.steps()):
        try:
            state = checkpoints.restore(step, like)
        except Damaged as error:
            damages[step] = str(error)
            continue
        if damages and processes.is_first():
            for damaged in damages:
                path = checkpoints.folder / str(damaged)
                names = (f"{damaged}.damaged" + f"-{n}" * (n > 1) for n in itertools.count(1))
                path.rename(next(p for p in map(path.with_name, names) if not p.exists()))
        processes.barrier("damaged checkpoints are renamed")
        moved = f"{_in_words(damages)}; kept as STEP.damaged" if damages else ""
        return step, state, moved
    raise _none_intact(folder, damages)


def _in_words(damages: dict[int, str]) -> str:
    return "; ".join(f"checkpoint {step} is damaged ({what})" for step, what in damages.items())


def _none_intact(folder: Path, damages: dict[int, str]) -> UserError:
    others = [step for step in committed_steps(folder) if step not in damages]
    fix = f"try --step {others[-1]}" if others else "restore it from a copy, or train it again"
    return UserError(f"{folder}: {_in_words(damages)}; {fix}")


def save_finished(
    folder: Path,
    config: Config,
    tok: Tokenizer,
    params: Any,
    data: dict[str, Any],
    files: dict[str, Any] | None = None,
    step: int = 0,
) -> None:
    """Writes a run that has parameters only into a folder of `run_directory.new_run`.

    data: the source and sha256 of what they were trained on, and further facts. files: more JSON
    files, as {name: content}. step: of their training, 0 if it is unknown.
    """
    with contextlib.closing(Checkpoints(folder / "checkpoints", keep_latest=1)) as checkpoints:
        checkpoints.save_params(params, step)
    for name, content in (files or {}).items():
        write_json(folder / name, seal(content))
    run_directory.describe(folder, config, tok, data)


def disk_bytes(folder: Path) -> int:
    """Bytes that the latest parameters of a run take on disk."""
    files = (folder / "checkpoints" / str(committed_steps(folder)[-1]) / "params").rglob("*")
    return sum(path.stat().st_size for path in files if path.is_file())

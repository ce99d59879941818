"""The checkpoints of a run, checkpoints/STEP/, saved and restored by orbax.

A checkpoint is written into a folder with another name, which is renamed to the bare step when it
is complete. A process killed at any moment leaves the last complete one intact.
"""

import contextlib
import logging
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from gptjax import models
from gptjax.atomic import write_json
from gptjax.config import Config
from gptjax.data.tokenizer import Tokenizer
from gptjax.errors import UserError
from gptjax.models import Model
from gptjax.quantization.quant_array import quantize_params
from gptjax.runs import run_directory
from gptjax.scale.sharding import by_path, with_sharding
from gptjax.training import TrainState

logging.getLogger("absl").setLevel(logging.ERROR)  # orbax logs every file that it touches

KEEP_LATEST = 2
"""Latest checkpoints that a run keeps, besides the best one."""


class Checkpoints:
    """The checkpoints of a run: the latest ones and the best one, saved in the background."""

    def __init__(self, folder: Path, keep_latest: int | None = None):
        """keep_latest: how many to keep besides the best. None opens the folder read-only.

        Unless read-only, also removes what a save left that was killed.
        """
        policies = [
            keep.LatestN(keep_latest),
            keep.BestN(
                get_metric_fn=lambda metrics: metrics["val_loss"],
                reverse=True,  # orbax keeps the end of the sorted list: the lowest loss
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
        writes = keep_latest is not None
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=writes,
            create=writes,
            read_only=not writes,
        )
        handlers = {name: ocp.StandardCheckpointHandler() for name in ("params", "opt_state")}
        self._manager = ocp.CheckpointManager(
            folder.resolve(), options=options, item_handlers=handlers
        )

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def best(self) -> int | None:
        """The step with the lowest validation loss, None if none was evaluated."""
        metrics = {step: self._metrics(step) for step in self.steps()}
        losses = {step: m["val_loss"] for step, m in metrics.items() if m}
        return min(losses, key=losses.__getitem__) if losses else None

    def _metrics(self, step: int) -> Any:
        """The metrics saved with a step, None if it was not evaluated."""
        try:
            return self._manager.metrics(step)
        except FileNotFoundError:
            return None

    def save(self, state: TrainState, val_loss: float | None = None) -> None:
        """Starts to save a state; returns when its arrays are copied.

        A step that has a checkpoint is saved again only to add its validation loss, and only if
        there is another checkpoint to fall back on in the meantime.
        """
        step = int(state.step)
        self.wait()
        if step in self.steps():
            if val_loss is None or self._metrics(step) or len(self.steps()) == 1:
                return
            self._manager.delete(step)
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(by_path(state.params)),
            opt_state=ocp.args.StandardSave(by_path(state.opt_state)),
        )
        metrics = None if val_loss is None else {"val_loss": val_loss}
        self._manager.save(step, args=items, metrics=metrics)

    def save_params(self, params: Any) -> None:
        """Saves parameters without an optimizer state, as step 0. Training cannot resume there."""
        items = ocp.args.Composite(params=ocp.args.StandardSave(by_path(params)))
        self._manager.save(0, args=items)

    def wait(self) -> None:
        """Returns when every save is complete."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until every save is complete, and ends orbax's threads."""
        self._manager.close()

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state at a step, with the tree, dtypes and shardings of `like` (arrays or shapes).

        Raises UserError with the difference if the checkpoint's arrays have other names or shapes.
        """
        restored = self._restore(step, {"params": like.params, "opt_state": like.opt_state})
        # Placed as `like` has it: another placement would compile the train step a second time.
        step_array = jax.device_put(jnp.int32(step), like.step.sharding)
        return TrainState(step_array, restored["params"], restored["opt_state"])

    def restore_params(self, step: int, like: Any) -> Any:
        """The parameters alone, which is all that sampling and evaluation need."""
        return self._restore(step, {"params": like})["params"]

    def _restore(self, step: int, items: dict[str, Any]) -> dict[str, Any]:
        saved = self._manager.item_metadata(step)
        flat = {
            name: {_stored_path(path, saved[name]): leaf for path, leaf in by_path(tree).items()}
            for name, tree in items.items()
        }
        for name in items:
            obsolete = {p: leaf for p, leaf in saved[name].items() if OBSOLETE.search(p)}
            flat[name] |= {p: jax.ShapeDtypeStruct(x.shape, x.dtype) for p, x in obsolete.items()}
            had = {path: tuple(leaf.shape) for path, leaf in saved[name].items()}
            want = {path: tuple(leaf.shape) for path, leaf in flat[name].items()}
            if had != want:
                paths = sorted(p for p in had | want if had.get(p) != want.get(p))
                lines = ", ".join(f"{p} {had.get(p)} -> {want.get(p)}" for p in paths[:4])
                raise UserError(
                    f"checkpoint {step} does not fit the model: {len(paths)} of its {name} "
                    f"differ ({lines}{', ...' if len(paths) > 4 else ''})"
                )
        args = {name: ocp.args.StandardRestore(tree) for name, tree in flat.items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        return {
            name: jax.tree.unflatten(
                jax.tree.structure(tree),
                [restored[name][_stored_path(path, saved[name])] for path in by_path(tree)],
            )
            for name, tree in items.items()
        }


# Muon's state before 2026-11-26, as optax.contrib.muon has it.
OLD_MUON = "inner_states.muon.inner_state.inner_states.muon.inner_state."
OBSOLETE = re.compile(r"inner_states\.muon\.inner_state\.inner_states\.(adam\.|.*ns_coeffs$)")


def _stored_path(path: str, saved: Any) -> str:
    """The name that an array of the state has in a checkpoint, which may be an older one."""
    old = path.replace("inner_states.muon.inner_state.", OLD_MUON).replace(
        f"{OLD_MUON}2.", f"{OLD_MUON}3."
    )
    return old if path not in saved and old in saved else path


def committed_steps(folder: Path) -> list[int]:
    """The steps of a run with a complete checkpoint, ascending. Makes no folder."""
    names = (path.name for path in (folder / "checkpoints").glob("*"))
    return sorted(int(name) for name in names if name.isdecimal())


def load_params(folder: Path, model: Model, which: str = "best") -> tuple[int, Any]:
    """(step, parameters) of a run, on this process's first device.

    which: "best" (the lowest validation loss), "latest", or a step. Raises UserError with a list
    of the steps there are if this one is not among them.
    """
    steps = committed_steps(folder)
    if not steps:
        raise UserError(f"{folder} has no checkpoint yet; let it train to its first evaluation")
    checkpoints = Checkpoints(folder / "checkpoints")
    if which in ("best", "latest"):
        step = (checkpoints.best() if which == "best" else None) or steps[-1]
    elif which.isdecimal() and int(which) in steps:
        step = int(which)
    else:
        listed = ", ".join(map(str, steps))
        raise UserError(f"--step {which} is not there; {folder} has best, latest, {listed}")
    number_format = run_directory.read_format(folder)
    shapes = jax.eval_shape(lambda: quantize_params(models.init(model, seed=0), number_format))
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return step, checkpoints.restore_params(step, with_sharding(shapes, sharding))


def save_finished(
    folder: Path,
    config: Config,
    tok: Tokenizer,
    params: Any,
    data: dict[str, Any],
    files: dict[str, Any] | None = None,
) -> None:
    """Writes a run that has parameters only into a folder of `run_directory.new_run`.

    data: the source and sha256 of what they were trained on, and further facts. files: more JSON
    files, as {name: content}.
    """
    with contextlib.closing(Checkpoints(folder / "checkpoints", keep_latest=1)) as checkpoints:
        checkpoints.save_params(params)
    for name, content in (files or {}).items():
        write_json(folder / name, content)
    run_directory.describe(folder, config, tok, data)


def disk_bytes(folder: Path) -> int:
    """Bytes that the latest parameters of a run take on disk."""
    files = (folder / "checkpoints" / str(committed_steps(folder)[-1]) / "params").rglob("*")
    return sum(path.stat().st_size for path in files if path.is_file())

"""A run directory that explains itself, and the checkpoints in it.

    runs/NAME/
      config.json        every knob                       tokenizer.json     the vocabulary
      environment.json   versions, devices, data SHA-256  metrics.jsonl      one line per log
      loss.png           the curves                       samples/STEP.txt   what it writes
      checkpoints/STEP/  params and opt_state, by orbax   lock               PID of its trainer
      format.json        of a quantized one               quantization.json  what that costs it

`sample.py runs/NAME` needs nothing else. A checkpoint appears by renaming a finished folder,
so a process killed at any moment leaves the last committed one intact.
"""

import contextlib
import fcntl
import json
import logging
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from gptjax import config_json, models
from gptjax.config import Config
from gptjax.data import tokenizer as tokenizer_lib
from gptjax.data.dataset import Data
from gptjax.data.tokenizer import Tokenizer
from gptjax.errors import Interrupted, UserError
from gptjax.models import Model
from gptjax.quantization.quant_array import FLOAT32, Format, quantize_params
from gptjax.scale import processes
from gptjax.training import TrainState

logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells of each file that it touches

# What a resumed run may not change: everything that the arrays in its checkpoints depend on.
FIXED = ("model", "optim.name", "data")
FREE = ("model.dropout", "data.path", "data.name", "data.vocab_size", "data.tokenizer")
FREE += ("data.speed_change", "data.noise", "data.spec_masks")


KEEP_LATEST = 2
"""Latest checkpoints that a run keeps, besides the best one."""


class Checkpoints:
    """The checkpoints of a run: the latest `keep_latest` and the best, saved asynchronously."""

    def __init__(self, folder: Path, keep_latest: int | None = None):
        """Read-only if keep_latest is None; else also clears what a killed save left behind."""
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
        """Committed steps, ascending."""
        return sorted(self._manager.all_steps())

    def best(self) -> int | None:
        """The step with the lowest validation loss, None where none was evaluated."""
        metrics = {step: self._metrics(step) for step in self.steps()}
        losses = {step: m["val_loss"] for step, m in metrics.items() if m}
        return min(losses, key=losses.__getitem__) if losses else None

    def _metrics(self, step: int) -> Any:
        """What was saved with a step, None if it was not evaluated."""
        try:
            return self._manager.metrics(step)
        except FileNotFoundError:
            return None

    def save(self, state: TrainState, val_loss: float | None = None) -> None:
        """Starts to save; returns once the arrays are copied.

        A step that is there already is left alone, unless its validation loss is known only now
        and there is another checkpoint to fall back on while it is replaced.
        """
        step = int(state.step)
        self.wait()
        if step in self.steps():
            if val_loss is None or self._metrics(step) or len(self.steps()) == 1:
                return
            self._manager.delete(step)
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(_by_path(state.params)),
            opt_state=ocp.args.StandardSave(_by_path(state.opt_state)),
        )
        metrics = None if val_loss is None else {"val_loss": val_loss}
        self._manager.save(step, args=items, metrics=metrics)

    def save_params(self, params: Any) -> None:
        """Saves parameters alone, as step 0: nothing that training could continue from."""
        items = ocp.args.Composite(params=ocp.args.StandardSave(_by_path(params)))
        self._manager.save(0, args=items)

    def wait(self) -> None:
        """Returns when every save is committed."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until every save is committed and ends the threads of orbax."""
        self._manager.close()

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state at a step, with the tree, dtypes and shardings of `like` (arrays or shapes).

        Raises UserError with a diff when the checkpoint has other arrays than `like`.
        """
        restored = self._restore(step, {"params": like.params, "opt_state": like.opt_state})
        # Placed like the rest: another placement would compile the train step twice.
        step_array = jax.device_put(jnp.int32(step), like.step.sharding)
        return TrainState(step_array, restored["params"], restored["opt_state"])

    def restore_params(self, step: int, like: Any) -> Any:
        """The parameters alone: all that sampling and evaluation need."""
        return self._restore(step, {"params": like})["params"]

    def _restore(self, step: int, items: dict[str, Any]) -> dict[str, Any]:
        saved = self._manager.item_metadata(step)
        flat = {name: _by_path(tree) for name, tree in items.items()}
        for name in items:
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
                jax.tree.structure(tree), [restored[name][path] for path in flat[name]]
            )
            for name, tree in items.items()
        }


def committed_steps(folder: Path) -> list[int]:
    """The steps of a run that have a checkpoint, ascending; makes no folder to look into.

    orbax gives a checkpoint its bare number as a name when it is whole.
    """
    names = (path.name for path in (folder / "checkpoints").glob("*"))
    return sorted(int(name) for name in names if name.isdecimal())


def _by_path(tree: Any) -> dict[str, Any]:
    """{"block_0.mlp.hidden.kernel": leaf, ...} in the tree's order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder and holds its lock, which the system releases however we end.

    Of several processes the first does, and the others wait for it.

    Raises UserError when another process holds it (naming its PID), when the folder is something
    else than a run, and when it cannot be written.
    """
    if not processes.is_first():
        processes.wait_for_all(str(folder))
        yield
        return
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--run-dir {folder} is a file; name a folder")
        # config.json comes last, so a start killed early leaves some of the others without it.
        early = {"lock", "checkpoints", "tokenizer.json", "environment.json", "config.json"}
        names = {p.name.removesuffix(".part") for p in folder.iterdir()} if folder.is_dir() else ()
        if not early.issuperset(names) and not (folder / "config.json").exists():
            raise UserError(
                f"--run-dir {folder} has files but no config.json, so it is no run; name another"
            )
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "a+")  # noqa: SIM115 - held for as long as the run
    except OSError as error:
        raise UserError(
            f"--run-dir {folder} cannot be written ({error.strerror}); name another"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise UserError(
                f"--run-dir {folder} is in use by process {lock.read().strip() or 'unknown'}; "
                "stop that one, or name another folder"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        processes.wait_for_all(str(folder))
        try:
            yield
        except UserError:
            if is_new and [p.name for p in folder.iterdir()] == ["lock"]:  # nothing came of it
                (folder / "lock").unlink()
                folder.rmdir()
            raise


def check_resumable(folder: Path, config: Config, data: Data) -> list[str]:
    """Compares a run found in the folder with what is asked for now.

    Returns the changes that are allowed (learning rate, dropout, number of steps, ...), in
    words; raises UserError with a diff for those that the checkpoints do not survive, and for a
    run that was imported or quantized.
    """
    if not (folder / "checkpoints" / str(committed_steps(folder)[-1]) / "opt_state").exists():
        raise UserError(
            f"{folder} was imported or quantized: it has no optimizer state, so training cannot "
            "continue it; name another --run-dir (an imported one can be its --train.init-from)"
        )
    had, want = config_json.flatten(read_config(folder)), config_json.flatten(config)
    refused, allowed = [], []
    for knob in had | want:
        change = f"{knob} {had.get(knob, 'none')} -> {want.get(knob, 'none')}"
        if had.get(knob) == want.get(knob):
            continue
        fixed = knob not in FREE and any(knob == f or knob.startswith(f + ".") for f in FIXED)
        (refused if fixed else allowed).append(change)
    if not refused:  # or it is a consequence
        had_tokenizer = read_tokenizer(folder)
        if had_tokenizer.to_dict() != data.tokenizer.to_dict():
            sizes = had_tokenizer.vocab_size, data.tokenizer.vocab_size
            refused.append(f"vocabulary of {sizes[0]} tokens -> another of {sizes[1]}")
        refused += _data_changes(folder, data)
    if refused:
        raise UserError(
            f"{folder} holds another run, which cannot continue so: {'; '.join(refused)}; undo "
            "that, or start anew with --run-dir"
        )
    return allowed


def has_data(folder: Path) -> bool:
    """Whether a run names what it was trained on; one that was imported does not."""
    return len(read_environment(folder)["data"]) > 2  # sizes, next to a source and its hash


def check_same_data(folder: Path, data: Data) -> None:
    """Raises UserError when this is not what the run was trained on."""
    if changes := _data_changes(folder, data):
        raise UserError(f"{folder} was trained on other data: {'; '.join(changes)}; restore that")


def _data_changes(folder: Path, data: Data) -> list[str]:
    """How the data differs from what the run was trained on, in words."""
    had = read_environment(folder)["data"]
    if had["sha256"] != data.sha256:
        return [f"data sha256 {had['sha256'][:12]} -> {data.sha256[:12]} ({data.source})"]
    return [  # token files, split anew
        f"{name} {had[name]:,} -> {size:,} ({data.source})"
        for name, size in data.sizes.items()
        if had[name] != size
    ]


def describe_run(folder: Path, config: Config, data: Data) -> None:
    """Writes config.json, tokenizer.json and environment.json."""
    of_data = {"source": data.source, "sha256": data.sha256, **data.sizes}
    _describe(folder, config, data.tokenizer, of_data)


@contextlib.contextmanager
def new_run(folder: Path) -> Iterator[Path]:
    """The folder FOLDER.part, to make a run in; it gets its name in the end.

    It is there from the start, so that of two processes that make the same run the second is
    refused before its work and not after. Work that fails, or is stopped by Ctrl-C or SIGTERM,
    leaves nothing. Raises UserError if something is there, or if nothing can be made there.
    """
    taken = UserError(f"{folder} exists; remove it, or name another folder")
    if not folder.name:  # . or /
        raise taken
    part = folder.with_name(folder.name + ".part")
    missing = [parent for parent in folder.absolute().parents if not parent.exists()]
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.mkdir()
    except OSError as error:
        if isinstance(error, FileExistsError) and part.exists():
            raise UserError(
                f"{part} exists: another process is making {folder}, or was killed at it; name "
                f"another folder, or remove {part.name} if there is no such process"
            ) from None
        raise UserError(
            f"{folder} cannot be made in {folder.parent} ({error.strerror}); name another folder"
        ) from None

    def stop(signum: int, frame: Any) -> None:
        raise Interrupted(signum)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        # Now nobody else can make it any more.
        if folder.is_symlink() or folder.exists():
            raise taken
        yield part
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        for parent in missing:
            with contextlib.suppress(OSError):  # somebody else put something there
                parent.rmdir()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    part.rename(folder)


def save_finished(
    folder: Path,
    config: Config,
    tok: Tokenizer,
    params: Any,
    data: dict[str, Any],
    files: dict[str, Any] | None = None,
) -> None:
    """Writes a run of parameters alone into a folder of `new_run`.

    data: what they were trained on, a source and its sha256 at least. files: further JSON files,
    by name.
    """
    with contextlib.closing(Checkpoints(folder / "checkpoints", keep_latest=1)) as checkpoints:
        checkpoints.save_params(params)
    for name, content in (files or {}).items():
        write_json(folder / name, content)
    _describe(folder, config, tok, data)


def _describe(folder: Path, config: Config, tok: Tokenizer, data: dict[str, Any]) -> None:
    environment = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": [d.device_kind for d in jax.devices()],
        "cpus": len(os.sched_getaffinity(0)),
        "packages": {
            name: version(name)
            for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
        },
        "data": data,
    }
    write_json(folder / "tokenizer.json", tok.to_dict(), indent=None)
    write_json(folder / "environment.json", environment)
    write_atomically(folder / "config.json", config_json.to_json(config))


def check_disk(folder: Path, state: TrainState, n_checkpoints: int) -> None:
    """Raises UserError when the checkpoints of a run would not fit on its disk."""
    leaves = jax.tree.leaves(state)
    needed = n_checkpoints * sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) + (1 << 24)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"--run-dir {folder}: its disk has {free / 1e6:,.0f} MB free, but {n_checkpoints} "
            f"checkpoints need {needed / 1e6:,.0f} MB; make room or name another folder"
        )


def read_config(folder: Path) -> Config:
    """The configuration of a run. Raises UserError if the folder holds none."""
    try:
        return config_json.from_json((folder / "config.json").read_text(encoding="utf-8"))
    except OSError:
        what = "is a file" if folder.is_file() else "does not exist"
        what = "is not a run directory (no config.json)" if folder.is_dir() else what
        runs = sorted(str(p.parent) for p in Path("runs").glob("*/config.json"))
        raise UserError(f"{folder} {what}; runs here: {', '.join(runs) or 'none'}") from None


def disk_bytes(folder: Path) -> int:
    """Bytes of the files of a run's latest parameters."""
    files = (folder / "checkpoints" / str(committed_steps(folder)[-1]) / "params").rglob("*")
    return sum(path.stat().st_size for path in files if path.is_file())


def read_format(folder: Path) -> Format:
    """What the numbers of a run are made of: float32, if it was not quantized."""
    path = folder / "format.json"
    if not path.exists():
        return FLOAT32
    try:
        return Format(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); quantize the run again") from None


def read_environment(folder: Path) -> dict[str, Any]:
    """What a run was made with: versions, devices, data."""
    try:
        return json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}/environment.json cannot be read ({error})") from None


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a run."""
    try:
        return tokenizer_lib.from_dict(
            json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}/tokenizer.json cannot be read ({error})") from None


def load_params(folder: Path, model: Model, which: str = "best") -> tuple[int, Any]:
    """(step, parameters) of a run, on this process's first device.

    which: "best" (the lowest validation loss), "latest", or a step. Raises UserError, listing
    what there is, when it is not there.
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
    form = read_format(folder)
    shapes = jax.eval_shape(lambda: quantize_params(models.init(model, seed=0), form))
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return step, checkpoints.restore_params(step, with_sharding(shapes, sharding))


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    """Writes a JSON file whole or not at all."""
    write_atomically(path, json.dumps(content, indent=indent) + "\n")


def write_atomically(path: Path, content: str) -> None:
    """Writes a file whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(content, encoding="utf-8")
    part.replace(path)


def with_sharding(shapes: Any, shardings: Any) -> Any:
    """Shapes that say where their arrays belong, to restore a checkpoint into.

    shardings: a tree like that of the shapes, or one for all of them.
    """
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        jax.tree.broadcast(shardings, shapes),
    )

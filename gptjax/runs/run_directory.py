"""A run directory: its lock, and the files that describe it.

    runs/NAME/
      config.json        every field                      tokenizer.json     the vocabulary
      environment.json   versions, devices, data SHA-256  metrics.jsonl      one line per log
      loss.png           the curves                       samples/STEP.txt   text of the model
      checkpoints/STEP/  params and opt_state, by orbax   lock               PID of its trainer
                         manifest.json: val_loss, checksums of the files
      recordings.json    of speech: files, splits, sizes
    and, of a quantized model,
      format.json        the number format                quantization.json  its cost in loss

`sample.py runs/NAME` needs nothing else.
"""

import contextlib
import fcntl
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import jax

from gptjax import checksums, config_json, json_files
from gptjax.atomic import open_here, sigterm_as_exception, write_json
from gptjax.config import Config, ModelConfig
from gptjax.data import tokenizer as tokenizer_lib
from gptjax.data.dataset import Data
from gptjax.data.texts import TextData
from gptjax.data.tokenizer import Tokenizer
from gptjax.errors import UserError, naming
from gptjax.quantization.quant_array import FLOAT32, Bits, Format
from gptjax.scale import processes

# A start that is killed early leaves some of these without config.json, which is written last.
WRITTEN_FIRST = {"lock", "checkpoints", "tokenizer.json", "environment.json", "config.json"}
WRITTEN_FIRST |= {"recordings.json"}


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder and holds its lock. The system releases it however the process ends.

    Of several processes the first one takes the lock, and the others wait for it. A folder that
    is new is removed again if a UserError leaves it empty.

    Raises UserError when another process holds the lock (with its PID), when the folder has other
    files than those of a run, and when it cannot be written.
    """
    if not processes.is_first():
        processes.barrier(str(folder))
        yield
        return
    try:
        _check_is_run(folder)
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        lock = open_here(folder / "lock", "a+", errors="replace")
    except OSError as error:
        raise UserError(
            f"--run-dir {folder} cannot be written ({error.strerror or error}); name another"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(
                f"--run-dir {folder} is in use by process {lock.read(20).strip() or 'unknown'}; "
                "stop that one, or name another folder"
            ) from None
        except OSError as error:  # Lustre and some NFS have no locks
            print(
                f"warning: {folder} is on a file system that cannot lock files "
                f"({error.strerror}); do not train this run twice at the same time",
                file=sys.stderr,
            )
        with naming(folder / "lock"):
            lock.truncate(0)
            os.write(lock.fileno(), str(os.getpid()).encode())  # unbuffered: close() cannot fail
        processes.barrier(str(folder))
        try:
            yield
        except UserError:
            if is_new and [p.name for p in folder.iterdir()] == ["lock"]:
                (folder / "lock").unlink()
                folder.rmdir()
            raise


def _check_is_run(folder: Path) -> None:
    """Raises UserError where training would mix its files with others."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--run-dir {folder} is a file; name a folder")
    paths = list(folder.iterdir()) if folder.is_dir() else []
    folders = [folder / "checkpoints", *paths]  # links: gptjax would write and delete elsewhere
    if (folder / "checkpoints").is_dir():
        folders += (folder / "checkpoints").iterdir()
    if links := [p for p in folders if p.is_symlink() and not p.is_file()]:
        raise UserError(
            f"{links[0]} is a symbolic link, so files outside of {folder} would be written or "
            "deleted; put the folder itself in its place"
        )
    names = {path.name.removesuffix(".part") for path in paths}
    if not names <= WRITTEN_FIRST and not (folder / "config.json").exists():
        raise UserError(
            f"--run-dir {folder} has files but no config.json, so it is not a run; name another"
        )


@contextlib.contextmanager
def new_run(folder: Path) -> Iterator[Path]:
    """Yields the new folder FOLDER.part, to make a run in. It is renamed to FOLDER at the end.

    FOLDER.part also reserves the name: a second process that wants to make the same run is refused
    at once, not after its work. An exception, Ctrl-C or SIGTERM removes FOLDER.part and the parent
    folders made for it. Raises UserError if FOLDER or FOLDER.part exists, or cannot be made.
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
                f"{part} exists: another process is making {folder}, or was killed while it did; "
                f"name another folder, or remove {part.name} if there is no such process"
            ) from None
        raise UserError(
            f"{folder} cannot be made in {folder.parent} ({error.strerror}); name another folder"
        ) from None

    with sigterm_as_exception():
        try:
            # Checked only now: from here on, no other process can make it.
            if folder.is_symlink() or folder.exists():
                raise taken
            with naming(folder):
                yield part
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            for parent in missing:
                with contextlib.suppress(OSError):  # another process has put something there
                    parent.rmdir()
            raise
    part.rename(folder)


def describe_run(folder: Path, config: Config, data: Data) -> None:
    """Writes tokenizer.json, environment.json and config.json of a run on this data."""
    facts = {"source": data.source, "sha256": data.sha256, **data.sizes}
    if isinstance(data, TextData):
        facts["bytes_per_token"] = round(data.bytes_per_token, 6)
    describe(folder, config, data.tokenizer, facts)


def describe(folder: Path, config: Config, tok: Tokenizer, data: dict[str, Any]) -> None:
    """Writes tokenizer.json, environment.json and config.json.

    data: the source and sha256 of what the parameters were trained on, and further facts.
    """
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
    write_json(folder / "tokenizer.json", checksums.seal(tok.to_dict()), indent=None)
    write_json(folder / "environment.json", checksums.seal(environment))
    settings = json.loads(config_json.to_json(config))
    write_json(folder / "config.json", checksums.seal(settings))  # last: now it is a run


def check_disk(folder: Path, state: Any, n_checkpoints: int) -> None:
    """Raises UserError when the checkpoints of a run would not fit on its disk.

    state: the arrays of one checkpoint, or their shapes.
    """
    leaves = jax.tree.leaves(state)
    needed = n_checkpoints * sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) + (1 << 24)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"--run-dir {folder}: its disk has {free / 1e6:,.0f} MB free, but {n_checkpoints} "
            f"checkpoints need {needed / 1e6:,.0f} MB; make room or name another folder"
        )


def read_config(folder: Path) -> Config:
    """The configuration of a run. Raises UserError if the folder has none, or a broken one."""
    path = folder / "config.json"
    if not os.path.lexists(path):
        what = "is a file" if folder.exists() else "does not exist"
        what = "is not a run directory (no config.json)" if folder.is_dir() else what
        runs = sorted(str(p.parent) for p in Path("runs").glob("*/config.json"))
        raise UserError(f"{folder} {what}; runs here: {', '.join(runs) or 'none'}")
    return config_json.read(path)


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a run."""
    return tokenizer_lib.read(folder / "tokenizer.json")


class _DataFacts(TypedDict):
    """What environment.json says of any data. Other facts, such as sizes, vary."""

    source: str
    sha256: str


class _Environment(TypedDict):
    """The form of environment.json, as far as it is read."""

    data: _DataFacts


def read_environment(folder: Path) -> dict[str, Any]:
    """Versions, devices and data that a run was made with."""
    fix = "restore the file from a copy of the run"
    return dict(json_files.read(folder / "environment.json", _Environment, fix))


def require_one_model(folder: Path, what: str) -> None:
    """Raises UserError if a run is an ensemble. what: what needs a single model."""
    n_members = read_config(folder).train.members
    if n_members > 1:
        raise UserError(
            f"{folder} is an ensemble of {n_members} models, and {what} needs one; train one that "
            f"learns from it, with --train.teacher {folder}"
        )


def require_like(folder: Path, model: ModelConfig, option: str) -> None:
    """Raises UserError for a run of another kind of model, or a quantized one."""
    if read_format(folder) != FLOAT32:
        raise UserError(f"{option} {folder} is quantized; name the run that it was made from")
    theirs = read_config(folder).model
    if type(theirs) is not type(model):
        kinds = [type(c).__name__.removesuffix("Config") for c in (theirs, model)]
        raise UserError(f"{option} {folder} is a {kinds[0]}, but this is a {kinds[1]}")


class _FormatFile(TypedDict):
    bits: Bits
    group: int
    activation_bits: int
    odd: NotRequired[bool]


def read_format(folder: Path) -> Format:
    """The number format of a run's parameters: float32 unless it was quantized."""
    path = folder / "format.json"
    if not os.path.lexists(path):
        return FLOAT32
    fix = "quantize the run again"
    saved: Any = json_files.read(path, _FormatFile, fix)
    try:
        return Format(**{"odd": False, **saved})  # files before 2026-11-27 do not say
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} has no number format ({error}); {fix}") from None

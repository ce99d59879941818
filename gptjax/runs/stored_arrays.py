"""The arrays of a checkpoint as they are on disk: where orbax finds them, and their names."""

import contextlib
import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from gptjax import models
from gptjax.errors import SaveError, UserError, disk_error
from gptjax.quantization.quant_array import Format, quantize_params
from gptjax.scale.sharding import by_path

# Muon's state before 2026-11-26, as optax.contrib.muon has it.
OLD_MUON = "inner_states.muon.inner_state.inner_states.muon.inner_state."
OBSOLETE = re.compile(r"inner_states\.muon\.inner_state\.inner_states\.(adam\.|.*ns_coeffs$)")


def _stored_path(path: str, saved: Any) -> str:
    """The name that an array of the state has in a checkpoint, which may be an older one."""
    old = path.replace("inner_states.muon.inner_state.", OLD_MUON).replace(
        f"{OLD_MUON}2.", f"{OLD_MUON}3."
    )
    return old if path not in saved and old in saved else path


@functools.cache  # for all checkpoints of a run
def shapes_of(model: Any, number_format: Format) -> Any:
    """The shapes of a model's parameters in a number format."""
    quantize = functools.partial(quantize_params, form=number_format)
    return jax.eval_shape(quantize, models.shapes(model))


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[str]:
    """A path of the open folder for orbax, which takes [ ] * ? in a path for a pattern.

    It stays the same folder if somebody moves it. Raises OSError if it is a symbolic link.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    path = f"/proc/self/fd/{descriptor}"
    try:
        yield path if Path(path).is_dir() else str(folder.resolve())
    finally:
        os.close(descriptor)


def restore_item(
    checkpointer: ocp.StandardCheckpointer, path: str, item: str, step: int, like: Any
) -> Any:
    """One item of a checkpoint, with the tree of `like`. Raises UserError if they do not fit."""
    saved: Any = checkpointer.metadata(path).item_metadata
    if saved is None:
        raise ValueError(f"the names and shapes of {item} cannot be read")
    flat = {_stored_path(path, saved): leaf for path, leaf in by_path(like).items()}
    obsolete = {p: leaf for p, leaf in saved.items() if OBSOLETE.search(p)}
    flat |= {p: jax.ShapeDtypeStruct(x.shape, x.dtype) for p, x in obsolete.items()}
    had = {path: tuple(leaf.shape) for path, leaf in saved.items()}
    want = {path: tuple(leaf.shape) for path, leaf in flat.items()}
    if had != want:
        paths = sorted(p for p in had | want if had.get(p) != want.get(p))
        lines = ", ".join(f"{p} {had.get(p)} -> {want.get(p)}" for p in paths[:4])
        raise UserError(
            f"checkpoint {step} does not fit the model: {len(paths)} of its {item} "
            f"differ ({lines}{', ...' if len(paths) > 4 else ''})"
        )
    restored = checkpointer.restore(path, flat)
    names = [_stored_path(path, saved) for path in by_path(like)]
    return jax.tree.unflatten(jax.tree.structure(like), [restored[name] for name in names])


def read_back(folder: Path, shapes: dict[str, jax.ShapeDtypeStruct]) -> None:
    """Reads every array of one item of a checkpoint, one at a time.

    shapes: by name, what was saved. Raises SaveError for an array that is missing, has another
    shape or type, or holds a number that is not finite.
    """
    store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}
    for name, shape in shapes.items():
        spec = {
            "driver": "zarr",
            "kvstore": {**store, "path": f"{name}/"},
            "fill_missing_data_reads": False,
        }
        try:
            array = tensorstore.open(spec, open=True, read=True).result().read().result()
        except (ValueError, OSError) as error:
            raise SaveError(f"array {name} cannot be read back ({brief(error)})") from error
        if array.shape != shape.shape or array.dtype != shape.dtype:
            raise SaveError(
                f"array {name} is read back as {array.dtype}{list(array.shape)} instead of "
                f"{shape.dtype}{list(shape.shape)}"
            )
        if not np.isfinite(array).all():
            raise SaveError(f"array {name} is read back with numbers that are not finite")


def brief(error: BaseException) -> str:
    """An error of another library in few words, without its source positions."""
    if code := disk_error(error):
        return os.strerror(code)
    words = " ".join((str(error) or type(error).__name__).split(" [")[0].split())
    return words if len(words) <= 160 else f"{words[:157]}..."
